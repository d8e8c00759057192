use model::Problem;
use pg::Session;
use plan::Plan;

use crate::bolts;
use crate::error::CutoverError;
use crate::history::History;
use crate::old;

/// Something that a cutover made at a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The triggers on so many tables; whether they refuse writes now.
    Fence(usize, bool),
    /// New sessions are read-only.
    ReadOnly,
    /// What the plan's fence command has closed.
    Command,
    /// The schema `crossfade`.
    Schema,
}

/// Where the application writes, and which way it went there.
#[derive(Clone, Copy, Debug)]
pub struct Stands {
    pub(crate) writable: &'static str,
    pub(crate) direction: &'static str,
}

/// What the journals of both sides say.
///
/// # Errors
/// A server.
pub async fn stands<'s>(
    sources: impl IntoIterator<Item = &'s Session>,
    target: &'s Session,
) -> Result<Stands, Problem> {
    let decided = History::read(sources, target).await.map_err(Problem::from)?.decided.map(|entry| entry.back);
    Ok(Stands {
        writable: if decided == Some(false) { bolts::TARGET } else { bolts::SOURCE },
        direction: if decided == Some(true) { "back" } else { "forward" },
    })
}

impl std::fmt::Display for Removal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Removal::Fence(tables, true) => {
                write!(f, "the fence on {tables} tables, which refuses writes: without it the source takes them again")
            }
            Removal::Fence(tables, false) => write!(f, "the fence on {tables} tables, which is open"),
            Removal::ReadOnly => {
                f.write_str("default_transaction_read_only of the database, which becomes what it was before the fence")
            }
            Removal::Command => f.write_str("what the plan's fence command has closed: its `undo` is run"),
            Removal::Schema => f.write_str("schema crossfade"),
        }
    }
}

/// What cutovers have made at a source; with `really` it is removed.
///
/// # Errors
/// The source, or the plan's command.
pub async fn remove(
    session: &Session,
    plan: &Plan,
    source: &str,
    stands: Stands,
    really: bool,
) -> Result<Vec<Removal>, Problem> {
    let side = plan::source_side(&plan.name, source);
    let mut found = unfence(session, &side, really).await?;
    // Behind it: that the source takes writes does not depend on the plan's command.
    found.extend(bolts::remove(session, plan, Some(source), stands, really).await?);
    found.extend(take_away(session, &plan.name, &side, really).await?);
    Ok(found)
}

/// What a rollback has closed the target with besides its triggers, which go with the schema; with `really` it is undone.
///
/// # Errors
/// The target, or the plan's command.
pub async fn open_target(
    session: &Session,
    plan: &Plan,
    stands: Stands,
    really: bool,
) -> Result<Vec<Removal>, Problem> {
    Ok(bolts::remove(session, plan, None, stands, really).await?)
}

async fn unfence(session: &Session, side: &str, really: bool) -> Result<Vec<Removal>, CutoverError> {
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
    Ok(found)
}

async fn take_away(session: &Session, plan: &str, side: &str, really: bool) -> Result<Vec<Removal>, CutoverError> {
    let mut found = Vec::new();
    if !session.query_one("SELECT to_regclass('crossfade.fence') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(found);
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
