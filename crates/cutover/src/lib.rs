//! From the source to the target, in less than a second, and not at all unless everything is there; and [`back`] again.
//!
//! [`run`] looks first: what is in the way is [`refusals`]. Then it goes its [`way`]: the [`old`] side is closed by its fence, and by what the plan puts on top of that ([`bolts`]); a marker goes through the log until the target has
//! it ([`drain`]); [`sequences`] and the application's own [`triggers`] go over; the [`journal`] of the target decides; [`forward`] leads the application over, by the plan's [`hooks`] and its PgBouncers ([`bouncer`]).
//! What fails before the decision is undone by [`cancel`], by whoever lives: [`guard`] runs in every process of the plan. People and scripts get a [`report`].
//!
//! A rollback is the same with a plan that leads [back](plan::Plan::back): what is called source and target in here is the side that the application leaves, and the one that it goes to.
//! What the plan gives by queries has refusals of its own ([`derived`]).
//! [`remove`] takes away what was made at the source. [`stages`] is for applications that go over by flags, step by step: which set of flags holds, and what may come next.
//! [`rehearse`] is the migration once more, from the log alone.
//!
//! The outcome of an epoch stands in one row of the journal of the side that it opens, and nowhere else; [`history`] puts both journals together. Whoever acts has the highest token at the side that is closed, and
//! every statement that closes or opens it asks for that; every step in the journal too.

mod archive;
mod back;
mod bolts;
mod bouncer;
mod cancel;
mod derived;
mod drain;
mod error;
mod forward;
mod guard;
mod history;
mod hooks;
mod journal;
mod old;
mod refusals;
pub mod rehearse;
mod remove;
mod report;
mod run;
mod sequences;
pub mod stages;
mod triggers;
mod way;

pub use archive::archive;
pub use back::{apply as apply_back, capture as capture_back, is_reversing, reversed};
pub use guard::guard;
pub use remove::{Removal, Stands, acts, acts_at_target, open_target, remove, stands};
pub use report::{Outcome, Phase, Refusal, Report, text};
pub use run::{Job, Options, cancel, run};
