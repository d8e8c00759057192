//! How a migration stands: one model ([`Status`]), gathered from the plan alone ([`Gather`]), shown as text ([`text`]), progress bars
//! ([`Bars`]) or JSON. Works from any machine, and while parts are down: what is not known is absent, and a warning says why.
//!
//! [`source`], [`target`] and [`backlog`] each ask one of the three places; [`verdicts`] are in the target, too; cutovers ([`epochs`]) on both sides. [`http`] serves all of it beside what a process does, as JSON and as
//! [`metrics`]. [`runbook`] puts what is known into the documents that people go by.

mod backlog;
mod bars;
mod epochs;
mod gather;
pub mod http;
mod metrics;
mod model;
pub mod runbook;
mod source;
mod target;
mod text;
mod verdicts;

pub use bars::Bars;
pub use epochs::Measured;
pub use gather::Gather;
pub use model::{
    Applied, Lag, LogState, NotEqual, Oldest, Phase, Rogue, SourceState, Status, TableProgress, TableState, Unfinished,
    Verified, Warning, WayBack,
};
pub use text::text;
