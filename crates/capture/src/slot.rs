//! The source's logical replication slot.

use std::time::Duration;

use model::{Code, Lsn, Problem};
use pg::{Endpoint, Replication};
use tokio_postgres::Client;
use tracing::info;

use crate::CaptureError;

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

/// Creates the slot. Waits, as Postgres does, for transactions that are open now to end.
pub(crate) async fn create(endpoint: &Endpoint, name: &str, limit: Duration) -> Result<Lsn, CaptureError> {
    let mut replication = Replication::connect(endpoint, "slot").await?;
    let failover = replication.server_version() >= 170_000;
    let created = tokio::time::timeout(limit, replication.create_slot(name, failover)).await.map_err(|_| {
        Problem::new(
            Code::BarrierTimeout,
            format!("slot {name}"),
            format!("waited {} s for open transactions to end before the slot could be made", limit.as_secs()),
            "SELECT pid, xact_start, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL; end them or raise limits.barrier_timeout",
        )
    })??;
    info!(slot = name, lsn = %created.consistent_point, "slot created");
    Ok(created.consistent_point)
}
