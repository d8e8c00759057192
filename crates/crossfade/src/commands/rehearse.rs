use std::sync::Arc;

use cutover::rehearse::{self, Job, Last, Report, Until};
use model::{Code, Problem};
use pg::Endpoint;
use plan::{Plan, Secret};
use serde_json::Value;
use verify::Verdict;

use crate::report::{self, Output};
use crate::wiring;

/// Fills the database `into` from the log, and compares. Exit code 1 unless everything is equal.
pub(crate) async fn run(
    plan: Arc<Plan>,
    into: Option<String>,
    until: Option<Until>,
    against_target: bool,
    output: Output,
) -> Result<u8, Problem> {
    let into = into_url(into)?;
    let against = if against_target { Some(wiring::target(&plan)?) } else { None };
    let log = wiring::read_log(&plan).await?.ok_or_else(|| {
        let next = "rehearse where `crossfade run` keeps it, once it has run";
        Problem::new(Code::NothingRecorded, format!("the log in {}", plan.state_dir.display()), "it is not there", next)
    })?;
    // The same plan with another target; whoever takes the target from it gets this one.
    let mut rehearsed = (*plan).clone();
    rehearsed.target.url = into;
    let endpoint = wiring::target(&rehearsed)
        .map_err(|problem| Problem { what: format!("--into: {}", problem.what), ..problem })?;
    let job = Job { plan: Arc::new(rehearsed), into: endpoint, log, worker: wiring::worker(), until, against };
    let mut report = rehearse::run(&job).await?;
    if let Some((_, last)) = report::last(&plan, "rehearse", |_| true) {
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

/// Arguments can be read by everybody on the machine, so that a password must not stand there.
fn into_url(argument: Option<String>) -> Result<Secret, Problem> {
    const VARIABLE: &str = "CROSSFADE_INTO";
    let wrong = |why: &str, next: &str| Problem::new(Code::PlanInvalid, "--into", why, next);
    match argument {
        Some(url) if Endpoint::parse(&url).is_ok_and(|endpoint| endpoint.has_password()) => Err(wrong(
            "it holds a password, and everybody on this machine can read the arguments of a process",
            "put the URL into the environment variable CROSSFADE_INTO, and leave --into out",
        )),
        Some(url) => Ok(Secret::new(url)),
        None => std::env::var(VARIABLE).map(Secret::new).map_err(|_| {
            wrong(
                "no database is named",
                "name an empty one: --into postgres://…, or the environment variable CROSSFADE_INTO",
            )
        }),
    }
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
