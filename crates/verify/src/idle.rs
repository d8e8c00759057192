//! Whether anybody moves what both sides are brought together by: markers go through capture, and apply stands at them. Looked at before a fence is asked for, which would wait for
//! half a minute. Once there was a fence, a process that restarts is waited for.

use std::time::Duration;

use pg::Session;
use tokio::time::Instant;

use crate::error::VerifyError;

/// Who was just started, or makes a connection anew, is there by then.
const GRACE: Duration = Duration::from_secs(3);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// What does not run, and what starts it.
#[derive(Clone, Debug)]
pub(crate) struct Idle {
    pub why: String,
    pub next: &'static str,
}

/// What is missing of the plan's processes, if anything is and stays so for a moment.
pub(crate) async fn idle(
    at_source: &Session,
    at_target: &Session,
    plan: &str,
    source: &str,
) -> Result<Option<Idle>, VerifyError> {
    let begun = Instant::now();
    loop {
        let idle = look(at_source, at_target, plan, source).await?;
        if idle.is_none() || begun.elapsed() >= GRACE {
            return Ok(idle);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(at_source: &Session, at_target: &Session, plan: &str, source: &str) -> Result<Option<Idle>, VerifyError> {
    let slot = capture::slot_state(at_source, &capture::slot_name(plan, source)).await?;
    let captures = slot.as_ref().is_some_and(|slot| slot.active_pid.is_some());
    let applies = !apply::live_workers(at_target, plan).await?.is_empty();
    let both =
        "start `crossfade run`, or `crossfade capture` and `crossfade apply`; `crossfade status` says how it stands";
    let idle = |why: String, next| Ok(Some(Idle { why, next }));
    match (captures, applies, slot.is_some()) {
        (true, true, _) => Ok(None),
        (_, _, false) => idle(
            format!("the slot of source {source:?} is gone"),
            "see `crossfade status`; `crossfade recopy` copies everything anew",
        ),
        (false, false, _) => idle(format!("neither capture of source {source:?} nor apply is running"), both),
        (false, true, _) => idle(
            format!("capture of source {source:?} is not running"),
            "start `crossfade run` or `crossfade capture`; `crossfade status` says how it stands",
        ),
        (true, false, _) => idle(
            "no apply process is running".to_owned(),
            "start `crossfade run` or `crossfade apply`; `crossfade status` says what has stopped it",
        ),
    }
}
