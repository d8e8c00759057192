use model::Problem;

use super::{Env, NO_SOURCES, checked_name, postgres};
use crate::server::Server;
use crate::written::{Entry, Section};
use crate::{Patterns, Secret, Source};

/// The plan's `[sources]`.
pub(super) fn check(
    top: &Section<'_>,
    entry: &Entry<'_>,
    target: &Server,
    env: Env<'_>,
) -> Result<Vec<Source>, Problem> {
    let mut sources = Vec::new();
    for entry in entry.open()?.entries() {
        let name = checked_name(&entry, entry.key)?;
        let section = entry.section(&["url", "url_env", "tables", "mirror", "ignore", "shared"])?;
        let (url, server) = postgres(&section, env)?;
        let tables =
            section.get("tables").ok_or_else(|| section.lacks("tables", "say which: tables = [\"public.*\"]"))?;
        let source = split(top, &section, name, url, &check_patterns(&tables)?)?;
        // Tables that only queries read may lie beside those that are made of them.
        if server.is(target) && source.as_is.any() {
            return Err(entry.problem(
                "source and target are the same database, so each table that goes over as it is would be its own target",
                "point [target] at another database, or let only queries read the source: without `mirror`, and with a [[table]] for each new table",
            ));
        }
        if let Some(entry) = section.get("shared").filter(|_| !server.is(target)) {
            return Err(entry.problem(
                "its tables would be left open when the application goes over to another database",
                "take it out: only where source and target are the same database can a table belong to both versions",
            ));
        }
        sources.push(source);
    }
    if sources.is_empty() {
        return Err(entry.problem("the plan has no source", NO_SOURCES));
    }
    Ok(sources)
}

/// A source, whose tables go over as they are, or are read by queries, or are ignored.
fn split(top: &Section<'_>, own: &Section<'_>, name: String, url: Secret, all: &Patterns) -> Result<Source, Problem> {
    let has_derived = top.get("table").is_some();
    if let Some(entry) = [own, top].iter().find_map(|section| section.get("mirror")).filter(|_| !has_derived) {
        return Err(entry.problem(
            "without a [[table]] all tables go over as they are",
            "take it out, or add the [[table]] that the others are for",
        ));
    }
    // The top's and the source's own, together.
    let both = |key: &str| -> Result<Patterns, Problem> {
        let mut written = Vec::new();
        for entry in [top, own].iter().filter_map(|section| section.get(key)) {
            written.extend(check_patterns(&entry)?.written().iter().cloned());
        }
        // Each of them has been read above, so all of them can be.
        Patterns::parse(written).map_err(|(_, why)| own.lacks(key, why))
    };
    let ignored = both("ignore")?;
    let tables = all.but(&ignored);
    let as_is = if has_derived { both("mirror")?.within(&tables) } else { tables.clone() };
    let shared = own.get("shared").map(|entry| check_patterns(&entry)).transpose()?.unwrap_or_default().within(&tables);
    Ok(Source { name, url, tables, as_is, ignored: ignored.within(all), shared })
}

fn check_patterns(entry: &Entry<'_>) -> Result<Patterns, Problem> {
    const EXAMPLE: &str = "[\"public.*\", \"!public.tmp_*\"]";
    let items = entry.list(EXAMPLE)?;
    let mut written = Vec::new();
    for item in &items {
        written.push(item.text("public.*")?.to_owned());
    }
    let patterns = Patterns::parse(written)
        .map_err(|(i, why)| items.get(i).unwrap_or(entry).problem(why, format!("write tables like this: {EXAMPLE}")))?;
    if !patterns.any() {
        return Err(entry.problem("no pattern selects a table", format!("give at least one without `!`: {EXAMPLE}")));
    }
    Ok(patterns)
}
