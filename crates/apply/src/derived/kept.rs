//! What the plan's SQL comes to, as long as a process runs.

use std::collections::{BTreeMap, BTreeSet};

use mapping::{
    Catalog, Column, Compiled, Function, FunctionKind, SourceTable, Table, Target, TargetColumn, Trouble, TroubleKind,
    Volatility,
};
use model::{Code, Problem, Record, TableBegin, TableName};
use pg::Session;
use tokio_postgres::Row;

use super::home::{Homes, SCHEMA, origin};
use super::stored::{is_shape, wants_mirror};
use crate::{ApplyError, tables};

/// A derived table, and what keeps it current.
pub(crate) struct Kept {
    pub declared: plan::Derived,
    pub compiled: Compiled,
}

/// What of a declaration decides on the rows: another one, and the table is filled anew.
pub(crate) fn fingerprint(derived: &plan::Derived) -> String {
    let mut texts = derived.parts.iter().map(plan::Part::text);
    let mut parts = vec![texts.next().unwrap_or_default(), derived.key.join(","), derived.recompute_by.join(",")];
    parts.extend(derived.on_conflict.iter().map(|(column, rule)| format!("{column}={rule:?}")));
    parts.push(format!("{:?}", derived.when_missing));
    // What affects a table decides when it is made anew, and not what it is; with a better word on that it may have to be.
    parts.extend(derived.affected_by.iter().map(|said| format!("{}.{}={}", said.source, said.table, said.sql.text)));
    parts.extend(texts.map(|text| format!("and {text}")));
    parts.extend(derived.merge.iter().map(|merge| format!("merge {}", merge.text)));
    parts.join("\u{1f}")
}

/// What the target and the log's copies say that queries can read.
pub(crate) struct Known {
    catalog: Catalog,
    pub homes: Homes,
    heirs: BTreeSet<SourceTable>,
    /// Where the rows of each go: of a partitioned one, those of its partitions.
    into: BTreeMap<SourceTable, BTreeSet<TableName>>,
    /// Partitions, each with the table at the top, which alone can be read.
    tops: BTreeMap<SourceTable, SourceTable>,
    /// Those that went over as they are, and which the target does not have whole.
    absent: BTreeSet<SourceTable>,
}

/// What queries read as the table. A partition of the application's own goes to its counterpart, and is read through the table at the top.
fn home(source: &str, into: &TableName, begin: &TableBegin) -> TableName {
    if into.schema == SCHEMA { into.clone() } else { origin(source, begin).table }
}

pub(super) fn identity(begin: &TableBegin) -> Vec<String> {
    let all = || begin.columns.iter().map(|column| column.name.clone()).collect();
    if begin.key.is_empty() && begin.full { all() } else { begin.key.clone() }
}

/// Of a partitioned table holds what holds of each partition.
fn merge(known: &mut Table, begin: &TableBegin) {
    for column in &mut known.columns {
        column.not_null &= begin.columns.iter().any(|other| other.name == column.name && other.not_null);
    }
    known.full &= begin.full;
    if known.identity != identity(begin) {
        known.identity.clear();
    }
}

impl Known {
    pub async fn load(session: &Session) -> Result<Known, ApplyError> {
        let mut known = Known {
            catalog: Catalog::default(),
            homes: Homes::default(),
            heirs: BTreeSet::new(),
            into: BTreeMap::new(),
            tops: BTreeMap::new(),
            absent: BTreeSet::new(),
        };
        let query = "SELECT source, into_schema, into_name, coalesce(next_begin, begin) FROM crossfade.tables
                      WHERE coalesce(next_begin, begin) IS NOT NULL ORDER BY source, schema, name";
        let mut begun = Vec::new();
        for row in session.query(query, &[]).await? {
            let Record::TableBegin(begin) = tables::decode(row.get(3))? else { continue };
            let into = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            begun.push((row.get::<_, String>(0), into, begin));
        }
        let homes: Vec<String> = begun.iter().map(|(source, into, begin)| home(source, into, begin).quoted()).collect();
        let query = "SELECT n.name, a.attname::text, format_type(a.atttypid, NULL), a.attstorage <> 'p'
                       FROM (SELECT DISTINCT unnest($1::text[])) AS n(name), pg_attribute a
                      WHERE a.attrelid = to_regclass(n.name) AND a.attnum > 0 AND NOT a.attisdropped";
        let mut columns: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        for row in session.query(query, &[&homes]).await? {
            columns.entry(row.get(0)).or_default().push(row);
        }
        for (source, into, begin) in begun {
            known.table(&columns, &source, into, &begin);
        }
        known.catalog.functions = functions(session).await?;
        Ok(known)
    }

    /// `columns` are those of each relation of the target that a table can be.
    fn table(&mut self, columns: &BTreeMap<String, Vec<Row>>, source: &str, into: TableName, begin: &TableBegin) {
        let name = origin(source, begin);
        if begin.root.is_some() {
            self.tops.insert(SourceTable::new(source, begin.table.clone()), name.clone());
        }
        self.into.entry(name.clone()).or_default().insert(into.clone());
        if let Some(known) = self.catalog.tables.iter_mut().find(|table| table.name == name) {
            merge(known, begin);
            return;
        }
        let home = home(source, &into, begin);
        let rows = columns.get(&home.quoted()).map_or(&[][..], Vec::as_slice);
        let column = |column: &model::CopyColumn| {
            let row = rows.iter().find(|row| row.get::<_, &str>(1) == column.name)?;
            let (type_name, toastable) = (row.get(2), row.get(3));
            Some(Column { name: column.name.clone(), type_name, not_null: column.not_null, toastable })
        };
        let columns: Vec<Column> = begin.columns.iter().filter_map(column).collect();
        if columns.len() < begin.columns.len() {
            // There is nothing here that a query could read as that table.
            if home.schema != SCHEMA {
                self.absent.insert(name);
            }
            return;
        }
        if begin.heirs {
            self.heirs.insert(name.clone());
        }
        self.homes.0.insert(name.clone(), home);
        self.catalog.tables.push(Table { name, columns, identity: identity(begin), full: begin.full });
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Where the rows of a source's table go, and its source.
    pub fn mirrors(&self, table: &SourceTable) -> Vec<(String, TableName)> {
        let into = self.into.get(table).into_iter().flatten();
        into.map(|into| (table.source.clone(), into.clone())).collect()
    }

    /// Compiles a declaration; `None` if it reads a table that the log has not told of.
    ///
    /// # Errors
    /// What is wrong with it, in the plan's lines.
    pub async fn compile(&self, session: &Session, derived: &plan::Derived) -> Result<Option<Compiled>, ApplyError> {
        let catalog = Catalog { target: relation(session, &derived.into).await?, ..self.catalog.clone() };
        if catalog.target.columns.is_empty() {
            return Err(no_target(derived));
        }
        let compiled = match mapping::compile(derived, &catalog, &self.homes) {
            Ok(compiled) => compiled,
            Err(troubles) if troubles.iter().any(|trouble| trouble.kind == TroubleKind::UnknownTable) => {
                let problem = self.of_partition(derived, &troubles).or_else(|| self.absent(derived, &troubles));
                return problem.map_or(Ok(None), |problem| Err(problem.into()));
            }
            Err(troubles) => return Err(refused(derived, &troubles)),
        };
        if let Some(parent) = compiled.sources.iter().find(|source| self.heirs.contains(source)) {
            return Err(Problem::new(
                Code::PlanInvalid,
                format!("derived table {}, line {} of the plan", derived.into, derived.line),
                format!("it reads {parent}, which has inheritance children: a query of it gives their rows as well, and they are tables of their own here"),
                "read the children by their names, with UNION ALL, or make them partitions",
            )
            .into());
        }
        let torn = |source: &&SourceTable| {
            let into = self.into.get(source).into_iter().flatten();
            into.map(|into| into.schema == SCHEMA).collect::<BTreeSet<_>>().len() > 1
        };
        if let Some(torn) = compiled.sources.iter().find(torn) {
            return Err(Problem::new(
                Code::PlanInvalid,
                format!("derived table {}, line {} of the plan", derived.into, derived.line),
                format!("it reads {torn}, some of whose partitions went into the target as they are, and others into a mirror"),
                format!("let `mirror` name {0}, or none of its partitions, and copy it again: `crossfade recopy {0}`", torn.table),
            )
            .into());
        }
        if let Some(table) = compiled.sources.iter().find(|source| self.is_unstored(source))
            && let Some(why) = wants_mirror(&compiled)
        {
            return Err(super::home::unstored(table, &why));
        }
        Ok(Some(compiled))
    }

    /// Whether nothing of a table is stored besides what is streamed from it.
    pub fn is_unstored(&self, table: &SourceTable) -> bool {
        self.homes.0.get(table).is_some_and(is_shape)
    }

    /// Whether a declaration can read such a table.
    pub fn streams(&self, derived: &plan::Derived) -> bool {
        self.homes.0.iter().any(|(table, home)| is_shape(home) && mapping::mentions(derived, table))
    }

    /// A table that is not known for good: the log has told of it, and the target has it not.
    fn absent(&self, derived: &plan::Derived, troubles: &[Trouble]) -> Option<Problem> {
        let table = self.absent.iter().find(|table| troubles.iter().any(|trouble| trouble.misses(table)))?;
        Some(Problem::new(
            Code::TargetMissing,
            format!("derived table {}, line {} of the plan", derived.into, derived.line),
            format!(
                "it reads {table}, which goes over as it is, and the target has no table {} with all of its columns",
                table.table
            ),
            "create it there, as at the source, partitions below it",
        ))
    }

    /// A partition is read through the table at its top: its rows are nowhere by themselves.
    fn of_partition(&self, derived: &plan::Derived, troubles: &[Trouble]) -> Option<Problem> {
        let missed = |partition: &SourceTable| troubles.iter().any(|trouble| trouble.misses(partition));
        let (partition, top) = self.tops.iter().find(|(partition, _)| missed(partition))?;
        Some(Problem::new(
            Code::SqlRefused,
            format!("derived table {}, line {} of the plan", derived.into, derived.line),
            format!("it reads {partition}, which is a partition of {top}"),
            format!("read {top}, with a WHERE on what it is partitioned by"),
        ))
    }
}

/// Its rows have nowhere to go.
pub(super) fn no_target(derived: &plan::Derived) -> ApplyError {
    Problem::new(
        Code::TargetMissing,
        format!("table {}", derived.into),
        format!("the plan's [[table]] in line {} goes into it, and the target has no such table", derived.line),
        "create it there",
    )
    .into()
}

/// The first of what is wrong, where it stands in the plan.
pub(super) fn refused(derived: &plan::Derived, troubles: &[Trouble]) -> ApplyError {
    let Some(trouble) = troubles.first() else {
        return Problem::new(Code::Internal, "a derived table", "it is refused without a reason", "report it").into();
    };
    let (line, column) = trouble.at.map_or(derived.place(), |at| (at.line, at.column));
    Problem::new(
        Code::PlanInvalid,
        format!("derived table {}, line {line}, column {column} of the plan: {}", derived.into, trouble.what),
        trouble.why.clone(),
        format!("{}; `crossfade explain` shows all of it", trouble.next),
    )
    .into()
}

/// All functions of the target that a query may call.
pub(crate) async fn functions(session: &Session) -> Result<Vec<Function>, ApplyError> {
    let query = "SELECT n.nspname::text, p.proname::text, p.prokind::text, p.provolatile::text, p.proretset,
                        coalesce((SELECT array_agg(coalesce(p.proargnames[i], '') ORDER BY i) FROM generate_subscripts(p.proargmodes, 1) AS i
                                   WHERE p.proargmodes[i] IN ('o', 'b', 't')), '{}')
                   FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.prokind <> 'p'";
    let function = |row: &Row| {
        let out: Vec<String> = row.get(5);
        Function {
            name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            kind: match row.get(2) {
                "a" => FunctionKind::Aggregate,
                "w" => FunctionKind::Window,
                _ => FunctionKind::Plain,
            },
            volatility: match row.get(3) {
                "i" => Volatility::Immutable,
                "s" => Volatility::Stable,
                _ => Volatility::Volatile,
            },
            returns_set: row.get(4),
            columns: if out.len() > 1 { out } else { Vec::new() },
        }
    };
    Ok(session.query(query, &[]).await?.iter().map(function).collect())
}

/// A relation of the target that rows go into; without columns if there is none of that name.
pub(crate) async fn relation(session: &Session, into: &TableName) -> Result<Target, ApplyError> {
    let query = "SELECT a.attname::text, format_type(a.atttypid, NULL), a.attnotnull, a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL,
                        a.attgenerated <> '', a.attidentity = 'a',
                        CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace THEN format_type(a.atttypid, a.atttypmod) END
                   FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                  WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    let columns = session.query(query, &[&into.quoted()]).await?;
    let column = |row: &Row| TargetColumn {
        name: row.get(0),
        type_name: row.get(1),
        cast: row.get(6),
        not_null: row.get(2),
        has_default: row.get(3),
        generated: row.get(4),
        identity_always: row.get(5),
    };
    let query = "SELECT array_agg(a.attname::text ORDER BY k.place)
                   FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a
                  WHERE i.indrelid = to_regclass($1::text) AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
                    AND k.place <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = k.attnum
                  GROUP BY i.indexrelid";
    let unique = session.query(query, &[&into.quoted()]).await?;
    Ok(Target { columns: columns.iter().map(column).collect(), unique: unique.iter().map(|row| row.get(0)).collect() })
}
