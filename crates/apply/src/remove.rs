use std::time::Duration;

use model::{Code, Problem, TableName};
use pg::Session;

use crate::{ApplyError, back, derived, state};

/// Something that crossfade made at the target, besides the application's own schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The schema `crossfade`.
    Schema,
    /// An index on a table of the application's, made for a derived table.
    Index(TableName),
    /// A replication origin.
    Origin(String),
}

impl std::fmt::Display for Removal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Removal::Schema => f.write_str("schema crossfade"),
            Removal::Index(name) => write!(f, "index {name}, which kept derived tables current"),
            Removal::Origin(name) => write!(f, "replication origin {name}"),
        }
    }
}

/// How long sessions of a process that was stopped a moment ago may hold on to an origin.
const HELD: Duration = Duration::from_secs(5);

/// Apply processes of the plan that said within the last six seconds that they live, and whose sessions have not ended since.
///
/// # Errors
/// The target.
pub async fn live_workers(session: &Session, plan: &str) -> Result<Vec<String>, ApplyError> {
    if !state::knows(session, plan).await? {
        return Ok(Vec::new());
    }
    let rows = session
        .query(
            "SELECT worker FROM crossfade.worker
              WHERE seen_at > clock_timestamp() - interval '6 seconds' AND EXISTS (
                    SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '%apply heartbeat')
              ORDER BY 1",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What the plan has at the target; with `really` it is removed. No table of the application is touched.
///
/// # Errors
/// The target, or an origin that a session still holds.
pub async fn remove(session: &Session, plan: &str, really: bool) -> Result<Vec<Removal>, ApplyError> {
    let mut found = Vec::new();
    if state::knows(session, plan).await? {
        let side = plan::target_side(plan);
        let others = pg::fence::others(session, &side).await?;
        // Where source and target are one database, the source's line goes with the schema.
        let own = |other: &&String| plan::is_side_of(plan, other);
        if let Some(other) = others.iter().find(|other| !own(other)) {
            return Err(Problem::new(
                Code::WriterRefused,
                "the target's schema crossfade",
                format!("it also holds the fence of another migration ({other}), which would be open without it"),
                "end that one first with its own `crossfade complete --yes`",
            )
            .into());
        }
        let indexes = derived::indexes(session).await?;
        if really {
            // One by one: dropped with the schema they would lock every table at once, behind whoever reads one. Who does not own the tables can do it with the schema only.
            match pg::fence::remove(session, &side).await {
                Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) => {}
                removed => removed?,
            }
            back::loud(session).await?;
            derived::drop_indexes(session, &indexes).await?;
            session.batch_execute("SET client_min_messages = warning; DROP SCHEMA IF EXISTS crossfade CASCADE").await?;
            model::failpoint!("target_schema_dropped");
        }
        found.extend(indexes.into_iter().map(Removal::Index));
        found.push(Removal::Schema);
    }
    found.extend(remove_origins(session, plan, really).await?);
    Ok(found)
}

/// The origins of the plan, in the target or, for the way back, in a source; with `really` they are removed.
///
/// # Errors
/// The database, or an origin that a session still holds.
pub async fn remove_origins(session: &Session, plan: &str, really: bool) -> Result<Vec<Removal>, ApplyError> {
    let mut found = Vec::new();
    let rows = session
        .query(
            "SELECT roname FROM pg_replication_origin WHERE starts_with(roname, $1::text) AND substr(roname, length($1::text) + 1) ~ '^[0-9]+$' ORDER BY 1",
            &[&plan::origins(plan)],
        )
        .await?;
    for row in rows {
        let name: String = row.get(0);
        if really {
            drop_origin(session, &name).await?;
            model::failpoint!("origin_dropped");
        }
        found.push(Removal::Origin(name));
    }
    Ok(found)
}

/// Waits while a session that is about to end still has it.
async fn drop_origin(session: &Session, name: &str) -> Result<(), ApplyError> {
    let begun = tokio::time::Instant::now();
    loop {
        match session.execute("SELECT pg_replication_origin_drop($1::text)", &[&name]).await.map_err(pg::PgError::from)
        {
            Ok(_) => return Ok(()),
            // object_in_use
            Err(error) if error.sqlstate() == Some("55006") && begun.elapsed() < HELD => {
                tokio::time::sleep(Duration::from_millis(100)).await
            }
            // Somebody else has just dropped it.
            Err(error) if error.sqlstate() == Some("42704") => return Ok(()),
            Err(error) if error.sqlstate() == Some("55006") => {
                return Err(Problem::new(
                    Code::WriterRefused,
                    format!("replication origin {name}"),
                    format!("a session still has it: {error}"),
                    "stop every `crossfade run` and `crossfade apply` of the plan, then run `crossfade complete --yes` again",
                )
                .into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}
