//! Records as the wire format has them, and back.

use bytes::Bytes;
use prost::Message as _;

use super::{
    Batch, Chunk, ChunkLogged, CopyColumn, CopyEnd, DecodeError, FORMAT, Header, Heartbeat, Identity, Joined, Mend,
    Recopy, Record, Schema, SchemaItem, TableBegin, TableEnd, TailBegin, Writer,
};
use crate::wire::record::Kind;
use crate::{
    Change, Column, Lsn, Marker, MarkerKind, Oid, Old, Part, Relation, ReplicaIdentity, Seq, Snapshot, TableName,
    Tuple, Xid, wire,
};

impl Record {
    /// The message's bytes.
    pub fn encode(self) -> Bytes {
        let kind = match self {
            Record::Blob(data) => Kind::Blob(wire::Blob { data }),
            Record::Joined(joined) => Kind::Joined(wire::Joined {
                blobs: joined.blobs.iter().map(|seq| seq.0).collect(),
                bytes: joined.bytes,
            }),
            Record::Header(header) => Kind::Header(header.into()),
            Record::Schema(schema) => Kind::Schema(wire::Schema {
                items: schema.items.into_iter().map(Into::into).collect(),
                whole: schema.whole,
            }),
            Record::TableBegin(begin) => Kind::TableBegin(begin.into()),
            Record::Chunk(chunk) => Kind::Chunk(wire::Chunk {
                table: Some(chunk.table.into()),
                epoch: chunk.epoch,
                index: chunk.index,
                rows: chunk.rows,
                data: chunk.data,
            }),
            Record::ChunkLogged(logged) => Kind::ChunkLogged(wire::ChunkLogged {
                table: Some(logged.table.into()),
                epoch: logged.epoch,
                index: logged.index,
                rows: logged.rows,
                bytes: logged.bytes,
                sequence: logged.sequence.0,
                writer: logged.writer,
            }),
            Record::TableEnd(end) => Kind::TableEnd(wire::TableEnd {
                table: Some(end.table.into()),
                epoch: end.epoch,
                chunks: end.chunks,
                rows: end.rows,
                writer: end.writer,
            }),
            Record::CopyEnd(end) => Kind::CopyEnd(wire::CopyEnd {
                marker: end.marker,
                tables: end
                    .tables
                    .into_iter()
                    .map(|(table, epoch)| wire::TableEpoch { table: Some(table.into()), epoch })
                    .collect(),
                writer: end.writer,
            }),
            Record::Recopy(recopy) => Kind::Recopy(wire::Recopy {
                id: recopy.id,
                tables: recopy.tables.into_iter().map(Into::into).collect(),
                time: recopy.time,
                source_identity: recopy.source_identity.map(Into::into),
            }),
            Record::TailBegin(begin) => {
                Kind::TailBegin(wire::TailBegin { recopy: begin.recopy, lsn: begin.lsn.0, sequence: begin.sequence.0 })
            }
            Record::Mend(mend) => Kind::Mend(wire::Mend {
                id: mend.id,
                lsn: mend.lsn.0,
                xid: mend.xid.0,
                relation: Some(mend.relation.into()),
                keys: mend.keys.iter().map(|tuple| tuple.bytes().clone()).collect(),
                rows: mend.rows.iter().map(|tuple| tuple.bytes().clone()).collect(),
            }),
            Record::Writer(writer) => {
                Kind::Writer(wire::Writer { id: writer.id, name: writer.name, anew: writer.anew })
            }
            Record::Batch(batch) => Kind::Batch(wire::Batch {
                relations: batch.relations.into_iter().map(Into::into).collect(),
                parts: batch.parts.into_iter().map(Into::into).collect(),
                writer: batch.writer,
            }),
            Record::Heartbeat(heartbeat) => Kind::Heartbeat(wire::Heartbeat {
                lsn: heartbeat.lsn.0,
                time: heartbeat.time,
                writer: heartbeat.writer,
            }),
            Record::Unknown => return Bytes::new(),
        };
        wire::Record { kind: Some(kind) }.encode_to_vec().into()
    }

    /// Reads a message. Large values share its memory.
    ///
    /// # Errors
    /// The bytes are damaged, or a newer version of the program wrote them in another format.
    pub fn decode(message: Bytes) -> Result<Record, DecodeError> {
        let Some(kind) = wire::Record::decode(message)?.kind else {
            return Ok(Record::Unknown);
        };
        Ok(match kind {
            Kind::Blob(blob) => Record::Blob(blob.data),
            Kind::Joined(joined) => {
                Record::Joined(Joined { blobs: joined.blobs.into_iter().map(Seq).collect(), bytes: joined.bytes })
            }
            Kind::Header(header) => Record::Header(header.try_into()?),
            Kind::Schema(schema) => Record::Schema(Schema {
                items: schema.items.into_iter().map(Into::into).collect(),
                whole: schema.whole,
            }),
            Kind::TableBegin(begin) => Record::TableBegin(begin.try_into()?),
            Kind::Chunk(chunk) => Record::Chunk(Chunk {
                table: table(chunk.table)?,
                epoch: chunk.epoch,
                index: chunk.index,
                rows: chunk.rows,
                data: chunk.data,
            }),
            Kind::ChunkLogged(logged) => Record::ChunkLogged(ChunkLogged {
                table: table(logged.table)?,
                epoch: logged.epoch,
                index: logged.index,
                rows: logged.rows,
                bytes: logged.bytes,
                sequence: Seq(logged.sequence),
                writer: logged.writer,
            }),
            Kind::TableEnd(end) => Record::TableEnd(TableEnd {
                table: table(end.table)?,
                epoch: end.epoch,
                chunks: end.chunks,
                rows: end.rows,
                writer: end.writer,
            }),
            Kind::CopyEnd(end) => Record::CopyEnd(CopyEnd {
                marker: end.marker,
                tables: end.tables.into_iter().map(|entry| Ok((table(entry.table)?, entry.epoch))).collect::<Result<
                    _,
                    DecodeError,
                >>(
                )?,
                writer: end.writer,
            }),
            Kind::Recopy(recopy) => Record::Recopy(Recopy {
                id: recopy.id,
                tables: recopy.tables.into_iter().map(Into::into).collect(),
                time: recopy.time,
                source_identity: recopy.source_identity.map(Into::into),
            }),
            Kind::TailBegin(begin) => Record::TailBegin(TailBegin {
                recopy: begin.recopy,
                lsn: Lsn(begin.lsn),
                sequence: Seq(begin.sequence),
            }),
            Kind::Mend(mend) => Record::Mend(Mend {
                id: mend.id,
                lsn: Lsn(mend.lsn),
                xid: Xid(mend.xid),
                relation: mend.relation.ok_or(DecodeError::Field("a mend names no table"))?.try_into()?,
                keys: mend.keys.into_iter().map(Tuple::from_bytes).collect::<Result<_, _>>()?,
                rows: mend.rows.into_iter().map(Tuple::from_bytes).collect::<Result<_, _>>()?,
            }),
            Kind::Writer(writer) => Record::Writer(Writer { id: writer.id, name: writer.name, anew: writer.anew }),
            Kind::Batch(batch) => Record::Batch(Batch {
                relations: batch.relations.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
                parts: batch.parts.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
                writer: batch.writer,
            }),
            Kind::Heartbeat(heartbeat) => {
                Record::Heartbeat(Heartbeat { lsn: Lsn(heartbeat.lsn), time: heartbeat.time, writer: heartbeat.writer })
            }
        })
    }
}

fn table(name: Option<wire::Table>) -> Result<TableName, DecodeError> {
    name.map(Into::into).ok_or(DecodeError::Field("a record about a table does not name it"))
}

impl From<TableName> for wire::Table {
    fn from(name: TableName) -> Self {
        wire::Table { schema: name.schema, name: name.name }
    }
}

impl From<wire::Table> for TableName {
    fn from(name: wire::Table) -> Self {
        TableName { schema: name.schema, name: name.name }
    }
}

impl From<Identity> for wire::Identity {
    fn from(identity: Identity) -> Self {
        wire::Identity { system_identifier: identity.system_identifier, database: identity.database }
    }
}

impl From<wire::Identity> for Identity {
    fn from(identity: wire::Identity) -> Self {
        Identity { system_identifier: identity.system_identifier, database: identity.database }
    }
}

impl From<Header> for wire::Header {
    fn from(header: Header) -> Self {
        wire::Header {
            format: FORMAT,
            plan: header.plan,
            source: header.source,
            nonce: header.nonce,
            source_identity: Some(header.source_identity.into()),
            target_identity: Some(header.target_identity.into()),
        }
    }
}

impl TryFrom<wire::Header> for Header {
    type Error = DecodeError;

    fn try_from(header: wire::Header) -> Result<Self, DecodeError> {
        if header.format != FORMAT {
            return Err(DecodeError::Format { found: header.format });
        }
        Ok(Header {
            plan: header.plan,
            source: header.source,
            nonce: header.nonce,
            source_identity: header.source_identity.unwrap_or_default().into(),
            target_identity: header.target_identity.unwrap_or_default().into(),
        })
    }
}

impl From<SchemaItem> for wire::SchemaItem {
    fn from(item: SchemaItem) -> Self {
        wire::SchemaItem {
            name: item.name,
            kind: item.kind,
            schema: item.schema,
            owner: item.owner,
            sql: item.sql,
            post_data: item.post_data,
            table: item.table.map(Into::into),
        }
    }
}

impl From<wire::SchemaItem> for SchemaItem {
    fn from(item: wire::SchemaItem) -> Self {
        SchemaItem {
            name: item.name,
            kind: item.kind,
            schema: item.schema,
            owner: item.owner,
            sql: item.sql,
            post_data: item.post_data,
            table: item.table.map(Into::into),
        }
    }
}

impl From<TableBegin> for wire::TableBegin {
    fn from(begin: TableBegin) -> Self {
        wire::TableBegin {
            table: Some(begin.table.into()),
            epoch: begin.epoch,
            snapshot: Some(wire::Snapshot {
                xmin: begin.snapshot.xmin.0,
                xmax: begin.snapshot.xmax.0,
                xip: begin.snapshot.xip.iter().map(|xid| xid.0).collect(),
            }),
            columns: begin
                .columns
                .into_iter()
                .map(|column| wire::CopyColumn {
                    name: column.name,
                    r#type: column.type_name,
                    not_null: column.not_null,
                })
                .collect(),
            root: begin.root.map(Into::into),
            partition_bound: begin.partition_bound,
            rows_estimated: begin.rows_estimated,
            bytes_estimated: begin.bytes_estimated,
            marker: begin.marker,
            key: begin.key,
            writer: begin.writer,
            full: begin.full,
            heirs: begin.heirs,
        }
    }
}

impl TryFrom<wire::TableBegin> for TableBegin {
    type Error = DecodeError;

    fn try_from(begin: wire::TableBegin) -> Result<Self, DecodeError> {
        let snapshot = begin.snapshot.ok_or(DecodeError::Field("a table's copy has no snapshot"))?;
        let mut xip: Vec<Xid> = snapshot.xip.into_iter().map(Xid).collect();
        xip.sort_unstable();
        Ok(TableBegin {
            table: table(begin.table)?,
            epoch: begin.epoch,
            snapshot: Snapshot { xmin: Xid(snapshot.xmin), xmax: Xid(snapshot.xmax), xip },
            columns: begin
                .columns
                .into_iter()
                .map(|column| CopyColumn { name: column.name, type_name: column.r#type, not_null: column.not_null })
                .collect(),
            key: begin.key,
            root: begin.root.map(Into::into),
            partition_bound: begin.partition_bound,
            rows_estimated: begin.rows_estimated,
            bytes_estimated: begin.bytes_estimated,
            marker: begin.marker,
            writer: begin.writer,
            full: begin.full,
            heirs: begin.heirs,
        })
    }
}

impl From<Relation> for wire::Relation {
    fn from(relation: Relation) -> Self {
        wire::Relation {
            id: relation.id.0,
            schema: relation.table.schema,
            name: relation.table.name,
            replica_identity: relation.identity.letter().to_string(),
            columns: relation
                .columns
                .into_iter()
                .map(|column| wire::Column {
                    name: column.name,
                    key: column.key,
                    r#type: column.type_oid.0,
                    modifier: column.modifier,
                })
                .collect(),
        }
    }
}

impl TryFrom<wire::Relation> for Relation {
    type Error = DecodeError;

    fn try_from(relation: wire::Relation) -> Result<Self, DecodeError> {
        let letter = relation.replica_identity.chars().next().and_then(ReplicaIdentity::from_letter);
        Ok(Relation {
            id: Oid(relation.id),
            table: TableName::new(relation.schema, relation.name),
            identity: letter.ok_or(DecodeError::Field("a relation has no replica identity"))?,
            columns: relation
                .columns
                .into_iter()
                .map(|column| Column {
                    name: column.name,
                    key: column.key,
                    type_oid: Oid(column.r#type),
                    modifier: column.modifier,
                })
                .collect(),
        })
    }
}

impl From<Part> for wire::Part {
    fn from(part: Part) -> Self {
        wire::Part {
            xid: part.xid.0,
            commit_lsn: part.commit_lsn.0,
            commit_time: part.commit_time,
            first: part.first,
            last: part.end_lsn.is_some(),
            end_lsn: part.end_lsn.unwrap_or_default().0,
            changes: part.changes.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::Part> for Part {
    type Error = DecodeError;

    fn try_from(part: wire::Part) -> Result<Self, DecodeError> {
        Ok(Part {
            xid: Xid(part.xid),
            commit_lsn: Lsn(part.commit_lsn),
            commit_time: part.commit_time,
            first: part.first,
            end_lsn: part.last.then_some(Lsn(part.end_lsn)),
            changes: part.changes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Change> for wire::Change {
    fn from(change: Change) -> Self {
        use wire::change::Kind;
        let mut out = wire::Change::default();
        let set_old = |out: &mut wire::Change, old: Old| {
            out.old_is_full = matches!(old, Old::Full(_));
            out.old = old.tuple().bytes().clone();
        };
        let kind = match change {
            Change::Insert { relation, new } => {
                out.relation = relation.0;
                out.new = new.bytes().clone();
                Kind::Insert
            }
            Change::Update { relation, old, new } => {
                out.relation = relation.0;
                out.new = new.bytes().clone();
                if let Some(old) = old {
                    set_old(&mut out, old);
                }
                Kind::Update
            }
            Change::Delete { relation, old } => {
                out.relation = relation.0;
                set_old(&mut out, old);
                Kind::Delete
            }
            Change::Truncate { relations, cascade, restart_identity } => {
                out.relations = relations.iter().map(|id| id.0).collect();
                out.cascade = cascade;
                out.restart_identity = restart_identity;
                Kind::Truncate
            }
            Change::Marker(marker) => {
                let kind = marker.kind.as_str().to_owned();
                out.marker = Some(wire::Marker { nonce: marker.nonce, kind, id: marker.id, data: marker.data });
                Kind::Marker
            }
        };
        out.kind = kind.into();
        out
    }
}

impl TryFrom<wire::Change> for Change {
    type Error = DecodeError;

    fn try_from(change: wire::Change) -> Result<Self, DecodeError> {
        use wire::change::Kind;
        let relation = Oid(change.relation);
        let old = |bytes: Bytes| {
            let tuple = Tuple::from_bytes(bytes)?;
            Ok::<_, DecodeError>(if change.old_is_full { Old::Full(tuple) } else { Old::Key(tuple) })
        };
        Ok(match Kind::try_from(change.kind) {
            Ok(Kind::Insert) => Change::Insert { relation, new: Tuple::from_bytes(change.new)? },
            Ok(Kind::Update) => Change::Update {
                relation,
                old: if change.old.is_empty() { None } else { Some(old(change.old)?) },
                new: Tuple::from_bytes(change.new)?,
            },
            Ok(Kind::Delete) => Change::Delete { relation, old: old(change.old)? },
            Ok(Kind::Truncate) => Change::Truncate {
                relations: change.relations.into_iter().map(Oid).collect(),
                cascade: change.cascade,
                restart_identity: change.restart_identity,
            },
            Ok(Kind::Marker) => {
                let marker = change.marker.ok_or(DecodeError::Field("a marker says nothing"))?;
                Change::Marker(Marker {
                    nonce: marker.nonce,
                    kind: MarkerKind::from_name(&marker.kind)
                        .ok_or(DecodeError::Field("a marker is of a kind that is not known"))?,
                    id: marker.id,
                    data: marker.data,
                })
            }
            Ok(Kind::Unspecified) | Err(_) => {
                return Err(DecodeError::Field("a change is of a kind that is not known"));
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Cell;

    #[test]
    fn a_batch_comes_back_as_it_went_in() {
        let tuple = Tuple::from_cells([Cell::Text(b"1"), Cell::Null, Cell::Unchanged].into_iter());
        let relation = Oid(16_385);
        let record = Record::Batch(Batch {
            relations: vec![Relation {
                id: relation,
                table: TableName::new("public", "Odd \"name\""),
                identity: ReplicaIdentity::Full,
                columns: vec![Column { name: "id".into(), key: true, type_oid: Oid(23), modifier: -1 }],
            }],
            parts: vec![Part {
                xid: Xid(1 << 33),
                commit_lsn: Lsn(7),
                commit_time: -5,
                first: true,
                end_lsn: Some(Lsn(9)),
                changes: vec![
                    Change::Insert { relation, new: tuple.clone() },
                    Change::Update { relation, old: Some(Old::Key(tuple.clone())), new: tuple.clone() },
                    Change::Update { relation, old: None, new: tuple.clone() },
                    Change::Delete { relation, old: Old::Full(tuple) },
                    Change::Truncate { relations: vec![relation], cascade: true, restart_identity: false },
                    Change::Marker(Marker { data: "{}\n".into(), ..Marker::new("n", MarkerKind::Verified, "i") }),
                ],
            }],
            writer: "w".into(),
        });
        assert_eq!(Record::decode(record.clone().encode()).unwrap(), record);
    }

    #[test]
    fn a_record_of_an_unknown_kind_is_skipped_and_damage_is_an_error() {
        assert_eq!(Record::decode(Bytes::from_static(&[0xFA, 0x07, 0x01, 0x00])).unwrap(), Record::Unknown);
        assert!(Record::decode(Bytes::from_static(&[0x0A, 0x7F])).is_err());
    }
}
