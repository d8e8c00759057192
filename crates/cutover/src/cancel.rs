//! A cutover that is not decided is undone, by whoever gets there: first the lead at the source, then the word in the journal, and only then the source is opened.

use std::time::Duration;

use pg::Session;

use crate::error::CutoverError;
use crate::journal::{self, State};
use crate::old::Old;

/// How long it may take before anybody else may try.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Cancels an epoch of these sources, the plan's first among them, unless it is decided, and opens the sources. Says what has become of it; what is committed is left to who rolls it forward, and closed.
///
/// # Errors
/// A server: then nothing is known, and the sources stay as they are. Or another process acts.
pub(crate) async fn cancel(
    olds: &mut [Old],
    target: &Session,
    epoch: i64,
    force: bool,
    why: &str,
) -> Result<State, CutoverError> {
    if journal::last(target).await?.is_some_and(|entry| entry.epoch > epoch) {
        return Err(CutoverError::Overtaken("another cutover has begun since".to_owned()));
    }
    for old in olds.iter_mut() {
        old.lead(LIMIT, force, epoch).await?;
        model::failpoint!("cancel_leads");
    }
    let Some(token) = olds.first().map(|old| old.token) else { return Ok(State::Cancelled) };
    journal::lead(target, epoch, token, false).await?;
    model::failpoint!("cancel_leads_journal");
    let state = journal::cancel(target, epoch, token, why).await?;
    model::failpoint!("cancel_decided");
    if state == State::Cancelled {
        for old in olds.iter() {
            old.reopen(epoch).await?;
        }
        tracing::warn!(epoch, "the cutover is cancelled, and the source takes writes: {why}");
    }
    for old in olds.iter() {
        old.leave().await;
    }
    Ok(state)
}
