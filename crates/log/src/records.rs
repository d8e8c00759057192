//! Records over messages. One that is larger than a message is split into [`Record::Blob`]s, followed by a
//! [`Record::Joined`] that names them; readers never see either.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use model::{DecodeError, Joined, Record, Seq};

use crate::{Chain, Log, LogError, Reader, StreamName};

/// What a blob's encoding takes besides its data: two tags and two lengths of at most five bytes each.
const BLOB_ROOM: usize = 12;

/// Decodes what a [`Reader`] returns.
pub struct RecordReader {
    log: Arc<dyn Log>,
    stream: StreamName,
    reader: Box<dyn Reader>,
    /// Read, its blobs not fetched yet: lets [`RecordReader::next`] be cancelled in between.
    joining: Option<(Seq, Joined)>,
}

impl RecordReader {
    /// Wraps a reader of `stream`.
    pub fn new(log: Arc<dyn Log>, stream: StreamName, reader: Box<dyn Reader>) -> Self {
        RecordReader { log, stream, reader, joining: None }
    }

    /// Opens `stream` at `from` (inclusive).
    ///
    /// # Errors
    /// As [`Log::read`].
    pub async fn open(log: Arc<dyn Log>, stream: StreamName, from: Seq) -> Result<Self, LogError> {
        let reader = log.read(&stream, from).await?;
        Ok(RecordReader::new(log, stream, reader))
    }

    /// The next record, and the sequence of the message that completes it. Blobs, and kinds that this version does not
    /// know, are passed over. May be cancelled and called again.
    ///
    /// # Errors
    /// As [`Reader::next`]; [`LogError::Damaged`].
    pub async fn next(&mut self) -> Result<(Seq, Record), LogError> {
        loop {
            if let Some((seq, joined)) = &self.joining {
                let (seq, record) = (*seq, join(&*self.log, &self.stream, joined).await?);
                self.joining = None;
                return Ok((seq, record));
            }
            let message = self.reader.next().await?;
            match Record::decode(message.payload)? {
                Record::Blob(_) | Record::Unknown => {}
                Record::Joined(joined) => self.joining = Some((message.seq, joined)),
                record => return Ok((message.seq, record)),
            }
        }
    }
}

/// The record that message `seq` holds, or completes.
///
/// # Errors
/// As [`Log::get`]; [`LogError::Damaged`].
pub async fn get_record(log: &dyn Log, stream: &StreamName, seq: Seq) -> Result<Record, LogError> {
    match Record::decode(log.get(stream, seq).await?.payload)? {
        Record::Joined(joined) => join(log, stream, &joined).await,
        record => Ok(record),
    }
}

async fn join(log: &dyn Log, stream: &StreamName, joined: &Joined) -> Result<Record, LogError> {
    let mut whole = BytesMut::new();
    for seq in &joined.blobs {
        match Record::decode(log.get(stream, *seq).await?.payload)? {
            Record::Blob(data) => whole.extend_from_slice(&data),
            _ => return Err(DecodeError::Field("a joined record names a message that is no blob").into()),
        }
    }
    if whole.len() as u64 != joined.bytes {
        return Err(DecodeError::Field("a joined record's blobs have another length than it says").into());
    }
    match Record::decode(whole.freeze())? {
        Record::Joined(_) => Err(DecodeError::Field("a joined record is made of another one").into()),
        record => Ok(record),
    }
}

/// Pushes a record, split where its encoding is larger than `max` bytes ([`Log::max_message`]). The sequence is that of the
/// message that completes it.
///
/// # Errors
/// As [`Chain::push`].
pub async fn push_record(chain: &mut dyn Chain, max: usize, record: Record) -> Result<Seq, LogError> {
    let encoded = record.encode();
    if encoded.len() <= max {
        return chain.push(encoded).await;
    }
    let mut blobs = Vec::new();
    for blob in pieces(&encoded, max) {
        blobs.push(chain.push(blob).await?);
        model::failpoint!("blob_pushed");
    }
    chain.push(Record::Joined(Joined { blobs, bytes: encoded.len() as u64 }).encode()).await
}

/// Appends a record behind whatever is there, split where it is larger than a message; other writers' messages may stand
/// between its pieces. Returns once it is stored, with the sequence of the message that completes it.
///
/// # Errors
/// As [`Log::append`].
pub async fn append_record(log: &dyn Log, stream: &StreamName, record: Record) -> Result<Seq, LogError> {
    let (encoded, max) = (record.encode(), log.max_message());
    if encoded.len() <= max {
        return log.append(stream, encoded).await;
    }
    let mut blobs = Vec::new();
    for blob in pieces(&encoded, max) {
        blobs.push(log.append(stream, blob).await?);
        model::failpoint!("blob_appended");
    }
    log.append(stream, Record::Joined(Joined { blobs, bytes: encoded.len() as u64 }).encode()).await
}

/// Encoded blobs of at most `max` bytes.
fn pieces(encoded: &Bytes, max: usize) -> impl Iterator<Item = Bytes> {
    let room = max.saturating_sub(BLOB_ROOM).max(1);
    (0..encoded.len())
        .step_by(room)
        .map(move |start| Record::Blob(encoded.slice(start..encoded.len().min(start + room))).encode())
}
