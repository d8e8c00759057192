use std::sync::Arc;

use cutover::{Job, Options};
use model::{Code, Problem};
use plan::Plan;
use tokio_util::sync::CancellationToken;

use crate::report::{self, Output};
use crate::wiring;

/// Cuts over or, with `back`, back again; or cancels what is under way. Exit code 1 if it is refused or cancelled.
pub(crate) async fn run(
    plan: Arc<Plan>,
    back: bool,
    options: &Options,
    cancel: bool,
    stop: &CancellationToken,
    output: Output,
) -> Result<u8, Problem> {
    let verify = wiring::comparison(&plan).await?;
    let job = match back {
        false => Job { verify },
        true => Job { verify: cutover::reversed(&verify).await?.ok_or_else(|| no_way_back(&plan))? },
    };
    let report = match cancel {
        true => cutover::cancel(&job).await?,
        false => cutover::run(&job, options, stop).await?,
    };
    let document = serde_json::to_value(&report)
        .map_err(|error| Problem::new(Code::Internal, "the report", error.to_string(), "report it"))?;
    if output.json {
        output.print(&document);
    } else {
        output.text(&cutover::text(&report));
    }
    report::keep(&plan, if back { "rollback" } else { "cutover" }, &document);
    Ok(if cancel && report.outcome == cutover::Outcome::Cancelled { 0 } else { report.outcome.exit() })
}

fn no_way_back(plan: &Plan) -> Problem {
    Problem::new(
        Code::CutoverRefused,
        format!("plan {:?}", plan.name),
        "there is nothing to roll back: it was never run, or it has several sources, for which there is no way back",
        "`crossfade status` shows how it stands",
    )
}
