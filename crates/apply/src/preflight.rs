use model::Finding;
use pg::Session;

use crate::{ApplyError, Job};

/// What must be right at the target before anything is changed.
///
/// # Errors
/// The target cannot be asked.
pub async fn preflight(_job: &Job, _session: &Session) -> Result<Vec<Finding>, ApplyError> {
    Ok(Vec::new())
}
