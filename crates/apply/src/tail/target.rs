//! Where a source table's changes go.

use std::collections::HashMap;
use std::sync::Arc;

use mapping::SourceTable;
use model::{Code, Oid, Problem, Record, Relation, Snapshot, TableBegin, TableName};
use pg::Session;
use pg::catalog::{TargetColumn, target_columns};

use crate::derived::{home, stored};
use crate::{ApplyError, tables};

/// What tells rows apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// These columns, by their position in the relation.
    Key(Vec<usize>),
    /// All columns together; equal rows may be there several times.
    WholeRow,
    /// Nothing: rows are only inserted.
    None,
}

/// A table that changes are written to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The table at the source, as queries name it: of a partition, the one at the top.
    pub origin: SourceTable,
    /// The table here.
    pub into: TableName,
    /// Rows go into it. If not, it only has the columns, and what is streamed from the table is all that is stored.
    pub stored: bool,
    /// Stands before its name, so that inheritance children are left alone.
    pub only: &'static str,
    /// Of the relation, in its order, each with its counterpart here.
    pub columns: Vec<TargetColumn>,
    pub identity: Identity,
    /// Changes of transactions that this sees are in the copy.
    pub copied: Snapshot,
    /// Of a partition without a counterpart: the condition that its rows meet. Without it all rows are the table's.
    pub bound: Option<String>,
}

/// The targets of one source's relations.
pub(super) struct Targets {
    source: Arc<str>,
    session: Arc<Session>,
    /// Every table has to be known: none of them is still to be copied.
    back: bool,
    known: HashMap<Oid, (Arc<Relation>, Option<Arc<Target>>)>,
}

impl Targets {
    pub fn new(source: Arc<str>, session: Arc<Session>, back: bool) -> Self {
        Targets { source, session, back, known: HashMap::new() }
    }

    /// A table's epoch has changed: looks it up again.
    pub async fn refresh(&mut self, table: &str) -> Result<(), ApplyError> {
        for (relation, target) in self.known.values_mut().filter(|(relation, _)| relation.table.to_string() == table) {
            *target = find(&self.session, &self.source, relation).await?.map(Arc::new);
        }
        Ok(())
    }

    /// Takes note of a relation.
    pub async fn describe(&mut self, relation: &Arc<Relation>) -> Result<(), ApplyError> {
        match self.known.get(&relation.id) {
            Some((known, Some(_))) if known == relation => Ok(()),
            _ => {
                let target = find(&self.session, &self.source, relation).await?.map(Arc::new);
                if target.is_none() && self.back {
                    return Err(crate::recopy::gap(
                        format!("table {}", relation.table),
                        "it is new at the target, and there is no way back for its rows",
                    ));
                }
                self.known.insert(relation.id, (Arc::clone(relation), target));
                Ok(())
            }
        }
    }

    /// The target of a relation that was described; `None` if no copy of it has begun, so that every change of it so far is in the
    /// copy to come.
    pub fn get(&self, id: Oid) -> Result<Option<&Arc<Target>>, ApplyError> {
        match self.known.get(&id) {
            Some((_, target)) => Ok(target.as_ref()),
            None => Err(log::LogError::Damaged(model::DecodeError::Field(
                "a change names a relation that its batch does not describe",
            ))
            .into()),
        }
    }
}

pub(super) async fn find(session: &Session, source: &str, relation: &Relation) -> Result<Option<Target>, ApplyError> {
    let table = &relation.table;
    let row = session
        .query_opt(
            "SELECT begin, into_schema, into_name FROM crossfade.tables
              WHERE source = $1::text AND schema = $2::text AND name = $3::text AND epoch > 0",
            &[&source, &table.schema, &table.name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let Record::TableBegin(begin) = tables::decode(row.get(0))? else { return Ok(None) };
    let into = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
    let names = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.join(", ")
    };
    let (tail, copy) = (
        names(relation.columns.iter().map(|c| c.name.as_str()).collect()),
        names(begin.columns.iter().map(|c| c.name.as_str()).collect()),
    );
    if tail != copy {
        return Err(Problem::new(
            Code::SchemaChanged,
            format!("table {table}"),
            format!("its columns were {copy} when it was copied and are {tail} in the tail"),
            "the tail stops before the first row of the new form: end the plan with `crossfade complete`, empty the target, and start anew",
        )
        .into());
    }
    let found = target_columns(session, &into).await?;
    let mut columns = Vec::with_capacity(relation.columns.len());
    for column in &relation.columns {
        let counterpart = found.iter().find(|candidate| candidate.name == column.name && !candidate.generated);
        columns.push(counterpart.cloned().ok_or_else(|| {
            Problem::new(
                Code::TargetMissing,
                format!("column {} of table {into}", column.name),
                "the target has no such column, or generates it",
                format!("ALTER TABLE {} ADD COLUMN …, as at the source", into.quoted()),
            )
        })?);
    }
    let bound = (into != *table && !begin.partition_bound.is_empty()).then(|| begin.partition_bound.clone());
    let only = pg::catalog::only(session, &into).await?;
    let origin = home::origin(source, &begin);
    let stored = !stored::is_shape(&into);
    Ok(Some(Target {
        origin,
        into,
        stored,
        only,
        columns,
        identity: identity(relation, &begin),
        copied: begin.snapshot,
        bound,
    }))
}

fn identity(relation: &Relation, begin: &TableBegin) -> Identity {
    // Under full identity every column is flagged, but a primary key tells rows apart better.
    let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
    let key: Option<Vec<usize>> = begin.key.iter().map(place).collect();
    match (key, relation.identity) {
        (Some(key), _) if !key.is_empty() => Identity::Key(key),
        (_, model::ReplicaIdentity::Full) => Identity::WholeRow,
        (_, model::ReplicaIdentity::Default | model::ReplicaIdentity::Index | model::ReplicaIdentity::Nothing) => {
            Identity::None
        }
    }
}

#[cfg(test)]
impl Target {
    pub fn for_test(identity: Identity) -> Self {
        let into = TableName::new("public", "t");
        let origin = SourceTable::new("shop", into.clone());
        Target {
            origin,
            into,
            stored: true,
            only: "",
            columns: Vec::new(),
            identity,
            copied: Snapshot::default(),
            bound: None,
        }
    }
}
