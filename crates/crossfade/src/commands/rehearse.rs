use std::sync::Arc;

use model::{Code, Problem};
use plan::{Plan, Secret};
use rehearse::{Job, Last, Report, Until};
use serde_json::Value;
use verify::Verdict;

use crate::report::{self, Output};
use crate::wiring;

/// Fills the database `into` from the log, and compares. Exit code 1 unless everything is equal.
pub(crate) async fn run(
    plan: Arc<Plan>,
    into: &str,
    until: Option<Until>,
    against_target: bool,
    output: Output,
) -> Result<u8, Problem> {
    let against = if against_target { Some(wiring::target(&plan)?) } else { None };
    let log = wiring::read_log(&plan).await?.ok_or_else(|| {
        let next = "rehearse where `crossfade run` keeps it, once it has run";
        Problem::new(Code::NothingRecorded, format!("the log in {}", plan.state_dir.display()), "it is not there", next)
    })?;
    // The same plan with another target; whoever takes the target from it gets this one.
    let mut rehearsed = (*plan).clone();
    rehearsed.target.url = Secret::new(into);
    let endpoint = wiring::target(&rehearsed)
        .map_err(|problem| Problem { what: format!("--into: {}", problem.what), ..problem })?;
    let job = Job { plan: Arc::new(rehearsed), into: endpoint, log, worker: wiring::worker(), until, against };
    let mut report = rehearse::run(&job).await?;
    if let Some(last) = report::last(&plan, "rehearse") {
        beside(&mut report, &last);
    }
    let document = serde_json::to_value(&report)
        .map_err(|error| Problem::new(Code::Internal, "the report", error.to_string(), "report it"))?;
    if output.json {
        output.print(&document);
    } else {
        output.text(&rehearse::text(&report));
    }
    report::keep(&plan, "rehearse", &document);
    Ok(u8::from(report.verdict != Verdict::Equal))
}

/// Puts the times of the last rehearsal beside those of this one.
fn beside(report: &mut Report, last: &Value) {
    let (Some(at), Some(seconds)) = (last["at"].as_str(), last["seconds"].as_f64()) else { return };
    let phase = |name: &str| {
        let phases = last["phases"].as_array()?;
        phases.iter().find(|phase| phase["phase"] == name)?["seconds"].as_f64()
    };
    report.compare_with(Last { at: at.to_owned(), seconds }, phase);
}
