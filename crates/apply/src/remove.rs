use pg::Session;

use crate::ApplyError;
use crate::session::origins;

/// What the plan has in the target, for people; with `really` it is removed. No table of the application is touched.
///
/// # Errors
/// The target.
pub async fn remove(session: &Session, plan: &str, really: bool) -> Result<Vec<String>, ApplyError> {
    let mut found = Vec::new();
    let prefix = origins(plan);
    for row in session.query("SELECT roname FROM pg_replication_origin WHERE starts_with(roname, $1::text)", &[&prefix]).await? {
        let name: String = row.get(0);
        if really {
            session.execute("SELECT pg_replication_origin_drop($1::text)", &[&name]).await?;
        }
        found.push(format!("replication origin {name}"));
    }
    if crate::state::exists(session).await? {
        if really {
            session.batch_execute("DROP SCHEMA crossfade CASCADE").await?;
        }
        found.push("schema crossfade".to_owned());
    }
    Ok(found)
}
