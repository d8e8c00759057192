use std::collections::BTreeMap;

use model::{Problem, TableName};

use crate::derived::{AffectedBy, Cut, MaskIn, Part, Rows};
use crate::written::{Entry, Section};
use crate::{Derived, OnConflict, Source, Sql, WhenMissing};

const KNOWN: [&str; 13] = [
    "into",
    "key",
    "sql",
    "from",
    "columns",
    "where",
    "mask",
    "mask_in",
    "merge",
    "recompute_by",
    "on_conflict",
    "when_missing",
    "affected_by",
];

/// The plan's `[[table]]`s, those into one table together.
pub(super) fn check(entry: &Entry<'_>, sources: &[Source]) -> Result<Vec<Derived>, Problem> {
    let mut all: Vec<(TableName, Together)> = Vec::new();
    for section in entry.sections(&KNOWN)? {
        let rows = rows(&section, sources)?;
        let (entry, into) = into(&section, &rows)?;
        if let Some(source) = sources.iter().find(|source| source.as_is.selects(&into)) {
            let why = format!("`mirror` lets {into} of source {:?} go there as it is, too", source.name);
            return Err(entry.problem(why, format!("add \"!{into}\" to `mirror`, or choose another table")));
        }
        let number = all.iter().position(|(known, _)| *known == into).unwrap_or_else(|| {
            all.push((into, Together::default()));
            all.len() - 1
        });
        all[number].1.hear(&section, rows, sources)?;
    }
    Ok(all.into_iter().map(|(into, together)| together.table(into)).collect())
}

/// What the `[[table]]`s into one table say of it.
#[derive(Default)]
struct Together {
    parts: Vec<Part>,
    key: Option<(Vec<String>, usize)>,
    merge: Option<(Vec<Sql>, usize)>,
    recompute_by: Option<(Vec<String>, usize)>,
    on_conflict: Option<(BTreeMap<String, OnConflict>, usize)>,
    when_missing: Option<(WhenMissing, usize)>,
    affected_by: Vec<AffectedBy>,
}

impl Together {
    fn hear(&mut self, section: &Section<'_>, rows: Rows, sources: &[Source]) -> Result<(), Problem> {
        self.parts.push(Part { rows, line: section.line() });
        hear(&mut self.key, section.get("key"), columns)?;
        hear(&mut self.merge, section.get("merge"), merge)?;
        hear(&mut self.recompute_by, section.get("recompute_by"), columns)?;
        hear(&mut self.on_conflict, section.get("on_conflict"), on_conflict)?;
        hear(&mut self.when_missing, section.get("when_missing"), |entry| {
            entry.word(&[("delete", WhenMissing::Delete), ("keep", WhenMissing::Keep)])
        })?;
        for entry in section.get("affected_by").map(|entry| entry.open()).transpose()?.iter().flat_map(Section::entries)
        {
            let (source, table) = source_table(&entry, entry.key, sources)?;
            let sql = sql(&entry, "SELECT id FROM changed")?;
            match self.affected_by.iter().find(|said| said.source == source && said.table == table) {
                Some(said) if said.sql == sql => {}
                Some(said) => return Err(otherwise(&entry, said.sql.line)),
                None => self.affected_by.push(AffectedBy { source, table, sql }),
            }
        }
        Ok(())
    }

    fn table(self, into: TableName) -> Derived {
        let line = self.parts.first().map_or(1, |part| part.line);
        Derived {
            into,
            key: said(self.key),
            parts: self.parts,
            merge: said(self.merge),
            recompute_by: said(self.recompute_by),
            on_conflict: said(self.on_conflict),
            when_missing: said(self.when_missing),
            affected_by: self.affected_by,
            line,
        }
    }
}

/// Adds what a key says, and where it stands.
fn hear<T: PartialEq>(
    known: &mut Option<(T, usize)>,
    entry: Option<Entry<'_>>,
    read: impl Fn(&Entry<'_>) -> Result<T, Problem>,
) -> Result<(), Problem> {
    let Some(entry) = entry else { return Ok(()) };
    let value = read(&entry)?;
    match known {
        Some((known, _)) if *known == value => Ok(()),
        Some((_, line)) => Err(otherwise(&entry, *line)),
        None => {
            *known = Some((value, entry.line()));
            Ok(())
        }
    }
}

fn said<T: Default>(known: Option<(T, usize)>) -> T {
    known.map(|(value, _)| value).unwrap_or_default()
}

fn otherwise(entry: &Entry<'_>, line: usize) -> Problem {
    entry.problem(
        format!("line {line} says it otherwise, of the same table of the target"),
        "all [[table]]s into one table are one table: say it in one of them, or the same in each",
    )
}

fn into<'a>(section: &Section<'a>, rows: &Rows) -> Result<(Entry<'a>, TableName), Problem> {
    let next = "name the target's table with its schema: into = \"public.users\"";
    let (entry, table) = match (section.get("into"), rows, section.get("from")) {
        (None, Rows::Cut(cut), Some(entry)) => (entry, cut.table.clone()),
        (None, ..) => return Err(section.lacks("into", next)),
        (Some(entry), ..) => {
            let text = entry.text("public.users")?;
            let Some(table) = table(text) else {
                return Err(entry.problem(format!("{text:?} is not the name of a table with its schema"), next));
            };
            (entry, table)
        }
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

/// `sql`, or `from` and what it goes with.
fn rows(section: &Section<'_>, sources: &[Source]) -> Result<Rows, Problem> {
    const SELECT: &str = "SELECT id, name FROM shop.public.customer";
    const FROM: &str = "shop.public.customer";
    let (query, from) = (section.get("sql"), section.get("from"));
    let Some(from) = from else {
        let of_cut = ["columns", "where", "mask", "mask_in"].into_iter().find_map(|key| section.get(key));
        return match (query, of_cut) {
            (Some(_), Some(entry)) => Err(entry.problem("it goes with `from`, not with `sql`", "write it into the query")),
            (Some(query), None) => Ok(Rows::Query(sql(&query, SELECT)?)),
            (None, Some(_)) => Err(section.lacks("from", format!("name the source's table: from = {FROM:?}"))),
            (None, None) => Err(section.lacks(
                "sql",
                format!("write the query that gives its rows: sql = {SELECT:?}; or from = {FROM:?} for a table that goes over in part"),
            )),
        };
    };
    if query.is_some() {
        return Err(
            from.problem("both `sql` and `from` are given", "keep one of them; a query names its tables itself")
        );
    }
    let (source, table) = source_table(&from, from.text(FROM)?, sources)?;
    let mut masks = Vec::new();
    for entry in section.get("mask").map(|entry| entry.open()).transpose()?.iter().flat_map(Section::entries) {
        masks.push((entry.key.to_owned(), sql(&entry, "md5(email)")?));
    }
    Ok(Rows::Cut(Cut {
        source,
        table,
        from: from.sql(FROM)?,
        columns: section.get("columns").map(|entry| names(&entry)).transpose()?.unwrap_or_default(),
        filter: section.get("where").map(|entry| sql(&entry, "country = 'ch'")).transpose()?,
        masks,
        mask_in: mask_in(section)?,
    }))
}

fn mask_in(section: &Section<'_>) -> Result<MaskIn, Problem> {
    let words = [("everywhere", MaskIn::Everywhere), ("rehearsals", MaskIn::Rehearsals { is_one: false })];
    let Some(entry) = section.get("mask_in") else { return Ok(MaskIn::Everywhere) };
    match section.get("mask") {
        Some(_) => entry.word(&words),
        None => Err(entry.problem("there is no `mask`", "write mask = { email = \"md5(email)\" }, or take it out")),
    }
}

fn columns(entry: &Entry<'_>) -> Result<Vec<String>, Problem> {
    Ok(names(entry)?.into_iter().map(|name| name.text).collect())
}

/// Names of columns, each once, and where they stand.
fn names(entry: &Entry<'_>) -> Result<Vec<Sql>, Problem> {
    const EXAMPLE: &str = "[\"id\"]";
    let mut columns: Vec<Sql> = Vec::new();
    for item in entry.one_or_more("id")? {
        let name = item.sql("id")?;
        if name.text.is_empty() || columns.contains(&name) {
            let why = if name.text.is_empty() { "a column has no name" } else { "a column stands there twice" };
            return Err(item.problem(why, format!("name each column once: {} = {EXAMPLE}", entry.key)));
        }
        columns.push(name);
    }
    Ok(columns)
}

fn merge(entry: &Entry<'_>) -> Result<Vec<Sql>, Problem> {
    entry.one_or_more("max(access)")?.iter().map(|item| sql(item, "max(access)")).collect()
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

/// `source.schema.table`, or, where there is one source, `schema.table`.
fn source_table(entry: &Entry<'_>, text: &str, sources: &[Source]) -> Result<(String, TableName), Problem> {
    let named = sources.iter().find_map(|source| {
        let rest = text.strip_prefix(source.name.as_str())?.strip_prefix('.')?;
        Some((source.name.clone(), table(rest)?))
    });
    let alone = match sources {
        [only] => table(text).map(|table| (only.name.clone(), table)),
        _ => None,
    };
    named.or(alone).ok_or_else(|| {
        let source = sources.first().map_or("shop", |source| source.name.as_str());
        entry.problem(
            format!("{text:?} is not the name of a source's table"),
            format!("write source, schema and table: \"{source}.public.orders\""),
        )
    })
}

/// That it is right only the database can tell.
pub(super) fn sql(entry: &Entry<'_>, example: &str) -> Result<Sql, Problem> {
    let sql = entry.sql(example)?;
    match sql.text.trim().is_empty() {
        true => Err(entry.problem("it is empty", format!("write it like this: {example:?}"))),
        false => Ok(sql),
    }
}

#[cfg(test)]
mod tests;
