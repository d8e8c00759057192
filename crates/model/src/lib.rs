//! The nouns that every other crate speaks in. No I/O, no async.
//!
//! - positions: [`Lsn`] in a source's WAL, [`Xid`] of its transactions, [`Seq`] in a log stream
//! - what is visible to a copy: [`Snapshot`]
//! - tables: [`TableName`], [`Relation`], [`Column`]; [`quote`] is the one place where SQL text is quoted
//! - what happens to them: [`Tuple`], [`Change`], [`Part`] of a transaction
//! - where tests let a process die: [`mod@failpoint`]
//! - what people are told: [`Problem`], [`Finding`]
//! - what is written to the log: [`Record`], and [`wire`], its encoding (`proto/crossfade/v1/log.proto`)

mod backoff;
mod change;
mod count;
pub mod failpoint;
mod lsn;
mod name;
mod problem;
pub mod quote;
mod record;
mod relation;
mod seq;
mod snapshot;
mod tuple;
mod xid;

pub use backoff::Backoff;
pub use change::{Change, Marker, MarkerKind, Old, Part};
pub use count::count;
pub use lsn::{Lsn, ParseLsnError};
pub use name::TableName;
pub use problem::{Code, Finding, Problem, Severity};
pub use record::{
    Batch, Chunk, ChunkLogged, CopyColumn, CopyEnd, DecodeError, Header, Heartbeat, Identity, Joined, Mend, Recopy,
    Record, Schema, SchemaItem, TableBegin, TableEnd, TailBegin, Writer,
};
pub use relation::{Column, Oid, Relation, ReplicaIdentity};
pub use seq::Seq;
pub use snapshot::{ParseSnapshotError, Snapshot};
pub use tuple::{Cell, Tuple, TupleError};
pub use xid::Xid;

/// The generated types of the log's wire format.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/crossfade.v1.rs"));
}
