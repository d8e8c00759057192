use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::shape::{Mode, Shape};

/// What happened in a run, or in all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Faults that the seed had planned.
    pub planned: u64,
    /// Those that had something to work on: a process that lived, a connection that was open.
    pub landed: u64,
    /// Those of them that came before copy and tail were joined.
    pub in_copy: u64,
    /// Processes and servers that were killed.
    pub kills: u64,
    /// Times that the network was bad, in whatever way.
    pub cuts: u64,
    /// Processes that were stopped for longer than the lease lasts.
    pub freezes: u64,
    /// Processes that the supervisor started again.
    pub restarts: u64,
    /// Transactions that the application committed, all of them compared in the end.
    pub transactions: u64,
    /// Those of them, and of crossfade's own, that came by the tail.
    pub applied: u64,
    /// Rows compared.
    pub rows: u64,
    /// Rows that differ.
    pub differences: u64,
    /// How long it took to come to rest, at worst.
    pub rest: Duration,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Counts) {
        self.planned += other.planned;
        self.landed += other.landed;
        self.in_copy += other.in_copy;
        self.kills += other.kills;
        self.cuts += other.cuts;
        self.freezes += other.freezes;
        self.restarts += other.restarts;
        self.transactions += other.transactions;
        self.applied += other.applied;
        self.rows += other.rows;
        self.differences += other.differences;
        self.rest = self.rest.max(other.rest);
    }

    /// A run without faults, or without transactions, shows nothing.
    pub(super) fn expect_something(&self) -> Result<()> {
        ensure!(self.landed > 0, "no fault landed");
        ensure!(self.transactions > 0 && self.applied > 0, "no transaction was compared");
        Ok(())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transactions compared ({} through the tail), {} rows; {} of {} faults landed, {} of them in the copy; {} processes stopped, {} started again; at rest within {:.1} s",
            self.transactions,
            self.applied,
            self.rows,
            self.landed,
            self.planned,
            self.in_copy,
            self.freezes,
            self.restarts,
            self.rest.as_secs_f32()
        )
    }
}

/// How a run went.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What the seed made of it.
    pub mode: Mode,
    /// What happened.
    pub counts: Counts,
    /// How long it took.
    pub took: Duration,
    /// Why it did not get to its end, where it should have.
    pub failure: Option<anyhow::Error>,
    /// The folder with everything of a run that failed.
    pub kept: Option<String>,
}

impl Report {
    pub(super) fn new(
        shape: &Shape,
        begun: Instant,
        counts: Counts,
        outcome: Result<()>,
        kept: Option<String>,
    ) -> Self {
        Report { seed: shape.seed, mode: shape.mode, counts, took: begun.elapsed(), failure: outcome.err(), kept }
    }

    /// It did not even begin.
    pub(super) fn failed(shape: &Shape, begun: Instant, error: anyhow::Error) -> Self {
        Report::new(shape, begun, Counts::default(), Err(error), None)
    }

    /// It got to its end, and both sides are equal.
    pub fn good(&self) -> bool {
        self.failure.is_none() && self.counts.differences == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (&self.failure, self.counts.differences) {
            (None, 0) => "equal".to_owned(),
            (None, differences) => format!("{differences} DIFFERENCES"),
            (Some(_), _) => "FAILED".to_owned(),
        };
        write!(f, "seed {} ({}), {:.0} s: {verdict}; {}", self.seed, self.mode, self.took.as_secs_f32(), self.counts)?;
        if let Some(error) = &self.failure {
            write!(f, "\n  {error:#}")?;
        }
        if let Some(kept) = &self.kept {
            write!(f, "\n  kept: {kept}")?;
        }
        Ok(())
    }
}
