//! A migration once more, from the log alone, into a database that nobody needs: whether it comes out equal, and how long it takes.
//!
//! [`run`] reads what the log holds: the [`copies`], and in the [`tail`] what verifies have recorded. What [`into`](refusals) is wrong it refuses. Then apply fills the database from a
//! [`view`] of the log that ends at a commit; there it stands, and what was recorded as of that commit is compared. People and scripts get a [`report`], with the time of each of the
//! [`phases`]. A [`drill`] then plays cutover and rollback between that database and another one.
//!
//! Nothing is written but in these databases. Source and target need not be there, unless the live target is what it is to be compared with.

mod copies;
pub mod drill;
mod phases;
mod refusals;
mod report;
mod run;
mod tail;
mod view;
mod walk;

pub use report::{Last, Phase, Report, SourceReport, TableReport, text};
pub use run::{Job, run};
pub use tail::Until;
