//! What the target's schema `crossfade` says.

use std::collections::BTreeMap;

use apply::Counted;
use model::{Lsn, Seq, TableName};
use pg::{PgError, Session};
use plan::Plan;

use crate::epochs::Epochs;
use crate::model::{Phase, Rogue, TableProgress, TableState, Verified};
use crate::verdicts;

/// The state of one plan in the target.
#[derive(Default)]
pub(crate) struct TargetNow {
    pub checkpoints: BTreeMap<String, Checkpoint>,
    pub tables: Vec<TableProgress>,
    /// Who holds the lease, and whether it said lately that it lives.
    pub worker: Option<(String, bool)>,
    /// What has stopped apply, if that needs people.
    pub stopped: Option<Stopped>,
    pub phase: Option<Phase>,
    pub epochs: Epochs,
    /// Rows that others have written to the target.
    pub rogue: Vec<Rogue>,
    /// The application may write here.
    pub open: bool,
    /// Apply may not.
    pub barred: bool,
    pub verify: Option<Verified>,
    pub findings: Vec<Counted>,
}

/// An apply process that does not go on by itself.
pub(crate) struct Stopped {
    pub worker: String,
    pub code: String,
    /// What, why, and what next.
    pub text: String,
}

pub(crate) struct Checkpoint {
    pub lsn: Lsn,
    pub seq: Seq,
    pub joined: bool,
    /// RFC 3339.
    pub commit_time: Option<String>,
    pub transactions: i64,
    pub rows: i64,
}

/// The schema belongs to another plan, of this name.
pub(crate) struct Other(pub String);

/// Reads everything as of one instant.
pub(crate) async fn look(session: &Session, plan: &Plan) -> Result<Result<TargetNow, Other>, PgError> {
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let now = read(session, plan).await;
    session.batch_execute("ROLLBACK").await?;
    now
}

async fn read(session: &Session, plan: &Plan) -> Result<Result<TargetNow, Other>, PgError> {
    let there: bool = session.query_one("SELECT to_regclass('crossfade.plan') IS NOT NULL", &[]).await?.get(0);
    if !there {
        let verify = Some(Verified::default());
        return Ok(Ok(TargetNow { phase: Some(Phase::Starting), verify, ..TargetNow::default() }));
    }
    let name: Option<String> = session.query_opt("SELECT name FROM crossfade.plan", &[]).await?.map(|row| row.get(0));
    if let Some(other) = name.filter(|name| *name != plan.name) {
        return Ok(Err(Other(other)));
    }
    let checkpoints = checkpoints(session).await?;
    let tables = tables(session, &checkpoints).await?;
    let row = session
        .query_opt(
            "SELECT l.worker, coalesce(w.seen_at > clock_timestamp() - interval '6 seconds' AND to_jsonb(w) ->> 'stopped' IS NULL, false)
               FROM crossfade.lease l LEFT JOIN crossfade.worker w ON w.worker = l.worker WHERE l.worker IS NOT NULL",
            &[],
        )
        .await?;
    let facts = session
        .query_one(
            "SELECT coalesce(bool_and(join_marker IS NOT NULL), false), coalesce(bool_and(joined), false),
                    EXISTS (SELECT FROM crossfade.schema_item WHERE done_at IS NULL) FROM crossfade.checkpoint",
            &[],
        )
        .await?;
    let (all_logged, joined, building): (bool, bool, bool) = (facts.get(0), facts.get(1), facts.get(2));
    let in_target = tables.iter().all(|table| !matches!(table.state, TableState::Waiting | TableState::Copying));
    let filled = apply::unfilled(session, plan).await?.is_empty();
    let phase = match (all_logged && in_target, joined && !building && filled) {
        (false, _) => Phase::Copying,
        (true, false) => Phase::Joining,
        (true, true) => Phase::Following,
    };
    let stopped = session.query_opt(STOPPED, &[]).await?;
    Ok(Ok(TargetNow {
        checkpoints,
        tables,
        worker: row.map(|row| (row.get(0), row.get(1))),
        stopped: stopped.map(|row| Stopped { worker: row.get(0), code: row.get(1), text: row.get(2) }),
        phase: Some(phase),
        epochs: Epochs::read(session).await?,
        rogue: rogue(session).await?,
        barred: barred(session).await?,
        open: open(session, &plan.target_side()).await?,
        verify: Some(verdicts::read(session, plan).await?),
        findings: apply::answers(session, plan).await?,
    }))
}

async fn barred(session: &Session) -> Result<bool, PgError> {
    let query = "SELECT coalesce(to_jsonb(l) ->> 'barred', 'false') = 'true' FROM crossfade.lease l";
    Ok(session.query_opt(query, &[]).await?.is_some_and(|row| row.get(0)))
}

async fn rogue(session: &Session) -> Result<Vec<Rogue>, PgError> {
    if !session.query_one("SELECT to_regclass('crossfade.rogue') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let query = "SELECT schema || '.' || name, rows, key, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM crossfade.rogue ORDER BY 1";
    let rows = session.query(query, &[]).await?;
    let rogue = rows.iter().map(|row| Rogue {
        table: row.get(0),
        rows: row.get::<_, i64>(1).unsigned_abs(),
        key: row.get(2),
        at: row.get(3),
    });
    Ok(rogue.collect())
}

/// The application may write to the target.
async fn open(session: &Session, side: &str) -> Result<bool, PgError> {
    if !session.query_one("SELECT to_regclass('crossfade.fence') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let query = "SELECT opened >= closed FROM crossfade.fence WHERE side = $1::text";
    Ok(session.query_opt(query, &[&side]).await?.is_some_and(|row| row.get(0)))
}

/// What the lease's holder was stopped by, or else the process that was seen last. The columns came later: until an apply process of this version has
/// run they are not there.
const STOPPED: &str = "
    SELECT worker, stopped ->> 'stopped_code', stopped ->> 'stopped'
      FROM (SELECT w.worker, to_jsonb(w) AS stopped FROM crossfade.worker w LEFT JOIN crossfade.lease l USING (worker)
             ORDER BY (l.worker IS NOT NULL AND to_jsonb(w) ->> 'stopped' IS NOT NULL) DESC, w.seen_at DESC LIMIT 1) w
     WHERE stopped ->> 'stopped' IS NOT NULL";

async fn checkpoints(session: &Session) -> Result<BTreeMap<String, Checkpoint>, PgError> {
    let rows = session
        .query(
            "SELECT source, (lsn - '0/0')::int8, seq, joined, transactions, rows,
                    to_char(commit_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM crossfade.checkpoint",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let checkpoint = Checkpoint {
                lsn: Lsn(row.get::<_, i64>(1) as u64),
                seq: Seq(row.get::<_, i64>(2) as u64),
                joined: row.get(3),
                transactions: row.get(4),
                rows: row.get(5),
                commit_time: row.get(6),
            };
            (row.get(0), checkpoint)
        })
        .collect())
}

async fn tables(session: &Session, checkpoints: &BTreeMap<String, Checkpoint>) -> Result<Vec<TableProgress>, PgError> {
    let rows = session
        .query(
            "SELECT t.source, t.schema, t.name, t.into_schema, t.into_name, coalesce(t.rows, greatest(t.rows_estimated, 0)),
                    coalesce(c.rows, 0)::int8, coalesce(c.bytes, 0)::int8, c.known > 0 OR t.chunks IS NOT NULL,
                    coalesce(t.next_epoch IS NULL AND t.epoch > 0 AND c.done = t.chunks, false),
                    EXISTS (SELECT FROM crossfade.schema_item i WHERE (i.source, i.table_schema, i.table_name) = (t.source, t.schema, t.name)
                               AND i.stage = 'table' AND i.kind <> 'ANALYZE' AND i.done_at IS NULL)
               FROM crossfade.tables t
               LEFT JOIN LATERAL (
                    SELECT count(*) AS known, count(worker) AS done, sum(rows) FILTER (WHERE worker IS NOT NULL) AS rows,
                           sum(bytes) FILTER (WHERE worker IS NOT NULL) AS bytes
                      FROM crossfade.copied WHERE (source, schema, name, epoch) = (t.source, t.schema, t.name, t.epoch)) c ON true
              ORDER BY t.source, t.schema, t.name",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let source: String = row.get(0);
            let name =
                |schema, name| TableName::new(row.get::<_, String>(schema), row.get::<_, String>(name)).to_string();
            let (begun, copied, building): (bool, bool, bool) = (row.get(8), row.get(9), row.get(10));
            let joined = checkpoints.get(&source).is_some_and(|checkpoint| checkpoint.joined);
            let state = match (begun, copied, building, joined) {
                (_, true, true, _) => TableState::Indexing,
                (_, true, false, true) => TableState::Joined,
                (_, true, false, false) => TableState::Copied,
                (true, false, ..) => TableState::Copying,
                (false, false, ..) => TableState::Waiting,
            };
            TableProgress {
                table: name(1, 2),
                into: name(3, 4),
                state,
                rows_copied: row.get::<_, i64>(6) as u64,
                rows_estimated: row.get::<_, i64>(5) as u64,
                bytes_copied: row.get::<_, i64>(7) as u64,
                source,
            }
        })
        .collect())
}
