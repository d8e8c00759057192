//! Copy workers: any number of them, in any number of processes. A worker claims chunks by locking their lines of the ledger, so
//! that a claim ends with its transaction, whatever becomes of the worker.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{SinkExt, pin_mut};
use log::StreamKind;
use model::{Code, Problem, Record, Seq, TableBegin, TableName, quote};
use pg::Session;
use tokio_util::sync::CancellationToken;

use crate::derived::Chunks;
use crate::derived::stored::is_shape;
use crate::{ApplyError, CHANNEL, Job, schema, session, tables};

/// Chunks of one transaction: its own cost is shared, 4 MiB at most are read again after a crash, and a few workers
/// share a small table evenly.
const CLAIM: i64 = 4;

/// How long a worker waits for news before it looks again by itself.
const LOOK: Duration = Duration::from_millis(500);

struct Claim {
    chunk: i64,
    seq: Seq,
}

/// A table under an epoch.
type Epoch = (String, TableName, i32);

/// Takes chunks and indexes to build until `stop`.
pub(crate) async fn work(job: Arc<Job>, stop: CancellationToken) -> Result<(), ApplyError> {
    let mut news = pg::connect(&job.endpoint, "apply news").await?;
    news.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
    let mut session: Option<Session> = None;
    let mut through = Chunks::default();
    loop {
        if stop.is_cancelled() {
            return Ok(());
        }
        let writer = match &mut session {
            Some(writer) => writer,
            none => none.insert(session::writer(&job, "apply copy").await?),
        };
        if is_left(writer).await? && (claim(&job, writer, &mut through).await? || schema::build_one(writer).await?) {
            continue;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            _ = news.notification() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Whether chunks or indexes are left to anybody. Cheap, as workers go on asking for as long as the migration lasts.
async fn is_left(session: &Session) -> Result<bool, ApplyError> {
    let query = "SELECT EXISTS (SELECT FROM crossfade.copied WHERE worker IS NULL)
                     OR EXISTS (SELECT FROM crossfade.schema_item WHERE stage = 'table' AND done_at IS NULL)";
    Ok(session.query_one(query, &[]).await?.get(0))
}

/// Copies some chunks, in one transaction with their lines in the ledger. Says whether there were any.
async fn claim(job: &Job, session: &Session, through: &mut Chunks) -> Result<bool, ApplyError> {
    session.batch_execute("BEGIN").await?;
    let rows = session
        .query(
            "SELECT c.source, c.schema, c.name, c.epoch, c.chunk, c.seq
               FROM crossfade.copied c JOIN crossfade.tables t ON (t.source, t.schema, t.name, t.epoch) = (c.source, c.schema, c.name, c.epoch)
              WHERE c.worker IS NULL ORDER BY c.seq LIMIT $1 FOR UPDATE OF c SKIP LOCKED",
            &[&CLAIM],
        )
        .await?;
    if rows.is_empty() {
        session.batch_execute("ROLLBACK").await?;
        return Ok(false);
    }
    // Of one table only: a transaction that holds the rows of two could wait in a circle with one that begins epochs.
    let mut claimed: Option<(Epoch, Vec<Claim>)> = None;
    for row in &rows {
        let epoch = (row.get(0), TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)), row.get(3));
        let (first, chunks) = claimed.get_or_insert_with(|| (epoch.clone(), Vec::new()));
        if *first == epoch {
            chunks.push(Claim { chunk: row.get(4), seq: Seq(row.get::<_, i64>(5) as u64) });
        }
    }
    if let Some((epoch, chunks)) = &claimed
        && !copy(job, session, through, epoch, chunks).await?
    {
        // Who has the lease says what is to be done.
        session.batch_execute("ROLLBACK").await?;
        return Ok(false);
    }
    session.batch_execute(&format!("NOTIFY {CHANNEL}; COMMIT")).await?;
    model::failpoint!("ledger_committed");
    Ok(true)
}

/// Says whether this process may: not if the copy has begun under a plan that says something else.
async fn copy(
    job: &Job,
    session: &Session,
    through: &mut Chunks,
    (source, table, epoch): &Epoch,
    chunks: &[Claim],
) -> Result<bool, ApplyError> {
    // Held to the end of the transaction: a new epoch (FOR UPDATE) waits for it, and finds the rows to empty. Not more than KEY SHARE:
    // noting that the copy is complete in the log need not wait.
    session
        .execute(
            "SELECT FROM crossfade.tables WHERE source = $1::text AND schema = $2::text AND name = $3::text FOR KEY SHARE",
            &[source, &table.schema, &table.name],
        )
        .await?;
    // Read by a statement of its own, which sees every epoch that began before the lock was there, whatever the locking one returns.
    let row = session
        .query_opt(
            "SELECT begin, into_schema, into_name FROM crossfade.tables
              WHERE source = $1::text AND schema = $2::text AND name = $3::text AND epoch = $4",
            &[source, &table.schema, &table.name, epoch],
        )
        .await?;
    let Some(row) = row else { return Ok(true) };
    let Record::TableBegin(begin) = tables::decode(row.get(0))? else { return Ok(true) };
    let into = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
    let stream = job.stream(source, StreamKind::Chunks);
    let data =
        try_join_all(chunks.iter().map(async |claim| match log::get_record(&*job.log, &stream, claim.seq).await? {
            Record::Chunk(chunk)
                if chunk.table == *table && chunk.epoch == *epoch as u32 && chunk.index == claim.chunk as u64 =>
            {
                Ok(chunk.data)
            }
            _ => Err(log::LogError::Damaged(model::DecodeError::Field(
                "the ledger names a message that is not this chunk: the log has lost its end and was filled again",
            ))),
        }))
        .await?;
    if !is_shape(&into) {
        write(session, &begin, &into, data).await?;
    } else if !through.write(session, &job.plan, source, &begin, &into, data).await? {
        return Ok(false);
    }
    model::failpoint!("chunk_copied");
    let done: Vec<i64> = chunks.iter().map(|claim| claim.chunk).collect();
    session
        .execute(
            "UPDATE crossfade.copied SET worker = $5::text, done_at = clock_timestamp()
              WHERE source = $1::text AND schema = $2::text AND name = $3::text AND epoch = $4 AND chunk = ANY ($6)",
            &[source, &table.schema, &table.name, epoch, &job.worker, &done],
        )
        .await?;
    model::failpoint!("ledger_written");
    Ok(true)
}

async fn write(session: &Session, begin: &TableBegin, into: &TableName, data: Vec<Bytes>) -> Result<(), ApplyError> {
    let columns = quote::idents(begin.columns.iter().map(|column| column.name.as_str()));
    let copy = async {
        let sink = session.copy_in(&format!("COPY {} ({columns}) FROM STDIN", into.quoted())).await?;
        pin_mut!(sink);
        for chunk in data {
            sink.send(chunk).await?;
        }
        sink.finish().await
    };
    match copy.await.map_err(ApplyError::from) {
        Ok(_) => Ok(()),
        Err(error) if error.retry() => Err(error),
        Err(error) => Err(Problem::new(
            Code::RowRefused,
            format!("table {into}"),
            format!("the target refuses a row of the copy: {error}"),
            "mend the target's definition (type, length, constraint) or the row at the source, then start again",
        )
        .into()),
    }
}
