//! How far apply has come in the database, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use model::Lsn;
use pg::{PgError, Session};
use plan::Plan;
use tokio::time::Instant;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// When each phase was over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Phases {
    /// The tables are there.
    pub schema: Option<Instant>,
    /// All rows of the copy are in.
    pub copy: Option<Instant>,
    /// Keys and indexes are built: the tail starts.
    pub indexes: Option<Instant>,
}

/// Where apply stands.
struct Now {
    schema: bool,
    copied: bool,
    started: bool,
    /// Of each source the last commit.
    at: BTreeMap<String, Lsn>,
}

const THERE: &str = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'crossfade' AND c.relname = 'hold')";

const NOW: &str = "SELECT c.source, (c.lsn - '0/0')::int8, c.started, c.schema OR EXISTS (SELECT FROM crossfade.tables),
       c.join_marker IS NOT NULL AND NOT EXISTS (SELECT FROM crossfade.tables WHERE chunks IS NULL) AND NOT EXISTS (SELECT FROM crossfade.copied WHERE worker IS NULL)
  FROM crossfade.checkpoint c";

async fn now(session: &Session) -> Result<Now, PgError> {
    let there: bool = session.query_one(THERE, &[]).await?.get(0);
    let rows = if there { session.query(NOW, &[]).await? } else { Vec::new() };
    let all = |column: usize| !rows.is_empty() && rows.iter().all(|row| row.get(column));
    Ok(Now {
        started: all(2),
        schema: all(3),
        copied: all(4),
        at: rows.iter().map(|row| (row.get(0), Lsn(row.get::<_, i64>(1) as u64))).collect(),
    })
}

impl Phases {
    /// Waits until every source stands at its commit of `ends`.
    pub async fn until(&mut self, session: &Session, ends: &BTreeMap<String, Lsn>) -> Result<(), PgError> {
        loop {
            let now = now(session).await?;
            for (reached, at) in
                [(now.schema, &mut self.schema), (now.copied, &mut self.copy), (now.started, &mut self.indexes)]
            {
                if reached && at.is_none() {
                    *at = Some(Instant::now());
                }
            }
            if now.started && ends.iter().all(|(source, end)| now.at.get(source) == Some(end)) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Waits until the plan's derived tables are filled. What keeps them from it ends apply.
pub(crate) async fn filled(session: &Session, plan: &Plan) -> Result<(), PgError> {
    while !::apply::unfilled(session, plan).await?.is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until what comes once copy and tail are joined is there: foreign keys, triggers and rules. Says how long that took since then, in seconds.
pub(crate) async fn finished(session: &Session) -> Result<f64, PgError> {
    let open = "SELECT EXISTS (SELECT FROM crossfade.schema_item WHERE done_at IS NULL AND kind <> 'ANALYZE')";
    while session.query_one(open, &[]).await?.get(0) {
        tokio::time::sleep(LOOK).await;
    }
    let took = "SELECT coalesce(extract(epoch FROM greatest(max(i.done_at) - (
                    SELECT max(m.reached_at) FROM crossfade.marker m JOIN crossfade.checkpoint c ON c.source = m.source AND c.join_marker = m.id), '0')), 0)::float8
                  FROM crossfade.schema_item i WHERE i.stage IN ('foreign', 'trigger')";
    Ok(session.query_one(took, &[]).await?.get(0))
}
