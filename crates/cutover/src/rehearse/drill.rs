//! A cutover and a rollback between two databases that nobody needs.
//!
//! One plays the source: the rehearsal fills it from the log, and has compared it with what was recorded. The other one, of `--into`, plays the target: a migration of its own, with
//! a plan [of the user's](plan::Plan::drill), an embedded log and the processes of any `crossfade run`, copies and follows. While a [`load`] rewrites [`rows`], [`play`] compares, cuts
//! over, compares the way back, rolls back, and compares again. [`databases`] says which two may be it, and takes away what was made there; the [`report`] stands in the rehearsal's.
//!
//! Nothing of it touches source, target or log of the user's plan.

mod databases;
mod load;
mod play;
mod report;
mod rows;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use model::Problem;
use plan::Plan;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use load::written;
pub(crate) use report::text;
pub use report::{DrillReport, LeftOut, LoadReport, Played, Switch};

use crate::rehearse::{self, Report};

/// What a drill needs.
pub struct Job {
    /// The rehearsal, which fills the copy of the source.
    pub rehearsal: rehearse::Job,
    /// What compares that with the copy of the target, by the drill's own plan.
    pub comparison: verify::Job,
    /// The copy of the source is not there: it is made beside that of the target, and dropped.
    pub create: bool,
    /// Captures and applies for a plan, both ways, until it is told to stop.
    pub processes: Processes,
}

/// What `crossfade run` does.
pub type Processes = Box<dyn Fn(Arc<Plan>, CancellationToken) -> Running + Send + Sync>;

/// It, under way.
pub type Running = Pin<Box<dyn Future<Output = Result<(), Problem>> + Send>>;

/// How long the processes may take to end; what they have under way is of no use any more.
const ENDING: Duration = Duration::from_secs(10);

/// Rehearses, and plays. None if `stop` has cut it off; what it had made is taken away then, too.
///
/// # Errors
/// It could not run, or the rehearsal could not. That the drill failed is in the report.
pub async fn run(job: &Job, stop: &CancellationToken) -> Result<Option<Report>, Problem> {
    let into = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(None),
        opened = databases::open(job) => opened?,
    };
    let (mut processes, inner) = (JoinSet::new(), CancellationToken::new());
    let played = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        played = both(job, &mut processes, &inner, stop) => Some(played),
    };
    info!("taking away what the drill has made");
    inner.cancel();
    let _ = tokio::time::timeout(ENDING, async { while processes.join_next().await.is_some() {} }).await;
    processes.shutdown().await;
    let left = databases::tidy(job).await;
    for left in &left {
        warn!("the drill leaves behind {left}");
    }
    let Some(report) = played else { return Ok(None) };
    let mut report = Report { into, ..report? };
    if let Some(drill) = &mut report.drill {
        drill.left = left;
    }
    Ok(Some(report))
}

async fn both(
    job: &Job,
    processes: &mut JoinSet<Result<(), Problem>>,
    inner: &CancellationToken,
    stop: &CancellationToken,
) -> Result<Report, Problem> {
    let mut report = rehearse::run(&job.rehearsal).await?;
    let begun = Instant::now();
    let mut drill = DrillReport::new(std::mem::take(&mut report.into));
    let played = play::play(job, &mut drill, processes, inner, stop).await;
    drill.seconds = begun.elapsed().as_secs_f64();
    match played {
        Ok(()) => drill.outcome = Played::Passed,
        Err(problem) => drill.why = Some(problem.to_string()),
    }
    report.seconds += drill.seconds;
    report.drill = Some(drill);
    Ok(report)
}
