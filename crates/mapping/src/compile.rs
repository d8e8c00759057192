//! From a declaration to what runs: read, checked, classified.

use std::collections::BTreeSet;

use model::TableName;

use crate::catalog::{Catalog, Places, Side, SourceTable};
use crate::clean::clean;
use crate::derived::{Derived, OnConflict, WhenMissing, keyed, said};
use crate::maintained::{self, Maintained};
use crate::nulls::Nulls;
use crate::oracle::Oracle;
use crate::print::Printer;
use crate::query::{Query, Read};
use crate::read::{Reading, read, read_said};
use crate::relax::Fault;
use crate::streamed::{self, Streamed};
use crate::trouble::{Place, Trouble, TroubleKind};
use crate::{fit, warn};

/// A derived table, ready to be kept current.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The relation that its rows go into.
    pub into: TableName,
    /// The columns of the result.
    pub columns: Vec<String>,
    /// The columns that tell its rows apart: the declaration's, or those of the source's table that it is a part of.
    pub key: Vec<String>,
    /// The source tables that it reads, those of `affected_by` included: the mirrors of a maintained table.
    pub sources: Vec<SourceTable>,
    /// How its rows are made.
    pub way: Way,
    /// The same in full, to compare with.
    pub oracle: Oracle,
    /// What a person should know and that does not stop it.
    pub warnings: Vec<Trouble>,
}

/// How a derived table's rows are made.
#[derive(Clone, Debug)]
pub enum Way {
    /// From the changed rows alone.
    Streamed(Box<Streamed>),
    /// From mirrors.
    Maintained(Box<Maintained>),
}

/// One statement of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// It runs if rows of one of these changed.
    pub tables: Vec<SourceTable>,
    /// The statement.
    pub sql: String,
}

/// Compiles a derived table, or says all that is wrong with it.
pub fn compile(derived: &Derived, catalog: &Catalog, places: &dyn Places) -> Result<Compiled, Vec<Trouble>> {
    compile_with(derived, catalog, places, Fault::None)
}

/// [`compile`] by a rule that may be wrong: tests show that a wrong one would be noticed.
#[doc(hidden)]
pub fn compile_with(
    derived: &Derived,
    catalog: &Catalog,
    places: &dyn Places,
    fault: Fault,
) -> Result<Compiled, Vec<Trouble>> {
    let derived = &*keyed(derived, catalog);
    let reading = read(derived, catalog).map_err(|trouble| vec![trouble])?;
    let nulls = Nulls::of(&reading.query, catalog);
    let mut readings = Vec::new();
    for (source, sql) in said(derived) {
        let reading = read_said(sql, catalog, &source).map_err(|trouble| vec![trouble])?;
        readings.push((source, reading));
    }
    let subject = Subject { derived, catalog, places, reading: &reading, said: &readings, nulls: &nulls, fault };
    let mut troubles = subject.declaration();
    troubles.extend(fit::troubles(&subject));
    if !troubles.is_empty() {
        return Err(troubles);
    }
    let mut warnings = reading.warnings.clone();
    warnings.extend(warn::warnings(&subject));
    let way = match streamed::streamed(&subject) {
        Ok(streamed) => Way::Streamed(Box::new(streamed)),
        Err(reason) => {
            let reason = match derived.parts.as_slice() {
                [_] if derived.merge.is_empty() => reason,
                [_] => "rows that share a key are merged".to_owned(),
                parts => format!("the rows of {} [[table]]s are in it", parts.len()),
            };
            let (maintained, more) = maintained::maintained(&subject, reason)?;
            warnings.extend(more);
            warnings.extend(readings.iter().flat_map(|(_, reading)| reading.warnings.iter().cloned()));
            Way::Maintained(Box::new(maintained))
        }
    };
    let mut sources: BTreeSet<SourceTable> = subject.sources().into_iter().collect();
    if matches!(way, Way::Maintained(_)) {
        let more = readings.iter().flat_map(|(_, reading)| &reading.mentions);
        sources.extend(more.map(|mention| subject.source(mention.table).clone()));
    }
    Ok(Compiled {
        into: derived.into.clone(),
        columns: subject.names(),
        key: derived.key.clone(),
        sources: sources.into_iter().collect(),
        way,
        oracle: Oracle::of(&subject),
        warnings,
    })
}

/// A query that was read, and all that is known around it.
pub(crate) struct Subject<'a> {
    pub derived: &'a Derived,
    pub catalog: &'a Catalog,
    pub places: &'a dyn Places,
    pub reading: &'a Reading,
    /// What `affected_by` says of a table.
    pub said: &'a [(SourceTable, Reading)],
    pub nulls: &'a Nulls,
    pub fault: Fault,
}

impl Subject<'_> {
    pub fn query(&self) -> &Query {
        &self.reading.query
    }

    pub fn names(&self) -> Vec<String> {
        self.query().names().into_iter().map(str::to_owned).collect()
    }

    /// Where the unit's columns stand in the result.
    pub fn unit(&self) -> Vec<usize> {
        let names = self.query().names();
        self.derived.unit().iter().filter_map(|unit| names.iter().position(|name| name == unit)).collect()
    }

    pub fn source(&self, table: usize) -> &SourceTable {
        &self.catalog.tables[table].name
    }

    /// The source tables that it reads, each once.
    pub fn sources(&self) -> Vec<SourceTable> {
        let all: BTreeSet<&SourceTable> =
            self.reading.mentions.iter().map(|mention| self.source(mention.table)).collect();
        all.into_iter().cloned().collect()
    }

    /// `query` over the mirrors, changed rows being those of one side.
    pub fn over_mirrors(&self, side: Side, print: impl Fn(&Printer<'_>) -> String) -> String {
        let table = |table: usize, read: Read| {
            let source = self.source(table);
            match read {
                Read::All => self.places.mirror(source).quoted(),
                Read::Changed => self.places.changed(source, side).quoted(),
            }
        };
        print(&Printer { aliases: &self.reading.aliases, table: &table })
    }

    /// Whether `affected_by` says for every table which units its rows affect.
    pub fn is_all_said(&self) -> bool {
        self.sources().iter().all(|source| self.is_said(source))
    }

    /// Whether `affected_by` says which units a table's rows affect.
    pub fn is_said(&self, source: &SourceTable) -> bool {
        self.derived.affected_by(&source.source, &source.table).is_some()
    }

    /// What the declaration and the query have against each other.
    fn declaration(&self) -> Vec<Trouble> {
        let derived = self.derived;
        let names = self.names();
        let known = format!("the result has {}", names.join(", "));
        let mut troubles = Vec::new();
        for (number, name) in names.iter().enumerate() {
            if names[..number].contains(name) {
                let next = "name one of them AS something else";
                troubles.push(of(
                    TroubleKind::Declaration,
                    format!("column {name}"),
                    "the result has two of that name",
                    next,
                ));
            }
        }
        for key in &derived.key {
            if !names.contains(key) {
                let next = format!("select it, or choose another key: {known}");
                troubles.push(of(
                    TroubleKind::KeyMissing,
                    format!("key column {key}"),
                    "the query does not give it",
                    next,
                ));
            }
        }
        if derived.unit().is_empty() {
            let next = "name the columns of `key`; without a key, say with `recompute_by` what changes together";
            troubles.push(of(TroubleKind::Declaration, "the table", "it has neither `key` nor `recompute_by`", next));
        }
        for unit in &derived.recompute_by {
            if !names.contains(unit) {
                let why = "the query does not give it";
                troubles.push(of(TroubleKind::Declaration, format!("`recompute_by` {unit}"), why, known.clone()));
            }
        }
        for (column, rule) in &derived.on_conflict {
            let why = if !names.contains(column) {
                "the query does not give it"
            } else if derived.key.contains(column) {
                "it is a key column: two rows that meet have the same"
            } else if derived.key.is_empty() && *rule != OnConflict::Overwrite {
                "the table has no key, so no row meets one that is there"
            } else {
                continue;
            };
            troubles.push(of(TroubleKind::Declaration, format!("`on_conflict` {column}"), why, "leave it out"));
        }
        for (source, _) in said(derived).filter(|(source, _)| !self.sources().contains(source)) {
            let why = "the query does not read that table";
            troubles.push(of(TroubleKind::Declaration, format!("`affected_by` {source}"), why, "leave it out"));
        }
        if derived.key.is_empty() && derived.when_missing == WhenMissing::Keep {
            let why = "the table has no key, so a row that stays cannot be told from one that is written anew";
            troubles.push(of(TroubleKind::Declaration, "`when_missing`", why, "name a `key`, or leave it out"));
        }
        troubles.extend(self.key_nulls());
        if troubles.is_empty() && !self.is_all_said() {
            troubles.extend(self.unit_unclear());
        }
        troubles
    }

    fn key_nulls(&self) -> Vec<Trouble> {
        let never = self.nulls.outputs(self.query());
        let names = self.names();
        let can = names.iter().zip(never).filter(|(name, never)| !never && self.derived.key.contains(name));
        can.map(|(name, _)| {
            of(
                TroubleKind::KeyNull,
                format!("key column {name}"),
                "it can be null: the column is not NOT NULL, or stands on a side of an outer join that may be missing",
                format!(
                    "leave such rows out (WHERE … IS NOT NULL on the column), or give a value with coalesce({name}, …)"
                ),
            )
        })
        .collect()
    }

    fn unit_unclear(&self) -> Vec<Trouble> {
        if self.query().is_limited() {
            return vec![of(
                TroubleKind::Limit,
                "LIMIT or OFFSET of the whole query",
                "which rows are among the first depends on all others",
                "number the rows with row_number() in a table of its own, or say with `affected_by`, for each source table, which units its changed rows affect",
            )];
        }
        let clean = clean(self.query());
        let names = self.names();
        let unclear: Vec<&str> = self.unit().into_iter().filter(|&n| !clean[n]).map(|n| names[n].as_str()).collect();
        if unclear.is_empty() {
            return Vec::new();
        }
        let good: Vec<&str> =
            names.iter().zip(&clean).filter(|(_, clean)| **clean).map(|(name, _)| name.as_str()).collect();
        let next = if good.is_empty() {
            "no column does; say with `affected_by`, for each source table, which units its changed rows affect"
                .to_owned()
        } else {
            format!(
                "set `recompute_by` to columns that do: {}; or say with `affected_by`, for each source table, which units its changed rows affect",
                good.join(", ")
            )
        };
        vec![of(
            TroubleKind::UnitUnclear,
            format!("the unit's {}", unclear.join(", ")),
            "it does not follow from each row that contributes: it is computed from several (an aggregate, a window, a \
             subquery), or is outside of a PARTITION BY, DISTINCT ON or LIMIT",
            next,
        )]
    }
}

/// A trouble without a place.
pub(crate) fn of(
    kind: TroubleKind,
    what: impl Into<String>,
    why: impl Into<String>,
    next: impl Into<String>,
) -> Trouble {
    at(kind, None, what, why, next)
}

pub(crate) fn at(
    kind: TroubleKind,
    at: Option<Place>,
    what: impl Into<String>,
    why: impl Into<String>,
    next: impl Into<String>,
) -> Trouble {
    Trouble { kind, at, table: None, what: what.into(), why: why.into(), next: next.into() }
}
