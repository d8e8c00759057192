//! The messages of the pgoutput plugin, protocol version 2 (Postgres manual, "Logical Replication Message Formats").
//!
//! Decoding shares the memory of the bytes that came in; nothing is copied but names.

use bytes::{Buf, Bytes};
use model::{Column, Lsn, Oid, Old, Relation, ReplicaIdentity, TableName, Tuple, TupleError};

/// Postgres counts microseconds from 2000-01-01, we from 1970-01-01: 10,957 days.
pub(crate) const POSTGRES_EPOCH: i64 = 10_957 * 86_400 * 1_000_000;

/// One message. Times are microseconds since 1970 UTC. An `xid` is there inside a stream only (between
/// [`StreamStart`](Self::StreamStart) and [`StreamStop`](Self::StreamStop)) and may be a subtransaction's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgOutput {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record starts.
        final_lsn: Lsn,
        /// When it was committed.
        commit_time: i64,
        /// Of the top-level transaction.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Where its commit record starts.
        commit_lsn: Lsn,
        /// Where that ends.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: i64,
    },
    /// The transaction came from elsewhere by replication.
    Origin {
        /// Where it was committed there.
        lsn: Lsn,
        /// The origin's name at the source.
        name: String,
    },
    /// What a table looks like; sent before its first change and when it may have changed.
    Relation {
        /// In a stream: the transaction that saw it so.
        xid: Option<u32>,
        /// The table.
        relation: Relation,
    },
    /// A type that is not built in.
    Type {
        /// In a stream: the transaction that saw it so.
        xid: Option<u32>,
        /// `pg_type.oid`.
        oid: Oid,
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
    /// A new row.
    Insert {
        /// In a stream: whose.
        xid: Option<u32>,
        /// Its table.
        relation: Oid,
        /// Every column.
        new: Tuple,
    },
    /// A new version of a row.
    Update {
        /// In a stream: whose.
        xid: Option<u32>,
        /// Its table.
        relation: Oid,
        /// There when the key changed, or the replica identity is full.
        old: Option<Old>,
        /// Every column, unchanged large values left out.
        new: Tuple,
    },
    /// A row's end.
    Delete {
        /// In a stream: whose.
        xid: Option<u32>,
        /// Its table.
        relation: Oid,
        /// What identifies it.
        old: Old,
    },
    /// Tables emptied by one statement.
    Truncate {
        /// In a stream: whose.
        xid: Option<u32>,
        /// All of them that are published.
        relations: Vec<Oid>,
        /// CASCADE was given.
        cascade: bool,
        /// RESTART IDENTITY was given.
        restart_identity: bool,
    },
    /// `pg_logical_emit_message`.
    Message {
        /// In a stream: whose.
        xid: Option<u32>,
        /// Part of its transaction; else it comes when it was written, committed or not.
        transactional: bool,
        /// Where it stands.
        lsn: Lsn,
        /// Whom it is for.
        prefix: String,
        /// What it says.
        content: Bytes,
    },
    /// A part of a transaction in progress begins.
    StreamStart {
        /// Of the top-level transaction.
        xid: u32,
        /// It is the transaction's first part.
        first: bool,
    },
    /// The part ends.
    StreamStop,
    /// A streamed transaction was committed.
    StreamCommit {
        /// Of the top-level transaction.
        xid: u32,
        /// Where its commit record starts.
        commit_lsn: Lsn,
        /// Where that ends.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: i64,
    },
    /// A streamed transaction was rolled back, or one of its subtransactions.
    StreamAbort {
        /// Of the top-level transaction.
        xid: u32,
        /// What was rolled back; the same as `xid` if all of it was.
        subxid: u32,
    },
}

/// The bytes are no message of this protocol, or come where it has none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PgOutputError {
    /// The kind is not one that was asked for.
    #[error("a pgoutput message is of unknown kind {0:#04x}")]
    Kind(u8),
    /// It ends too early.
    #[error("a pgoutput message of kind {0:?} ends too early")]
    Truncated(char),
    /// There is more than the message.
    #[error("a pgoutput message of kind {kind:?} has {bytes} bytes too many")]
    Trailing {
        /// The message's.
        kind: char,
        /// How many.
        bytes: usize,
    },
    /// Something in it has no meaning.
    #[error("a pgoutput message of kind {kind:?}: {what}")]
    Invalid {
        /// The message's.
        kind: char,
        /// What has none.
        what: &'static str,
    },
    /// One of its rows is malformed.
    #[error("a pgoutput message of kind {kind:?}: {error}")]
    Tuple {
        /// The message's.
        kind: char,
        /// How.
        error: TupleError,
    },
    /// It has no place inside a stream, or none outside.
    #[error("a pgoutput message of kind {kind:?} comes {}", if *.in_stream { "inside a stream" } else { "outside of any stream" })]
    Place {
        /// The message's.
        kind: char,
        /// Where it came.
        in_stream: bool,
    },
}

/// Decodes the messages of one connection, in their order. A new connection wants a new one.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// Between StreamStart and StreamStop most messages carry a transaction id, elsewhere none does.
    in_stream: bool,
}

impl Decoder {
    /// Decodes one message.
    ///
    /// # Errors
    /// The bytes are malformed. The connection is of no more use then.
    pub fn decode(&mut self, payload: Bytes) -> Result<PgOutput, PgOutputError> {
        let mut input = payload;
        let kind = input.try_get_u8().map_err(|_| PgOutputError::Truncated('?'))?;
        let mut body = Body { kind: char::from(kind), input };
        let place = |wanted: bool| match self.in_stream == wanted {
            true => Ok(()),
            false => Err(PgOutputError::Place { kind: char::from(kind), in_stream: self.in_stream }),
        };
        match kind {
            b'B' | b'C' | b'S' | b'c' | b'A' => place(false)?,
            b'E' => place(true)?,
            _ => {}
        }
        let message = body.message(kind, self.in_stream)?;
        if !body.input.is_empty() {
            return Err(PgOutputError::Trailing { kind: body.kind, bytes: body.input.len() });
        }
        match kind {
            b'S' => self.in_stream = true,
            b'E' => self.in_stream = false,
            _ => {}
        }
        Ok(message)
    }
}

/// What is left of a message.
struct Body {
    kind: char,
    input: Bytes,
}

impl Body {
    fn message(&mut self, kind: u8, in_stream: bool) -> Result<PgOutput, PgOutputError> {
        let xid = |body: &mut Body| if in_stream { body.u32().map(Some) } else { Ok(None) };
        Ok(match kind {
            b'B' => PgOutput::Begin { final_lsn: self.lsn()?, commit_time: self.time()?, xid: self.u32()? },
            b'C' => {
                self.flags()?;
                PgOutput::Commit { commit_lsn: self.lsn()?, end_lsn: self.lsn()?, commit_time: self.time()? }
            }
            b'O' => PgOutput::Origin { lsn: self.lsn()?, name: self.string()? },
            b'R' => PgOutput::Relation { xid: xid(self)?, relation: self.relation()? },
            b'Y' => {
                PgOutput::Type { xid: xid(self)?, oid: Oid(self.u32()?), schema: self.schema()?, name: self.string()? }
            }
            b'I' => PgOutput::Insert { xid: xid(self)?, relation: Oid(self.u32()?), new: self.new_tuple()? },
            b'U' => PgOutput::Update {
                xid: xid(self)?,
                relation: Oid(self.u32()?),
                old: self.old_tuple()?,
                new: self.new_tuple()?,
            },
            b'D' => PgOutput::Delete {
                xid: xid(self)?,
                relation: Oid(self.u32()?),
                old: self.old_tuple()?.ok_or_else(|| self.invalid("it has no old row"))?,
            },
            b'T' => {
                let xid = xid(self)?;
                let count = self.u32()? as usize;
                let options = self.u8()?;
                // A count that the bytes cannot hold is noticed before memory is taken for it.
                if self.input.len() / 4 < count {
                    return Err(PgOutputError::Truncated(self.kind));
                }
                let relations = (0..count).map(|_| self.u32().map(Oid)).collect::<Result<_, _>>()?;
                PgOutput::Truncate { xid, relations, cascade: options & 1 != 0, restart_identity: options & 2 != 0 }
            }
            b'M' => {
                let xid = xid(self)?;
                let transactional = self.u8()? & 1 != 0;
                let (lsn, prefix, length) = (self.lsn()?, self.string()?, self.u32()? as usize);
                PgOutput::Message { xid, transactional, lsn, prefix, content: self.bytes(length)? }
            }
            b'S' => PgOutput::StreamStart { xid: self.u32()?, first: self.u8()? != 0 },
            b'E' => PgOutput::StreamStop,
            b'c' => {
                let xid = self.u32()?;
                self.flags()?;
                PgOutput::StreamCommit { xid, commit_lsn: self.lsn()?, end_lsn: self.lsn()?, commit_time: self.time()? }
            }
            b'A' => PgOutput::StreamAbort { xid: self.u32()?, subxid: self.u32()? },
            kind => return Err(PgOutputError::Kind(kind)),
        })
    }

    fn relation(&mut self) -> Result<Relation, PgOutputError> {
        let id = Oid(self.u32()?);
        let table = TableName::new(self.schema()?, self.string()?);
        let identity = ReplicaIdentity::from_letter(char::from(self.u8()?))
            .ok_or_else(|| self.invalid("the replica identity has an unknown letter"))?;
        let count = self.input.try_get_u16().map_err(|_| PgOutputError::Truncated(self.kind))?;
        let mut columns = Vec::new();
        for _ in 0..count {
            let key = self.u8()? & 1 != 0;
            let name = self.string()?;
            columns.push(Column { name, key, type_oid: Oid(self.u32()?), modifier: self.u32()?.cast_signed() });
        }
        Ok(Relation { id, table, identity, columns })
    }

    /// A schema's name; Postgres leaves out that of its own.
    fn schema(&mut self) -> Result<String, PgOutputError> {
        let name = self.string()?;
        Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
    }

    fn old_tuple(&mut self) -> Result<Option<Old>, PgOutputError> {
        Ok(match self.input.first() {
            Some(b'K') => Some(Old::Key(self.tuple()?)),
            Some(b'O') => Some(Old::Full(self.tuple()?)),
            _ => None,
        })
    }

    fn new_tuple(&mut self) -> Result<Tuple, PgOutputError> {
        match self.input.first() {
            Some(b'N') => self.tuple(),
            Some(_) => Err(self.invalid("it has no new row")),
            None => Err(PgOutputError::Truncated(self.kind)),
        }
    }

    /// The row behind the letter that says which one it is.
    fn tuple(&mut self) -> Result<Tuple, PgOutputError> {
        self.u8()?;
        Tuple::take(&mut self.input).map_err(|error| PgOutputError::Tuple { kind: self.kind, error })
    }

    /// No flag is defined.
    fn flags(&mut self) -> Result<(), PgOutputError> {
        match self.u8()? {
            0 => Ok(()),
            _ => Err(self.invalid("it has a flag that is not known")),
        }
    }

    fn lsn(&mut self) -> Result<Lsn, PgOutputError> {
        self.input.try_get_u64().map(Lsn).map_err(|_| PgOutputError::Truncated(self.kind))
    }

    fn time(&mut self) -> Result<i64, PgOutputError> {
        let since_2000 = self.input.try_get_i64().map_err(|_| PgOutputError::Truncated(self.kind))?;
        since_2000.checked_add(POSTGRES_EPOCH).ok_or_else(|| self.invalid("its time is out of range"))
    }

    fn u32(&mut self) -> Result<u32, PgOutputError> {
        self.input.try_get_u32().map_err(|_| PgOutputError::Truncated(self.kind))
    }

    fn u8(&mut self) -> Result<u8, PgOutputError> {
        self.input.try_get_u8().map_err(|_| PgOutputError::Truncated(self.kind))
    }

    fn bytes(&mut self, length: usize) -> Result<Bytes, PgOutputError> {
        if self.input.len() < length {
            return Err(PgOutputError::Truncated(self.kind));
        }
        Ok(self.input.split_to(length))
    }

    /// Text that ends with a zero byte.
    fn string(&mut self) -> Result<String, PgOutputError> {
        let end = self.input.iter().position(|byte| *byte == 0).ok_or(PgOutputError::Truncated(self.kind))?;
        let text = self.input.split_to(end);
        self.input.advance(1);
        match std::str::from_utf8(&text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.invalid("a name in it is not UTF-8")),
        }
    }

    fn invalid(&self, what: &'static str) -> PgOutputError {
        PgOutputError::Invalid { kind: self.kind, what }
    }
}
