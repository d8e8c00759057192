//! What the target stores of a source table: all of it, where it goes over as it is or queries need a mirror, or nothing besides the rows that are streamed
//! from it.

use mapping::{Catalog, Column, Compiled, Function, SourceTable, Streamed, Table, TroubleKind, Usual, Way};
use model::{CopyColumn, TableBegin, TableName};
use pg::Session;
use plan::{Derived, Plan};

use super::home::{SCHEMA, is_mirrored, origin};
use super::kept;
use crate::ApplyError;

/// What the plan wants stored of a table.
pub(crate) enum Stored {
    /// It goes over as it is.
    AsIs,
    /// A mirror, for this reason.
    Mirror(String),
    /// Nothing besides the rows of these.
    Results(Vec<Stream>),
    /// Nothing at all: with this copy the plan cannot be carried out, for this reason.
    Nothing(ApplyError),
}

/// A derived table that is streamed from a table of which nothing is stored.
pub(crate) struct Stream {
    pub declared: Derived,
    pub streamed: Streamed,
}

/// The relation that has the columns of a table of which nothing is stored, and no rows.
pub(crate) fn shape(table: &SourceTable) -> TableName {
    use mapping::Places;
    let mirror = Usual.mirror(table).name;
    TableName::new(SCHEMA, format!("{SHAPE}{}", mirror.strip_prefix("mirror ").unwrap_or(&mirror)))
}

/// Shapes have names that begin so, and other relations of crossfade's do not.
const SHAPE: &str = "shape ";

/// Whether a relation of the target only has the columns of a source's table, of which nothing is stored besides what is streamed from it.
#[must_use]
pub fn is_shape(into: &TableName) -> bool {
    into.schema == SCHEMA && into.name.starts_with(SHAPE)
}

/// Why a table has a mirror that a finding can mean.
pub(crate) fn asked(plan: &Plan, table: &SourceTable) -> Option<String> {
    let finding = plan.findings.iter().find(|finding| mapping::mentions_of(&finding.sql, table))?;
    Some(format!("finding {:?} reads it", finding.name))
}

/// Why a derived table that reads a table wants a mirror of it; nothing if it is streamed, and no row depends on an earlier one.
pub(crate) fn wants_mirror(compiled: &Compiled) -> Option<String> {
    match &compiled.way {
        Way::Streamed(streamed) => streamed.wants_mirror.clone(),
        Way::Maintained(maintained) => Some(format!("{} is maintained: {}", compiled.into, maintained.reason)),
    }
}

/// Why a partitioned table has one.
pub(crate) const PARTITIONED: &str =
    "it is partitioned: rows of one partition could not be told apart when that is copied again";

/// Decides, by what the plan says and a copy tells of its table.
pub(crate) struct Planner<'a> {
    session: &'a Session,
    plan: &'a Plan,
    functions: Vec<Function>,
}

impl<'a> Planner<'a> {
    pub async fn new(session: &'a Session, plan: &'a Plan) -> Result<Self, ApplyError> {
        let functions = if plan.derived.is_empty() { Vec::new() } else { kept::functions(session).await? };
        Ok(Planner { session, plan, functions })
    }

    pub async fn stored(&self, source: &str, begin: &TableBegin) -> Result<Stored, ApplyError> {
        if !is_mirrored(self.plan, source, begin) {
            return Ok(Stored::AsIs);
        }
        if begin.root.is_some() {
            return Ok(Stored::Mirror(PARTITIONED.to_owned()));
        }
        let table = origin(source, begin);
        if let Some(why) = asked(self.plan, &table) {
            return Ok(Stored::Mirror(why));
        }
        let readers: Vec<&Derived> =
            self.plan.derived.iter().filter(|declared| mapping::mentions(declared, &table)).collect();
        if readers.is_empty() {
            return Ok(Stored::Mirror("no query reads it".to_owned()));
        }
        let Some(columns) = columns(self.session, &begin.columns).await? else {
            return Ok(Stored::Mirror("the target lacks one of its types".to_owned()));
        };
        let known = Table { name: table, columns, identity: kept::identity(begin), full: begin.full };
        let mut catalog = Catalog { tables: vec![known], functions: self.functions.clone(), ..Catalog::default() };
        let mut streams = Vec::new();
        for declared in readers {
            catalog.target = kept::relation(self.session, &declared.into).await?;
            if catalog.target.columns.is_empty() {
                return Ok(Stored::Nothing(kept::no_target(declared)));
            }
            let compiled = match mapping::compile(declared, &catalog, &Usual) {
                Ok(compiled) => compiled,
                Err(troubles) if troubles.iter().any(|trouble| trouble.kind == TroubleKind::UnknownTable) => {
                    return Ok(Stored::Mirror(format!("{} reads other tables as well", declared.into)));
                }
                // No mirror either: it would hold what was perhaps to be left out.
                Err(troubles) => return Ok(Stored::Nothing(kept::refused(declared, &troubles))),
            };
            if let Some(why) = wants_mirror(&compiled) {
                return Ok(Stored::Mirror(why));
            }
            if let Way::Streamed(streamed) = compiled.way {
                streams.push(Stream { declared: declared.clone(), streamed: *streamed });
            }
        }
        Ok(Stored::Results(streams))
    }
}

/// The columns as the target would have them; `None` if it lacks a type.
async fn columns(session: &Session, columns: &[CopyColumn]) -> Result<Option<Vec<Column>>, ApplyError> {
    let types: Vec<&str> = columns.iter().map(|column| column.type_name.as_str()).collect();
    let query = "SELECT format_type(t.oid, NULL), t.typstorage <> 'p'
                   FROM unnest($1::text[]) WITH ORDINALITY AS u(name, at) JOIN pg_type t ON t.oid = to_regtype(u.name) ORDER BY u.at";
    let rows = session.query(query, &[&types]).await?;
    let column = |(column, row): (&CopyColumn, &tokio_postgres::Row)| Column {
        name: column.name.clone(),
        type_name: row.get(0),
        not_null: column.not_null,
        toastable: row.get(1),
    };
    Ok((rows.len() == columns.len()).then(|| columns.iter().zip(&rows).map(column).collect()))
}
