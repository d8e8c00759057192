//! The file that `recopy --rows` is given: rows as `crossfade verify` names them, a JSON object a line.

use std::collections::BTreeMap;
use std::path::Path;

use model::{Code, Problem, TableName};
use plan::Plan;
use serde::Deserialize;
use serde_json::Value;
use verify::{Kind, Named, Rows};

use crate::report;

/// A line. What else stands there is for people.
#[derive(Deserialize)]
struct Line {
    source: String,
    table: String,
    key: BTreeMap<String, String>,
    /// What is wrong with the row does not matter, but a word that verify does not write shows that the line is from elsewhere.
    #[serde(default, rename = "kind")]
    _kind: Option<Kind>,
}

/// Reads it, and says of what is wrong in it the line.
pub(super) fn read(plan: &Plan, file: &Path) -> Result<Vec<Rows>, Problem> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| wrong(name.to_string(), error.to_string()))?;
    if let Some(problem) = report_itself(&text, &name.to_string()) {
        return Err(problem);
    }
    let mut tables: BTreeMap<(String, TableName), Vec<Named>> = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{name}:{}", number + 1);
        let line: Line = serde_json::from_str(line).map_err(|error| wrong(place.clone(), reason(&error)))?;
        if plan.source(&line.source).is_none() {
            return Err(wrong(place, format!("the plan has no source {:?}", line.source)));
        }
        let tables_of = report::tables(std::slice::from_ref(&line.table));
        for table in tables_of.map_err(|problem| Problem { what: format!("{place}, {}", problem.what), ..problem })? {
            let named = Named { place: place.clone(), key: line.key.clone() };
            tables.entry((line.source.clone(), table)).or_default().push(named);
        }
    }
    if tables.is_empty() {
        return Err(wrong(name.to_string(), "it names no row".to_owned()));
    }
    Ok(tables.into_iter().map(|((source, table), rows)| Rows { source, table, rows }).collect())
}

fn wrong(what: String, why: String) -> Problem {
    let next = "name the file of rows that `crossfade verify` wrote, …-verify-rows.jsonl in state.dir/reports; docs/verify.md has its form";
    Problem::new(Code::PlanInvalid, what, why, next)
}

/// Without the place: it is one in the line, and the file's is told.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let why = text.rsplit_once(" at line ").map_or(text.as_str(), |(why, _)| why);
    match error.is_data() {
        true => why.to_owned(),
        false => format!("it is not a JSON object in one line: {why} in column {}", error.column()),
    }
}

/// Whether it is the report in place of the rows; that names the file that has them.
fn report_itself(text: &str, name: &str) -> Option<Problem> {
    let report: Value = serde_json::from_str(text).ok().filter(|report: &Value| report["tables"].is_array())?;
    let next = match report["rows_file"].as_str() {
        Some(rows) => format!("name that file: `crossfade recopy --rows {rows}`"),
        None => "no row differed in it, so there is no such file".to_owned(),
    };
    let why = "it is the report of `crossfade verify`, and the rows that differ are in a file of their own";
    Some(Problem::new(Code::PlanInvalid, name, why, next))
}
