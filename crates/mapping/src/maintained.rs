//! Tables that are kept current from mirrors: which units a batch can have changed, and how these are made anew.

use std::collections::BTreeSet;

use model::quote;

use crate::catalog::{Side, SourceTable};
use crate::compile::{Step, Subject, at, of};
use crate::indexes::{self, Index};
use crate::print::{Aliases, Printer};
use crate::query::{Block, Body, Expr, From, JoinKind, Query, Read};
use crate::recompute::{patterns, recompute};
use crate::relax::bounds::is_bounded;
use crate::relax::{Guard, Relaxer};
use crate::trouble::{Trouble, TroubleKind};
use crate::write::{deletes, insert, upsert};

/// How a maintained table is kept current. The module's documentation of the crate has the order in which all this runs.
#[derive(Clone, Debug)]
pub struct Maintained {
    /// Why its rows cannot be made from the changed rows alone.
    pub reason: String,
    /// Once per session: temp tables.
    pub prepare: Vec<String>,
    /// At the beginning of each batch.
    pub clear: Vec<String>,
    /// Before the mirrors change.
    pub before: Vec<Step>,
    /// After they have.
    pub after: Vec<Step>,
    /// Then: the units that were found, and their rows. Nothing is deleted before all rows are made, as a row may move
    /// from one unit to another.
    pub recompute: Vec<String>,
    /// Then: the target.
    pub write: Vec<String>,
    /// Fills an empty target from whole mirrors.
    pub fill: String,
    /// In place of `recompute`, behind `clear`: all units, and all their rows from whole mirrors. With `write` behind it the target
    /// becomes what the query gives, whatever it was.
    pub refill: Vec<String>,
    /// What was derived, for people: each is a step of `before` and one of `after`.
    pub derivations: Vec<Derivation>,
    /// Indexes that mirrors and target want.
    pub indexes: Vec<Index>,
}

/// A query that finds units.
#[derive(Clone, Debug)]
pub struct Derivation {
    /// The table whose changed rows it follows.
    pub table: SourceTable,
    /// Which of the query's mentions of tables that is; none where `affected_by` says it.
    pub mention: Option<usize>,
    /// From old rows, and over the mirrors as they were.
    pub old: String,
    /// From new rows, and over the mirrors as they are.
    pub new: String,
    /// Whether the changed rows are tied to the units; otherwise a change affects all of them.
    pub bounded: bool,
    /// Whether a side of an outer join is missing in it.
    pub nulled: bool,
    /// The value that must have changed for its units to count.
    pub guard: Option<String>,
}

/// The column that says which guard must have changed.
const GUARD: &str = "crossfade_guard";

pub(crate) fn maintained(subject: &Subject<'_>, reason: String) -> Result<(Maintained, Vec<Trouble>), Vec<Trouble>> {
    let mut found = derive(subject)?;
    found.said(subject)?;
    let names = Names::of(subject);
    let query = subject.over_mirrors(Side::New, |printer| printer.query(subject.query()));
    let unit = quote::idents(subject.derived.unit().iter().map(String::as_str));
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (number, guard) in found.guards.iter().enumerate() {
        let old = format!("INSERT INTO {} SELECT {number}, {}", names.guards, guard.sql);
        before.push(Step { tables: guard.tables.clone(), sql: old });
        let same = format!("number = {number} AND value IS NOT DISTINCT FROM {}", guard.sql);
        after.push(Step { tables: guard.tables.clone(), sql: format!("DELETE FROM {} WHERE {same}", names.guards) });
    }
    let mut derivations = Vec::new();
    for one in found.all {
        let step = |query: &str| {
            let guard = one.guard.map_or("NULL::integer".to_owned(), |number: usize| number.to_string());
            // United with no rows of the right types, so that constants get these.
            let typed = format!("SELECT {unit} FROM {} WHERE false UNION ({query})", names.units);
            let sql = format!("INSERT INTO {} SELECT {guard}, d.* FROM ({typed}) AS d", names.found);
            Step { tables: vec![one.derivation.table.clone()], sql }
        };
        before.push(step(&one.derivation.old));
        after.push(step(&one.derivation.new));
        derivations.push(one.derivation);
    }
    let patterns = patterns(subject)?;
    let nothing = |name: &str, columns: &str| {
        format!("CREATE TEMP TABLE IF NOT EXISTS {name} AS SELECT {columns} FROM ({query}) AS q WITH NO DATA")
    };
    let mut prepare = vec![
        nothing(&names.found, &format!("NULL::integer AS {GUARD}, {unit}")),
        nothing(&names.units, &unit),
        nothing(&names.result, "*"),
        format!("CREATE TEMP TABLE IF NOT EXISTS {} (number integer, value text)", names.guards),
    ];
    prepare.extend(apart(subject, &names.result));
    let mut again = vec![
        format!(
            "INSERT INTO {} SELECT DISTINCT {unit} FROM {} AS f WHERE f.{GUARD} IS NULL OR EXISTS (SELECT FROM {} AS g WHERE g.number = f.{GUARD})",
            names.units, names.found, names.guards
        ),
        format!("ANALYZE {}", names.units),
    ];
    again.extend(recompute(subject, &names.units, &names.result, &patterns));
    again.push(format!("ANALYZE {}", names.result));
    let mut write = deletes(subject, &names.units, &names.result, &patterns);
    write.push(upsert(subject, &names.result));
    let refill = vec![
        format!("INSERT INTO {} SELECT q.* FROM ({query}) AS q", names.result),
        format!("ANALYZE {}", names.result),
        format!(
            "INSERT INTO {} SELECT {unit} FROM {} AS t UNION SELECT {unit} FROM {} AS r",
            names.units,
            subject.derived.into.quoted(),
            names.result
        ),
        format!("ANALYZE {}", names.units),
    ];
    let maintained = Maintained {
        reason,
        prepare,
        clear: vec![format!("TRUNCATE {}, {}, {}, {}", names.found, names.units, names.result, names.guards)],
        before,
        after,
        recompute: again,
        write,
        fill: insert(subject, &format!("({query})")),
        refill,
        derivations,
        indexes: indexes::wanted(subject),
    };
    let warnings = unbounded(subject, &maintained.derivations);
    Ok((maintained, warnings))
}

/// Two rows that were made with one key are an error. Left to the target they need not be: where the first is what is there already, the second takes its place, and
/// the next time the first does.
fn apart(subject: &Subject<'_>, result: &str) -> Option<String> {
    let key = quote::idents(subject.derived.key.iter().map(String::as_str));
    let index = quote::ident(&subject.places.scratch(&subject.derived.into, "key").name);
    (!subject.derived.key.is_empty()).then(|| format!("CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {result} ({key})"))
}

/// The temp tables, quoted.
struct Names {
    found: String,
    units: String,
    result: String,
    guards: String,
}

impl Names {
    fn of(subject: &Subject<'_>) -> Names {
        let name = |what: &str| subject.places.scratch(&subject.derived.into, what).quoted();
        Names { found: name("found"), units: name("units"), result: name("result"), guards: name("guards") }
    }
}

/// A guard as SQL, and the tables that its value depends on.
#[derive(Clone, Debug, PartialEq)]
struct Value {
    sql: String,
    tables: Vec<SourceTable>,
}

struct One {
    derivation: Derivation,
    guard: Option<usize>,
}

#[derive(Default)]
struct Found {
    all: Vec<One>,
    guards: Vec<Value>,
}

/// What is derived from the query itself.
fn derive(subject: &Subject<'_>) -> Result<Found, Vec<Trouble>> {
    let mut aliases = subject.reading.aliases.clone();
    let mut relaxer = Relaxer {
        aliases: &mut aliases,
        nulls: subject.nulls,
        guards: Default::default(),
        fault: subject.fault,
        overflow: false,
    };
    let unit = subject.unit();
    let mut blocks = Vec::new();
    // A set operation's arm may hold what is in another one as well; only mentions that are in the query count.
    let inside = subject.query().occurrences();
    for (mention, known) in subject.reading.mentions.iter().enumerate() {
        if !inside.contains(&mention) || subject.is_said(subject.source(known.table)) {
            continue;
        }
        let variants = relaxer.query(subject.query(), Some(mention), &unit);
        if variants.is_empty() && relaxer.overflow {
            return Err(vec![too_large(subject, mention)]);
        }
        blocks.extend(variants.into_iter().map(|block| (mention, block)));
        if relaxer.overflow {
            return Err(vec![too_large(subject, mention)]);
        }
    }
    let guards = std::mem::take(&mut relaxer.guards);
    let mut found = Found::default();
    for (mention, block) in blocks {
        let table = subject.source(subject.reading.mentions[mention].table).clone();
        let sql = |side| print(subject, &aliases, side, |printer| printer.block(&block));
        let guard = guards.get(&mention).map(|guard| found.guard(value(subject, &aliases, guard)));
        let derivation = Derivation {
            table,
            mention: Some(mention),
            old: sql(Side::Old),
            new: sql(Side::New),
            bounded: is_bounded(&block),
            nulled: block.from.iter().any(is_nulled),
            guard: guard.map(|number| found.guards[number].sql.clone()),
        };
        let same = |one: &One| {
            one.derivation.old == derivation.old && one.derivation.new == derivation.new && one.guard == guard
        };
        if !found.all.iter().any(same) {
            found.all.push(One { derivation, guard });
        }
    }
    Ok(found)
}

impl Found {
    /// The number of a guard.
    fn guard(&mut self, value: Value) -> usize {
        self.guards.iter().position(|known| *known == value).unwrap_or_else(|| {
            self.guards.push(value);
            self.guards.len() - 1
        })
    }

    /// What `affected_by` says.
    fn said(&mut self, subject: &Subject<'_>) -> Result<(), Vec<Trouble>> {
        for (source, reading) in subject.said {
            let names = reading.query.names();
            let missing: Vec<&String> =
                subject.derived.unit().iter().filter(|unit| !names.contains(&unit.as_str())).collect();
            if let Some(missing) = missing.first() {
                let next = format!("let it select {}", subject.derived.unit().join(", "));
                let why = format!("it does not give {missing} of the unit");
                return Err(vec![of(TroubleKind::Declaration, format!("`affected_by` {source}"), why, next)]);
            }
            let unit = quote::idents(subject.derived.unit().iter().map(String::as_str));
            let sql = |side| {
                let query = print(subject, &reading.aliases, side, |printer| printer.query(&reading.query));
                format!("SELECT {unit} FROM ({query}) AS q")
            };
            let derivation = Derivation {
                table: source.clone(),
                mention: None,
                old: sql(Side::Old),
                new: sql(Side::New),
                bounded: true,
                nulled: false,
                guard: None,
            };
            self.all.push(One { derivation, guard: None });
        }
        Ok(())
    }
}

fn print(subject: &Subject<'_>, aliases: &Aliases, side: Side, f: impl Fn(&Printer<'_>) -> String) -> String {
    let table = |table: usize, read: Read| {
        let source = subject.source(table);
        match read {
            Read::All => subject.places.mirror(source).quoted(),
            Read::Changed => subject.places.changed(source, side).quoted(),
        }
    };
    f(&Printer { aliases, table: &table })
}

/// A guard's value as text; a query without a row gives NULL.
fn value(subject: &Subject<'_>, aliases: &Aliases, guard: &Guard) -> Value {
    let (sql, query) = match guard {
        Guard::Sublink(sublink) => {
            let expr = Expr::Sub(Box::new(sublink.clone()));
            (format!("({})::text", print(subject, aliases, Side::New, |printer| printer.expr(&expr))), &sublink.query)
        }
        Guard::Row(query) => {
            let sql = print(subject, aliases, Side::New, |printer| printer.query(query));
            (format!("(SELECT q::text FROM ({sql}) AS q)"), query)
        }
    };
    let tables: BTreeSet<SourceTable> = query
        .occurrences()
        .into_iter()
        .map(|mention| subject.source(subject.reading.mentions[mention].table).clone())
        .collect();
    Value { sql, tables: tables.into_iter().collect() }
}

fn is_nulled(from: &From) -> bool {
    match from {
        From::Join { kind: JoinKind::Nulled, .. } => true,
        From::Join { left, right, .. } => is_nulled(left) || is_nulled(right),
        From::Query { query, .. } => is_nulled_query(query),
        From::Table { .. } | From::Function { .. } => false,
    }
}

fn is_nulled_query(query: &Query) -> bool {
    let of_block = |block: &Block| block.from.iter().any(is_nulled);
    matches!(&query.body, Body::Block(block) if of_block(block))
}

fn too_large(subject: &Subject<'_>, mention: usize) -> Trouble {
    let known = subject.reading.mentions[mention];
    at(
        TroubleKind::TooLarge,
        known.at,
        format!("table {}", subject.source(known.table)),
        "its rows can come to be in the result in too many ways: each outer join around it doubles or triples them",
        "make two derived tables of the query, or say with `affected_by` which units its changed rows affect",
    )
}

/// A warning for each mention whose changes affect all units.
fn unbounded(subject: &Subject<'_>, derivations: &[Derivation]) -> Vec<Trouble> {
    let mut seen = BTreeSet::new();
    let mut warnings = Vec::new();
    for derivation in derivations.iter().filter(|derivation| !derivation.bounded) {
        let Some(mention) = derivation.mention.filter(|mention| seen.insert(*mention)) else { continue };
        let (when, next) = match &derivation.guard {
            Some(_) => (
                "if it changes the value of a subquery that depends on no row",
                "this is announced here; nothing need be done where that value changes seldom",
            ),
            None => (
                "whatever it is",
                "tie the table to the unit by an equality, or say with `affected_by` which units its changed rows affect",
            ),
        };
        warnings.push(at(
            TroubleKind::Unbounded,
            subject.reading.mentions[mention].at,
            format!("table {}", derivation.table),
            format!("no equality ties its rows to the unit: a change to it, {when}, makes all units anew"),
            next,
        ));
    }
    warnings
}
