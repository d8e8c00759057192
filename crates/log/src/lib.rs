//! The durable event log, and everything that speaks to it.
//!
//! - what a log is: [`Log`], with [`Chain`] to write one stream alone and [`Reader`] to follow one
//! - who implements it: [`Nats`] (JetStream) and [`Embedded`] (RocksDB, one machine); one conformance suite holds both
//!   to the same promises
//! - typed records on top of either: [`RecordReader`], [`push_record`], [`append_record`], [`get_record`]
//! - a value that applications watch, beside the log and in JetStream alone: [`Bucket`]
//! - what goes wrong: [`LogError`]
//!
//! Knows nothing of Postgres and nothing of the plan file; which log to open is the program's decision.

mod embedded;
mod error;
mod log;
mod nats;
mod records;
mod window;

pub use crate::log::{Chain, Log, Message, Reader, StreamKind, StreamName, StreamState};
pub use embedded::Embedded;
pub use error::LogError;
pub use nats::{Bucket, Entry, Nats, NatsOptions, Watch};
pub use records::{RecordReader, append_record, get_record, push_record};
