use std::sync::Arc;
use std::time::Duration;

use ::log::Log;
use ::model::Problem;
use plan::Plan;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::{Gather, Status};

/// How old a status may be that is told again: a look costs both servers and the log some queries.
const FRESH: Duration = Duration::from_secs(1);

/// Asks everybody, for all who ask.
pub(super) struct Look {
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    gather: Gather,
    log: Arc<dyn Log>,
    last: Option<(Instant, Arc<Status>)>,
}

impl Look {
    pub(super) fn new(plan: Arc<Plan>, log: Arc<dyn Log>) -> Result<Look, Problem> {
        let kept = Kept { gather: Gather::new(plan)?, log, last: None };
        Ok(Look { kept: Arc::new(Mutex::new(kept)) })
    }

    /// How it stands now, or stood a second ago; none if looking broke off, which is a defect.
    pub(super) async fn now(&self) -> Option<Arc<Status>> {
        let asked = Instant::now();
        let kept = Arc::clone(&self.kept);
        // In a task of its own: a client that goes away must not leave a session in the middle of a transaction.
        let looked = tokio::spawn(async move { kept.lock().await.now(asked).await }).await;
        looked.inspect_err(|error| tracing::warn!("a look at the status broke off: {error}")).ok()
    }
}

impl Kept {
    async fn now(&mut self, asked: Instant) -> Arc<Status> {
        if let Some((at, status)) = &self.last
            && asked.saturating_duration_since(*at) < FRESH
        {
            return Arc::clone(status);
        }
        let log = Arc::clone(&self.log);
        let status = Arc::new(self.gather.now(async || Ok(Some(log))).await);
        self.last = Some((Instant::now(), Arc::clone(&status)));
        status
    }
}
