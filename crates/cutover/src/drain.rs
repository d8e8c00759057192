//! Everything that a source has committed is in the target: a marker behind it says so.

use std::time::Duration;

use model::{Marker, MarkerKind};
use pg::{Endpoint, Session};

use crate::error::CutoverError;
use crate::old::Old;

/// Between two looks, should a notification be lost.
const LOOK: Duration = Duration::from_millis(20);

/// Hears what the target reaches.
pub(crate) struct Ear {
    session: Session,
    nonce: String,
}

impl Ear {
    pub async fn open(target: &Endpoint) -> Result<Ear, CutoverError> {
        let session = pg::connect(target, "cutover").await?;
        session.batch_execute(&format!("LISTEN {}", apply::CHANNEL)).await?;
        let nonce = session.query_one("SELECT nonce FROM crossfade.plan", &[]).await?.get(0);
        Ok(Ear { session, nonce })
    }

    /// Puts a marker into a source's WAL and waits until the target has it. Returns where that is; all that was committed at the source before this is in the target then.
    pub async fn drained(&mut self, old: &Old) -> Result<String, CutoverError> {
        self.echo(&old.name, &old.session).await
    }

    /// The same, of any session of a source.
    pub async fn echo(&mut self, source: &str, session: &Session) -> Result<String, CutoverError> {
        let id = format!("cutover-{}", uuid::Uuid::new_v4());
        capture::emit_marker(session, &Marker::new(&self.nonce, MarkerKind::Fence, &id)).await?;
        model::failpoint!("drain_marker_emitted");
        let query = "DELETE FROM crossfade.marker WHERE source = $1::text AND id = $2::text RETURNING lsn::text";
        loop {
            if let Some(row) = self.session.query_opt(query, &[&source, &id]).await? {
                return Ok(row.get(0));
            }
            let _ = tokio::time::timeout(LOOK, self.session.notification()).await;
        }
    }
}
