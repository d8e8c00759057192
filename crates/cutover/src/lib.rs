//! From the source to the target, in less than a second, and not at all unless everything is there.
//!
//! [`run`] looks first: what is in the way is [`refusals`]. Then it goes its [`way`]: the [`old`] side is closed by its fence; a marker goes through the log until the target has
//! it ([`drain`]); [`sequences`] and the application's own [`triggers`] go over; the [`journal`] of the target decides; [`forward`] leads the application over, by the plan's [`hooks`].
//! What fails before the decision is undone by [`cancel`], by whoever lives: [`guard`] runs in every process of the plan. People and scripts get a [`report`].
//!
//! [`remove`] takes away what was made at the source. [`stages`] is for applications that go over by flags, step by step: which set of flags holds, and what may come next.
//!
//! The outcome of an epoch stands in one row of the target's journal and nowhere else. Whoever acts has the highest token at the source, and every statement that closes or opens
//! the source asks for it; every step in the journal too.

mod cancel;
mod drain;
mod error;
mod forward;
mod guard;
mod hooks;
mod journal;
mod old;
mod refusals;
mod remove;
mod report;
mod run;
mod sequences;
pub mod stages;
mod triggers;
mod way;

pub use guard::guard;
pub use remove::{Removal, acts, remove};
pub use report::{Outcome, Phase, Refusal, Report, text};
pub use run::{Job, Options, cancel, run};
