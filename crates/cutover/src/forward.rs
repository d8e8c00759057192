//! From the decision on: nothing is taken back any more, and each step may be taken again.

use pg::Session;
use tokio::time::Instant;
use tracing::warn;

use crate::error::CutoverError;
use crate::hooks::{self, Told};
use crate::journal::{self, State};
use crate::old::Old;
use crate::report::{self, Outcome, Report, milliseconds};
use crate::run::Job;

/// Leads the application over. What fails is told, and done by the next one: that the target is open does not depend on it.
pub(crate) async fn roll(
    job: &Job,
    target: &Session,
    olds: &[Old],
    epoch: i64,
    token: i64,
) -> Result<Report, CutoverError> {
    let plan = &job.verify.plan;
    for old in olds {
        let why = format!("Plan {:?} was cut over to another database (epoch {epoch}): write there.", plan.name);
        if let Err(error) = old.tell(&why).await {
            warn!(source = old.name, "its clients are not told where to write: {error}");
        }
    }
    let unfinished = route(job, target, epoch, token).await.err().map(|error| error.to_string());
    if let Some(unfinished) = &unfinished {
        warn!(epoch, "committed, and this is still to be done: {unfinished}");
    }
    for old in olds {
        if let Err(error) = old.release().await {
            warn!(source = old.name, "{error}");
        }
    }
    let known = report::of(target, epoch, Outcome::Committed).await.unwrap_or_else(|error| {
        warn!(epoch, "how it went cannot be read: {error}");
        Report { epoch, ..Report::new(Outcome::Committed) }
    });
    Ok(Report { unfinished, ..known })
}

async fn route(job: &Job, target: &Session, epoch: i64, token: i64) -> Result<(), CutoverError> {
    let plan = &job.verify.plan;
    let lsn = journal::last(target).await?.and_then(|entry| entry.lsn).unwrap_or_default();
    let told = |phase| Told { plan: &plan.name, epoch, phase, lsn: &lsn, writable: "target" };
    let begun = Instant::now();
    let [route, after] = [&plan.cutover.hooks.route, &plan.cutover.hooks.after].map(Option::as_deref);
    hooks::noted(job, target, "route", route, &told("committed")).await?;
    model::failpoint!("application_routed");
    hooks::noted(job, target, "after", after, &told("routed")).await?;
    // Only now: who goes on in our place does all of it again.
    journal::step(target, epoch, token, State::Committed, State::Routed, milliseconds(begun)).await?;
    model::failpoint!("cutover_routed");
    Ok(())
}
