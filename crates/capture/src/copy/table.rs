use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use model::{Code, Problem, Record, Snapshot, TableBegin, TableEnd, quote};
use pg::Session;
use pg::catalog::{self, Table};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tracing::info;

use super::chunks::{Chunks, Writer};
use super::panicked;
use crate::run::Running;
use crate::{CaptureError, barrier, claim, marker};

/// Heap blocks that one COPY reads: 16 MiB, so that readers share a table evenly and a COPY's own cost does not count.
const RANGE: i64 = 2048;

/// How often it is looked whether the application waits for our lock; a fraction of any sensible limit.
const LOOK: Duration = Duration::from_millis(500);

/// How long the definition of a partition's bound may wait for a lock: Postgres looks for deadlocks after a second, unless told otherwise.
const BOUND: Duration = Duration::from_millis(200);

/// What the readers of one table share.
struct Shared {
    running: Arc<Running>,
    chunks: Arc<Chunks>,
    table: Table,
    /// Name of the exported snapshot.
    snapshot: String,
    /// What the sessions that hold the table's lock call themselves.
    application: String,
    /// The first block that nobody has taken yet.
    next: AtomicI64,
    /// One past the last.
    blocks: i64,
}

/// Copies one table under one snapshot. Sets `begun` once the log may know of this epoch.
pub(super) async fn copy(
    running: &Arc<Running>,
    table: &Table,
    epoch: u32,
    permits: Arc<Semaphore>,
    begun: &AtomicBool,
) -> Result<(), CaptureError> {
    let job = &running.job;
    let leader = connect(running).await?;
    let partition_bound = partition_bound(&leader, table).await?;
    let root = table.root.clone();
    lock(running, &leader, table).await?;
    // Only now: a snapshot older than the lock could be older than a TRUNCATE, and would read nothing.
    let row = leader
        .query_one("SELECT pg_current_snapshot()::text, pg_export_snapshot(), current_setting('application_name')", &[])
        .await?;
    let seen = barrier::written(&leader).await?;
    let snapshot: Snapshot = row.get::<_, String>(0).parse().map_err(|error: model::ParseSnapshotError| {
        Problem::new(Code::Internal, format!("table {}", table.name), error.to_string(), "report it")
    })?;
    let table = catalog::table_named(&leader, &table.name).await?.ok_or_else(|| {
        Problem::new(
            Code::SchemaChanged,
            format!("table {}", table.name),
            "it was dropped before it could be copied",
            "start again",
        )
    })?;
    if table.root != root {
        return Err(CaptureError::Again(format!("table {} was attached or detached meanwhile", table.name)));
    }
    let streams = claim::streams(&job.plan.name, &job.source.name);
    let begin = TableBegin {
        table: table.name.clone(),
        epoch,
        snapshot,
        columns: table.columns.clone(),
        key: table.key.clone(),
        root: table.root.clone(),
        partition_bound,
        rows_estimated: table.rows_estimated.max(0),
        bytes_estimated: table.bytes,
        marker: marker::copy_id(&table.name, epoch),
        writer: running.writer.clone(),
        full: table.identity == model::ReplicaIdentity::Full,
        heirs: table.heirs,
    };
    begun.store(true, Ordering::Relaxed);
    log::append_record(&*job.log, &streams.copy, Record::TableBegin(begin)).await?;
    model::failpoint!("table_begun");

    let shared = Arc::new(Shared {
        running: Arc::clone(running),
        chunks: Arc::new(Chunks::new(
            Arc::clone(&job.log),
            streams.clone(),
            table.name.clone(),
            epoch,
            running.writer.clone(),
        )),
        snapshot: row.get(1),
        application: row.get(2),
        next: AtomicI64::new(0),
        blocks: table.blocks,
        table,
    });
    let name = &shared.table.name;
    tokio::select! {
        biased;
        result = read_all(&shared, &leader, permits) => result?,
        result = give_way(running, &shared) => result?,
    }
    // Also asks the leader whether it lives: while its transaction does, nothing can have emptied the table under its readers.
    barrier::flushed(&leader, seen).await?;
    model::failpoint!("table_read");
    let (chunks, rows) = shared.chunks.counts();
    let end = TableEnd { table: name.clone(), epoch, chunks, rows, writer: running.writer.clone() };
    log::append_record(&*job.log, &streams.copy, Record::TableEnd(end)).await?;
    model::failpoint!("table_ended");
    leader.batch_execute("COMMIT").await?;
    info!(table = %name, rows, chunks, "copied");
    Ok(())
}

async fn connect(running: &Running) -> Result<Session, CaptureError> {
    Ok(pg::connect_read_only(&running.job.endpoint, &format!("copy {}", running.header.plan)).await?)
}

/// Before anything is locked for long. Gives up before the server looks for a deadlock, whose victim could be the application.
async fn partition_bound(session: &Session, table: &Table) -> Result<String, CaptureError> {
    if table.root.is_none() {
        return Ok(String::new());
    }
    session.batch_execute(&format!("SET lock_timeout = {}", BOUND.as_millis())).await?;
    catalog::partition_bound(session, &table.name).await.map_err(|error| gave_way(error, table))
}

/// Begins a transaction that holds the table's lock and has no snapshot yet.
async fn lock(running: &Running, session: &Session, table: &Table) -> Result<(), CaptureError> {
    // Whoever waits behind our request for the lock waits for us, too: not for long.
    let limit = running.job.plan.limits.lock_timeout.as_millis();
    session
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = {limit};
             LOCK TABLE ONLY {} IN ACCESS SHARE MODE; SET LOCAL lock_timeout = 0",
            table.name.quoted()
        ))
        .await
        .map_err(|error| gave_way(error, table))
}

fn gave_way(error: tokio_postgres::Error, table: &Table) -> CaptureError {
    match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => CaptureError::GaveWay(table.name.clone()),
        _ => error.into(),
    }
}

/// The leader reads, and as many others as are free.
async fn read_all(shared: &Arc<Shared>, leader: &Session, permits: Arc<Semaphore>) -> Result<(), CaptureError> {
    let mut readers = JoinSet::new();
    let own = permits.clone().acquire_owned().await;
    let ranges = shared.blocks / RANGE;
    while (readers.len() as i64) < ranges {
        let Ok(permit) = permits.clone().try_acquire_owned() else { break };
        let shared = Arc::clone(shared);
        readers.spawn(async move {
            let session = connect(&shared.running).await?;
            lock(&shared.running, &session, &shared.table).await?;
            session.batch_execute(&format!("SET TRANSACTION SNAPSHOT {}", quote::literal(&shared.snapshot))).await?;
            let result = read(&shared, &session).await;
            drop(permit);
            result
        });
    }
    read(shared, leader).await?;
    drop(own);
    while let Some(result) = readers.join_next().await {
        result.map_err(panicked)??;
    }
    Ok(())
}

/// Reads ranges of the heap until none is left.
async fn read(shared: &Shared, session: &Session) -> Result<(), CaptureError> {
    let columns = quote::idents(shared.table.columns.iter().map(|column| column.name.as_str()));
    let mut writer = Writer::new(Arc::clone(&shared.chunks));
    loop {
        let from = shared.next.fetch_add(RANGE, Ordering::Relaxed);
        if from > 0 && from >= shared.blocks {
            return writer.finish().await;
        }
        let to = from + RANGE;
        // The last range is open: nothing visible in the snapshot can be missed by a size that was read too early.
        let upper = if to < shared.blocks { format!("AND ctid < '({to},0)'") } else { String::new() };
        let query = format!(
            "COPY (SELECT {columns} FROM ONLY {} WHERE ctid >= '({from},0)' {upper}) TO STDOUT",
            shared.table.name.quoted()
        );
        let rows = session.copy_out(&query).await?;
        futures::pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            writer.row(&row).await?;
        }
    }
}

/// Ends, with an error, when somebody has waited too long for a lock that this copy holds.
async fn give_way(running: &Running, shared: &Shared) -> Result<(), CaptureError> {
    let session = pg::connect_read_only(&running.job.endpoint, "copy watch").await?;
    let limit = running.job.plan.limits.lock_timeout;
    let name = shared.table.name.quoted();
    loop {
        tokio::time::sleep(LOOK).await;
        if pg::somebody_waits(&session, &shared.application, Some(&name), limit).await? {
            return Err(CaptureError::GaveWay(shared.table.name.clone()));
        }
    }
}
