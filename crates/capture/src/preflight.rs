//! What must be right at a source, and on the log, before anything is changed. Reads only.
//!
//! [`server`] looks at the server and the role, [`tables`] at what the plan selects, [`needs`] at what the target must have for it.

mod needs;
mod server;
mod tables;

use std::sync::Arc;

use log::Log;
use model::{Finding, Identity};
use pg::Session;
use plan::{Plan, Source};

pub use needs::{Needs, needs};

use crate::{CaptureError, claim, copy, publication, select, slot};

/// What must be right at the source before anything is changed, and what will hurt later. Blockers come first.
///
/// # Errors
/// The source cannot be asked.
pub async fn preflight(plan: &Plan, source: &Source, session: &Session) -> Result<Vec<Finding>, CaptureError> {
    let slot = slot::state(session, &slot::slot_name(&plan.name, &source.name)).await?;
    let (mut findings, role) = server::look(plan, source, session, slot.as_ref()).await?;
    let selected = select::tables(session, source).await?;
    let [whole, insert_only] = publication::names(&plan.name, &source.name);
    findings.extend(tables::look(plan, source, session, &role, &selected, &[whole, insert_only]).await?);
    // A stable sort: within a severity the order is that of the checks.
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// Whether the streams that the log has under this plan's name are this plan's.
///
/// # Errors
/// The log cannot be asked.
pub async fn preflight_log(
    log: &Arc<dyn Log>,
    plan: &Plan,
    source: &Source,
    identity: &Identity,
    target: &Identity,
) -> Result<Vec<Finding>, CaptureError> {
    let claim::Streams { copy, .. } = claim::streams(&plan.name, &source.name);
    let Some(found) = claim::header(&**log, &copy).await? else { return Ok(Vec::new()) };
    let mut compared = claim::compare_target(&found, target);
    if compared.is_ok() && found.source_identity != *identity {
        // A recopy may have made it another one.
        let progress = copy::progress(log, &found).await?;
        compared = claim::compare_source(&found, progress.source_identity(&found), identity);
    }
    Ok(compared.err().map(Finding::from).into_iter().collect())
}
