//! Which rows of the tables that queries read a group touches: by their keys, and without keys by the rows themselves. What a row was and what it becomes is
//! read from the mirror before the group is written and after, so that values that the source did not send are known.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use mapping::{Side, SourceTable};
use model::{Old, TableName, Tuple, quote};
use pg::Session;
use tokio_postgres::types::ToSql;

use super::fold::{Op, filled, key_of};
use super::gather::Step;
use super::sets::Statement;
use super::streamed::Changed;
use super::target::{Identity, Target};
use crate::ApplyError;

/// What a group touches.
#[derive(Default)]
pub(crate) struct Touched<'a> {
    rows: BTreeMap<SourceTable, Vec<Rows<'a>>>,
    /// Tables of which all rows may be touched.
    emptied: BTreeSet<SourceTable>,
    /// What becomes of the rows of tables of which nothing is stored.
    changed: BTreeMap<SourceTable, Changed<'a>>,
}

/// Rows of a table; of a partitioned one, of a partition.
struct Rows<'a> {
    target: &'a Target,
    /// By key: rows that hold one each.
    keys: Vec<&'a Tuple>,
    seen: HashSet<Bytes>,
    /// Without: versions that may have been there before.
    old: Vec<Tuple>,
    /// And that may be there now.
    new: Vec<Tuple>,
}

impl<'a> Touched<'a> {
    /// Of those tables that are `read`.
    ///
    /// # Errors
    /// Changes of a row of which nothing is stored do not follow each other.
    pub(super) fn of(steps: &'a [Step], read: &BTreeSet<SourceTable>) -> Result<Touched<'a>, ApplyError> {
        let mut touched = Touched::default();
        for step in steps {
            match step {
                Step::Rows(run) if !run.target.stored => {
                    let changed = touched.changed(&run.target);
                    run.ops.iter().try_for_each(|op| changed.op(op))?;
                }
                Step::Move { target, old, new } if !target.stored => touched.changed(target).moves(old, new)?,
                Step::Rows(run) if read.contains(&run.target.origin) => {
                    let rows = touched.rows(&run.target);
                    run.ops.iter().for_each(|op| rows.op(op));
                }
                Step::Move { target, old, new } if read.contains(&target.origin) => {
                    let rows = touched.rows(target);
                    rows.key(old.tuple());
                    rows.key(new);
                }
                Step::Truncate { targets, .. } => {
                    for target in targets.iter().filter(|target| !target.stored) {
                        touched.changed(target).empty();
                    }
                    let stored = targets.iter().filter(|target| target.stored).map(|target| &target.origin);
                    touched.emptied.extend(stored.filter(|origin| read.contains(origin)).cloned());
                }
                Step::Rows(_) | Step::Move { .. } => {}
            }
        }
        Ok(touched)
    }

    fn changed(&mut self, target: &'a Target) -> &mut Changed<'a> {
        self.changed.entry(target.origin.clone()).or_insert_with(|| Changed::of(target))
    }

    /// What becomes of the rows of a table of which nothing is stored.
    pub(crate) fn of_rows(&self, table: &SourceTable) -> Option<&Changed<'a>> {
        self.changed.get(table)
    }

    /// Rows of one table that are taken away by their keys (without a key, as they are), and others put in their place.
    pub(super) fn replaced(target: &'a Target, keys: &'a [Tuple], new: &'a [Tuple]) -> Touched<'a> {
        let mut touched = Touched::default();
        if !target.stored {
            touched.changed(target).replace(keys, new);
            return touched;
        }
        let rows = touched.rows(target);
        match target.identity {
            Identity::Key(_) => keys.iter().chain(new).for_each(|tuple| rows.key(tuple)),
            Identity::WholeRow | Identity::None => {
                rows.old.extend(keys.iter().cloned());
                rows.new.extend(new.iter().cloned());
            }
        }
        touched
    }

    fn rows(&mut self, target: &'a Target) -> &mut Rows<'a> {
        let all = self.rows.entry(target.origin.clone()).or_default();
        let at = match all.iter().position(|rows| std::ptr::eq(rows.target, target)) {
            Some(at) => at,
            None => {
                all.push(Rows { target, keys: Vec::new(), seen: HashSet::new(), old: Vec::new(), new: Vec::new() });
                all.len() - 1
            }
        };
        &mut all[at]
    }

    /// The tables whose touched rows are known.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &SourceTable> {
        self.rows.keys()
    }

    /// The tables of which any row may be touched.
    pub(crate) fn emptied(&self) -> &BTreeSet<SourceTable> {
        &self.emptied
    }

    /// Puts one version of a table's touched rows into `changed`. Rows with a key are read at the table's `home`, as they are now.
    pub(crate) async fn load(
        &self,
        session: &Session,
        table: &SourceTable,
        home: &TableName,
        side: Side,
        changed: &TableName,
    ) -> Result<(), ApplyError> {
        for rows in self.rows.get(table).into_iter().flatten() {
            let (statement, tuples): (Statement, Vec<&Tuple>) = match (&rows.target.identity, side) {
                (Identity::Key(key), _) => (found(rows.target, key, home, changed), rows.keys.clone()),
                (_, Side::Old) => (given(rows.target, changed), rows.old.iter().collect()),
                (_, Side::New) => (given(rows.target, changed), rows.new.iter().collect()),
            };
            if tuples.is_empty() {
                continue;
            }
            let arrays = statement.arrays(&tuples);
            let parameters: Vec<&(dyn ToSql + Sync)> =
                arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
            session.execute(&statement.sql, &parameters).await?;
        }
        Ok(())
    }
}

impl<'a> Rows<'a> {
    fn op(&mut self, op: &'a Op) {
        match (op, &self.target.identity) {
            (Op::Insert(new) | Op::Update { new, .. }, Identity::Key(_)) => self.key(new),
            (Op::Delete(old), Identity::Key(_)) => self.key(old.tuple()),
            (Op::Insert(new), _) => self.new.push(new.clone()),
            (Op::Delete(old), _) => self.old.push(old.tuple().clone()),
            (Op::Update { old, new }, _) => {
                // Without the old row, the group is found to be broken when it is written.
                if let Some(Old::Full(old) | Old::Key(old)) = old {
                    self.old.push(old.clone());
                    self.new.push(filled(new, old));
                }
            }
        }
    }

    fn key(&mut self, tuple: &'a Tuple) {
        if let Identity::Key(key) = &self.target.identity
            && self.seen.insert(key_of(tuple, key))
        {
            self.keys.push(tuple);
        }
    }
}

fn names(target: &Target) -> Vec<String> {
    target.columns.iter().map(|column| quote::ident(&column.name)).collect()
}

/// The rows at `home` with these keys, each once: keys of other texts can be equal (citext, numeric).
fn found(target: &Target, key: &[usize], home: &TableName, changed: &TableName) -> Statement {
    let names = names(target);
    let read: Vec<String> = names.iter().map(|name| format!("m.{name}")).collect();
    let arrays: Vec<String> = (1..=key.len()).map(|n| format!("${n}::text[]")).collect();
    let values: Vec<String> = key.iter().map(|column| format!("c{column}")).collect();
    let equal = |column: &usize| {
        let of = &target.columns[*column];
        format!("m.{} {} u.c{column}::{}", names[*column], of.equals, of.cast)
    };
    let sql = format!(
        "INSERT INTO {} ({}) SELECT DISTINCT ON (m.tableoid, m.ctid) {} FROM unnest({}) AS u({}) JOIN {} AS m ON {}",
        changed.quoted(),
        names.join(", "),
        read.join(", "),
        arrays.join(", "),
        values.join(", "),
        home.quoted(),
        key.iter().map(equal).collect::<Vec<_>>().join(" AND ")
    );
    Statement { sql, columns: key.to_vec() }
}

/// The rows as they came.
fn given(target: &Target, changed: &TableName) -> Statement {
    Target { into: changed.clone(), only: "", ..target.clone() }.insert()
}
