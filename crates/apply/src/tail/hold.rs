use std::sync::Arc;
use std::time::Duration;

use model::Lsn;
use pg::{Endpoint, Session};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{ApplyError, CHANNEL};

/// How often it is looked whether who holds the tail still lives; that it is released is told at once.
const LOOK: Duration = Duration::from_millis(100);

/// The tail stands still at a marker, because who compares both sides has asked for it in `crossfade.hold`. What is asked for is
/// bounded: with the asker's session, or the time that it named, the hold is over.
pub(super) struct Hold {
    pub source: Arc<str>,
    id: String,
    begun: Instant,
}

impl Hold {
    /// The tail has reached the marker.
    pub fn new(source: &Arc<str>, id: &str) -> Self {
        Hold { source: Arc::clone(source), id: id.to_owned(), begun: Instant::now() }
    }

    /// Stands at `at`, the end of the last applied commit, until told how far to go on before standing again; `None` when it is over.
    pub async fn stand(
        &self,
        endpoint: &Endpoint,
        session: &Session,
        at: Lsn,
        stop: &CancellationToken,
    ) -> Result<Option<Lsn>, ApplyError> {
        let mut news = pg::connect(endpoint, "apply news").await?;
        news.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
        let query = "SELECT h.seconds, coalesce((h.through - '0/0')::int8, 0),
                            EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = h.pid AND a.backend_start = h.backend_start)
                       FROM crossfade.hold h WHERE h.source = $1::text AND h.id = $2::text";
        loop {
            let Some(row) = session.query_opt(query, &[&&*self.source, &self.id]).await? else { return Ok(None) };
            let (seconds, through, lives): (f64, i64, bool) = (row.get(0), row.get(1), row.get(2));
            if !lives || self.begun.elapsed().as_secs_f64() > seconds {
                // Said before anything is applied: who relies on the hold looks whether its line is still there.
                let over = "DELETE FROM crossfade.hold WHERE source = $1::text AND id = $2::text";
                session.execute(over, &[&&*self.source, &self.id]).await?;
                return Ok(None);
            }
            if Lsn(through as u64) > at {
                return Ok(Some(Lsn(through as u64)));
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                told = tokio::time::timeout(LOOK, news.notification()) => if let Ok(Err(_)) = told {
                    // Nobody tells any more: it is looked at.
                    tokio::time::sleep(LOOK).await;
                },
            }
        }
    }
}
