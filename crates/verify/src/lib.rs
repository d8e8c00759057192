//! Whether the target is what the source is.
//!
//! [`run`] compares tables ([`pair`]) in [`parts`], by [`rounds`], unless those that move the tail are [`idle`]. A [`fence`] brings both [`side`]s to one instant while everybody writes; what lies [`between`] the two
//! is known from the log, and folded to what becomes of each row ([`delta`]). [`sums`] of row hashes are compared, and where they differ, [`rows`].
//! Later on, what was [`touched`] since is enough. What is done, and the verdicts, stand in the target ([`state`]); people and scripts get a [`report`].
//!
//! What tables were at some commits is [`recorded`] in the log: whoever replays it can compare.
//!
//! Where both sides stand still, the [`remainder`] is compared without any of that.
//!
//! What the plan gives by queries is held against them ([`derived`], [`queries`]).
//!
//! [`mend`] puts rows right that differ. [`reconcile`] runs the plan's checks, one by one ([`check`]).
//!
//! Shares no code with apply but for whose state the target has, and what the plan's SQL comes to there: derived tables' queries, findings.

mod access;
mod between;
mod check;
mod comparison;
mod delta;
mod derived;
mod error;
mod fence;
mod idle;
mod mend;
mod pair;
mod parts;
mod queries;
pub mod reconcile;
mod recorded;
mod remainder;
mod report;
mod round;
mod rounds;
mod rows;
mod run;
mod side;
mod state;
mod sums;
mod touched;

pub use access::LogAccess;
pub use check::{Checked, Databases, Fixing, OnlyIn, Outcome, Sample};
pub use derived::derived;
pub use mend::{Mended, Named, Rows, mend};
pub use recorded::{ANOTHER_COPY, Held, PartDiffers, Recorded, Recordings, Replay, of_target};
pub use remainder::{Remainder, Rest};
pub use report::{Difference, Kind, Report, TableReport, Values, Verdict, text};
pub use run::{Job, Options, Watch, run};

/// Notes that all tables of `source` are the same on both sides at a commit, because something was decided upon that: later on only what was touched since is compared.
///
/// # Errors
/// The database that holds the verdicts.
pub async fn stands(
    session: &pg::Session,
    source: &str,
    id: &str,
    lsn: model::Lsn,
    seq: model::Seq,
) -> Result<(), model::Problem> {
    state::open(session).await?;
    Ok(state::seed(session, source, id, lsn, seq).await?)
}
