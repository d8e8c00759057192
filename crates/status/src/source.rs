//! What a source says of itself and of its slot.

use std::time::Duration;

use capture::SlotState;
use model::Lsn;
use pg::{PgError, Session};

use crate::epochs::Epochs;

/// How long the walsender may take to have read what was written a moment ago: unsynced commits are flushed every 0.2 s,
/// and only then does it read them.
const CATCH_UP: Duration = Duration::from_millis(1_200);

const POLL: Duration = Duration::from_millis(20);

/// The difference between the end of a record and the position after it may be a page's header.
const PAGE_HEADER: u64 = 24;

/// A source as it is now.
pub(crate) struct SourceNow {
    pub lsn: Lsn,
    pub slot: Option<SlotState>,
    /// Capture has been sent everything up to `lsn`.
    pub sent: bool,
    /// A cutover has closed it to writes.
    pub closed: bool,
    pub epochs: Epochs,
}

/// Asks it, and gives a running capture the moment that it needs to get to where the WAL ended at the beginning of this.
pub(crate) async fn look(session: &Session, side: &str, slot: &str) -> Result<SourceNow, PgError> {
    let (closed, epochs) = (closed(session, side).await?, Epochs::read(session).await?);
    let lsn = pg::catalog::wal_position(session).await?;
    let begun = tokio::time::Instant::now();
    loop {
        let state = capture::slot_state(session, slot).await?;
        let Some(pid) = state.as_ref().and_then(|state| state.active_pid) else {
            return Ok(SourceNow { lsn, slot: state, sent: false, closed, epochs });
        };
        let row = session
            .query_opt(
                "SELECT (write_lsn - '0/0')::int8 FROM pg_stat_replication WHERE pid = $1 AND write_lsn IS NOT NULL",
                &[&pid],
            )
            .await?;
        let sent = row.is_some_and(|row| lsn.bytes_since(Lsn(row.get::<_, i64>(0) as u64)) <= PAGE_HEADER);
        if sent || begun.elapsed() > CATCH_UP {
            return Ok(SourceNow { lsn, slot: state, sent, closed, epochs });
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn closed(session: &Session, side: &str) -> Result<bool, PgError> {
    if !session.query_one("SELECT to_regclass('crossfade.fence') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let query = "SELECT closed > opened FROM crossfade.fence WHERE side = $1::text";
    Ok(session.query_opt(query, &[&side]).await?.is_some_and(|row| row.get(0)))
}

/// The source's clock, in microseconds since 1970: commit times are its own.
pub(crate) async fn clock(session: &Session) -> Result<i64, PgError> {
    Ok(session.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8", &[]).await?.get(0))
}
