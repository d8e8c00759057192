//! A synchronous standby that never answers: commits that asked for it hang between the flush of their commit record
//! and becoming visible, for as long as a test wants.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::Cluster;
use crate::cluster::scalar;
use crate::until;

/// Longer than a server takes to notice a changed setting.
const LIMIT: Duration = Duration::from_secs(20);

/// Writes WAL, without which a commit does not wait.
const PROBE: &str = "SELECT pg_logical_emit_message(true, 'harness', '')";

/// Names a standby that is not there. Sessions go on as before, unless they say `SET synchronous_commit = on`, as
/// [`HeldCommit`] does.
pub async fn require_absent(cluster: &Cluster, database: &str) -> Result<()> {
    cluster.set("synchronous_commit", "local")?;
    cluster.set("synchronous_standby_names", "nobody")?;
    // The checkpointer tells the others, some time later: a commit that hangs shows that it has.
    let observer = cluster.client("postgres").await?;
    until("commits that wait for the standby", LIMIT, || async {
        let probe = cluster.client(database).await?;
        probe.batch_execute("SET synchronous_commit = on").await?;
        let pid = backend_pid(&probe).await?;
        let task = tokio::spawn(async move { probe.batch_execute(PROBE).await });
        let hangs = hangs_or_ends(&observer, pid, &task).await?;
        if hangs {
            observer.execute("SELECT pg_terminate_backend($1)", &[&pid]).await?;
        }
        Ok(hangs.then_some(()))
    })
    .await
}

/// Lets all commits through that hang, and later ones.
pub async fn release(cluster: &Cluster) -> Result<()> {
    cluster.set("synchronous_standby_names", "")
}

/// A transaction whose commit record is flushed, and which nobody sees yet.
pub struct HeldCommit {
    /// Its top-level transaction id, 64 bits wide.
    pub xid: u64,
    /// Its backend.
    pub pid: i32,
    task: JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl HeldCommit {
    /// Runs `sql` in a transaction and commits it, after [`require_absent`]; returns once the commit hangs.
    pub async fn start(cluster: &Cluster, database: &str, sql: &str) -> Result<HeldCommit> {
        let observer = cluster.client("postgres").await?;
        let session = cluster.client(database).await?;
        session.batch_execute("SET synchronous_commit = on; BEGIN").await?;
        session.batch_execute(sql).await?;
        let xid = scalar(&session, "SELECT pg_current_xact_id()").await?.context("a transaction has an id")?.parse()?;
        let pid = backend_pid(&session).await?;
        let task = tokio::spawn(async move { session.batch_execute("COMMIT").await });
        ensure!(hangs_or_ends(&observer, pid, &task).await?, "the commit went through: no standby is required");
        Ok(HeldCommit { xid, pid, task })
    }

    /// Waits until the commit is through, after [`release`].
    pub async fn done(self) -> Result<()> {
        tokio::time::timeout(LIMIT, self.task).await.context("the commit still hangs")???;
        Ok(())
    }
}

async fn backend_pid(client: &Client) -> Result<i32> {
    Ok(client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0))
}

/// True once the backend waits for a standby, false once its task has ended.
async fn hangs_or_ends<T>(observer: &Client, pid: i32, task: &JoinHandle<T>) -> Result<bool> {
    until("a commit that hangs or ends", LIMIT, || async {
        if task.is_finished() {
            return Ok(Some(false));
        }
        let sql = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
        Ok(observer.query_opt(sql, &[&pid]).await?.map(|_| true))
    })
    .await
}
