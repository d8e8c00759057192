use std::sync::Arc;

use model::{Code, Problem};
use plan::Plan;
use serde_json::{Value, json};
use status::Gather;
use status::runbook::{self, DOCUMENTS, Reports};

use crate::report::{self, Output};
use crate::wiring;

/// Prints a document with the plan's own values in it, or which there are. With `--json` the values alone.
pub(crate) async fn run(plan: Arc<Plan>, name: Option<&str>, output: Output) -> Result<u8, Problem> {
    if name.is_none() && !output.json {
        let line =
            |document: &runbook::Document| format!("crossfade runbook {:<13} {}\n", document.name, document.about);
        output.text(&DOCUMENTS.iter().map(line).collect::<String>());
        return Ok(0);
    }
    let status = Gather::new(Arc::clone(&plan))?.now(async || wiring::read_log(&plan).await).await;
    let possible = |report: &Value| report["outcome"] == "possible";
    let reports = Reports {
        dry_run: report::last(&plan, "cutover", possible),
        dry_run_back: report::last(&plan, "rollback", possible),
    };
    let values = runbook::values(&plan, status, &reports).await?;
    if output.json {
        let values = serde_json::to_value(&values)
            .map_err(|error| Problem::new(Code::Internal, "the values", error.to_string(), "report it"))?;
        let documents: Vec<&str> = DOCUMENTS.iter().map(|document| document.name).collect();
        output.print(&json!({ "documents": documents, "values": values }));
    } else if let Some(document) = name.and_then(runbook::document) {
        output.text(&runbook::fill(document.text, &values));
    }
    Ok(0)
}
