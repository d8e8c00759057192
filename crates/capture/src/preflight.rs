use model::Finding;
use pg::Session;

use crate::{CaptureError, Job};

/// What must be right at the source before anything is changed, and what will hurt later.
///
/// # Errors
/// The source cannot be asked.
pub async fn preflight(_job: &Job, _session: &Session) -> Result<Vec<Finding>, CaptureError> {
    Ok(Vec::new())
}
