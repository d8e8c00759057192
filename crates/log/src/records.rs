//! Records over messages. One that is larger than a message is split into [`Record::Blob`]s, followed by a
//! [`Record::Joined`] that names them; readers never see either.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use model::{DecodeError, Joined, Record, Seq};

use crate::{Chain, Log, LogError, Reader, StreamName};

/// What a blob's encoding takes besides its data: two tags and two lengths of at most five bytes each.
const BLOB_ROOM: usize = 12;

/// What is reserved for a joined record at most, in bytes; beyond, the memory grows as the pieces come.
const RESERVED: usize = 256 << 20;

/// Decodes what a [`Reader`] returns.
pub struct RecordReader {
    log: Arc<dyn Log>,
    stream: StreamName,
    reader: Box<dyn Reader>,
    /// What the next message of a record holds, once it is read: lets [`RecordReader::next`] be cancelled in between.
    ahead: Option<(Seq, Ahead)>,
}

/// A record that has been read, or the pieces of one, not fetched yet.
enum Ahead {
    Whole(Box<Record>, u64),
    Pieces(Joined),
}

impl RecordReader {
    /// Wraps a reader of `stream`.
    pub fn new(log: Arc<dyn Log>, stream: StreamName, reader: Box<dyn Reader>) -> Self {
        RecordReader { log, stream, reader, ahead: None }
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
            self.size().await?;
            if let Some((seq, Ahead::Pieces(joined))) = &self.ahead {
                let next = (*seq, join(&*self.log, &self.stream, joined).await?);
                self.ahead = None;
                return Ok(next);
            }
            if let Some((seq, Ahead::Whole(record, _))) = self.ahead.take() {
                return Ok((seq, *record));
            }
        }
    }

    /// The bytes of the next record. One that is larger than a message is not in memory yet, as long as nobody calls [`RecordReader::next`].
    ///
    /// # Errors
    /// As [`RecordReader::next`].
    pub async fn size(&mut self) -> Result<u64, LogError> {
        loop {
            match &self.ahead {
                Some((_, Ahead::Whole(_, bytes))) => return Ok(*bytes),
                Some((_, Ahead::Pieces(joined))) => return Ok(joined.bytes),
                None => {}
            }
            let message = self.reader.next().await?;
            let bytes = message.payload.len() as u64;
            let ahead = match Record::decode(message.payload)? {
                Record::Blob(_) | Record::Unknown => continue,
                Record::Joined(joined) => Ahead::Pieces(joined),
                record => Ahead::Whole(Box::new(record), bytes),
            };
            self.ahead = Some((message.seq, ahead));
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
    // Not more at once than a damaged message may ask for.
    let mut whole = BytesMut::with_capacity((joined.bytes as usize).min(RESERVED));
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
