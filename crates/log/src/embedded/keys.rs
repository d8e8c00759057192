//! What stands under which key. Every key starts with a letter of its own; retired letters are not used again.
//!
//! | key | value |
//! |---|---|
//! | `m` id (u32) seq (u64) | a message's payload |
//! | `n` | the next stream's id (u32); ids are not used twice |
//! | `s` subject | a stream: id (u32), first, last (u64), messages, bytes (u64) |
//!
//! Numbers are big-endian, so that they sort.

use std::ops::Range;

use model::Seq;

use crate::{LogError, StreamState};

/// A stream's number within the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StreamId(pub(super) u32);

pub(super) const NEXT_ID: &[u8] = b"n";

/// All streams' keys start with it.
pub(super) const STREAMS: &[u8] = b"s";

pub(super) fn message(id: StreamId, seq: Seq) -> [u8; 13] {
    let mut key = [b'm'; 13];
    key[1..5].copy_from_slice(&id.0.to_be_bytes());
    key[5..].copy_from_slice(&seq.0.to_be_bytes());
    key
}

/// The sequence in a message's key.
pub(super) fn message_seq(key: &[u8]) -> Result<Seq, LogError> {
    let seq = key.get(5..).and_then(|seq| seq.try_into().ok()).ok_or_else(|| damaged("a message's key"))?;
    Ok(Seq(u64::from_be_bytes(seq)))
}

/// All messages of a stream.
pub(super) fn messages(id: StreamId) -> Range<[u8; 13]> {
    message(id, Seq::ZERO)..message(StreamId(id.0 + 1), Seq::ZERO)
}

pub(super) fn stream(name: &str) -> Vec<u8> {
    [STREAMS, name.as_bytes()].concat()
}

/// The name in a stream's key; `None` if the key is none.
pub(super) fn stream_name(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.strip_prefix(STREAMS)?).ok()
}

pub(super) fn encode_id(id: StreamId) -> [u8; 4] {
    id.0.to_be_bytes()
}

pub(super) fn decode_id(value: &[u8]) -> Result<StreamId, LogError> {
    value.try_into().map(|id| StreamId(u32::from_be_bytes(id))).map_err(|_| damaged("the streams' counter"))
}

pub(super) fn encode_stream(id: StreamId, state: &StreamState) -> [u8; 36] {
    let mut value = [0; 36];
    value[..4].copy_from_slice(&id.0.to_be_bytes());
    let numbers = [state.first.0, state.last.0, state.messages, state.bytes];
    for (place, number) in value[4..].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    value
}

pub(super) fn decode_stream(value: &[u8]) -> Result<(StreamId, StreamState), LogError> {
    let (id, rest) = value.split_first_chunk().ok_or_else(|| damaged("a stream's state"))?;
    let (numbers, rest) = rest.as_chunks::<8>();
    let [first, last, messages, bytes] = numbers else { return Err(damaged("a stream's state")) };
    if !rest.is_empty() {
        return Err(damaged("a stream's state"));
    }
    let number = |bytes: &[u8; 8]| u64::from_be_bytes(*bytes);
    let state = StreamState {
        first: Seq(number(first)),
        last: Seq(number(last)),
        messages: number(messages),
        bytes: number(bytes),
    };
    Ok((StreamId(u32::from_be_bytes(*id)), state))
}

fn damaged(what: &str) -> LogError {
    LogError::Other(format!("the embedded log is damaged: {what} is malformed"))
}
