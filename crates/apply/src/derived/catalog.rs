//! From the plan's derived tables and the servers' catalogs to what runs, or to all that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};

use mapping::{Catalog, Compiled, Places, Question, SourceTable, Trouble, Usual};
use model::{Code, Problem, TableName};
use pg::definitions::{self, Definition};
use pg::{Endpoint, PgError, Session};
use plan::{Derived, Plan, Source};

use super::home::Homes;
use super::part::Part;
use super::{finding, kept, stored, trial};
use crate::ApplyError;

/// The plan's derived tables could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A server could not be asked.
    #[error(transparent)]
    Ask(#[from] ApplyError),
    /// A source's URL has no meaning.
    #[error(transparent)]
    Source(Problem),
    /// All that is wrong with them, at least one thing, in the order of the plan.
    #[error("{} problems with the plan's tables", .0.len())]
    Refused(Vec<Problem>),
}

impl From<PgError> for CompileError {
    fn from(error: PgError) -> Self {
        CompileError::Ask(error.into())
    }
}

impl From<CompileError> for Problem {
    /// Of several problems the first, which says that there are more.
    fn from(error: CompileError) -> Self {
        match error {
            CompileError::Ask(error) => error.into(),
            CompileError::Source(problem) => problem,
            CompileError::Refused(problems) => {
                let more = problems.len().saturating_sub(1);
                let Some(first) = problems.into_iter().next() else {
                    return Problem::new(Code::Internal, "the plan's tables", "nothing is known of them", "report it");
                };
                match more {
                    0 => first,
                    _ => Problem { next: format!("{}; `crossfade explain` tells of {more} more", first.next), ..first },
                }
            }
        }
    }
}

/// What the sources have that the plan's queries can mean.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceTables {
    /// Captured tables.
    tables: Vec<mapping::Table>,
    /// Where the target has them.
    pub homes: Homes,
    /// Those of them that have inheritance children.
    parents: BTreeSet<SourceTable>,
    /// Those that are partitioned by hash, and go into mirrors.
    hashed: BTreeSet<SourceTable>,
    /// Those with a partition that has another key, and go into mirrors.
    keyed_apart: BTreeSet<SourceTable>,
    /// Partitioned ones that go into mirrors, but for a partition that goes over as it is.
    torn: BTreeMap<SourceTable, TableName>,
    /// Those with partitions.
    partitioned: BTreeSet<SourceTable>,
    /// Others of these names, and why they are not captured.
    others: BTreeMap<SourceTable, &'static str>,
    /// Captured tables, partitions by their roots, that do not go into the target as they are.
    only_for_queries: Vec<SourceTable>,
}

/// What the plan's SQL comes to.
#[derive(Clone, Debug, Default)]
pub struct All {
    /// Its derived tables, in its order.
    pub tables: Vec<Compiled>,
    /// Its findings, in its order.
    pub questions: Vec<Question>,
}

/// All derived tables and findings of the plan. Asks all servers and changes nothing on them. Without any it asks nobody.
///
/// # Errors
/// As [`CompileError`] says: all that is wrong comes together.
pub async fn compile_all(plan: &Plan, target: &Session) -> Result<All, CompileError> {
    Ok(with_mirrors(plan, target).await?.0)
}

/// What a derived table is read from.
pub(super) struct Reads {
    /// The mirrors, and why there is each.
    pub mirrors: Vec<(SourceTable, String)>,
    /// The source tables.
    pub tables: Vec<mapping::Table>,
}

/// The same as [`compile_all`], with what each derived table is read from.
pub(super) async fn with_mirrors(plan: &Plan, target: &Session) -> Result<(All, Vec<Reads>), CompileError> {
    if plan.derived.is_empty() && plan.findings.is_empty() {
        return Ok((All::default(), Vec::new()));
    }
    let mut sources = SourceTables::default();
    for source in &plan.sources {
        let endpoint = Endpoint::parse(source.url.expose()).map_err(CompileError::Source)?;
        let session = pg::connect_read_only(&endpoint, "catalog").await?;
        sources.ask(plan, source, &session).await.map_err(|error| PgError::from(error).at(session.place()))?;
    }
    let all = compile(plan, &sources, target).await?;
    let mirror = |table: &SourceTable| Some((table.clone(), sources.mirror(plan, table, &all.tables)?));
    let mirrors: BTreeMap<SourceTable, String> =
        all.tables.iter().flat_map(|compiled| &compiled.sources).filter_map(mirror).collect();
    let reads = |compiled: &Compiled| Reads {
        mirrors: mirrors
            .iter()
            .filter(|(table, _)| compiled.sources.contains(table))
            .map(|(table, why)| (table.clone(), why.clone()))
            .collect(),
        tables: sources.tables.iter().filter(|table| compiled.sources.contains(&table.name)).cloned().collect(),
    };
    let reads = all.tables.iter().map(reads).collect();
    Ok((all, reads))
}

/// The same, where the sources' tables are known.
async fn compile(plan: &Plan, sources: &SourceTables, target: &Session) -> Result<All, CompileError> {
    let mut catalog = Catalog { tables: sources.tables.clone(), ..Catalog::default() };
    catalog.functions = kept::functions(target).await?;
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for derived in &plan.derived {
        catalog.target = kept::relation(target, &derived.into).await?;
        if catalog.target.columns.is_empty() {
            let why = format!("the target has no table {}", derived.into);
            let next = "create it there, with a unique index on the key; crossfade fills it";
            problems.push(of_table(plan, derived, why, next));
            continue;
        }
        match mapping::compile(derived, &catalog, &sources.homes) {
            Ok(compiled) => {
                problems.extend(unreadable(&Part::table(plan, derived), &compiled.sources, sources, target).await?);
                problems.extend(trial::trouble(plan, derived, &catalog, target).await?);
                all.push(compiled);
            }
            Err(troubles) => {
                problems.extend(troubles.iter().map(|trouble| problem(plan, derived, &explained(trouble, sources))));
            }
        }
    }
    let (questions, more) = finding::questions(plan, sources, &catalog, target).await?;
    problems.extend(more);
    let all = All { tables: all, questions };
    // What is not read would be told of tables whose query could not be read, too.
    if problems.is_empty() {
        problems.extend(unread(plan, sources, &all));
    }
    if problems.is_empty() { Ok(all) } else { Err(CompileError::Refused(problems)) }
}

/// Why the target cannot give the rows of the tables that a part of the plan reads.
pub(super) async fn unreadable(
    part: &Part<'_>,
    reads: &[SourceTable],
    sources: &SourceTables,
    target: &Session,
) -> Result<Vec<Problem>, PgError> {
    let mut problems: Vec<Problem> =
        heirs(part, reads, sources).into_iter().chain(partitioned(part, reads, sources)).collect();
    problems.extend(absent(part, reads, sources, target).await?);
    Ok(problems)
}

impl SourceTables {
    /// Adds those of one source.
    async fn ask(&mut self, plan: &Plan, source: &Source, session: &Session) -> Result<(), tokio_postgres::Error> {
        let asked = plan.findings.iter().flat_map(|finding| mapping::words_of(&finding.sql));
        let words: BTreeSet<String> = plan.derived.iter().flat_map(mapping::words).chain(asked).collect();
        let words: Vec<String> = words.into_iter().collect();
        for definition in definitions::tables(session, &words).await? {
            let name = SourceTable::new(&source.name, definition.name.clone());
            if source.tables.selects(&definition.name) {
                self.homes.0.insert(name.clone(), home(plan, &name));
                if definition.heirs {
                    self.parents.insert(name.clone());
                }
                if definition.hashed && !source.as_is.selects(&definition.name) {
                    self.hashed.insert(name.clone());
                }
                if definition.keyed_apart && !source.as_is.selects(&definition.name) {
                    self.keyed_apart.insert(name.clone());
                }
                self.tables.push(table(name, definition));
            } else if source.ignored.selects(&definition.name) {
                self.others.insert(name, "the plan's `ignore` names it");
            } else {
                self.others.insert(name, "the source's `tables` does not select it");
            }
        }
        let mut tops = BTreeSet::new();
        for (name, root) in definitions::names(session).await? {
            self.partitioned.extend(root.clone().map(|root| SourceTable::new(&source.name, root)));
            let any = |patterns: &plan::Patterns| {
                patterns.selects(&name) || root.as_ref().is_some_and(|root| patterns.selects(root))
            };
            if let Some(root) = root.as_ref().filter(|root| !source.as_is.selects(root) && source.as_is.selects(&name))
            {
                self.torn.insert(SourceTable::new(&source.name, root.clone()), name.clone());
            }
            if any(&source.tables) && !any(&source.as_is) {
                let top = root.clone().filter(|root| source.tables.selects(root)).unwrap_or(name.clone());
                tops.insert(SourceTable::new(&source.name, top));
            }
        }
        self.only_for_queries.extend(tops);
        Ok(())
    }

    /// Why a table has a mirror, if it has one. The same as apply will find by what the log tells of it.
    fn mirror(&self, plan: &Plan, table: &SourceTable, all: &[Compiled]) -> Option<String> {
        if home(plan, table) == table.table {
            return None;
        }
        if self.partitioned.contains(table) {
            return Some(stored::PARTITIONED.to_owned());
        }
        let mut readers = plan.derived.iter().zip(all).filter(|(declared, _)| mapping::mentions(declared, table));
        readers.find_map(|(_, compiled)| stored::wants_mirror(compiled)).or_else(|| stored::asked(plan, table))
    }
}

fn table(name: SourceTable, definition: Definition) -> mapping::Table {
    let columns: Vec<mapping::Column> = definition
        .columns
        .into_iter()
        .map(|column| mapping::Column {
            name: column.name,
            type_name: column.type_name,
            not_null: column.not_null,
            toastable: column.toastable,
        })
        .collect();
    let all = || columns.iter().map(|column| column.name.clone()).collect();
    let identity = if definition.key.is_empty() && definition.full { all() } else { definition.key };
    mapping::Table { name, columns, identity, full: definition.full }
}

/// Something wrong with the table as a whole.
pub(super) fn of_table(plan: &Plan, derived: &Derived, why: String, next: impl Into<String>) -> Problem {
    Part::table(plan, derived).refused(why, next)
}

/// A trouble, or a warning, as people are told it: with its place in the plan.
pub(crate) fn problem(plan: &Plan, derived: &Derived, trouble: &Trouble) -> Problem {
    Part::table(plan, derived).trouble(trouble)
}

/// A query of an inheritance parent gives its children's rows as well, and they are tables of their own here.
fn heirs(part: &Part<'_>, reads: &[SourceTable], sources: &SourceTables) -> Option<Problem> {
    let parent = reads.iter().find(|source| sources.parents.contains(source))?;
    let why = format!(
        "it reads {parent}, which has inheritance children: a query of it gives their rows as well, and they are tables of their own here"
    );
    Some(part.refused(why, "read the children by their names, with UNION ALL, or make them partitions"))
}

/// All partitions go into one mirror. What tells the rows of one by hash means nothing at the target, and where some go elsewhere no query can read all.
fn partitioned(part: &Part<'_>, reads: &[SourceTable], sources: &SourceTables) -> Option<Problem> {
    let read = |table: &&SourceTable| reads.contains(table);
    if let Some((table, partition)) = sources.torn.iter().find(|(table, _)| read(table)) {
        let why = format!("it reads {table}, whose partition {partition} goes over as it is, and others do not");
        let next = format!("let `mirror` name \"{}\", or none of its partitions", table.table);
        return Some(part.refused(why, next));
    }
    let hashed = sources
        .hashed
        .iter()
        .find(read)
        .map(|table| (table, "which is partitioned by hash: the rows of one partition cannot be told in a mirror"));
    let apart = || {
        let table = sources.keyed_apart.iter().find(read)?;
        Some((
            table,
            "a partition of which has another key than it has itself: rows of several with one key would meet in a mirror",
        ))
    };
    let (table, because) = hashed.or_else(apart)?;
    let why = format!("it reads {table}, {because}");
    let next = format!("let `mirror` name \"{}\", and create it in the target with the same partitions", table.table);
    Some(part.refused(why, next))
}

/// What goes over as it is, is read where it goes. crossfade creates it only where it creates the schema.
async fn absent(
    part: &Part<'_>,
    reads: &[SourceTable],
    sources: &SourceTables,
    target: &Session,
) -> Result<Option<Problem>, PgError> {
    if part.plan.target.schema != plan::SchemaMode::Exists {
        return Ok(None);
    }
    for table in reads {
        let home = sources.homes.mirror(table);
        let there = "SELECT to_regclass($1::text) IS NOT NULL";
        if home == table.table && !target.query_one(there, &[&home.quoted()]).await?.get::<_, bool>(0) {
            let why = format!("it reads {table}, which goes over as it is, and the target has no table {home}");
            let next = "create it there, or leave it out of `mirror`: then the query reads a copy of crossfade's own";
            return Ok(Some(part.refused(why, next)));
        }
    }
    Ok(None)
}

/// A table that is there and not captured is not one that is unknown.
pub(super) fn explained(trouble: &Trouble, sources: &SourceTables) -> Trouble {
    match sources.others.iter().find(|(table, _)| trouble.misses(table)) {
        None => trouble.clone(),
        Some((table, why)) => Trouble {
            why: format!("source {:?} has it, but {why}", table.source),
            next: format!("let `tables` of [sources.{}] select it, and `ignore` not", table.source),
            ..trouble.clone()
        },
    }
}

/// Captured tables that no query reads, and that do not go over as they are.
fn unread(plan: &Plan, sources: &SourceTables, all: &All) -> Option<Problem> {
    /// The error is one line.
    const SHOWN: usize = 10;
    let asked = all.questions.iter().flat_map(|question| &question.sources);
    let read: BTreeSet<&SourceTable> = all.tables.iter().flat_map(|compiled| &compiled.sources).chain(asked).collect();
    let forgotten: Vec<&SourceTable> = sources.only_for_queries.iter().filter(|table| !read.contains(table)).collect();
    let first = forgotten.first()?;
    let shown: Vec<String> = forgotten.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = forgotten.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(Problem::new(
        Code::PlanInvalid,
        plan.path.display().to_string(),
        format!(
            "no [[table]] or [[finding]] reads {}{more}, and neither `mirror` nor `ignore` names them",
            shown.join(", ")
        ),
        format!(
            "at the top of the plan add \"{0}\" to `mirror` if it goes into the target as it is, or to `ignore` if nobody needs it",
            first.table
        ),
    ))
}

/// Where the target has a source's table: as it is, where it goes over so, else as a mirror.
pub(super) fn home(plan: &Plan, table: &SourceTable) -> TableName {
    let as_is = plan.source(&table.source).is_some_and(|source| source.as_is.selects(&table.table));
    if as_is { table.table.clone() } else { Usual.mirror(table) }
}
