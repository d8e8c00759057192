//! A cutover that is not decided is undone, by whoever gets there: first the lead at the source, then the word in the journal, and only then the source is opened, and PgBouncer resumed.

use std::time::Duration;

use model::Problem;
use pg::Session;
use plan::Plan;

use crate::bolts;
use crate::bouncer;
use crate::error::CutoverError;
use crate::journal::{self, State};
use crate::old::Old;

/// How long it may take before anybody else may try.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// What has become of an epoch that was to be cancelled.
pub(crate) struct Undone {
    pub state: State,
    /// What a side was closed with besides its triggers, and may be closed with still.
    pub bolted: Vec<Problem>,
    /// Why a PgBouncer may be paused still.
    pub paused: Option<Problem>,
}

impl Undone {
    pub fn new(state: State) -> Undone {
        Undone { state, bolted: Vec::new(), paused: None }
    }
}

/// How long it may take before anybody else may try, with what the plan runs meanwhile.
pub(crate) fn limit(plan: &Plan) -> Duration {
    LIMIT + bolts::patience(plan)
}

/// Cancels an epoch of these sources, the plan's first among them, unless it is decided, and opens the sources. Says what has become of it; what is committed is left to who rolls it forward, and closed.
///
/// # Errors
/// A server: then nothing is known, and the sources stay as they are. Or another process acts.
pub(crate) async fn cancel(
    plan: &Plan,
    olds: &mut [Old],
    target: &Session,
    epoch: i64,
    force: bool,
    why: &str,
) -> Result<Undone, CutoverError> {
    if journal::last(target).await?.is_some_and(|entry| entry.epoch > epoch) {
        return Err(CutoverError::Overtaken("another cutover has begun since".to_owned()));
    }
    for old in olds.iter_mut() {
        old.lead(limit(plan), force, epoch).await?;
        model::failpoint!("cancel_leads");
    }
    let Some(token) = olds.first().map(|old| old.token) else {
        return Ok(Undone::new(State::Cancelled));
    };
    journal::lead(target, epoch, token, false).await?;
    model::failpoint!("cancel_leads_journal");
    let mut undone = Undone::new(journal::cancel(target, epoch, token, why).await?);
    model::failpoint!("cancel_decided");
    if undone.state == State::Cancelled {
        for old in olds.iter() {
            old.reopen(epoch).await?;
        }
        tracing::warn!(epoch, "it is cancelled, and the side that was closed takes writes again: {why}");
        // Before the lead is given up: whoever dies here leaves it to the next one.
        for old in olds.iter() {
            undone.bolted.extend(bolts::reopen(plan, old, target, epoch).await?);
        }
        undone.paused = bouncer::resume(plan).await.err();
    }
    for old in olds.iter() {
        old.leave().await;
    }
    Ok(undone)
}
