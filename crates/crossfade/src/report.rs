//! What people read on the terminal, and scripts from stdout.

use std::io::Write;

use model::{Finding, Problem};
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
    let folder = plan.state_dir.join("reports");
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string().replace(':', "");
    let file = folder.join(format!("{now}-{command}.json"));
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, format!("{document:#}\n")));
    if let Err(error) = written {
        tracing::warn!("the report is not kept: {}: {error}", file.display());
    }
}
