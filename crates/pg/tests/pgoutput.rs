//! Decoding, without a server: messages that this file encodes, damaged ones, and those recorded from a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::{BufMut, Bytes, BytesMut};
use crossfade_pg::pgoutput::{Decoder, PgOutput, PgOutputError};
use model::{Cell, Column, Lsn, Oid, Old, Relation, ReplicaIdentity, TableName, Tuple};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// 2000-01-01 in microseconds since 1970: what `date -u -d 2000-01-01 +%s` prints.
const EPOCH: i64 = 946_684_800_000_000;

fn encode(message: &PgOutput) -> Bytes {
    let mut out = BytesMut::new();
    let text = |out: &mut BytesMut, text: &str| {
        out.put_slice(text.as_bytes());
        out.put_u8(0);
    };
    let kind = |out: &mut BytesMut, kind: u8, xid: &Option<u32>| {
        out.put_u8(kind);
        if let Some(xid) = xid {
            out.put_u32(*xid);
        }
    };
    let old_row = |out: &mut BytesMut, old: &Old| {
        out.put_u8(if matches!(old, Old::Key(_)) { b'K' } else { b'O' });
        out.put_slice(old.tuple().bytes());
    };
    match message {
        PgOutput::Begin { final_lsn, commit_time, xid } => {
            out.put_u8(b'B');
            out.put_u64(final_lsn.0);
            out.put_i64(commit_time - EPOCH);
            out.put_u32(*xid);
        }
        PgOutput::Commit { commit_lsn, end_lsn, commit_time } => {
            out.put_slice(b"C\0");
            out.put_u64(commit_lsn.0);
            out.put_u64(end_lsn.0);
            out.put_i64(commit_time - EPOCH);
        }
        PgOutput::Origin { lsn, name } => {
            out.put_u8(b'O');
            out.put_u64(lsn.0);
            text(&mut out, name);
        }
        PgOutput::Relation { xid, relation } => {
            kind(&mut out, b'R', xid);
            out.put_u32(relation.id.0);
            text(&mut out, &relation.table.schema);
            text(&mut out, &relation.table.name);
            out.put_u8(relation.identity.letter() as u8);
            out.put_u16(relation.columns.len() as u16);
            for column in &relation.columns {
                out.put_u8(u8::from(column.key));
                text(&mut out, &column.name);
                out.put_u32(column.type_oid.0);
                out.put_i32(column.modifier);
            }
        }
        PgOutput::Type { xid, oid, schema, name } => {
            kind(&mut out, b'Y', xid);
            out.put_u32(oid.0);
            text(&mut out, schema);
            text(&mut out, name);
        }
        PgOutput::Insert { xid, relation, new } => {
            kind(&mut out, b'I', xid);
            out.put_u32(relation.0);
            out.put_u8(b'N');
            out.put_slice(new.bytes());
        }
        PgOutput::Update { xid, relation, old, new } => {
            kind(&mut out, b'U', xid);
            out.put_u32(relation.0);
            if let Some(old) = old {
                old_row(&mut out, old);
            }
            out.put_u8(b'N');
            out.put_slice(new.bytes());
        }
        PgOutput::Delete { xid, relation, old } => {
            kind(&mut out, b'D', xid);
            out.put_u32(relation.0);
            old_row(&mut out, old);
        }
        PgOutput::Truncate { xid, relations, cascade, restart_identity } => {
            kind(&mut out, b'T', xid);
            out.put_u32(relations.len() as u32);
            out.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            relations.iter().for_each(|relation| out.put_u32(relation.0));
        }
        PgOutput::Message { xid, transactional, lsn, prefix, content } => {
            kind(&mut out, b'M', xid);
            out.put_u8(u8::from(*transactional));
            out.put_u64(lsn.0);
            text(&mut out, prefix);
            out.put_u32(content.len() as u32);
            out.put_slice(content);
        }
        PgOutput::StreamStart { xid, first } => {
            out.put_u8(b'S');
            out.put_u32(*xid);
            out.put_u8(u8::from(*first));
        }
        PgOutput::StreamStop => out.put_u8(b'E'),
        PgOutput::StreamCommit { xid, commit_lsn, end_lsn, commit_time } => {
            out.put_u8(b'c');
            out.put_u32(*xid);
            out.put_u8(0);
            out.put_u64(commit_lsn.0);
            out.put_u64(end_lsn.0);
            out.put_i64(commit_time - EPOCH);
        }
        PgOutput::StreamAbort { xid, subxid } => {
            out.put_u8(b'A');
            out.put_u32(*xid);
            out.put_u32(*subxid);
        }
    }
    out.freeze()
}

fn name() -> impl Strategy<Value = String> {
    "[^\0]{1,12}"
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn time() -> impl Strategy<Value = i64> {
    // What Postgres can print: the years from -4713 on.
    -211_813_488_000_000_000i64..9_000_000_000_000_000_000
}

fn tuple() -> impl Strategy<Value = Tuple> {
    let cell = prop_oneof![Just(None), Just(Some(None)), ".{0,20}".prop_map(|text| Some(Some(text)))];
    vec(cell, 0..8).prop_map(|cells| {
        Tuple::from_cells(cells.iter().map(|cell| match cell {
            None => Cell::Null,
            Some(None) => Cell::Unchanged,
            Some(Some(text)) => Cell::Text(text.as_bytes()),
        }))
    })
}

fn old() -> impl Strategy<Value = Old> {
    prop_oneof![tuple().prop_map(Old::Key), tuple().prop_map(Old::Full)]
}

fn relation() -> impl Strategy<Value = Relation> {
    let column = (name(), any::<bool>(), any::<u32>(), any::<i32>()).prop_map(|(name, key, oid, modifier)| Column {
        name,
        key,
        type_oid: Oid(oid),
        modifier,
    });
    let identity = prop::sample::select(vec!['d', 'n', 'f', 'i']);
    (any::<u32>(), name(), name(), identity, vec(column, 0..8)).prop_map(|(id, schema, name, identity, columns)| {
        Relation {
            id: Oid(id),
            table: TableName::new(schema, name),
            identity: ReplicaIdentity::from_letter(identity).unwrap(),
            columns,
        }
    })
}

/// Messages that carry a transaction id inside a stream, and none outside.
fn change(in_stream: bool) -> impl Strategy<Value = PgOutput> {
    let xid = move || any::<u32>().prop_map(move |xid| in_stream.then_some(xid));
    let oid = || any::<u32>().prop_map(Oid);
    prop_oneof![
        (lsn(), name()).prop_map(|(lsn, name)| PgOutput::Origin { lsn, name }),
        (xid(), relation()).prop_map(|(xid, relation)| PgOutput::Relation { xid, relation }),
        (xid(), oid(), name(), name()).prop_map(|(xid, oid, schema, name)| PgOutput::Type { xid, oid, schema, name }),
        (xid(), oid(), tuple()).prop_map(|(xid, relation, new)| PgOutput::Insert { xid, relation, new }),
        (xid(), oid(), option::of(old()), tuple()).prop_map(|(xid, relation, old, new)| PgOutput::Update {
            xid,
            relation,
            old,
            new
        }),
        (xid(), oid(), old()).prop_map(|(xid, relation, old)| PgOutput::Delete { xid, relation, old }),
        (xid(), vec(oid(), 0..5), any::<bool>(), any::<bool>()).prop_map(
            |(xid, relations, cascade, restart_identity)| PgOutput::Truncate {
                xid,
                relations,
                cascade,
                restart_identity
            }
        ),
        (xid(), any::<bool>(), lsn(), name(), vec(any::<u8>(), 0..20)).prop_map(
            |(xid, transactional, lsn, prefix, content)| PgOutput::Message {
                xid,
                transactional,
                lsn,
                prefix,
                content: content.into()
            }
        ),
    ]
}

fn outside() -> impl Strategy<Value = PgOutput> {
    prop_oneof![
        (lsn(), time(), any::<u32>()).prop_map(|(final_lsn, commit_time, xid)| PgOutput::Begin {
            final_lsn,
            commit_time,
            xid
        }),
        (lsn(), lsn(), time()).prop_map(|(commit_lsn, end_lsn, commit_time)| PgOutput::Commit {
            commit_lsn,
            end_lsn,
            commit_time
        }),
        (any::<u32>(), lsn(), lsn(), time()).prop_map(|(xid, commit_lsn, end_lsn, commit_time)| {
            PgOutput::StreamCommit { xid, commit_lsn, end_lsn, commit_time }
        }),
        (any::<u32>(), any::<u32>()).prop_map(|(xid, subxid)| PgOutput::StreamAbort { xid, subxid }),
        change(false),
    ]
}

/// What a server sends: messages, and streams of messages between them.
fn sequence() -> impl Strategy<Value = Vec<PgOutput>> {
    let stream = (any::<u32>(), any::<bool>(), vec(change(true), 0..6)).prop_map(|(xid, first, changes)| {
        let mut messages = vec![PgOutput::StreamStart { xid, first }];
        messages.extend(changes);
        messages.push(PgOutput::StreamStop);
        messages
    });
    vec(prop_oneof![outside().prop_map(|message| vec![message]), stream], 0..6).prop_map(|parts| parts.concat())
}

fn decoder(in_stream: bool) -> Decoder {
    let mut decoder = Decoder::default();
    if in_stream {
        decoder.decode(encode(&PgOutput::StreamStart { xid: 1, first: true })).unwrap();
    }
    decoder
}

proptest! {
    #[test]
    fn messages_come_back_as_they_were_sent(messages in sequence()) {
        let mut decoder = Decoder::default();
        for message in messages {
            prop_assert_eq!(decoder.decode(encode(&message)), Ok(message));
        }
    }

    #[test]
    fn a_message_that_ends_early_or_late_is_an_error(message in outside(), cut in any::<prop::sample::Index>()) {
        let whole = encode(&message);
        let short = whole.slice(..cut.index(whole.len()));
        prop_assert!(Decoder::default().decode(short).is_err());
        let mut long = whole.to_vec();
        long.push(0);
        prop_assert!(Decoder::default().decode(long.into()).is_err());
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(kind in any::<u8>(), bytes in vec(any::<u8>(), 0..80), in_stream: bool) {
        let _ = decoder(in_stream).decode([&[kind], &bytes[..]].concat().into());
    }

    #[test]
    fn a_damaged_message_is_a_message_or_an_error(
        message in change(true), place in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = encode(&message).to_vec();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let _ = decoder(true).decode(bytes.into());
    }
}

#[test]
fn a_count_that_the_bytes_cannot_hold_takes_no_memory() {
    let truncate = [&b"T"[..], &[0xFF, 0xFF, 0xFF, 0xFF], &[0], &[0; 8]].concat();
    assert_eq!(Decoder::default().decode(truncate.into()), Err(PgOutputError::Truncated('T')));
    let message = [&b"M\x01"[..], &[0; 8], b"p\0", &[0xFF, 0xFF, 0xFF, 0xFF]].concat();
    assert_eq!(Decoder::default().decode(message.into()), Err(PgOutputError::Truncated('M')));
}

#[test]
fn a_message_in_the_wrong_place_is_an_error() {
    let begin = encode(&PgOutput::Begin { final_lsn: Lsn(1), commit_time: 0, xid: 1 });
    assert_eq!(decoder(true).decode(begin), Err(PgOutputError::Place { kind: 'B', in_stream: true }));
    let stop = encode(&PgOutput::StreamStop);
    assert_eq!(decoder(false).decode(stop), Err(PgOutputError::Place { kind: 'E', in_stream: false }));
}

#[test]
fn the_recorded_corpus_decodes() {
    let folder = "fuzz/corpus/pgoutput";
    let mut kinds = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        // The first byte says whether the message came inside a stream; see the fuzz target.
        let (place, payload) = bytes.split_first().unwrap();
        let message = decoder(place & 1 == 1).decode(Bytes::copy_from_slice(payload));
        let message = message.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(encode(&message), payload, "{}", path.display());
        kinds.insert((place & 1, char::from(payload[0])));
    }
    for kind in [
        (0, 'B'),
        (0, 'I'),
        (0, 'U'),
        (0, 'D'),
        (0, 'T'),
        (0, 'M'),
        (0, 'O'),
        (0, 'c'),
        (0, 'A'),
        (1, 'I'),
        (1, 'R'),
        (1, 'E'),
    ] {
        assert!(kinds.contains(&kind), "none of kind {kind:?} was recorded");
    }
}
