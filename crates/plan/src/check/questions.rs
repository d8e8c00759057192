use std::time::Duration;

use model::Problem;

use super::positive;
use crate::written::{Entry, Section};
use crate::{Asks, Check, CheckSeverity, Fix, Side, Source};

/// Longer than a query over a large table takes, shorter than people wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// As much as one reads to see what is wrong.
const SAMPLE: usize = 20;
/// All of a sample is in memory and in the report.
const MOST_SAMPLE: usize = 1000;

const KNOWN: [&str; 13] = [
    "name",
    "sql",
    "on",
    "source",
    "source_sql",
    "probe",
    "severity",
    "sample",
    "tenants",
    "search_path",
    "timeout",
    "fix",
    "safe",
];

/// Where a check looks, as written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Target,
    Source,
    Both,
}

/// The plan's `[[check]]`s.
pub(super) fn check(entry: &Entry<'_>, sources: &[Source]) -> Result<Vec<Check>, Problem> {
    let mut checks: Vec<Check> = Vec::new();
    for section in entry.sections(&KNOWN)? {
        let (entry, name) = one_line(&section, "name", "every space has an admin", "say what must hold")?;
        if let Some(other) = checks.iter().find(|other| other.name == name) {
            let why = format!("the check in line {} has the same name", other.line);
            return Err(entry.problem(why, "give each check a name of its own: reports go by it"));
        }
        checks.push(one(&section, name, sources)?);
    }
    Ok(checks)
}

/// A line in the words of whoever wrote the plan; `wanted` says what of.
pub(super) fn one_line<'a>(
    section: &Section<'a>,
    key: &str,
    example: &str,
    wanted: &str,
) -> Result<(Entry<'a>, String), Problem> {
    let next = format!("{wanted}: {key} = {example:?}");
    let entry = section.get(key).ok_or_else(|| section.lacks(key, next.clone()))?;
    let line = entry.text(example)?.trim();
    if line.is_empty() || line.contains(char::is_control) {
        return Err(entry.problem("it is not one line of text", next));
    }
    Ok((entry, line.to_owned()))
}

pub(super) fn severity(section: &Section<'_>) -> Result<CheckSeverity, Problem> {
    let words = [("error", CheckSeverity::Error), ("warning", CheckSeverity::Warning)];
    let severity = section.get("severity").map(|entry| entry.word(&words)).transpose()?;
    Ok(severity.unwrap_or(CheckSeverity::Error))
}

fn one(section: &Section<'_>, name: String, sources: &[Source]) -> Result<Check, Problem> {
    let sample = section.get("sample").map(|entry| entry.number(1..=MOST_SAMPLE)).transpose()?;
    let tenants = section.get("tenants").map(|entry| statement(&entry, "SELECT id FROM core.space")).transpose()?;
    let search_path = section.get("search_path").map(|entry| schemas(&entry)).transpose()?;
    let timeout = section.get("timeout").map(|entry| positive(&entry, "60s")).transpose()?;
    Ok(Check {
        name,
        line: section.line(),
        asks: asks(section, sources)?,
        severity: severity(section)?,
        sample: sample.unwrap_or(SAMPLE),
        tenants,
        search_path: search_path.unwrap_or_default(),
        timeout: timeout.unwrap_or(TIMEOUT),
    })
}

fn asks(section: &Section<'_>, sources: &[Source]) -> Result<Asks, Problem> {
    let words = [("target", On::Target), ("source", On::Source), ("both", On::Both)];
    let on = section.get("on").map(|entry| entry.word(&words)).transpose()?.unwrap_or(On::Target);
    let http = section.get("probe").map(|entry| entry.word(&[("http", true)])).transpose()?.unwrap_or(false);
    fits(section, on, http)?;
    let sql = section.get("sql").ok_or_else(|| {
        section.lacks("sql", "write the query whose rows are findings: sql = \"SELECT id FROM public.orders WHERE …\"")
    })?;
    let sql = statement(&sql, "SELECT id FROM public.orders WHERE …")?;
    let side = match on {
        On::Target => Side::Target,
        On::Source | On::Both => Side::Source(source(section, sources)?),
    };
    let source_sql = section.get("source_sql").map(|entry| statement(&entry, "SELECT …")).transpose()?;
    Ok(match (http, on, side) {
        (true, _, on) => Asks::Http { sql, on },
        (false, On::Both, Side::Source(source)) => {
            Asks::Same { source, source_sql: source_sql.unwrap_or_else(|| sql.clone()), sql }
        }
        (false, _, on) => Asks::Rows { sql, on, fix: fix(section)? },
    })
}

/// Refuses keys that say nothing about such a check.
fn fits(section: &Section<'_>, on: On, http: bool) -> Result<(), Problem> {
    let unless = |fits: bool, key: &str, why: &str, next: &str| match section.get(key) {
        Some(entry) if !fits => Err(entry.problem(why, next)),
        _ => Ok(()),
    };
    let way_out = "take it out, or write on = \"source\" or on = \"both\"";
    unless(on != On::Target, "source", "the check looks at the target alone", way_out)?;
    unless(
        on == On::Both,
        "source_sql",
        "only a check of both sides asks the source in other words",
        "take it out, or write on = \"both\"",
    )?;
    unless(!(http && on == On::Both), "on", "the rows to probe come from one side", "write \"target\" or \"source\"")?;
    unless(
        on == On::Target,
        "fix",
        "only the target can be mended",
        "take it out, or write the check with on = \"target\"",
    )?;
    unless(!http, "fix", "what a server answers cannot be mended by SQL", "take it out; mend the server")?;
    unless(
        section.get("fix").is_some(),
        "safe",
        "there is no `fix` that could be safe",
        "add fix = \"UPDATE …\", or take it out",
    )
}

fn source(section: &Section<'_>, sources: &[Source]) -> Result<String, Problem> {
    let names: Vec<String> = sources.iter().map(|source| format!("{:?}", source.name)).collect();
    let next = format!("name one of the plan's sources: source = {}", names.join(" or "));
    match (section.get("source"), sources) {
        (Some(entry), _) => {
            let name = entry.text("shop")?;
            let known = sources.iter().any(|source| source.name == name);
            if known { Ok(name.to_owned()) } else { Err(entry.problem(format!("there is no source {name:?}"), next)) }
        }
        (None, [only]) => Ok(only.name.clone()),
        (None, _) => Err(section.lacks("source", next)),
    }
}

fn fix(section: &Section<'_>) -> Result<Option<Fix>, Problem> {
    const EXAMPLE: &str = "UPDATE public.orders SET …";
    let Some(entry) = section.get("fix") else { return Ok(None) };
    let items = entry.one_or_more(EXAMPLE)?;
    let statements = items.iter().map(|item| change(item, EXAMPLE)).collect::<Result<_, _>>()?;
    let safe = section.get("safe").map(|entry| entry.flag()).transpose()?.unwrap_or(false);
    Ok(Some(Fix { statements, safe }))
}

/// One that a fix can be: Postgres prepares no others (its manual, PREPARE).
fn change(entry: &Entry<'_>, example: &str) -> Result<String, Problem> {
    const WORDS: [&str; 8] = ["INSERT", "UPDATE", "DELETE", "MERGE", "SELECT", "WITH", "VALUES", "TABLE"];
    let sql = statement(entry, example)?;
    match first_word(&sql) {
        Some(word) if !WORDS.iter().any(|known| known.eq_ignore_ascii_case(word)) => {
            let why = format!("a fix changes rows, and {} is none of the statements that do", word.to_uppercase());
            Err(entry.problem(why, "write INSERT, UPDATE, DELETE, MERGE or SELECT; run anything else by yourself"))
        }
        _ => Ok(sql),
    }
}

/// The word that a statement begins with, behind comments; none if it begins with something else.
fn first_word(sql: &str) -> Option<&str> {
    let mut rest = sql.trim_start();
    loop {
        let behind = match (rest.strip_prefix("--"), rest.strip_prefix("/*")) {
            (Some(comment), _) => comment.split_once('\n')?.1,
            (None, Some(comment)) => comment.split_once("*/")?.1,
            (None, None) => break,
        };
        rest = behind.trim_start();
    }
    let end = rest.find(|c: char| !(c.is_ascii_alphabetic() || c == '_')).unwrap_or(rest.len());
    Some(&rest[..end]).filter(|word| !word.is_empty())
}

/// One SQL statement. That it is a right one only Postgres can tell.
fn statement(entry: &Entry<'_>, example: &str) -> Result<String, Problem> {
    let sql = entry.text(example)?.trim().trim_end_matches(';').trim_end();
    if sql.is_empty() {
        return Err(entry.problem("it is empty", format!("write it like this: {example:?}")));
    }
    Ok(sql.to_owned())
}

fn schemas(entry: &Entry<'_>) -> Result<Vec<String>, Problem> {
    let items = entry.one_or_more("public")?;
    items.iter().map(|item| Ok(item.text("public")?.to_owned())).collect()
}

#[cfg(test)]
mod tests;
