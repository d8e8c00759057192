//! Who applies the tail. The row in the target decides; the token counts up with every holder.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use model::Problem;
use pg::{Endpoint, Session};

use crate::ApplyError;

/// How often a process says that it lives.
const BEAT: Duration = Duration::from_secs(2);

/// After how long without that, in seconds, its lease is taken: three missed beats.
const STALE: f64 = 6.0;

/// The right to write the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub token: i64,
}

/// The token of the last lease that this process had, over all its connections; 0 for none.
#[derive(Clone, Default)]
pub(crate) struct Held(Arc<AtomicI64>);

/// Says for ever that this process lives.
pub(crate) async fn beat(endpoint: &Endpoint, worker: &str) -> Result<(), ApplyError> {
    let session = pg::connect(endpoint, "apply heartbeat").await?;
    session.batch_execute("SET synchronous_commit = off").await?;
    loop {
        alive(&session, worker).await?;
        tokio::time::sleep(BEAT).await;
    }
}

async fn alive(session: &Session, worker: &str) -> Result<(), ApplyError> {
    session
        .execute(
            "INSERT INTO crossfade.worker VALUES ($1::text, clock_timestamp())
             ON CONFLICT (worker) DO UPDATE SET seen_at = excluded.seen_at, stopped_code = NULL, stopped = NULL",
            &[&worker],
        )
        .await?;
    Ok(())
}

/// Notes, for `status`, what has stopped this process: its next heartbeat, if it ever has one, takes it away.
///
/// # Errors
/// The target.
pub(crate) async fn stopped(endpoint: &Endpoint, worker: &str, problem: &Problem) -> Result<(), ApplyError> {
    let session = pg::connect(endpoint, "apply stopped").await?;
    session
        .execute(
            "UPDATE crossfade.worker SET stopped_code = $2::text, stopped = $3::text WHERE worker = $1::text",
            &[&worker, &problem.code.as_str(), &problem.to_string()],
        )
        .await?;
    Ok(())
}

/// Takes the lease for `session` if nobody holds it, or its holder is gone or has been silent for too long; that one's backends
/// are terminated first, so that nothing of it is still under way. Once a cutover has opened the target to the application, nobody gets it until a rollback closes it. `held` is the last one that this process had: over a connection that it has
/// given up, that is held by nobody. The server may not know for hours that the other end is gone, and this process's own heartbeat
/// would keep it from being silent.
///
/// # Errors
/// It was taken from this process, which was silent for too long.
pub(crate) async fn acquire(session: &Session, worker: &str, held: &Held) -> Result<Option<Lease>, ApplyError> {
    // Before it holds anything: a holder that nobody has seen would count as silent.
    alive(session, worker).await?;
    let before = held.0.load(Ordering::Relaxed);
    let row = session
        .query_one(
            "SELECT l.token, (l.worker IS NULL OR l.token = $2 OR a.pid IS NULL
                OR coalesce(w.seen_at < clock_timestamp() - make_interval(secs => $1::float8), true))
                AND NOT l.barred AS free,
                CASE WHEN a.pid IS NOT NULL THEN l.worker END AS silent, l.worker, l.taken_from
               FROM crossfade.lease l
               LEFT JOIN pg_stat_activity a ON a.pid = l.pid AND a.backend_start = l.backend_start
               LEFT JOIN crossfade.worker w ON w.worker = l.worker",
            &[&STALE, &before],
        )
        .await?;
    let (token, free): (i64, bool) = (row.get(0), row.get(1));
    let (silent, holder, from): (Option<String>, Option<String>, Option<String>) = (row.get(2), row.get(3), row.get(4));
    if !free {
        let taken =
            before > 0 && token > before && from.as_deref() == Some(worker) && holder.as_deref() != Some(worker);
        return if taken { Err(ApplyError::LeaseLost(holder.unwrap_or_default())) } else { Ok(None) };
    }
    // Its tail's backend, and any other one of it that is in a transaction which holds the lease.
    session
        .execute(
            "SELECT pg_terminate_backend(a.pid, 5000) FROM crossfade.lease l, pg_stat_activity a
              WHERE l.token = $1 AND a.pid <> pg_backend_pid() AND a.application_name LIKE '% apply %'
                AND (a.pid = l.pid AND a.backend_start = l.backend_start
                     OR a.pid IN (SELECT pid FROM pg_locks WHERE relation = 'crossfade.lease'::regclass AND mode = 'RowShareLock' AND granted))",
            &[&token],
        )
        .await?;
    model::failpoint!("holder_ended");
    let taken = session
        .execute(
            "UPDATE crossfade.lease SET token = token + 1, worker = $1::text, pid = pg_backend_pid(), taken_at = clock_timestamp(), taken_from = $3::text,
                    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
              WHERE token = $2 AND NOT barred",
            &[&worker, &token, &silent],
        )
        .await?;
    model::failpoint!("lease_taken");
    if taken == 1 {
        held.0.store(token + 1, Ordering::Relaxed);
    }
    Ok((taken == 1).then_some(Lease { token: token + 1 }))
}

impl Lease {
    /// Begins a transaction that holds the lease: nobody can take it before this ends.
    ///
    /// # Errors
    /// Somebody has taken it.
    pub async fn begin(self, session: &Session) -> Result<(), ApplyError> {
        self.lock(session, "SHARE").await
    }

    /// The same, for what locks tables as the tail does, but in another order: no other transaction that holds the lease is open beside it.
    ///
    /// # Errors
    /// Somebody has taken it.
    pub async fn begin_alone(self, session: &Session) -> Result<(), ApplyError> {
        self.lock(session, "UPDATE").await
    }

    async fn lock(self, session: &Session, mode: &str) -> Result<(), ApplyError> {
        let query = format!("BEGIN; SELECT 1 FROM crossfade.lease WHERE token = {} FOR {mode}", self.token);
        let messages = session.simple_query(&query).await?;
        if messages.iter().any(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))) {
            return Ok(());
        }
        session.batch_execute("ROLLBACK").await?;
        model::failpoint!("lease_lost");
        let row = session.query_one("SELECT coalesce(worker, 'nobody'), barred FROM crossfade.lease", &[]).await?;
        if row.get(1) {
            return Err(ApplyError::Barred);
        }
        Err(ApplyError::LeaseLost(row.get(0)))
    }

    /// Gives it up, so that another process need not wait.
    pub async fn release(self, session: &Session) -> Result<(), ApplyError> {
        session
            .execute(
                "UPDATE crossfade.lease SET worker = NULL, pid = NULL, backend_start = NULL WHERE token = $1",
                &[&self.token],
            )
            .await?;
        model::failpoint!("lease_released");
        Ok(())
    }
}
