//! Tables whose rows can be made from the changed rows alone.

use std::collections::BTreeSet;

use model::{TableName, quote};

use crate::catalog::{Side, SourceTable, Table};
use crate::compile::{Step, Subject};
use crate::derived::{OnConflict, WhenMissing};
use crate::query::{Block, Body, Distinct, Expr, From, Item};
use crate::write::{Insert, equal, parts, upsert};

/// How a streamed table's rows are made: projection and filter run over the batch itself.
#[derive(Clone, Debug)]
pub struct Streamed {
    /// Why nothing more is needed.
    pub reason: String,
    /// Why its source table has to have a mirror all the same: the plan lets rows of the target depend on what was there before, and once that is
    /// copied again, or emptied, only the whole tells what is to go; or nothing else tells what it is to be in a rehearsal.
    pub wants_mirror: Option<String>,
    /// The relation that its rows go into.
    pub into: TableName,
    /// What tells them apart.
    pub key: Vec<String>,
    /// The table whose rows it is made of.
    pub source: SourceTable,
    /// The columns of its rows.
    pub columns: Vec<StreamedColumn>,
    /// The condition under which a changed row, called `r`, has a row in the target.
    pub filter: Option<String>,
    /// The columns of the changed row that the filter reads.
    pub filter_reads: Vec<String>,
    /// Run in this order once the changed rows lie in their temp tables. Of old rows only the replica identity is read. An
    /// update that leaves an out-of-line value alone arrives without it. Its row is in the target, under the old key: such rows
    /// want their other columns, key included, updated alone ([`update`](Self::update), [`merged`](Self::merged)).
    pub steps: Vec<Step>,
    /// Makes the target what the query gives of a whole mirror, whatever it was.
    pub refill: Vec<String>,
    insert: Insert,
}

/// Statements over changed rows that are given, `rows` being a relation or a subquery with (at least) the columns that are [read](Self::reads).
impl Streamed {
    /// The columns of the source table that are read.
    pub fn reads(&self) -> BTreeSet<&str> {
        self.columns.iter().flat_map(|column| &column.reads).chain(&self.filter_reads).map(String::as_str).collect()
    }

    /// The columns of the source table that the key is made of.
    pub fn key_reads(&self) -> BTreeSet<&str> {
        let key = self.columns.iter().filter(|column| column.is_key);
        key.flat_map(|column| &column.reads).map(String::as_str).collect()
    }

    /// The rows of the target that come of these.
    pub fn made(&self, rows: &str) -> String {
        let filter = self.filter.as_ref().map_or(String::new(), |filter| format!(" WHERE {filter}"));
        format!("(SELECT {} FROM {rows} AS r{filter})", list(self.columns.iter()))
    }

    /// The keys of the rows of the target that come, or came, of these.
    pub fn keys(&self, rows: &str) -> String {
        format!("(SELECT {} FROM {rows} AS r)", list(self.columns.iter().filter(|column| column.is_key)))
    }

    /// Inserts what comes of them; none of it may be there.
    pub fn insert(&self, rows: &str) -> String {
        format!("{}{} AS r", self.insert.head, self.made(rows))
    }

    /// Inserts rows that were made; none of them may be there.
    pub fn insert_made(&self, made: &str) -> String {
        format!("{}{made} AS r", self.insert.head)
    }

    /// Inserts what is new of rows that were made, and updates what is different.
    pub fn upsert_made(&self, made: &str) -> String {
        format!("{}{made} AS r{}", self.insert.head, self.insert.conflict)
    }

    /// Deletes what came of them.
    pub fn delete(&self, rows: &str) -> String {
        let matched = equal("t", "o", &self.key);
        format!("DELETE FROM {} AS t USING {} AS o WHERE {matched}", self.into.quoted(), self.keys(rows))
    }

    /// Deletes what came of them and does not any more, if there is a filter.
    pub fn delete_filtered(&self, rows: &str) -> Option<String> {
        let filter = self.filter.as_ref()?;
        let keys = list(self.columns.iter().filter(|column| column.is_key));
        Some(format!(
            "DELETE FROM {} AS t USING (SELECT {keys} FROM {rows} AS r WHERE ({filter}) IS NOT TRUE) AS o WHERE {}",
            self.into.quoted(),
            equal("t", "o", &self.key)
        ))
    }

    /// Gives rows that are there, under the same keys, the values that can be made of the columns which are `present`; `None` if that is none.
    pub fn update(&self, present: impl Fn(&str) -> bool, rows: &str) -> Option<String> {
        let known = |column: &&StreamedColumn| column.reads.iter().all(|name| present(name));
        let set: Vec<&StreamedColumn> =
            self.columns.iter().filter(|column| !column.is_key && !column.is_fixed).filter(known).collect();
        if set.is_empty() {
            return None;
        }
        let assigned: Vec<String> =
            set.iter().map(|column| format!("{0} = q.{0}", quote::ident(&column.name))).collect();
        let key = self.columns.iter().filter(|column| column.is_key);
        Some(format!(
            "UPDATE {} AS t SET {} FROM (SELECT {} FROM {rows} AS r) AS q WHERE {}",
            self.into.quoted(),
            assigned.join(", "),
            list(key.chain(set.iter().copied())),
            equal("t", "q", &self.key)
        ))
    }

    /// The target's rows that come of changed rows which did not bring all values: the others are those of the row that is there under the old key. `from`
    /// is what the subqueries `new` (the columns that are `present`) and `old` (those of the key) are made of.
    pub fn merged(&self, present: impl Fn(&str) -> bool, from: &str, new: &str, old: &str) -> String {
        let value = |column: &StreamedColumn| {
            let name = quote::ident(&column.name);
            match column.reads.iter().all(|name| present(name)) {
                true => format!("{} AS {name}", column.sql),
                false => format!("t.{name} AS {name}"),
            }
        };
        let values: Vec<String> = self.columns.iter().map(value).collect();
        format!(
            "(SELECT {} FROM {from} CROSS JOIN LATERAL {new} AS r CROSS JOIN LATERAL {} AS o JOIN {} AS t ON {})",
            values.join(", "),
            self.keys(old),
            self.into.quoted(),
            equal("t", "o", &self.key)
        )
    }

    /// Keys among those of these rows under which there is no row, as texts.
    pub fn missing(&self, rows: &str) -> String {
        let columns: Vec<String> = self.key.iter().map(|name| format!("o.{0}", quote::ident(name))).collect();
        format!(
            "SELECT concat_ws(', ', {}) FROM {} AS o WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {}) LIMIT 1",
            columns.join(", "),
            self.keys(rows),
            self.into.quoted(),
            equal("t", "o", &self.key)
        )
    }
}

fn list<'a>(columns: impl Iterator<Item = &'a StreamedColumn>) -> String {
    columns.map(|column| format!("{} AS {}", column.sql, quote::ident(&column.name))).collect::<Vec<_>>().join(", ")
}

/// A column of a streamed table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamedColumn {
    /// Its name in the target.
    pub name: String,
    /// Its value, of a changed row called `r`.
    pub sql: String,
    /// The columns of the changed row that it reads.
    pub reads: Vec<String>,
    /// Whether it is of the key, and so made of the replica identity.
    pub is_key: bool,
    /// Whether the target does not let it be updated.
    pub is_fixed: bool,
}

/// The table as a streamed one, or the reason why it has to be maintained.
pub(crate) fn streamed(subject: &Subject<'_>) -> Result<Streamed, String> {
    let (block, item, table) = one_table(subject)?;
    let derived = subject.derived;
    let unit: BTreeSet<&String> = derived.unit().iter().collect();
    if derived.key.is_empty() || unit != derived.key.iter().collect() {
        return Err("its unit is not its key".to_owned());
    }
    if table.identity.is_empty() {
        return Err(format!("{} has no replica identity", table.name));
    }
    // Equal rows may be there several times, and what comes and goes within a batch is not told apart from what stays.
    if table.full && table.identity.len() == table.columns.len() {
        return Err(format!("nothing less than all columns tells the rows of {} apart", table.name));
    }
    let mut covered = BTreeSet::new();
    for target in block.targets.iter().filter(|target| derived.key.contains(&target.name)) {
        covered.extend(identity(&target.expr, table).ok_or_else(|| {
            format!("key column {} is not a column of the replica identity, or crossfade_id of one", target.name)
        })?);
    }
    if let Some(missing) = table.identity.iter().find(|column| !covered.contains(*column)) {
        return Err(format!("the key leaves out {missing} of the replica identity"));
    }
    let apart = |name: &&String| {
        !table.full
            && table.columns.iter().any(|column| column.name == **name && column.toastable)
            && !table.identity.contains(name)
    };
    // A row that the target does not have, or that stays there under its old key, cannot be made without all its values.
    if !block.filter.is_empty() || derived.when_missing == WhenMissing::Keep {
        let all: Vec<String> = block.targets.iter().flat_map(|target| reads(&target.expr)).collect();
        if let Some(column) = all.iter().find(apart) {
            return Err(format!(
                "an update may leave out {column}, and may be the first to bring its row into the target; with REPLICA \
                 IDENTITY FULL it would be known"
            ));
        }
    }
    let parts = block.filter.iter().map(|expr| ("WHERE".to_owned(), expr, 1));
    let parts = parts.chain(block.targets.iter().map(|target| (format!("column {}", target.name), &target.expr, 2)));
    for (what, expr, few) in parts {
        let reads = reads(expr);
        if let Some(column) = reads.iter().find(apart).filter(|_| reads.len() >= few) {
            return Err(format!(
                "{what} reads {column}, whose values an update may leave out, and has to be known with others"
            ));
        }
    }
    Ok(build(subject, block, item, table))
}

fn one_table<'a>(subject: &'a Subject<'_>) -> Result<(&'a Block, Item, &'a Table), String> {
    let query = subject.query();
    let Body::Block(block) = &query.body else { return Err("it is a set operation or VALUES".to_owned()) };
    let [From::Table { item, table, .. }] = block.from.as_slice() else {
        return Err(match block.from.as_slice() {
            [] => "it reads no table",
            [From::Query { .. }] => "it has a subquery",
            [From::Function { .. }] => "it calls a function in FROM",
            _ => "it has a join",
        }
        .to_owned());
    };
    let any = |is: fn(&Expr) -> bool| {
        let mut found = false;
        block.each_own(&mut |expr| found |= is(expr));
        found
    };
    let reason = if block.distinct != Distinct::None {
        "it has DISTINCT"
    } else if !block.group.is_empty() || block.having.is_some() || any(Expr::has_aggregate) {
        "it has an aggregate or GROUP BY"
    } else if any(Expr::has_window) {
        "it has a window function"
    } else if any(Expr::has_sublink) {
        "it has a subquery"
    } else if any(Expr::returns_set) {
        "it has a function that returns a set"
    } else if query.is_limited() {
        "it has LIMIT or OFFSET"
    } else {
        return Ok((block, *item, &subject.catalog.tables[*table]));
    };
    Err(reason.to_owned())
}

/// The columns of the replica identity that a key column stands for, one row for one: as they are, or as new ids.
fn identity(expr: &Expr, table: &Table) -> Option<BTreeSet<String>> {
    let whole = match expr {
        Expr::Column(..) => true,
        Expr::Call(call) => call.name == "crossfade_id" && reads(expr).len() == 1,
        _ => false,
    };
    let reads = reads(expr);
    (whole && reads.iter().all(|name| table.identity.contains(name))).then(|| reads.into_iter().collect())
}

fn reads(expr: &Expr) -> Vec<String> {
    expr.columns().into_iter().map(|(_, name)| name).collect()
}

fn build(subject: &Subject<'_>, block: &Block, item: Item, table: &Table) -> Streamed {
    let derived = subject.derived;
    let places = subject.places;
    let mut aliases = crate::print::Aliases::default();
    // All of it speaks of one row, called `r`; its number in the query stays.
    for _ in 0..item {
        aliases.add("");
    }
    aliases.add("r");
    let printer = crate::print::Printer { aliases: &aliases, table: &|_, _| String::new() };
    let fixed = |name: &String| {
        subject.catalog.target.columns.iter().any(|column| column.name == *name && column.identity_always)
    };
    let columns: Vec<StreamedColumn> = block
        .targets
        .iter()
        .map(|target| StreamedColumn {
            name: target.name.clone(),
            sql: printer.expr(&target.expr),
            reads: reads(&target.expr),
            is_key: derived.key.contains(&target.name),
            is_fixed: fixed(&target.name),
        })
        .collect();
    let filter = (!block.filter.is_empty())
        .then(|| block.filter.iter().map(|expr| printer.expr(expr)).collect::<Vec<_>>().join(" AND "));
    let of = |rows: &str, filtered: bool, key: bool| {
        let chosen = columns.iter().filter(|column| column.is_key || !key);
        let list: Vec<String> =
            chosen.map(|column| format!("{} AS {}", column.sql, quote::ident(&column.name))).collect();
        let filter = filter.as_ref().filter(|_| filtered).map_or(String::new(), |filter| format!(" WHERE {filter}"));
        format!("(SELECT {} FROM {rows} AS r{filter})", list.join(", "))
    };
    let select = |side: Side, key: bool| of(&places.changed(&table.name, side).quoted(), side == Side::New, key);
    let mirror = places.mirror(&table.name).quoted();
    let gone = format!(
        "DELETE FROM {} AS t WHERE NOT EXISTS (SELECT FROM {} AS n WHERE {})",
        derived.into.quoted(),
        of(&mirror, true, true),
        equal("n", "t", &derived.key),
    );
    let mut refill = vec![upsert(subject, &of(&mirror, true, false))];
    let delete = format!(
        "DELETE FROM {} AS t USING {} AS o WHERE {} AND NOT EXISTS (SELECT FROM {} AS n WHERE {})",
        derived.into.quoted(),
        select(Side::Old, true),
        equal("t", "o", &derived.key),
        select(Side::New, true),
        equal("n", "o", &derived.key),
    );
    let mut steps = Vec::new();
    if derived.when_missing == WhenMissing::Delete {
        steps.push(Step { tables: vec![table.name.clone()], sql: delete });
        refill.insert(0, gone);
    }
    steps.push(Step { tables: vec![table.name.clone()], sql: upsert(subject, &select(Side::New, false)) });
    let reason = "each row comes of one row of one table, and its key of that row's replica identity".to_owned();
    Streamed {
        reason,
        wants_mirror: wants_mirror(subject),
        into: derived.into.clone(),
        key: derived.key.clone(),
        source: table.name.clone(),
        columns,
        filter,
        filter_reads: block.filter.iter().flat_map(reads).collect(),
        steps,
        refill,
        insert: parts(subject),
    }
}

fn wants_mirror(subject: &Subject<'_>) -> Option<String> {
    let derived = subject.derived;
    if derived.when_missing == WhenMissing::Keep {
        return Some(format!("{} keeps rows that its query no longer gives (`when_missing`)", derived.into));
    }
    if !derived.affected_by.is_empty() {
        return Some(format!("{} says with `affected_by` what of it is to be looked at", derived.into));
    }
    if derived.is_masked_in_rehearsals() {
        return Some(format!("what {} is in a rehearsal is compared with that (`mask_in`)", derived.into));
    }
    let (column, _) = derived.on_conflict.iter().find(|(_, rule)| **rule != OnConflict::Overwrite)?;
    Some(format!("column {column} of {} depends on what was there before (`on_conflict`)", derived.into))
}
