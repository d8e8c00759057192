//! Follows the control records of a source's copy stream into the state tables, in order, each exactly once.

use std::sync::Arc;

use futures::FutureExt;
use log::{Log, LogError, RecordReader, StreamKind, StreamName};
use model::{Record, Seq, TableBegin, TailBegin};
use pg::Session;
use plan::SchemaMode;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job, recopy, schema, session, tables, tail};

/// Records taken in by one transaction at most: chunks come by the hundred.
const AT_ONCE: usize = 256;

/// Follows for ever. Sets `caught_up` once it has taken in what the stream had when this began.
///
/// # Errors
/// [`ApplyError::Again`] where copies became void: the tail must not go on with what it knows of them.
pub(crate) async fn follow(
    job: Arc<Job>,
    lease: Lease,
    source: String,
    caught_up: watch::Sender<bool>,
) -> Result<(), ApplyError> {
    // It empties tables for new epochs.
    let session = session::writer(&job, "apply control").await?;
    let stream = job.stream(&source, StreamKind::Copy);
    let from = position(&job, &session, lease, &source, &stream).await?;
    let end = end(&*job.log, &stream).await?;
    let mut reader = RecordReader::open(Arc::clone(&job.log), stream.clone(), from).await?;
    if from > end {
        caught_up.send_replace(true);
    }
    loop {
        let mut records = vec![reader.next().await?];
        while records.len() < AT_ONCE {
            match reader.next().now_or_never() {
                Some(record) => records.push(record?),
                None => break,
            }
        }
        lease.begin(&session).await?;
        let (mut taken, mut again) = (Seq::ZERO, None);
        for (seq, record) in records {
            taken = seq;
            again = take(&job, &session, &source, record, seq > end).await?;
            if again.is_some() {
                break;
            }
        }
        moved(&job, &session, &source, &stream, taken).await?;
        model::failpoint!("control_written");
        session.batch_execute(&format!("NOTIFY {CHANNEL}; COMMIT")).await?;
        model::failpoint!("control_committed");
        if let Some(why) = again {
            return Err(ApplyError::Again(why));
        }
        if taken >= end {
            caught_up.send_replace(true);
        }
    }
}

/// The last record of a stream: behind it there may be pieces of one that was cut off.
async fn end(log: &dyn Log, stream: &StreamName) -> Result<Seq, LogError> {
    let state = log.state(stream).await?.ok_or(LogError::NoStream)?;
    let mut seq = state.last;
    while seq >= state.first && seq > Seq::ZERO {
        match log::get_record(log, stream, seq).await {
            Ok(Record::Blob(_) | Record::Unknown) | Err(LogError::Missing { .. }) => seq = Seq(seq.0 - 1),
            Ok(_) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(seq)
}

/// Everything up to message `seq` is taken in.
async fn moved(job: &Job, session: &Session, source: &str, stream: &StreamName, seq: Seq) -> Result<(), ApplyError> {
    let sum = sum(&job.log.get(stream, seq).await?.payload);
    session
        .execute(
            "UPDATE crossfade.checkpoint SET control_seq = $2, control_sum = $3 WHERE source = $1::text",
            &[&source, &(seq.0 as i64), &sum],
        )
        .await?;
    Ok(())
}

/// Tells messages apart (FNV-1a).
fn sum(payload: &[u8]) -> i64 {
    payload.iter().fold(0xCBF2_9CE4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3))
        as i64
}

/// The first message that is not taken in. If the last one that was is not in the stream any more, the stream has lost its end or was made
/// anew: then only a beginning of the tail that the target has not seen leads on.
async fn position(
    job: &Job,
    session: &Session,
    lease: Lease,
    source: &str,
    stream: &StreamName,
) -> Result<Seq, ApplyError> {
    let query = "SELECT control_seq, control_sum, tail_begin, coalesce(recopy, '') FROM crossfade.checkpoint WHERE source = $1::text";
    let row = session.query_one(query, &[&source]).await?;
    let (seq, known): (Seq, Option<i64>) = (Seq(row.get::<_, i64>(0) as u64), row.get(1));
    if seq == Seq::ZERO {
        return Ok(seq.next());
    }
    match job.log.get(stream, seq).await {
        Ok(message) if known.is_none_or(|known| known == sum(&message.payload)) => return Ok(seq.next()),
        Ok(_) | Err(LogError::Missing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let seen =
        |begin: &TailBegin| begin.sequence.0 as i64 == row.get::<_, i64>(2) && begin.recopy == row.get::<_, &str>(3);
    let Some(Begin { at, begin, copier }) = last_begin(&job.log, stream, seen).await? else {
        let why =
            format!("the copy stream does not have message {seq} any more, up to which the target has taken it in");
        return Err(recopy::gap(format!("the copies of source {source:?}"), why));
    };
    warn!(source, "the copy stream is another one than before; going on where everything is copied again");
    lease.begin(session).await?;
    recopy::tail_begins(session, source, &begin).await?;
    session
        .execute("UPDATE crossfade.checkpoint SET copier = $2::text WHERE source = $1::text", &[&source, &copier])
        .await?;
    moved(job, session, source, stream, at).await?;
    session.batch_execute("COMMIT").await?;
    Ok(at.next())
}

/// A beginning of the tail in a copy stream.
struct Begin {
    at: Seq,
    begin: TailBegin,
    /// Id of the writer that copied then.
    copier: Option<String>,
}

/// The last beginning of the tail that a copy stream tells of and that is not `seen`; waits for it if it was asked for.
async fn last_begin(
    log: &Arc<dyn Log>,
    stream: &StreamName,
    seen: impl Fn(&TailBegin) -> bool,
) -> Result<Option<Begin>, LogError> {
    let (last, first) = (end(&**log, stream).await?, log.state(stream).await?.ok_or(LogError::NoStream)?.first);
    let (mut found, mut copier, mut asked) = (None, None, None);
    if last < first {
        return Ok(None);
    }
    let mut reader = RecordReader::open(Arc::clone(log), stream.clone(), first).await?;
    loop {
        let (at, record) = reader.next().await?;
        match record {
            Record::TailBegin(begin) => {
                asked = asked.filter(|id| *id != begin.recopy);
                found = Some(Begin { at, begin, copier: copier.clone() });
            }
            Record::Writer(writer) => copier = Some(writer.id),
            Record::Recopy(recopy) if recopy.tables.is_empty() => asked = Some(recopy.id),
            _ => {}
        }
        if at >= last && asked.is_none() {
            return Ok(found.filter(|found| !seen(&found.begin)));
        }
        if at == last {
            info!(%stream, "everything is to be copied again; waiting for capture to begin");
        }
    }
}

/// Takes a record in, `live` or of what was there when this began. Where that makes copies void, says why everything has to start again.
async fn take(
    job: &Job,
    session: &Session,
    source: &str,
    record: Record,
    live: bool,
) -> Result<Option<String>, ApplyError> {
    if is_late(session, source, &record).await? {
        return Ok(None);
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
            let taken = "UPDATE crossfade.checkpoint c SET schema = true FROM crossfade.checkpoint old
                          WHERE c.source = $1::text AND old.source = c.source RETURNING old.schema";
            let known: bool = session.query_one(taken, &[&source]).await?.get(0);
            // A log that was made anew says it all again.
            if !(known && schema.whole) {
                unjoin(session, source).await?;
                schema::create(session, source, schema.items).await?;
            }
        }
        Record::TableBegin(begin) => table_begin(job, session, source, begin, live).await?,
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
        // One of a round during which somebody has asked for another copy: that one's end counts.
        Record::CopyEnd(_) if recopy::is_due(session, source).await? => {}
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
        Record::Recopy(asked) => {
            unjoin(session, source).await?;
            recopy::void(session, source, &asked.tables).await?;
            if asked.tables.is_empty() {
                recopy::tail_waits(session, source, &asked.id).await?;
            }
            return Ok(Some(format!("tables of source {source:?} are copied again")));
        }
        Record::Mend(mend) => tail::announce_mend(session, source, mend).await?,
        Record::TailBegin(begin) => {
            recopy::tail_begins(session, source, &begin).await?;
            return Ok(Some(format!("the tail of source {source:?} starts anew, and everything is copied again")));
        }
        Record::Schema(_)
        | Record::Header(_)
        | Record::Chunk(_)
        | Record::Batch(_)
        | Record::Heartbeat(_)
        | Record::Blob(_)
        | Record::Joined(_)
        | Record::Unknown => {}
    }
    Ok(None)
}

/// It is of a capture process that copied before the one that copies now: stopped, replaced, and awake again.
async fn is_late(session: &Session, source: &str, record: &Record) -> Result<bool, ApplyError> {
    let Some(writer) = record.copier() else { return Ok(false) };
    let query = "SELECT coalesce(copier <> $2::text, false) FROM crossfade.checkpoint WHERE source = $1::text";
    Ok(session.query_one(query, &[&source, &writer]).await?.get(0))
}

/// Before the tail runs an epoch begins at once. Afterwards it begins when the tail reaches its marker: what the tail still
/// applies to the old rows would be lost with them. To a table whose copy is void it applies nothing.
async fn table_begin(
    job: &Job,
    session: &Session,
    source: &str,
    begin: TableBegin,
    live: bool,
) -> Result<(), ApplyError> {
    let started: bool = session
        .query_one("SELECT started FROM crossfade.checkpoint WHERE source = $1::text FOR UPDATE", &[&source])
        .await?
        .get(0);
    unjoin(session, source).await?;
    let void = tables::announce(session, &job.plan, source, begin.clone()).await?;
    if !started || void {
        tables::begin(session, &job.plan, source, &begin.table, live).await?;
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
