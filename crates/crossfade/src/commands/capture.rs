use std::sync::Arc;

use model::Problem;
use plan::Plan;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::supervise::supervise;
use crate::{checks, wiring};

/// Reads the sources into the log, until `stop`.
pub(crate) async fn run(plan: Arc<Plan>, stop: CancellationToken) -> Result<(), Problem> {
    wiring::shared_log(&plan, "capture")?;
    let prepare = async {
        wiring::state_dir(&plan)?;
        let log = wiring::open_log(&plan).await?;
        let target = checks::before_capture(&plan, &log).await?;
        wiring::captures(&plan, &log, &target)
    };
    let captures = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        prepared = prepare => prepared?,
    };
    let stop = stop.child_token();
    let mut parts = JoinSet::new();
    parts.spawn(wiring::guard(&plan, stop.clone())?);
    if let Some(part) = wiring::capture_back(&captures, stop.clone())? {
        parts.spawn(part);
    }
    for job in captures {
        parts.spawn(capture::run(job, stop.clone()));
    }
    supervise(parts, stop).await
}
