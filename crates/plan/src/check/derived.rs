use std::collections::BTreeMap;

use model::{Problem, TableName};

use crate::derived::AffectedBy;
use crate::written::{Entry, Section};
use crate::{Derived, OnConflict, Source, Sql, WhenMissing};

const KNOWN: [&str; 7] = ["into", "key", "sql", "recompute_by", "on_conflict", "when_missing", "affected_by"];

/// The plan's `[[table]]`s.
pub(super) fn check(entry: &Entry<'_>, sources: &[Source]) -> Result<Vec<Derived>, Problem> {
    let mut all: Vec<Derived> = Vec::new();
    for section in entry.sections(&KNOWN)? {
        let (entry, into) = into(&section)?;
        if let Some(other) = all.iter().find(|other| other.into == into) {
            let why = format!("the [[table]] in line {} goes into it, too", other.line);
            return Err(entry.problem(why, "make one query of both, with UNION ALL"));
        }
        if let Some(source) = sources.iter().find(|source| source.as_is.selects(&into)) {
            let why = format!("`mirror` lets {into} of source {:?} go there as it is, too", source.name);
            return Err(entry.problem(why, format!("add \"!{into}\" to `mirror`, or choose another table")));
        }
        all.push(one(&section, into, sources)?);
    }
    Ok(all)
}

fn into<'a>(section: &Section<'a>) -> Result<(Entry<'a>, TableName), Problem> {
    let next = "name the target's table with its schema: into = \"public.users\"";
    let entry = section.get("into").ok_or_else(|| section.lacks("into", next))?;
    let text = entry.text("public.users")?;
    let Some(table) = table(text) else {
        return Err(entry.problem(format!("{text:?} is not the name of a table with its schema"), next));
    };
    let system = table.schema.starts_with("pg_") || table.schema == "information_schema";
    match system || table.schema == "crossfade" {
        false => Ok((entry, table)),
        true => Err(entry.problem(format!("the schema {} is not the plan's", table.schema), next)),
    }
}

/// `schema.table`; the schema ends at the first dot.
fn table(text: &str) -> Option<TableName> {
    let (schema, name) = text.split_once('.')?;
    (!schema.is_empty() && !name.is_empty()).then(|| TableName::new(schema, name))
}

fn one(section: &Section<'_>, into: TableName, sources: &[Source]) -> Result<Derived, Problem> {
    const SELECT: &str = "SELECT id, name FROM shop.public.customer";
    let query = section
        .get("sql")
        .ok_or_else(|| section.lacks("sql", format!("write the query that gives its rows: sql = {SELECT:?}")))?;
    let missing = [("delete", WhenMissing::Delete), ("keep", WhenMissing::Keep)];
    let missing = section.get("when_missing").map(|entry| entry.word(&missing)).transpose()?;
    Ok(Derived {
        into,
        key: columns(section, "key")?,
        sql: sql(&query, SELECT)?,
        recompute_by: columns(section, "recompute_by")?,
        on_conflict: section.get("on_conflict").map(|entry| on_conflict(&entry)).transpose()?.unwrap_or_default(),
        when_missing: missing.unwrap_or_default(),
        affected_by: section.get("affected_by").map(|entry| affected(&entry, sources)).transpose()?.unwrap_or_default(),
        line: section.line(),
    })
}

fn columns(section: &Section<'_>, key: &str) -> Result<Vec<String>, Problem> {
    const EXAMPLE: &str = "[\"id\"]";
    let Some(entry) = section.get(key) else { return Ok(Vec::new()) };
    let mut columns: Vec<String> = Vec::new();
    for item in entry.one_or_more("id")? {
        let name = item.text("id")?;
        if name.is_empty() || columns.iter().any(|known| known == name) {
            let why = if name.is_empty() { "a column has no name" } else { "a column stands there twice" };
            return Err(item.problem(why, format!("name each column once: {key} = {EXAMPLE}")));
        }
        columns.push(name.to_owned());
    }
    Ok(columns)
}

fn on_conflict(entry: &Entry<'_>) -> Result<BTreeMap<String, OnConflict>, Problem> {
    let words = [
        ("overwrite", OnConflict::Overwrite),
        ("keep", OnConflict::Keep),
        ("greatest", OnConflict::Greatest),
        ("least", OnConflict::Least),
    ];
    entry.open()?.entries().map(|entry| Ok((entry.key.to_owned(), entry.word(&words)?))).collect()
}

fn affected(entry: &Entry<'_>, sources: &[Source]) -> Result<Vec<AffectedBy>, Problem> {
    let mut all = Vec::new();
    for entry in entry.open()?.entries() {
        let (source, table) = source_table(&entry, sources)?;
        all.push(AffectedBy { source, table, sql: sql(&entry, "SELECT id FROM changed")? });
    }
    Ok(all)
}

/// `source.schema.table`, or, where there is one source, `schema.table`.
fn source_table(entry: &Entry<'_>, sources: &[Source]) -> Result<(String, TableName), Problem> {
    let named = sources.iter().find_map(|source| {
        let rest = entry.key.strip_prefix(source.name.as_str())?.strip_prefix('.')?;
        Some((source.name.clone(), table(rest)?))
    });
    let alone = match sources {
        [only] => table(entry.key).map(|table| (only.name.clone(), table)),
        _ => None,
    };
    named.or(alone).ok_or_else(|| {
        let source = sources.first().map_or("shop", |source| source.name.as_str());
        entry.problem(
            format!("{:?} is not the name of a source's table", entry.key),
            format!("write source, schema and table: \"{source}.public.orders\" = \"SELECT id FROM changed\""),
        )
    })
}

/// That it is right only the database can tell.
fn sql(entry: &Entry<'_>, example: &str) -> Result<Sql, Problem> {
    let sql = entry.sql(example)?;
    match sql.text.trim().is_empty() {
        true => Err(entry.problem("it is empty", format!("write it like this: {example:?}"))),
        false => Ok(sql),
    }
}

#[cfg(test)]
mod tests;
