//! Log → target.
//!
//! [`run`] is the life of one apply process. Every process has a few [`copy`] workers, which take chunks off a ledger and
//! build indexes; one of all processes holds the [`lease`], and with it follows the copy stream's control records ([`control`]), creates
//! the [`schema`], and applies the [`tail`]. What they have to know of each other is in the target, schema `crossfade` ([`state`]).
//!
//! Where tables are copied again, or the tail starts anew behind a gap, [`recopy`] makes void what was there. Rows that somebody else writes to the target are [`rogue`].
//!
//! What the plan gives as SQL over source tables is kept current by [`derived`]. What its rules leave out is counted by [`findings`](mod@findings).
//!
//! The way back is the same with a plan that leads [back](plan::Plan::back): what its state in the source begins with is in [`back`].
//!
//! Knows nothing of the source but what the log says of it.

mod back;
mod control;
mod copy;
mod derived;
mod error;
mod findings;
mod lease;
mod preflight;
mod recopy;
mod remove;
mod rogue;
mod run;
mod schema;
mod session;
mod state;
mod tables;
mod tail;

pub use back::{BackFrom, Quiet, applied, back_begins, back_prepare, back_tables, bar, forward_again, is_barred, loud};
pub use derived::stored::is_shape;
pub use derived::{
    All, CompileError, Derived, Explained, Filled, Look, Statement, compile_all, derived, explain, unfilled,
};
pub use error::ApplyError;
pub use findings::{Counted, answers, count as findings};
pub use preflight::{Needed, preflight, preflight_derived, preflight_source};
pub use remove::{Removal, live_workers, remove, remove_origins};
pub use run::{Job, run};
pub use session::join_in;
pub use state::{CHANNEL, adopt, knows};
pub use tail::CutOff;
