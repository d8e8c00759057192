use log::{Log, LogError, StreamName};
use model::{Header, Lsn, Record, Seq};
use offsets::Store;
use tracing::warn;

use crate::{CaptureError, claim};

/// Where the log's tail ends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resume {
    /// The last message of the stream.
    pub last: Seq,
    /// Complete up to here; `None` if nothing was ever logged.
    pub lsn: Option<Lsn>,
    /// The message with which the tail starts: what stands before is over.
    pub begin: Seq,
}

/// Looks from the end of the tail stream backwards for a record that says how far it is complete: usually the last one, and
/// no further back than the pieces of one transaction, or than message `begin`. The offset store may know that the log has been further: it has lost its end then, and
/// is filled again from the slot.
pub(crate) async fn resume_point(
    log: &dyn Log,
    offsets: &Store,
    header: &Header,
    begin: Seq,
) -> Result<Resume, CaptureError> {
    let tail = claim::streams(&header.plan, &header.source).tail;
    let Some(state) = log.state(&tail).await? else { return Ok(Resume { begin, ..Resume::default() }) };
    let mut seq = state.last;
    while seq >= state.first.max(begin) && seq > Seq::ZERO {
        if let Some(lsn) = record(log, &tail, seq).await?.as_ref().and_then(complete) {
            if let Some(known) = offsets.tail(&header.source)?.filter(|known| known.lsn > lsn) {
                warn!(
                    source = header.source,
                    "the log ends at {lsn}, and has been at {}: reading again from the slot", known.lsn
                );
            }
            return Ok(Resume { last: state.last, lsn: Some(lsn), begin });
        }
        seq = Seq(seq.0 - 1);
    }
    Ok(Resume { last: state.last, lsn: None, begin })
}

/// Up to where the tail is complete with this record.
fn complete(record: &Record) -> Option<Lsn> {
    match record {
        Record::Batch(batch) => batch.parts.iter().rev().find_map(|part| part.end_lsn),
        Record::Heartbeat(heartbeat) => Some(heartbeat.lsn),
        _ => None,
    }
}

/// `None` where the stream lacks the message, or the beginning of the record that it ends.
pub(super) async fn record(log: &dyn Log, tail: &StreamName, seq: Seq) -> Result<Option<Record>, LogError> {
    match log::get_record(log, tail, seq).await {
        Ok(record) => Ok(Some(record)),
        Err(LogError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
