use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use log::{RecordReader, StreamKind};
use model::{Lsn, Part, Record, Relation, Seq};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::checkpoint::Checkpoint;
use crate::{ApplyError, Job, recopy};

/// What the log hands to the folding, per source in order.
pub(super) struct Incoming {
    pub source: Arc<str>,
    pub seq: Seq,
    pub what: What,
    /// Held by a large message until it is written.
    pub large: Option<OwnedSemaphorePermit>,
}

pub(super) enum What {
    /// Parts of transactions that the target lacks, and the tables they name.
    Parts(Vec<Arc<Relation>>, Vec<Part>),
    /// A transaction that is not complete will not be completed: its parts come again, or it was never logged whole.
    Discard,
}

/// Follows a source's tail from its checkpoint. A record of more than `large` bytes, one with a huge value, is fetched only once the one before that was such
/// has been written: of a source only one at a time is in memory, all the way to the target.
pub(super) async fn follow(
    job: Arc<Job>,
    source: String,
    checkpoint: Checkpoint,
    out: mpsc::Sender<Incoming>,
    large: u64,
) -> Result<(), ApplyError> {
    let stream = job.stream(&source, StreamKind::Tail);
    let source: Arc<str> = source.into();
    let from = start(&job, &stream, &source, &checkpoint).await?;
    let mut reader = match RecordReader::open(Arc::clone(&job.log), stream.clone(), from).await {
        Ok(reader) => reader,
        Err(error) => return Err(lost(&job, &stream, &source, error).await),
    };
    let mut writer: Option<String> = None;
    let mut parts = Parts { source: Arc::clone(&source), applied: checkpoint.lsn, open: false };
    // Nobody closes it.
    let alone = Arc::new(Semaphore::new(1));
    loop {
        let next = async {
            let alone = if reader.size().await? > large { Arc::clone(&alone).acquire_owned().await.ok() } else { None };
            let (seq, record) = reader.next().await?;
            Ok((alone, seq, record))
        };
        let (alone, seq, record) = match next.await {
            Ok(next) => next,
            Err(error) => return Err(lost(&job, &stream, &source, error).await),
        };
        let what = match record {
            Record::Batch(batch) if writer.as_ref().is_some_and(|writer| *writer != batch.writer) => {
                // Each begins with a record of its own. This one's was not seen: the log lost its end, and was filled again behind our back.
                return Err(
                    log::LogError::Unavailable(format!("message {seq} is of a writer that was not announced")).into()
                );
            }
            Record::Batch(mut batch) => {
                writer.get_or_insert_with(|| batch.writer.clone());
                batch.parts.retain(|part| !job.cut_off.has(&source, part.commit_lsn, seq));
                let relations = batch.relations.into_iter().map(Arc::new).collect();
                What::Parts(relations, parts.filter(batch.parts)?)
            }
            Record::Writer(next) if next.anew && seq != checkpoint.begin => {
                tracing::info!(source = &*source, %seq, "the tail starts anew; waiting for the copy's records to say so");
                return std::future::pending().await;
            }
            Record::Writer(next) => {
                writer = Some(next.id);
                parts.open = false;
                What::Discard
            }
            Record::Heartbeat(_) => continue,
            _ => {
                return Err(
                    log::LogError::Damaged(model::DecodeError::Field("the tail holds a record of the copy")).into()
                );
            }
        };
        if out.send(Incoming { source: Arc::clone(&source), seq, what, large: alone }).await.is_err() {
            // The gathering has ended; its own result says why.
            return std::future::pending().await;
        }
    }
}

/// A message that should be there is not. Where the log is shorter than it was, it is being filled again from the slot: worth another try
/// from the checkpoint. Anything else is a gap.
async fn lost(job: &Job, stream: &log::StreamName, source: &str, error: log::LogError) -> ApplyError {
    let log::LogError::Missing { seq, .. } = &error else { return error.into() };
    match job.log.state(stream).await {
        Ok(Some(state)) if *seq > state.last => {
            log::LogError::Unavailable(format!("the log is shorter than it was: {error}")).into()
        }
        Ok(_) => gap(source, format!("the log no longer has what the target needs next: {error}")),
        Err(error) => error.into(),
    }
}

/// Where to go on: at the message that the checkpoint names, if it still is the one that holds its commit. A log that lost its end with a
/// server's power was filled again from the slot, and may have other messages under the old numbers: then everything is read again from
/// where the tail begins, and what the target has is passed over.
async fn start(job: &Job, stream: &log::StreamName, source: &str, checkpoint: &Checkpoint) -> Result<Seq, ApplyError> {
    let state = job.log.state(stream).await?.ok_or(log::LogError::NoStream)?;
    if checkpoint.seq == Seq::ZERO && state.first <= Seq(1) {
        return Ok(Seq(1));
    }
    if holds(job, stream, checkpoint, checkpoint.seq).await? {
        return Ok(checkpoint.seq);
    }
    let begin = checkpoint.begin.max(Seq(1));
    if state.first <= begin && (checkpoint.begin == Seq::ZERO || holds(job, stream, checkpoint, begin).await?) {
        tracing::warn!(source, lsn = %checkpoint.lsn, "the log was written anew behind the checkpoint; reading it from its beginning");
        return Ok(begin);
    }
    Err(gap(
        source,
        format!(
            "the target stands at {} in message {}, which the log does not have; it begins with message {}",
            checkpoint.lsn, checkpoint.seq, state.first
        ),
    ))
}

/// Message `seq` is what the checkpoint takes it for: the one with its commit, or the one with which the tail started anew.
async fn holds(job: &Job, stream: &log::StreamName, checkpoint: &Checkpoint, seq: Seq) -> Result<bool, ApplyError> {
    match log::get_record(&*job.log, stream, seq).await {
        Ok(Record::Batch(batch)) => Ok(batch.parts.iter().any(|part| part.end_lsn == Some(checkpoint.lsn))),
        Ok(Record::Writer(writer)) => Ok(writer.anew && seq == checkpoint.begin),
        Ok(_) | Err(log::LogError::Missing { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Transactions whose parts stand in the log without an end, as far as this process has met them: their capture died, and the next one
/// logged them anew. Too large to be held until their end, they were found out when some of their rows were in the target's open transaction.
#[derive(Clone, Debug, Default)]
pub struct CutOff(Arc<Mutex<HashMap<(String, Lsn), Seq>>>);

impl CutOff {
    /// The parts before message `before`, where another writer begins, are void.
    pub(super) fn note(&self, source: &str, commit: Lsn, before: Seq) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((source.to_owned(), commit), before);
    }

    fn has(&self, source: &str, commit: Lsn, seq: Seq) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !known.is_empty() && known.get(&(source.to_owned(), commit)).is_some_and(|before| seq < *before)
    }
}

/// Leaves out what the target has.
struct Parts {
    source: Arc<str>,
    applied: Lsn,
    /// A transaction has begun and is not complete.
    open: bool,
}

impl Parts {
    fn filter(&mut self, parts: Vec<Part>) -> Result<Vec<Part>, ApplyError> {
        let mut out = Vec::with_capacity(parts.len());
        for part in parts {
            if part.commit_lsn < self.applied {
                continue;
            }
            if !part.first && !self.open {
                return Err(gap(
                    &self.source,
                    format!("the transaction that commits at {} has no beginning in the log", part.commit_lsn),
                ));
            }
            self.open = part.end_lsn.is_none();
            self.applied = part.end_lsn.unwrap_or(self.applied);
            out.push(part);
        }
        Ok(out)
    }
}

pub(super) fn gap(source: &str, why: String) -> ApplyError {
    recopy::gap(format!("the tail of source {source:?}"), why)
}
