//! Waiting until every transaction that is older than the slot, or than a change of the publication, has ended, and until what was written is flushed.
//!
//! Without it, a transaction whose commit record lies before the slot's start but which is not yet visible (it waits for
//! a synchronous standby, say) is in neither copy nor tail. `pg_snapshot_xmax` would not do: it is the last *completed* id
//! plus one, and passes while an older transaction is still open.

use std::time::Duration;

use model::{Code, Lsn, Problem};
use tokio_postgres::Client;
use tracing::{info, warn};

use crate::CaptureError;

/// How often the oldest open transaction is looked up: quick enough not to be felt, and costs next to nothing.
const POLL: Duration = Duration::from_millis(20);

/// After how long it is said who is being waited for.
const SAY_AFTER: Duration = Duration::from_secs(2);

/// Returns once every transaction that was open when this was called has ended and is visible (or rolled back).
///
/// # Errors
/// They do not end within `limit`: names them. Nobody is terminated.
pub(crate) async fn pass(client: &Client, limit: Duration) -> Result<(), CaptureError> {
    // A transaction of its own, ended at once: its id is younger than everything that must end.
    let barrier: String = client.query_one("SELECT pg_current_xact_id()::text", &[]).await?.get(0);
    let start = tokio::time::Instant::now();
    let mut said = false;
    loop {
        let passed: bool = client
            .query_one("SELECT pg_snapshot_xmin(pg_current_snapshot()) > $1::text::xid8", &[&barrier])
            .await?
            .get(0);
        if passed {
            return Ok(());
        }
        let waited = start.elapsed();
        if waited > limit {
            return Err(timeout("the start of the copy", limit, &open(client, &barrier).await?).into());
        }
        if waited > SAY_AFTER && !said {
            said = true;
            warn!("waiting for older transactions to end: {}", open(client, &barrier).await?);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// They did not end in time.
pub(crate) fn timeout(what: &str, limit: Duration, open: &str) -> Problem {
    Problem::new(
        Code::BarrierTimeout,
        what,
        format!("waited {} s for older transactions to end: {open}", limit.as_secs()),
        "end them (COMMIT PREPARED, ROLLBACK PREPARED or SELECT pg_terminate_backend(pid)) or raise limits.barrier_timeout",
    )
}

/// Who is being waited for, for people: whose transaction id is not above `barrier`.
pub(crate) async fn open(client: &Client, barrier: &str) -> Result<String, CaptureError> {
    let rows = client
        .query(
            "SELECT format('pid %s (database %s, user %s, open for %s)', pid, datname, usename, date_trunc('second', clock_timestamp() - xact_start))
               FROM pg_stat_activity
              WHERE backend_xid IS NOT NULL AND backend_xid::text::int8 <= ($1::text::int8 & 4294967295)
             UNION ALL
             SELECT format('prepared transaction %L (database %s, user %s, since %s)', gid, database, owner, date_trunc('second', prepared))
               FROM pg_prepared_xacts",
            &[&barrier],
        )
        .await?;
    if rows.is_empty() {
        info!(
            "no open transaction is listed; one that is committing, or of a role whose activity this role may not see"
        );
        return Ok("one that is committing".to_owned());
    }
    Ok(rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join(", "))
}

/// How far the source's WAL is written, by transactions that are still under way, too. Behind a page's header, which is 24 bytes long, or 40 in a file's first page,
/// nothing need be written yet: the position is that of the page then.
pub(crate) async fn written(client: &Client) -> Result<Lsn, CaptureError> {
    let query = "SELECT (l - CASE WHEN l % current_setting('wal_block_size')::int8 IN (24, 40) THEN l % current_setting('wal_block_size')::int8 ELSE 0 END)
                   FROM (SELECT (pg_current_wal_insert_lsn() - '0/0')::int8 AS l) AS insert";
    Ok(Lsn(client.query_one(query, &[]).await?.get::<_, i64>(0) as u64))
}

/// How often it is looked whether WAL is flushed: the server's own rhythm is 0.2 s.
const FLUSH: Duration = Duration::from_millis(50);

/// Waits until WAL is flushed up to `written`. With `synchronous_commit = off` a commit is visible before that, and a crash of the source takes it
/// back: neither must a copy be called done with rows of a transaction that may never have been, nor a tail begin behind it.
pub(crate) async fn flushed(client: &Client, written: Lsn) -> Result<(), CaptureError> {
    loop {
        let query = "SELECT (pg_current_wal_flush_lsn() - '0/0')::int8 >= $1";
        if client.query_one(query, &[&(written.0 as i64)]).await?.get(0) {
            return Ok(());
        }
        tokio::time::sleep(FLUSH).await;
    }
}
