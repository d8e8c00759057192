use bytes::{Buf, Bytes, BytesMut};
use model::Lsn;
use postgres_protocol::message::backend::Message;

use super::NOT_IN_STATE;
use super::wire::{malformed, server_error};
use crate::error::PgError;

/// What the server sends once a slot is started (Postgres manual, "Streaming Replication Protocol").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// One pgoutput message. The payload shares memory with its neighbours: keeping a few bytes of it for long keeps up
    /// to a quarter of a MiB.
    Data {
        /// Where it stands in the WAL; 0 for what has no place there.
        start: Lsn,
        /// How far the server had got when it sent this.
        end: Lsn,
        /// For [`Decoder`](crate::pgoutput::Decoder).
        payload: Bytes,
    },
    /// Nothing to say. It has been answered already where it asked for that.
    Keepalive {
        /// Everything before this position has been sent.
        end: Lsn,
        /// An answer was asked for.
        reply: bool,
    },
}

/// What a frame costs besides its payload, roughly: keepalives are not free.
const OVERHEAD: usize = 64;

/// Postgres cannot send more in one message; a longer one is no message.
const LONGEST: usize = 1 << 30;

/// A row's change that is longer is read once everything before it has been taken, and then perhaps [not at all](super::ReplicationStream::pass_over).
pub(super) const LARGE: usize = 16 << 20;

/// What has been cut off the front of the bytes read so far.
#[derive(Default)]
pub(super) struct Cut {
    pub(super) frames: Vec<Frame>,
    /// What they cost.
    pub(super) bytes: usize,
    /// Behind them the change of a row has begun to come that is [`LARGE`]; this many bytes of it are missing.
    pub(super) large: Option<usize>,
    /// One of them wants an answer.
    pub(super) reply: bool,
    /// Why there will be no more.
    pub(super) end: Option<PgError>,
}

/// Takes every complete message off the front of `buffer`, and makes room for the rest of an incomplete one; of one that is [`LARGE`] only if it stands at the front and
/// `is_wanted`.
pub(super) fn cut(buffer: &mut BytesMut, is_wanted: bool) -> Cut {
    let mut cut = Cut::default();
    while cut.end.is_none() {
        let Some((tag, length)) = header(buffer) else { break };
        if length > LONGEST {
            cut.end = Some(PgError::protocol(format!("a message claims to have {length} bytes")));
        } else if buffer.len() < length {
            let missing = length - buffer.len();
            match length <= LARGE || (is_wanted && cut.frames.is_empty()) {
                true => buffer.reserve(missing),
                false => match is_row(buffer) {
                    Some(true) => cut.large = Some(missing),
                    Some(false) => buffer.reserve(missing),
                    None => {}
                },
            }
            break;
        } else if tag == b'd' {
            let mut data = buffer.split_to(length).freeze();
            data.advance(5);
            match frame(data) {
                Ok(frame) => cut.push(frame),
                Err(error) => cut.end = Some(error),
            }
        } else {
            cut.end = other(buffer).err();
        }
    }
    cut
}

impl Cut {
    fn push(&mut self, frame: Frame) {
        self.bytes += OVERHEAD;
        match &frame {
            Frame::Data { payload, .. } => self.bytes += payload.len(),
            Frame::Keepalive { reply, .. } => self.reply |= reply,
        }
        self.frames.push(frame);
    }
}

/// Tag and whole length of the message at the front.
fn header(buffer: &[u8]) -> Option<(u8, usize)> {
    let mut header = buffer.get(..5)?;
    let tag = header.get_u8();
    Some((tag, header.get_u32() as usize + 1))
}

/// Whether the message at the front is the change of a row; `None` while that has not come yet.
fn is_row(buffer: &[u8]) -> Option<bool> {
    // Tag and length, then the head of the data, as `frame` reads it.
    buffer.get(5 + 25).map(|tag| matches!(tag, b'I' | b'U' | b'D'))
}

fn frame(mut data: Bytes) -> Result<Frame, PgError> {
    match (data.first(), data.len()) {
        (Some(b'w'), 25..) => {
            data.advance(1);
            let (start, end) = (Lsn(data.get_u64()), Lsn(data.get_u64()));
            // The server's clock.
            data.advance(8);
            Ok(Frame::Data { start, end, payload: data })
        }
        (Some(b'k'), 18..) => {
            data.advance(1);
            let end = Lsn(data.get_u64());
            data.advance(8);
            Ok(Frame::Keepalive { end, reply: data.get_u8() != 0 })
        }
        (kind, length) => Err(PgError::protocol(format!("a replication message of kind {kind:?} has {length} bytes"))),
    }
}

/// Everything that is not CopyData: an error, the end, or something that may come at any time.
fn other(buffer: &mut BytesMut) -> Result<(), PgError> {
    match Message::parse(buffer).map_err(malformed)? {
        Some(Message::ErrorResponse(body)) => Err(server_error(body.fields())),
        Some(Message::CopyDone | Message::CommandComplete(_) | Message::ReadyForQuery(_)) => {
            Err(PgError::closed("the server ended the replication"))
        }
        Some(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => Ok(()),
        _ => Err(PgError::protocol("the server sent a message that has no place in a replication")),
    }
}

/// What of the server's refusals means that the slot is of no more use: it is not there (42704), it was invalidated
/// (55000), or the WAL that it needs is gone (58P01).
pub(super) fn slot_error(error: PgError, slot: &str) -> PgError {
    match error {
        PgError::Server(error) if ["42704", NOT_IN_STATE, "58P01"].contains(&error.sqlstate.as_str()) => {
            PgError::SlotLost { place: error.place.clone(), slot: slot.to_owned(), reason: error.to_string() }
        }
        error => error,
    }
}
