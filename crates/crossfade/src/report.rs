//! What people read on the terminal, and scripts from stdout.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use model::{Code, Finding, Problem, TableName};
use plan::Plan;
use serde_json::{Value, json};

/// How a command talks.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    /// One JSON document on stdout in place of text.
    pub(crate) json: bool,
}

impl Output {
    /// Tells an error: one line on stderr, with `--json` also an object on stdout. Returns the exit code.
    pub(crate) fn failed(self, problem: &Problem) -> u8 {
        eprintln!("crossfade: {}", one_line(&problem.to_string()));
        if self.json {
            self.print(&json!({ "error": object(problem) }));
        }
        problem.code.exit()
    }

    /// Prints a JSON document.
    pub(crate) fn print(self, document: &Value) {
        self.text(&format!("{document}\n"));
    }

    /// Prints text. A reader that has gone away is not an error of ours.
    pub(crate) fn text(self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// A problem as scripts see it.
pub(crate) fn object(problem: &Problem) -> Value {
    json!({ "code": problem.code.as_str(), "what": problem.what, "why": one_line(&problem.why), "next": problem.next })
}

/// A finding as scripts see it.
pub(crate) fn finding(finding: &Finding) -> Value {
    let mut value = object(&finding.problem);
    value["severity"] = finding.severity.to_string().into();
    value
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Puts a report into the plan's `state.dir`/reports. That it cannot be kept is no reason for a command to fail.
pub(crate) fn keep(plan: &Plan, command: &str, document: &Value) {
    let file = file(plan, command, "json");
    let written = create(&file).and_then(|mut open| open.write_all(format!("{document:#}\n").as_bytes()));
    if let Err(error) = written {
        tracing::warn!("the report is not kept: {}: {error}", file.display());
    }
}

fn file(plan: &Plan, command: &str, kind: &str) -> PathBuf {
    let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string().replace(':', "");
    plan.state_dir.join("reports").join(format!("{now}-{command}.{kind}"))
}

/// A report has rows of the databases in it: it is for nobody else on this machine.
fn create(file: &Path) -> std::io::Result<File> {
    file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)
}

/// The last report of a command that is as `right` says, with the time in its name. What cannot be read is passed over.
pub(crate) fn last(plan: &Plan, command: &str, right: impl Fn(&Value) -> bool) -> Option<(String, Value)> {
    let ending = format!("-{command}.json");
    let names = std::fs::read_dir(plan.state_dir.join("reports")).ok()?.flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // The time comes first, and is as long in each.
    names.sort();
    names.iter().rev().find_map(|name| {
        let at = name.strip_suffix(&ending)?;
        let text = std::fs::read_to_string(plan.state_dir.join("reports").join(name)).ok()?;
        let report = serde_json::from_str(&text).ok().filter(&right)?;
        Some((at.to_owned(), report))
    })
}

/// A report that is written as it comes, a JSON document a line. The file is there once it has one.
pub(crate) struct Lines {
    path: PathBuf,
    open: Mutex<Option<std::io::Result<File>>>,
}

impl Lines {
    /// Into the plan's `state.dir`/reports.
    pub(crate) fn new(plan: &Plan, command: &str) -> Lines {
        Lines { path: file(plan, command, "jsonl"), open: Mutex::new(None) }
    }

    /// Adds a line. That it cannot be kept is said once, and no reason for a command to fail.
    pub(crate) fn write(&self, line: &Value) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(file) = open.get_or_insert_with(|| create(&self.path)) else {
            return;
        };
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            tracing::warn!("the rows are not kept: {}: {error}", self.path.display());
            *open = Some(Err(error));
        }
    }

    /// Where it is, if it is.
    pub(crate) fn file(&self) -> Option<&Path> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(&*open, Some(Ok(_))).then_some(&self.path)
    }
}

/// Tables that a command was given: `schema.table`; the schema ends at the first dot, as in the plan.
pub(crate) fn tables(tables: &[String]) -> Result<Vec<TableName>, Problem> {
    let name = |table: &String| match table.split_once('.') {
        Some((schema, name)) if !schema.is_empty() && !name.is_empty() => Ok(TableName::new(schema, name)),
        _ => Err(Problem::new(
            Code::PlanInvalid,
            format!("table {table:?}"),
            "it is not of the form schema.table",
            "name it with its schema: public.orders",
        )),
    };
    tables.iter().map(name).collect()
}
