//! Steering a migration's start from outside: open transactions at the source decide how far it gets.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::cluster::scalar;
use crate::{Cluster, Crossfade, Running, until};

const LIMIT: Duration = Duration::from_secs(30);

/// A transaction at the source that has an id and does nothing.
pub struct Open {
    client: Client,
    pid: i32,
}

impl Open {
    /// Begins it.
    pub async fn begin(cluster: &Cluster, database: &str) -> Result<Open> {
        let client = cluster.client(database).await?;
        client.batch_execute("BEGIN").await?;
        scalar(&client, "SELECT pg_current_xact_id()").await?.context("it has an id")?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        Ok(Open { client, pid })
    }

    /// Ends it.
    pub async fn commit(self) -> Result<()> {
        self.client.batch_execute("COMMIT").await.map_err(Into::into)
    }

    /// Waits until the creation of a slot waits for it.
    async fn holds_a_slot(&self, observer: &Client) -> Result<()> {
        until("the slot's creation waiting", LIMIT, || async {
            let sql = "SELECT 1 FROM pg_locks WHERE NOT granted AND $1 = ANY (pg_blocking_pids(pid))";
            Ok(observer.query_opt(sql, &[&self.pid]).await?)
        })
        .await
        .map(drop)
    }
}

/// A migration in the last step of its slot's creation: what begins now is not waited for by the slot any more.
///
/// A slot looks twice at what runs, and waits each time; the second look is past, and holds for one transaction.
pub struct AtSlot {
    /// The migration.
    pub running: Running,
    last: Open,
}

impl AtSlot {
    /// Starts `crossfade run` and brings it there.
    pub async fn start(cluster: &Cluster, database: &str, crossfade: &Crossfade) -> Result<AtSlot> {
        AtSlot::start_across(cluster, database, crossfade, "").await
    }

    /// The same; `sql` is run between the slot's first look and its second, by a transaction younger than the one that holds the slot at its second.
    pub async fn start_across(cluster: &Cluster, database: &str, crossfade: &Crossfade, sql: &str) -> Result<AtSlot> {
        let observer = cluster.client(database).await?;
        let first = Open::begin(cluster, database).await?;
        let running = crossfade.start(&["run"])?;
        first.holds_a_slot(&observer).await?;
        let last = Open::begin(cluster, database).await?;
        observer.batch_execute(sql).await?;
        first.commit().await?;
        last.holds_a_slot(&observer).await?;
        Ok(AtSlot { running, last })
    }

    /// Lets the slot be created; returns once it is.
    pub async fn pass(self, cluster: &Cluster, database: &str) -> Result<Running> {
        let observer = cluster.client(database).await?;
        self.last.commit().await?;
        until("the slot", LIMIT, || async {
            let sql = "SELECT 1 FROM pg_replication_slots WHERE NOT temporary AND confirmed_flush_lsn IS NOT NULL";
            Ok(observer.query_opt(sql, &[]).await?)
        })
        .await?;
        Ok(self.running)
    }
}
