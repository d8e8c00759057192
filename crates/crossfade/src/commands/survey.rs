use std::path::Path;
use std::sync::Arc;

use ::log::Log;
use model::{Code, Finding, Problem, Severity};
use plan::Plan;
use serde_json::json;

use crate::report::{self, Output};
use crate::{checks, wiring};

/// Below this a state folder, with an embedded log even more so, is soon full.
const ROOM: u64 = 1 << 30;

/// Looks at everything and changes nothing. Exit code 1 if something blocks.
pub(crate) async fn run(plan: Arc<Plan>, output: Output) -> Result<u8, Problem> {
    let mut findings = state_dir(&plan);
    let log: Option<Arc<dyn Log>> = match wiring::read_log(&plan).await {
        Ok(log) => log,
        Err(problem) => {
            findings.push(problem.into());
            None
        }
    };
    findings.extend(checks::everything(&plan, log.as_ref()).await?.findings);
    findings.sort_by_key(|finding| finding.severity);
    let blocked = findings.iter().any(|finding| finding.severity == Severity::Blocker);
    let verdict = if blocked { "blocked" } else { "ready" };
    let document = json!({ "findings": findings.iter().map(report::finding).collect::<Vec<_>>(), "verdict": verdict });
    if output.json {
        output.print(&document);
    } else {
        output.text(&text(&findings, verdict));
    }
    report::keep(&plan, "survey", &document);
    Ok(u8::from(blocked))
}

fn text(findings: &[Finding], verdict: &str) -> String {
    let mut text = String::new();
    for Finding { severity, problem } in findings {
        text += &format!(
            "{severity:<8} {} ({})\n         {}\n         → {}\n\n",
            problem.what, problem.code, problem.why, problem.next
        );
    }
    let of = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    text + &format!("{verdict}: {} blockers, {} warnings\n", of(Severity::Blocker), of(Severity::Warning))
}

/// The state folder, or the one that it would be made in, can be written and has room.
fn state_dir(plan: &Plan) -> Vec<Finding> {
    let start = plan.state_dir.as_path();
    let start = if start.is_absolute() { start.to_owned() } else { Path::new(".").join(start) };
    let Some(there) = start.ancestors().find(|folder| folder.exists()) else { return Vec::new() };
    if !there.is_dir() {
        return vec![wiring::not_writable(&plan.state_dir, &format!("{} is no folder", there.display())).into()];
    }
    if let Err(error) = nix::unistd::access(there, nix::unistd::AccessFlags::W_OK) {
        return vec![wiring::not_writable(&plan.state_dir, &format!("{}: {error}", there.display())).into()];
    }
    let Ok(disk) = nix::sys::statvfs::statvfs(there) else { return Vec::new() };
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    if free >= ROOM {
        return Vec::new();
    }
    let why = format!("{} MiB are free on its disk; large transactions are spilled there", free >> 20);
    let next = "make room, or name a folder on another disk: [state] dir = \"…\"";
    vec![Finding::warning(Code::DiskShort, format!("the state folder {}", plan.state_dir.display()), why, next)]
}
