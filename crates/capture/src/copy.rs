//! The initial copy. Per table one epoch: a marker, the barrier, a snapshot under a lock, chunks, the end. A table whose
//! copy was cut off starts over as its next epoch; tables that are done are done, until somebody asks for another copy.
//!
//! [`progress`] is what the log says has been copied, [`table`] copies one table, [`chunks`] takes its rows to the log.

mod chunks;
mod progress;
mod table;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use log::Log;
use model::{CopyEnd, Marker, MarkerKind, Record, Schema, Seq, TableName, Writer};
use pg::Session;
use pg::catalog::Table;
use plan::SchemaMode;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{info, warn};

pub(crate) use progress::{Progress, asked, progress};

use crate::run::Running;
use crate::{CaptureError, barrier, claim, marker, schema};

/// How long what gave way to the application rests before it starts over.
const REST: Duration = Duration::from_secs(2);

/// Copies what the log does not have yet, and says so at the end; then again whatever somebody asks for.
///
/// # Errors
/// Everything is asked for, too: that begins with the tail.
pub(crate) async fn run(running: &Arc<Running>, known: Progress) -> Result<(), CaptureError> {
    let mut last = known.last;
    // None that came later: it is not published.
    let mut complete = known.complete(&running.tables);
    loop {
        if !complete {
            last = round(running).await?;
        }
        if asked(&running.job.log, &running.header, last).await? {
            return Err(CaptureError::Again("everything is to be copied again".to_owned()));
        }
        complete = false;
    }
}

/// Copies what the log does not have yet, once. Returns the last record that says what that is.
async fn round(running: &Arc<Running>) -> Result<Seq, CaptureError> {
    let job = &running.job;
    let log: &dyn Log = &*job.log;
    let stream = claim::streams(&job.plan.name, &job.source.name).copy;
    let mut tables = running.tables.clone();
    let session = pg::connect(&job.endpoint, "copy").await?;
    // From here on nothing counts that a process appends which copied before this one, was stopped, and wakes.
    let hello = Writer { id: running.writer.clone(), name: job.worker.clone(), anew: false };
    log::append_record(log, &stream, Record::Writer(hello)).await?;
    let progress = progress(&job.log, &running.header).await?;
    if progress.complete(&tables) {
        return Ok(progress.last);
    }
    if job.plan.target.schema == SchemaMode::Clone {
        let dumped: Vec<TableName> =
            tables.iter().filter(|t| !progress.dumped(&t.name)).map(|t| t.name.clone()).collect();
        if !progress.schema || !dumped.is_empty() {
            // The tail follows meanwhile.
            let items = loop {
                match schema::dump(running, &session, progress.schema.then_some(&dumped)).await? {
                    Some(items) => break items,
                    None => tokio::time::sleep(REST).await,
                }
            };
            let schema = Schema { items, whole: !progress.schema };
            log::append_record(log, &stream, Record::Schema(schema)).await?;
            model::failpoint!("schema_logged");
        }
    }
    // The largest first: what takes longest must not start last.
    tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    let todo: Vec<(Table, u32)> =
        tables.iter().filter_map(|table| Some((table.clone(), progress.next_epoch(&table.name)?))).collect();
    let begin: Vec<_> = todo.iter().map(|(table, epoch)| marker::copy_id(&table.name, *epoch)).collect();
    for id in &begin {
        marker::emit(&session, &Marker::new(&running.header.nonce, MarkerKind::Copy, id)).await?;
        model::failpoint!("copy_marker_emitted");
    }
    // Everything that committed before the markers must be visible to the snapshots, so that apply may drop it.
    barrier::pass(&session, job.plan.limits.barrier_timeout).await?;
    model::failpoint!("copy_barrier_passed");
    let copied = copy_all(running, &session, todo).await?;

    let mut all = progress.done();
    all.extend(copied);
    all.retain(|(name, _)| tables.iter().any(|table| table.name == *name));
    all.sort();
    let id = format!("{} {}", uuid::Uuid::new_v4(), job.source.name);
    marker::emit(&session, &Marker::new(&running.header.nonce, MarkerKind::Joined, &id)).await?;
    model::failpoint!("joined_marker_emitted");
    log::append_record(
        log,
        &stream,
        Record::CopyEnd(CopyEnd { marker: id, tables: all, writer: running.writer.clone() }),
    )
    .await?;
    model::failpoint!("copy_ended");
    info!(source = job.source.name, "every table is copied");
    Ok(progress.last)
}

/// Several tables at once, large ones by several connections; never more than the plan's `copy_workers` read at a time.
async fn copy_all(
    running: &Arc<Running>,
    session: &Session,
    todo: Vec<(Table, u32)>,
) -> Result<Vec<(TableName, u32)>, CaptureError> {
    let permits = Arc::new(Semaphore::new(running.job.plan.limits.copy_workers.max(1)));
    let mut queue: std::collections::VecDeque<_> = todo.into();
    let mut copies = JoinSet::new();
    let mut done = Vec::new();
    loop {
        while copies.len() < permits.available_permits().max(1) {
            let Some((table, epoch)) = queue.pop_front() else { break };
            let (running, permits) = (Arc::clone(running), Arc::clone(&permits));
            copies.spawn(async move {
                let begun = AtomicBool::new(false);
                let result = table::copy(&running, &table, epoch, permits, &begun).await;
                (table, epoch, begun.into_inner(), result)
            });
        }
        let Some(finished) = copies.join_next().await else { return Ok(done) };
        let (table, epoch, begun, result) = finished.map_err(panicked)?;
        match result {
            Ok(()) => done.push((table.name, epoch)),
            Err(error @ CaptureError::GaveWay(_)) => {
                warn!("{error}; its copy starts over");
                tokio::time::sleep(REST).await;
                // An epoch that the log does not know is tried again. After a crash it would be, too; a marker of a later one would be waited for
                // in vain.
                let epoch = if begun { epoch + 1 } else { epoch };
                let id = marker::copy_id(&table.name, epoch);
                marker::emit(session, &Marker::new(&running.header.nonce, MarkerKind::Copy, &id)).await?;
                model::failpoint!("next_epoch_announced");
                barrier::pass(session, running.job.plan.limits.barrier_timeout).await?;
                queue.push_back((table, epoch));
            }
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn panicked(error: tokio::task::JoinError) -> CaptureError {
    model::Problem::new(model::Code::Internal, "a copy worker", error.to_string(), "report it with the log of this run")
        .into()
}
