use model::Problem;
use pg::Session;

use crate::error::CutoverError;
use crate::old;

/// Something that a cutover made at a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The triggers on so many tables; whether they refuse writes now.
    Fence(usize, bool),
    /// The schema `crossfade`.
    Schema,
}

impl std::fmt::Display for Removal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Removal::Fence(tables, true) => {
                write!(f, "the fence on {tables} tables, which refuses writes: without it the source takes them again")
            }
            Removal::Fence(tables, false) => write!(f, "the fence on {tables} tables, which is open"),
            Removal::Schema => f.write_str("schema crossfade"),
        }
    }
}

/// What cutovers have made at a source; with `really` it is removed.
///
/// # Errors
/// The source.
pub async fn remove(session: &Session, plan: &str, source: &str, really: bool) -> Result<Vec<Removal>, Problem> {
    Ok(take_away(session, plan, &plan::source_side(plan, source), really).await?)
}

async fn take_away(session: &Session, plan: &str, side: &str, really: bool) -> Result<Vec<Removal>, CutoverError> {
    let mut found = Vec::new();
    if !session.query_one("SELECT to_regclass('crossfade.fence') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(found);
    }
    let line = "SELECT closed > opened FROM crossfade.fence WHERE side = $1::text";
    // Without a line, somebody has died who was removing it.
    if let Some(line) = session.query_opt(line, &[&side]).await? {
        let relations = pg::fence::enclosed(session, side).await?;
        found.push(Removal::Fence(relations.len(), line.get(0)));
        if really {
            pg::fence::remove(session, side).await?;
            session.execute("DELETE FROM crossfade.fence WHERE side = $1::text", &[&side]).await?;
            model::failpoint!("source_fence_removed");
        }
    }
    if really && apply::knows(session, plan).await? {
        apply::loud(session).await?;
    }
    // The same database may be another plan's target, or another source.
    let there = session.query_one("SELECT to_regclass('crossfade.plan') IS NOT NULL", &[]).await?.get(0);
    let another = there && !apply::knows(session, plan).await?;
    if !another && pg::fence::others(session, side).await?.is_empty() {
        if really {
            session.batch_execute("SET client_min_messages = warning; DROP SCHEMA IF EXISTS crossfade CASCADE").await?;
            model::failpoint!("source_schema_dropped");
        }
        found.push(Removal::Schema);
    }
    Ok(found)
}

/// Whether a cutover of the plan acts at this source now.
///
/// # Errors
/// The source.
pub async fn acts(session: &Session, plan: &str, source: &str) -> Result<bool, Problem> {
    acts_on(session, &plan::source_side(plan, source)).await
}

/// Whether a rollback of the plan acts at its target now.
///
/// # Errors
/// The target.
pub async fn acts_at_target(session: &Session, plan: &str) -> Result<bool, Problem> {
    acts_on(session, &plan::target_side(plan)).await
}

async fn acts_on(session: &Session, side: &str) -> Result<bool, Problem> {
    let line = old::look(session, side).await.map_err(Problem::from)?;
    Ok(line.is_some_and(|line| line.led.is_some()))
}
