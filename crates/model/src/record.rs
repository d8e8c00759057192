//! What a log message says, typed. [`encoding`] turns it into [`wire`](crate::wire) and back.

mod encoding;

use bytes::Bytes;

use crate::{Lsn, Part, Relation, Seq, Snapshot, TableName, Tuple, TupleError, Xid};

/// One message of a log stream. `proto/crossfade/v1/log.proto` says what each is for.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Record {
    Blob(Bytes),
    Joined(Joined),
    Header(Header),
    Schema(Schema),
    TableBegin(TableBegin),
    Chunk(Chunk),
    ChunkLogged(ChunkLogged),
    TableEnd(TableEnd),
    CopyEnd(CopyEnd),
    Recopy(Recopy),
    TailBegin(TailBegin),
    Mend(Mend),
    Writer(Writer),
    Batch(Batch),
    Heartbeat(Heartbeat),
    /// Of a kind that this version does not know; to be skipped.
    Unknown,
}

/// Stands for the record that the named blobs encode together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Where they are, in order.
    pub blobs: Vec<Seq>,
    /// Their length together.
    pub bytes: u64,
}

/// A database of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Of `pg_control_system()`.
    pub system_identifier: String,
    /// The database's name.
    pub database: String,
}

/// The first record of a copy stream: whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The plan's name.
    pub plan: String,
    /// The source's name in the plan.
    pub source: String,
    /// Shared by everything of this plan.
    pub nonce: String,
    /// Where the data comes from.
    pub source_identity: Identity,
    /// Where the first run of the plan takes it.
    pub target_identity: Identity,
}

/// The wire format's version that [`Header`] carries.
const FORMAT: u32 = 1;

/// The source's schema, as pg_dump wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schema {
    /// Its entries.
    pub items: Vec<SchemaItem>,
    /// Of all that the plan takes; else of tables that were added to it.
    pub whole: bool,
}

/// An entry of the source's pg_dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaItem {
    /// pg_dump's name of it.
    pub name: String,
    /// pg_dump's type: `TABLE`, `INDEX`, `FK CONSTRAINT` …
    pub kind: String,
    /// Its schema, where it has one.
    pub schema: String,
    /// Its owner, where it has one.
    pub owner: String,
    /// The statements that create it.
    pub sql: String,
    /// Belongs after the copy.
    pub post_data: bool,
    /// The table that it stands on, where it stands on one.
    pub table: Option<TableName>,
}

/// A column of a table's copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyColumn {
    /// Its name.
    pub name: String,
    /// Its type as `format_type()` prints it.
    pub type_name: String,
    /// Whether it is NOT NULL.
    pub not_null: bool,
}

impl CopyColumn {
    /// Whether two tables have columns of the same names and types, in the same order: what is read from one fits into the other.
    pub fn are_alike(ones: &[CopyColumn], others: &[CopyColumn]) -> bool {
        ones.len() == others.len()
            && ones.iter().zip(others).all(|(one, other)| one.name == other.name && one.type_name == other.type_name)
    }
}

/// A table's copy starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableBegin {
    /// Which table.
    pub table: TableName,
    /// From 1; chunks of earlier ones are void.
    pub epoch: u32,
    /// What the copy has seen.
    pub snapshot: Snapshot,
    /// In the order of the chunks' fields.
    pub columns: Vec<CopyColumn>,
    /// Columns that identify a row; none if nothing does.
    pub key: Vec<String>,
    /// Of a partition: the partitioned table at the top.
    pub root: Option<TableName>,
    /// Of a partition: the condition that its rows meet.
    pub partition_bound: String,
    /// By the planner's statistics.
    pub rows_estimated: i64,
    /// Of the heap.
    pub bytes_estimated: i64,
    /// Id of the marker emitted before the snapshot.
    pub marker: String,
    /// Id of the [`Writer`] that copies.
    pub writer: String,
    /// Its replica identity is `FULL`: old versions of rows come whole.
    pub full: bool,
    /// It has inheritance children: tables of their own, whose rows a query of this one gives as well.
    pub heirs: bool,
}

/// Rows in COPY's text format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose rows.
    pub table: TableName,
    /// In which epoch.
    pub epoch: u32,
    /// From 0.
    pub index: u64,
    /// How many.
    pub rows: u64,
    /// Whole lines.
    pub data: Bytes,
}

/// Where a [`Chunk`] stands in its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkLogged {
    /// Whose rows.
    pub table: TableName,
    /// In which epoch.
    pub epoch: u32,
    /// From 0.
    pub index: u64,
    /// How many rows.
    pub rows: u64,
    /// How long its data is.
    pub bytes: u64,
    /// Where it stands.
    pub sequence: Seq,
    /// Id of the [`Writer`] that copies.
    pub writer: String,
}

/// A table's copy is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEnd {
    /// Which table.
    pub table: TableName,
    /// Which epoch of it.
    pub epoch: u32,
    /// How many chunks it has.
    pub chunks: u64,
    /// How many rows.
    pub rows: u64,
    /// Id of the [`Writer`] that copies.
    pub writer: String,
}

/// Every table's copy is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyEnd {
    /// Id of the marker that joins copy and tail once it is applied.
    pub marker: String,
    /// All tables of the plan, with the epoch that counts.
    pub tables: Vec<(TableName, u32)>,
    /// Id of the [`Writer`] that copies.
    pub writer: String,
}

/// Somebody wants tables to be copied again: their epochs so far are void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recopy {
    /// Unique.
    pub id: String,
    /// Which; none for all of the source, whose tail starts anew.
    pub tables: Vec<TableName>,
    /// When it was asked for, in microseconds since 1970 UTC.
    pub time: i64,
    /// With no tables: where the data comes from afterwards, in place of what the [`Header`] says.
    pub source_identity: Option<Identity>,
}

/// The tail starts anew, for a [`Recopy`] of the whole source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailBegin {
    /// Its id.
    pub recopy: String,
    /// Where the slot starts.
    pub lsn: Lsn,
    /// The [`Writer`] with which it starts, in the tail stream.
    pub sequence: Seq,
}

/// What some rows are at one commit, whatever the target holds there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mend {
    /// Unique.
    pub id: String,
    /// End of the commit.
    pub lsn: Lsn,
    /// Of a transaction that ended just before: a copy that sees it is younger.
    pub xid: Xid,
    /// Their table, as the tail describes it.
    pub relation: Relation,
    /// Their keys; other columns are null.
    pub keys: Vec<Tuple>,
    /// Those of them that are there.
    pub rows: Vec<Tuple>,
}

/// A capture process begins to write the tail, or to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Unique to the process and its connection.
    pub id: String,
    /// `host:pid`.
    pub name: String,
    /// The tail has lost something before this; a [`TailBegin`] says where to go on.
    pub anew: bool,
}

/// Committed transactions, in commit order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Every relation that the changes name.
    pub relations: Vec<Relation>,
    /// Transactions and parts of them.
    pub parts: Vec<Part>,
    /// Id of the writer.
    pub writer: String,
}

/// The tail is complete up to here although nothing was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Up to here.
    pub lsn: Lsn,
    /// When, in microseconds since 1970 UTC.
    pub time: i64,
    /// Id of the writer.
    pub writer: String,
}

/// A log message that is not a record of this format.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the wire format at all.
    #[error("not a record of the log: {0}")]
    Wire(#[from] prost::DecodeError),
    /// A tuple is malformed.
    #[error("a change in the log is damaged: {0}")]
    Tuple(#[from] TupleError),
    /// A field that must be there is not, or has a value without meaning.
    #[error("a record in the log is damaged: {0}")]
    Field(&'static str),
    /// Written by a newer crossfade.
    #[error("the log has format {found}, this program reads {FORMAT}; use the version that wrote it, or a newer one")]
    Format {
        /// The format found.
        found: u32,
    },
}

impl Record {
    /// Id of the [`Writer`] that copies, of a record that is void if another one has begun to copy before it.
    pub fn copier(&self) -> Option<&str> {
        match self {
            Record::TableBegin(TableBegin { writer, .. })
            | Record::ChunkLogged(ChunkLogged { writer, .. })
            | Record::TableEnd(TableEnd { writer, .. })
            | Record::CopyEnd(CopyEnd { writer, .. }) => Some(writer),
            Record::Blob(_)
            | Record::Joined(_)
            | Record::Header(_)
            | Record::Schema(_)
            | Record::Chunk(_)
            | Record::Recopy(_)
            | Record::TailBegin(_)
            | Record::Mend(_)
            | Record::Writer(_)
            | Record::Batch(_)
            | Record::Heartbeat(_)
            | Record::Unknown => None,
        }
    }
}
