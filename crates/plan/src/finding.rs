use std::time::Duration;

use crate::{CheckSeverity, Sql};

/// A rule of the plan that leaves rows out, or lets them be less than they were. It changes nothing by itself: it says which rows are concerned, and why, so that
/// they are counted instead of missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong with such rows, in one line; no other [`Finding`] has it.
    pub name: String,
    /// What becomes of them and why, in one line.
    pub reason: String,
    /// What it means that there are any.
    pub severity: CheckSeverity,
    /// The query over source tables whose rows they are.
    pub sql: Sql,
    /// How long it may take, more than zero.
    pub timeout: Duration,
    /// The line of the plan that it begins in.
    pub line: usize,
}
