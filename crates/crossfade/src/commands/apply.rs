use std::sync::Arc;

use model::Problem;
use plan::Plan;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::supervise::supervise;
use crate::{checks, wiring};

/// Applies the log to the target, until `stop`.
pub(crate) async fn run(plan: Arc<Plan>, stop: CancellationToken) -> Result<(), Problem> {
    wiring::shared_log(&plan, "apply")?;
    let prepare = async {
        let log = wiring::open_log(&plan).await?;
        checks::before_apply(&plan).await?;
        wiring::applier(&plan, &log)
    };
    let job = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        prepared = prepare => prepared?,
    };
    let stop = stop.child_token();
    let mut parts = JoinSet::new();
    parts.spawn(wiring::guard(&plan, stop.clone())?);
    if let Some(part) = wiring::apply_back(&job, stop.clone())? {
        parts.spawn(part);
    }
    parts.spawn(apply::run(job, stop.clone()));
    supervise(parts, stop).await
}
