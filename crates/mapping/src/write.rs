//! Writing rows that were made into the target.

use model::quote;

use crate::compile::Subject;
use crate::derived::{OnConflict, WhenMissing};

/// The statement that inserts `rows` (a relation or subquery).
pub(crate) fn insert(subject: &Subject<'_>, rows: &str) -> String {
    format!("{}{rows} AS r", parts(subject).head)
}

/// The statement that inserts what is new of `rows` and updates what is different.
pub(crate) fn upsert(subject: &Subject<'_>, rows: &str) -> String {
    let Insert { head, conflict } = parts(subject);
    format!("{head}{rows} AS r{conflict}")
}

/// Both in parts, for rows that are known later.
#[derive(Clone, Debug)]
pub(crate) struct Insert {
    /// Stands before the rows.
    pub head: String,
    /// Stands behind them: what becomes of rows that are there already.
    pub conflict: String,
}

/// The statement that inserts rows, in its parts.
pub(crate) fn parts(subject: &Subject<'_>) -> Insert {
    let derived = subject.derived;
    let names = subject.names();
    let columns = quote::idents(names.iter().map(String::as_str));
    let head = format!(
        "INSERT INTO {} AS t ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM ",
        derived.into.quoted()
    );
    if derived.key.is_empty() {
        return Insert { head, conflict: String::new() };
    }
    let mut sql = format!(" ON CONFLICT ({})", quote::idents(derived.key.iter().map(String::as_str)));
    let (mut set, mut old, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for name in &names {
        let fixed = subject.catalog.target.columns.iter().any(|column| column.name == *name && column.identity_always);
        let column = quote::ident(name);
        let value = match derived.on_conflict.get(name).copied().unwrap_or_default() {
            OnConflict::Keep => continue,
            _ if fixed => continue,
            OnConflict::Overwrite => format!("excluded.{column}"),
            OnConflict::Greatest => format!("GREATEST(t.{column}, excluded.{column})"),
            OnConflict::Least => format!("LEAST(t.{column}, excluded.{column})"),
        };
        set.push(format!("{column} = {value}"));
        // As text: 1.0 and 1.00 are equal and not the same.
        old.push(format!("t.{column}::text"));
        new.push(format!("({value})::text"));
    }
    if set.is_empty() {
        sql += " DO NOTHING";
    } else {
        let (set, old, new) = (set.join(", "), old.join(", "), new.join(", "));
        sql += &format!(" DO UPDATE SET {set} WHERE ROW({old}) IS DISTINCT FROM ROW({new})");
    }
    Insert { head, conflict: sql }
}

/// The condition that the columns of `one` and `other` are equal.
pub(crate) fn equal(one: &str, other: &str, columns: &[String]) -> String {
    let each = columns.iter().map(|name| format!("{one}.{0} = {other}.{0}", quote::ident(name)));
    each.collect::<Vec<_>>().join(" AND ")
}

/// The statements that delete, within the units, what `result` lacks: one for each way in which the unit can be null.
pub(crate) fn deletes(subject: &Subject<'_>, units: &str, result: &str, patterns: &[Vec<usize>]) -> Vec<String> {
    let derived = subject.derived;
    if derived.when_missing == WhenMissing::Keep {
        return Vec::new();
    }
    let into = derived.into.quoted();
    let still = match derived.key.as_slice() {
        [] => String::new(),
        key => format!(" AND NOT EXISTS (SELECT FROM {result} AS r WHERE {})", equal("r", "t", key)),
    };
    let each = |nulls: &Vec<usize>| {
        let matched = matched("t", "a", derived.unit(), nulls);
        format!("DELETE FROM {into} AS t USING {units} AS a WHERE {matched}{still}")
    };
    patterns.iter().map(each).collect()
}

/// The condition that the unit of `one` is that of `units`, the columns `nulls` being null in both. `IS NOT DISTINCT FROM`
/// would say it at once, and no index could be used.
pub(crate) fn matched(one: &str, units: &str, unit: &[String], nulls: &[usize]) -> String {
    let each = |(number, name): (usize, &String)| {
        let name = quote::ident(name);
        if nulls.contains(&number) {
            format!("{one}.{name} IS NULL AND {units}.{name} IS NULL")
        } else {
            format!("{one}.{name} = {units}.{name}")
        }
    };
    unit.iter().enumerate().map(each).collect::<Vec<_>>().join(" AND ")
}
