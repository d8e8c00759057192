use std::sync::Arc;

use cutover::{Job, Options};
use model::{Code, Problem};
use plan::Plan;
use tokio_util::sync::CancellationToken;

use crate::report::{self, Output};
use crate::wiring;

/// Cuts over, or cancels the cutover that is under way. Exit code 1 if it is refused or cancelled.
pub(crate) async fn run(
    plan: Arc<Plan>,
    options: &Options,
    cancel: bool,
    stop: &CancellationToken,
    output: Output,
) -> Result<u8, Problem> {
    let job = Job { verify: wiring::comparison(&plan).await? };
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
    report::keep(&plan, "cutover", &document);
    Ok(if cancel && report.outcome == cutover::Outcome::Cancelled { 0 } else { report.outcome.exit() })
}
