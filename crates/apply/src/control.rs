//! Follows the control records of a source's copy stream into the state tables, in order, each exactly once.

use std::sync::Arc;

use futures::FutureExt;
use log::{RecordReader, StreamKind};
use model::{Record, Seq, TableBegin};
use pg::Session;
use plan::SchemaMode;

use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job, schema, tables};

/// Records taken in by one transaction at most: chunks come by the hundred.
const AT_ONCE: usize = 256;

/// Follows for ever.
pub(crate) async fn follow(job: Arc<Job>, lease: Lease, source: String) -> Result<(), ApplyError> {
    let session = pg::connect(&job.endpoint, "apply control").await?;
    // A table that is emptied for a new epoch must not take others with it.
    session.batch_execute("SET synchronous_commit = off; SET session_replication_role = replica").await?;
    let row =
        session.query_one("SELECT control_seq FROM crossfade.checkpoint WHERE source = $1::text", &[&source]).await?;
    let from = Seq(row.get::<_, i64>(0) as u64).next();
    let stream = job.stream(&source, StreamKind::Copy);
    let mut reader = RecordReader::open(Arc::clone(&job.log), stream, from).await?;
    loop {
        let mut records = vec![reader.next().await?];
        while records.len() < AT_ONCE {
            match reader.next().now_or_never() {
                Some(record) => records.push(record?),
                None => break,
            }
        }
        lease.begin(&session).await?;
        for (seq, record) in records {
            take(&job, &session, &source, record).await?;
            session
                .execute(
                    "UPDATE crossfade.checkpoint SET control_seq = $2 WHERE source = $1::text",
                    &[&source, &(seq.0 as i64)],
                )
                .await?;
        }
        session.batch_execute(&format!("NOTIFY {CHANNEL}; COMMIT")).await?;
    }
}

async fn take(job: &Job, session: &Session, source: &str, record: Record) -> Result<(), ApplyError> {
    if is_late(session, source, &record).await? {
        return Ok(());
    }
    match record {
        Record::Writer(writer) => {
            session
                .execute(
                    "UPDATE crossfade.checkpoint SET copier = $2::text WHERE source = $1::text",
                    &[&source, &writer.id],
                )
                .await?;
        }
        Record::Schema(schema) if job.plan.target.schema == SchemaMode::Clone => {
            unjoin(session, source).await?;
            schema::create(session, source, schema.items).await?;
        }
        Record::TableBegin(begin) => table_begin(session, source, begin).await?,
        Record::ChunkLogged(logged) => {
            session
                .execute(
                    "INSERT INTO crossfade.copied (source, schema, name, epoch, chunk, seq, rows, bytes)
                     VALUES ($1::text, $2::text, $3::text, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
                    &[
                        &source,
                        &logged.table.schema,
                        &logged.table.name,
                        &(logged.epoch as i32),
                        &(logged.index as i64),
                        &(logged.sequence.0 as i64),
                        &(logged.rows as i64),
                        &(logged.bytes as i64),
                    ],
                )
                .await?;
        }
        Record::TableEnd(end) => tables::complete(session, source, &end).await?,
        Record::CopyEnd(end) => {
            session
                .execute(
                    "UPDATE crossfade.checkpoint SET join_marker = $2::text WHERE source = $1::text",
                    &[&source, &end.marker],
                )
                .await?;
            // The tail may have been there already. A statement of its own: it sees what was committed while the one above waited.
            session
                .execute(
                    "UPDATE crossfade.checkpoint SET joined = true WHERE source = $1::text
                        AND EXISTS (SELECT FROM crossfade.marker m WHERE m.source = $1::text AND m.id = $2::text)",
                    &[&source, &end.marker],
                )
                .await?;
        }
        Record::Schema(_)
        | Record::Header(_)
        | Record::Chunk(_)
        | Record::Recopy(_)
        | Record::TailBegin(_)
        | Record::Batch(_)
        | Record::Heartbeat(_)
        | Record::Blob(_)
        | Record::Joined(_)
        | Record::Unknown => {}
    }
    Ok(())
}

/// It is of a capture process that copied before the one that copies now: stopped, replaced, and awake again.
async fn is_late(session: &Session, source: &str, record: &Record) -> Result<bool, ApplyError> {
    let Some(writer) = record.copier() else { return Ok(false) };
    let query = "SELECT coalesce(copier <> $2::text, false) FROM crossfade.checkpoint WHERE source = $1::text";
    Ok(session.query_one(query, &[&source, &writer]).await?.get(0))
}

/// Before the tail runs an epoch begins at once. Afterwards it begins when the tail reaches its marker: what the tail still
/// applies to the old rows would be lost with them.
async fn table_begin(session: &Session, source: &str, begin: TableBegin) -> Result<(), ApplyError> {
    let started: bool = session
        .query_one("SELECT started FROM crossfade.checkpoint WHERE source = $1::text FOR UPDATE", &[&source])
        .await?
        .get(0);
    unjoin(session, source).await?;
    tables::announce(session, source, begin.clone()).await?;
    if !started {
        tables::begin(session, source, &begin.table).await?;
    }
    Ok(())
}

/// A table's copy begins: until it is in, and the marker behind it is reached, the tables do not agree with each other.
async fn unjoin(session: &Session, source: &str) -> Result<(), ApplyError> {
    session
        .execute(
            "UPDATE crossfade.checkpoint SET joined = false, join_marker = NULL WHERE source = $1::text",
            &[&source],
        )
        .await?;
    Ok(())
}
