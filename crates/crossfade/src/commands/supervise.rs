//! Parts that run until they are told to stop, or until one of them cannot go on.

use std::time::Duration;

use model::{Code, Problem};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long the parts may take to end: a stop must be over within five seconds.
const STOPPING: Duration = Duration::from_millis(4_000);

/// How long the others may take once one has failed: what they lose is done again.
const FAILING: Duration = Duration::from_secs(3);

/// Waits for the end of all parts. The first that fails stops the others through `stop`, which they were given.
pub(crate) async fn supervise(mut parts: JoinSet<Result<(), Problem>>, stop: CancellationToken) -> Result<(), Problem> {
    let first = tokio::select! {
        biased;
        first = failure(&mut parts) => first,
        () = stop.cancelled() => match tokio::time::timeout(STOPPING, failure(&mut parts)).await {
            Ok(first) => first,
            Err(_) => {
                warn!("what is still under way is given up, and done again at the next start");
                return Ok(());
            }
        },
    };
    let Some(problem) = first else { return Ok(()) };
    stop.cancel();
    let _ = tokio::time::timeout(FAILING, async {
        while let Some(also) = failure(&mut parts).await {
            warn!("while stopping: {also}");
        }
    })
    .await;
    Err(problem)
}

/// The next failure; `None` once every part has ended well.
async fn failure(parts: &mut JoinSet<Result<(), Problem>>) -> Option<Problem> {
    while let Some(ended) = parts.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => return Some(problem),
            Err(error) => {
                let next = "start it again, and report it with the log of this run";
                return Some(Problem::new(Code::Internal, "a part of this process", error.to_string(), next));
            }
        }
    }
    None
}
