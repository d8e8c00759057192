use std::net::SocketAddr;
use std::sync::Arc;

use model::Problem;
use plan::Plan;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::supervise::supervise;
use crate::{checks, serve, wiring};

/// Applies the log to the target, until `stop`. It is asked at `listen`, or else where the plan says.
pub(crate) async fn run(plan: Arc<Plan>, listen: Option<SocketAddr>, stop: CancellationToken) -> Result<(), Problem> {
    wiring::shared_log(&plan, "apply")?;
    let prepare = async {
        let listening = serve::listen(&plan, listen).await?;
        let log = wiring::open_log(&plan).await?;
        checks::before_apply(&plan).await?;
        let server = listening.open(&plan, &log).await?;
        Ok::<_, Problem>((wiring::applier(&plan, &log)?, server))
    };
    let (job, server) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        prepared = prepare => prepared?,
    };
    let stop = stop.child_token();
    let mut parts = JoinSet::new();
    server.start(&mut parts, stop.clone());
    parts.spawn(wiring::guard(&plan, stop.clone())?);
    if let Some(part) = wiring::apply_back(&job, stop.clone())? {
        parts.spawn(part);
    }
    parts.spawn(apply::run(job, stop.clone()));
    supervise(parts, stop).await
}
