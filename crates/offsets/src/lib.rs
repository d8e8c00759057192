//! The offset store: a process's own progress and spilled transactions, in RocksDB on local disk. A cache of truth
//! held in log and target: deleting it costs time, never data.
//!
//! [`Store`] is the one door; `keys` has every key, `codec` the only use of bincode.

mod codec;
mod keys;
mod spill;
mod store;

pub use spill::Spill;
pub use store::{OffsetsError, Store, TailPosition};
