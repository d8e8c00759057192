//! The source's logical replication slot.

use std::time::Duration;

use model::Lsn;
use pg::{Endpoint, Replication};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{info, warn};

use crate::{CaptureError, barrier};

/// The name of a source's slot.
pub fn slot_name(plan: &str, source: &str) -> String {
    format!("crossfade_{plan}_{source}")
}

/// What the server says of a slot.
#[derive(Clone, Debug)]
pub struct SlotState {
    /// Transactions that committed before are not sent again.
    pub confirmed: Lsn,
    /// WAL from here on is kept back.
    pub restart: Lsn,
    /// The pid of the walsender that serves it.
    pub active_pid: Option<i32>,
    /// `wal_status`: reserved, extended, unreserved or lost.
    pub wal_status: String,
    /// Bytes of WAL kept back for it.
    pub wal_kept: i64,
}

/// Looks up a slot; `None` if there is no such one.
///
/// # Errors
/// The query fails.
pub async fn state(client: &Client, name: &str) -> Result<Option<SlotState>, tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT (confirmed_flush_lsn - '0/0')::int8, (restart_lsn - '0/0')::int8, active_pid, wal_status,
                    coalesce((pg_current_wal_lsn() - restart_lsn)::int8, 0)
               FROM pg_replication_slots WHERE slot_name = $1::text AND slot_type = 'logical'",
            &[&name],
        )
        .await?;
    Ok(rows.first().map(|row| SlotState {
        confirmed: Lsn(row.get::<_, Option<i64>>(0).unwrap_or_default() as u64),
        restart: Lsn(row.get::<_, Option<i64>>(1).unwrap_or_default() as u64),
        active_pid: row.get(2),
        wal_status: row.get::<_, Option<String>>(3).unwrap_or_default(),
        wal_kept: row.get(4),
    }))
}

/// How often a slot in the making is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Looks up the slot, and waits for the end of its creation: a process that was killed meanwhile leaves the server at it, and a barrier passed
/// before the slot's start is none.
///
/// # Errors
/// The transactions that the creation waits for do not end within `limit`: names them.
pub(crate) async fn settled(client: &Client, name: &str, limit: Duration) -> Result<Option<SlotState>, CaptureError> {
    let start = tokio::time::Instant::now();
    loop {
        match state(client, name).await? {
            Some(slot) if slot.confirmed == Lsn::ZERO && slot.active_pid.is_some() => {}
            other => return Ok(other),
        }
        if start.elapsed() > limit {
            return Err(barrier::timeout(&format!("slot {name}"), limit, &waited_for(client).await?).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Creates the slot, or finds it made by another process meanwhile. Waits, as Postgres does, for transactions that are open now to end.
///
/// # Errors
/// They do not end within `limit`: names them. Nobody is terminated, and no slot is left behind.
pub(crate) async fn create(
    client: &Client,
    endpoint: &Endpoint,
    name: &str,
    limit: Duration,
) -> Result<(), CaptureError> {
    let mut replication = Replication::connect(endpoint, "slot").await?;
    let failover = replication.server_version() >= 170_000;
    let Ok(created) = tokio::time::timeout(limit, replication.create_slot(name, failover)).await else {
        let open = waited_for(client).await?;
        // It is our own connection that waits at the server; left alone it would make the slot once they end, and nobody would read it.
        if let Some(pid) = state(client, name).await?.and_then(|slot| slot.active_pid)
            && let Err(error) = client.execute("SELECT pg_terminate_backend($1, 5000)", &[&pid]).await
        {
            warn!(slot = name, "its creation goes on at the server: {error}");
        }
        return Err(barrier::timeout(&format!("slot {name}"), limit, &open).into());
    };
    let created = match created {
        // Another process has been quicker; which of the two reads it is decided by the slot and the log.
        Err(error) if error.sqlstate() == Some(SqlState::DUPLICATE_OBJECT.code()) => {
            settled(client, name, limit).await?;
            return Ok(());
        }
        created => created?,
    };
    model::failpoint!("slot_created");
    info!(slot = name, lsn = %created.consistent_point, "slot created");
    Ok(())
}

/// How long a walsender may take to notice that nobody reads from it any more.
const ENDING: Duration = Duration::from_secs(10);

/// Drops the slot, if it is there: the source keeps back no WAL for it any more.
///
/// # Errors
/// Somebody reads it, and goes on doing so.
pub(crate) async fn give_up(client: &Client, name: &str) -> Result<(), CaptureError> {
    let start = tokio::time::Instant::now();
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1::text AND slot_type = 'logical'";
    loop {
        match client.execute(drop, &[&name]).await {
            Ok(0) => return Ok(()),
            Ok(_) => {
                warn!(slot = name, "the slot is given up");
                return Ok(());
            }
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) && start.elapsed() < ENDING => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The transactions that are open now, for people.
async fn waited_for(client: &Client) -> Result<String, CaptureError> {
    let newest: String = client.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?.get(0);
    barrier::open(client, &newest).await
}
