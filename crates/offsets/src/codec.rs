//! Values: a version byte, then bincode. bincode 2.0.1 is complete and no longer maintained; nothing outside of this
//! module uses it, so that it can be replaced under a new version byte.

use bincode::{Decode, Encode, config};

use crate::OffsetsError;

const VERSION: u8 = 1;

pub fn encode(value: &impl Encode) -> Result<Vec<u8>, OffsetsError> {
    let mut out = vec![VERSION];
    bincode::encode_into_std_write(value, &mut out, config::standard())
        .map_err(|error| OffsetsError::Value(error.to_string()))?;
    Ok(out)
}

/// `None` where another version wrote it: the store is a cache, so that is as good as absent.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Option<T> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => bincode::decode_from_slice(rest, config::standard()).ok().map(|(value, _)| value),
        Some(_) | None => None,
    }
}
