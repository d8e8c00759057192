//! Any bytes are a pgoutput message or an error: no panic, no memory taken on the word of a length.
//!
//! The first byte says whether the message comes inside a stream (its lowest bit), the rest is the message. The corpus
//! was recorded from a server; `cargo test -p crossfade-pg` replays it.
#![no_main]

use bytes::Bytes;
use crossfade_pg::pgoutput::{Decoder, PgOutput};
use libfuzzer_sys::fuzz_target;

const STREAM_START: &[u8] = b"S\0\0\0\x01\x01";

fuzz_target!(|bytes: &[u8]| {
    let Some((place, payload)) = bytes.split_first() else { return };
    let mut decoder = Decoder::default();
    if place & 1 == 1 {
        let _ = decoder.decode(Bytes::from_static(STREAM_START));
    }
    match decoder.decode(Bytes::copy_from_slice(payload)) {
        Ok(PgOutput::Insert { new, .. }) => assert_eq!(new.cells().count(), new.len()),
        Ok(PgOutput::Update { old, new, .. }) => {
            assert_eq!(new.cells().count(), new.len());
            if let Some(old) = old {
                assert_eq!(old.tuple().cells().count(), old.tuple().len());
            }
        }
        Ok(_) | Err(_) => {}
    }
});
