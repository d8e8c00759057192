//! Whether the target is what the source is.
//!
//! - [`reconcile`] runs the plan's checks; [`Checked`] says how each of them went

mod check;
mod reconcile;

pub use check::{Checked, Databases, Mending, OnlyIn, Outcome, Sample};
pub use reconcile::{Report, Verdict, reconcile};
