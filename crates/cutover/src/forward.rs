//! From the decision on: nothing is taken back any more, and each step may be taken again.

use pg::Session;
use plan::Direction;
use tokio::time::Instant;
use tracing::warn;

use crate::bolts;
use crate::bouncer;
use crate::error::CutoverError;
use crate::hooks::{self, Told};
use crate::journal::{self, Entry, State};
use crate::old::{self, Old};
use crate::report::{self, Outcome, Report, milliseconds};
use crate::run::Job;
use crate::triggers;

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
        let what = if job.is_back() { "rolled back to its source" } else { "cut over to another database" };
        let why = format!("Plan {:?} was {what} (epoch {epoch}): write there.", plan.name);
        if let Err(error) = old.tell(&why).await {
            warn!(source = old.name, "its clients are not told where to write: {error}");
        }
    }
    let routed = route(job, target, epoch).await;
    // Whether or not the application is led over: where it writes must reach the other side.
    let handed = hand_over(job, target, olds, epoch).await;
    let ended = async {
        routed?;
        let back = handed?;
        after(job, target, epoch, token, back).await
    };
    let unfinished = ended.await.err().map(|error| error.to_string());
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
        Report { epoch, ..job.report(Outcome::Committed) }
    });
    Ok(Report { unfinished, ..known })
}

async fn route(job: &Job, target: &Session, epoch: i64) -> Result<(), CutoverError> {
    let opened = bolts::opened(&job.verify.plan, target, epoch).await?.into_iter().next();
    let led = bouncer::lead_over(&job.verify.plan, epoch).await;
    hook(job, target, epoch, "route", job.verify.plan.cutover.hooks.route.as_deref(), "committed").await?;
    led?;
    model::failpoint!("application_routed");
    // Whoever goes on does that again, too.
    opened.map_or(Ok(()), |problem| Err(problem.into()))
}

async fn hook(
    job: &Job,
    target: &Session,
    epoch: i64,
    name: &str,
    command: Option<&str>,
    phase: &str,
) -> Result<(), CutoverError> {
    let plan = &job.verify.plan;
    // Whoever was stopped meanwhile must not lead the application to a side that was left since.
    let line = old::look(target, &plan.target_side()).await?;
    if line.is_some_and(|line| line.epoch > epoch) {
        return Err(CutoverError::Overtaken(format!("epoch {epoch} is over: another one has begun")));
    }
    let lsn = journal::last(target).await?.and_then(|entry| entry.lsn).unwrap_or_default();
    let direction = plan.direction.as_str();
    let told = Told { plan: &plan.name, epoch, direction, phase, lsn: &lsn, writable: job.opens(), side: &[] };
    hooks::noted(plan, Some(target), name, command, &told).await
}

async fn after(job: &Job, target: &Session, epoch: i64, token: i64, back: bool) -> Result<(), CutoverError> {
    let begun = Instant::now();
    hook(job, target, epoch, "after", job.verify.plan.cutover.hooks.after.as_deref(), "routed").await?;
    // Only now: who goes on in our place does all of it again.
    let now = journal::last(target).await?.filter(|entry| entry.epoch == epoch).map(|entry| entry.state);
    if now == Some(State::Committed) {
        journal::step(target, epoch, token, State::Committed, State::Routed, milliseconds(begun)).await?;
        model::failpoint!("cutover_routed");
    }
    if back {
        journal::step(target, epoch, token, State::Routed, State::Reversing, milliseconds(begun)).await?;
    }
    Ok(())
}

/// What the application writes from the decision on goes to the other side: the way back of a cutover begins, or, after a rollback, the way forward goes on. Whoever does it again
/// changes nothing. Says whether there is a way back.
pub(crate) async fn hand_over(job: &Job, target: &Session, olds: &[Old], epoch: i64) -> Result<bool, CutoverError> {
    let plan = &job.verify.plan;
    let from = match journal::last(target).await?.filter(|entry| entry.epoch == epoch) {
        Some(Entry { from, .. }) => from,
        None => return Err(CutoverError::Overtaken("another epoch has begun".to_owned())),
    };
    let away = || CutoverError::GivenUp(format!("the {} cannot be reached", job.closes()));
    match (&plan.direction, from) {
        (Direction::Forward, None) => Ok(false),
        (Direction::Forward, Some(from)) => {
            let (old, source) =
                olds.first().zip(plan.back().and_then(|back| back.sources.into_iter().next())).ok_or_else(away)?;
            apply::back_begins(&old.session, epoch, from, &triggers::quiet(&old.session).await?).await?;
            verify::stands(&old.session, &source.name, &format!("cutover {epoch}"), from.lsn, from.seq).await?;
            Ok(true)
        }
        (Direction::Back { .. }, _) => {
            let (old, source) = olds.first().zip(plan.sources.first()).ok_or_else(away)?;
            let from = apply::applied(target, &source.name).await?.ok_or_else(away)?;
            let quiet = triggers::quiet(&old.session).await?;
            apply::forward_again(&old.session, epoch, &source.name, from, &quiet).await?;
            Ok(false)
        }
    }
}
