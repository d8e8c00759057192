//! The way back of a cutover: what the application writes to the target goes into the source, until somebody is sure.
//!
//! It is the same plan [the other way round](plan::Plan::back). [`capture`] logs what is committed at the target from the time on that copy and tail are joined; what apply has written there carries an
//! origin and is left out. [`apply`] waits until a cutover is decided, and writes to the source, which is closed to everybody else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::apply::BackFrom;
use model::{Code, Header, Problem, TableName};
use pg::catalog::Table;
use pg::{Endpoint, Session};
use plan::Plan;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::drain::Ear;
use crate::error::CutoverError;
use crate::history::History;
use crate::run::Job;

/// Between two looks at whether there is something to begin with, and at which tables there are.
const LOOK: Duration = Duration::from_secs(1);

/// Between two tries of a capture that could not go on, while nothing depends on it.
const AGAIN: Duration = Duration::from_secs(10);

/// How long the tables at the target may be looked at for the definition of a partition.
const BOUND: Duration = Duration::from_millis(500);

/// The plan of the way back, with its only source: none where there is no way back. The tables are those that apply has filled at `target`.
///
/// # Errors
/// The target.
pub(crate) async fn plan_back(plan: &Plan, target: &Session) -> Result<Option<Plan>, CutoverError> {
    let (Some(mut back), [source]) = (plan.back(), &plan.sources[..]) else { return Ok(None) };
    let tables = ::apply::back_tables(target, &source.name).await?;
    back.sources = back.sources.iter().map(|source| source.only(tables.iter().cloned())).collect();
    Ok(Some(back))
}

/// The other direction's job. None where there is no way back.
///
/// # Errors
/// The target.
pub async fn reversed(job: &verify::Job) -> Result<Option<verify::Job>, Problem> {
    let target = pg::connect_read_only(&job.target, "cutover").await?;
    if !::apply::knows(&target, &job.plan.name).await? {
        return Ok(None);
    }
    let (Some(back), [source]) = (plan_back(&job.plan, &target).await?, &job.sources[..]) else { return Ok(None) };
    Ok(Some(verify::Job {
        plan: Arc::new(back),
        sources: vec![job.target.clone()],
        target: source.clone(),
        log: job.log.clone(),
    }))
}

/// Whether the application writes to the target and that goes back into the source.
///
/// # Errors
/// Source or target.
pub async fn is_reversing(job: &verify::Job) -> Result<bool, Problem> {
    let decided = async {
        let target = pg::connect_read_only(&job.target, "cutover").await?;
        let mut sources = Vec::new();
        for source in &job.sources {
            sources.push(pg::connect_read_only(source, "cutover").await?);
        }
        Ok::<_, CutoverError>(History::read(&sources, &target).await?.decided)
    };
    Ok(decided.await?.is_some_and(|entry| !entry.back && entry.from.is_some()))
}

/// Captures the target for the way back, until `stop`. `job` is as for the plan's only source, whose endpoint is `source`. As long as nothing depends on it, what fails is
/// told and tried again.
///
/// # Errors
/// It cannot go on, and the application writes to the target.
pub async fn capture(job: ::capture::Job, source: Endpoint, stop: CancellationToken) -> Result<(), Problem> {
    let mut said = String::new();
    loop {
        let problem = match capture_once(&job, &source, &stop).await {
            Ok(()) if stop.is_cancelled() => return Ok(()),
            // There are other tables than before.
            Ok(()) => continue,
            Err(error) => Problem::from(error),
        };
        if open(&job).await {
            return Err(problem);
        }
        if said != problem.to_string() {
            said = problem.to_string();
            warn!("there is no way back for now: {problem}");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Whether the application writes to the target, as far as that is known.
async fn open(job: &::capture::Job) -> bool {
    let asked = async {
        let session = pg::connect_read_only(&job.endpoint, "way back").await?;
        let query = "SELECT to_jsonb(l) ->> 'barred' = 'true' FROM crossfade.lease l";
        Ok::<_, CutoverError>(session.query_one(query, &[]).await?.get::<_, Option<bool>>(0).unwrap_or_default())
    };
    asked.await.unwrap_or_default()
}

async fn capture_once(job: &::capture::Job, source: &Endpoint, stop: &CancellationToken) -> Result<(), CutoverError> {
    let target = pg::connect_read_only(&job.endpoint, "way back").await?;
    let tables = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        tables = joined(&target, job) => tables?,
    };
    let identity = {
        let session = pg::connect_read_only(source, "way back").await?;
        pg::catalog::identity(&session).await?
    };
    let Some(back) = plan_back(&job.plan, &target).await? else { return Ok(()) };
    let Some(captured) = back.sources.first().cloned() else { return Ok(()) };
    let nonce = target.query_one("SELECT nonce FROM crossfade.plan", &[]).await?.get(0);
    let inner = stop.child_token();
    let job = ::capture::Job { plan: Arc::new(back), source: captured, target: identity, nonce, ..job.clone() };
    info!(tables = tables.len(), "capture of the way back starts");
    let stopped = inner.clone();
    let mut capture = std::pin::pin!(::capture::run(job.clone(), stopped));
    tokio::select! {
        ended = &mut capture => return Ok(ended?),
        changed = others(&target, &job, &tables) => changed?,
    }
    inner.cancel();
    Ok(capture.await?)
}

/// Waits until copy and tail are joined and everything is built: only then do the tables stay as they are. Which they are.
async fn joined(target: &Session, job: &::capture::Job) -> Result<Vec<TableName>, CutoverError> {
    let query = "SELECT coalesce((SELECT bool_and(joined) FROM crossfade.checkpoint), false)
                    AND NOT EXISTS (SELECT FROM crossfade.schema_item WHERE done_at IS NULL)";
    loop {
        if ::apply::knows(target, &job.plan.name).await? && target.query_one(query, &[]).await?.get(0) {
            return now(target, job).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn now(target: &Session, job: &::capture::Job) -> Result<Vec<TableName>, CutoverError> {
    // The name in the plan's file, whichever way it leads.
    let name = match &job.plan.direction {
        plan::Direction::Forward => &job.source.name,
        plan::Direction::Back { source } => source,
    };
    Ok(::apply::back_tables(target, name).await?)
}

/// Waits until there are other tables.
async fn others(target: &Session, job: &::capture::Job, tables: &[TableName]) -> Result<(), CutoverError> {
    loop {
        tokio::time::sleep(LOOK).await;
        if now(target, job).await? != tables {
            return Ok(());
        }
    }
}

/// Applies the way back to the source, whenever a cutover is decided, until `stop`.
///
/// # Errors
/// It cannot go on.
pub async fn apply(job: ::apply::Job, stop: CancellationToken) -> Result<(), Problem> {
    loop {
        let there = async {
            let source = pg::connect_read_only(&job.endpoint, "way back").await?;
            Ok::<_, Problem>(::apply::knows(&source, &job.plan.name).await?)
        };
        // Its state is there from the first cutover on. That it cannot be reached is said by who captures it.
        if there.await.unwrap_or_default() {
            return ::apply::run(job, stop).await;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Gets the source ready for the way back, before anything is closed: its state is there, and nothing is applied.
pub(crate) async fn prepare(job: &Job, target: &Session, source: &Session) -> Result<String, CutoverError> {
    let Some(back) = plan_back(&job.verify.plan, target).await? else { return Err(none()) };
    let Some(name) = back.sources.first().map(|source| source.name.clone()) else { return Err(none()) };
    let header = Header {
        plan: back.name.clone(),
        source: name.clone(),
        nonce: target.query_one("SELECT nonce FROM crossfade.plan", &[]).await?.get(0),
        source_identity: pg::catalog::identity(target).await?,
        target_identity: pg::catalog::identity(source).await?,
    };
    let selects = |table: &Table| {
        let of = |name: &TableName| back.sources.iter().any(|source| source.tables.selects(name));
        of(&table.name) || table.root.as_ref().is_some_and(of)
    };
    let mut tables = Vec::new();
    for table in pg::catalog::tables(target).await?.into_iter().filter(selects) {
        let bound = match table.root {
            Some(_) => bound(target, &table.name).await?,
            None => String::new(),
        };
        tables.push((table, bound));
    }
    ::apply::back_prepare(source, &header, &tables).await?;
    model::failpoint!("way_back_prepared");
    Ok(name)
}

async fn bound(target: &Session, table: &TableName) -> Result<String, CutoverError> {
    target.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = {}", BOUND.as_millis())).await?;
    let bound = pg::catalog::partition_bound(target, table).await;
    target.batch_execute("ROLLBACK").await?;
    Ok(bound?)
}

fn none() -> CutoverError {
    let next = "cut over with `--no-way-back`";
    Problem::new(Code::CutoverRefused, "the way back", "a plan with several sources has none", next).into()
}

/// Where it begins, now that nobody can write: all that the target has committed is the source's, and was looked at for rows of others.
pub(crate) async fn from(target: &Session, ear: &mut Ear, name: &str) -> Result<BackFrom, CutoverError> {
    ear.echo(name, target).await?;
    let query = "SELECT (lsn - '0/0')::int8, seq FROM crossfade.watched WHERE source = $1::text";
    let row = target.query_one(query, &[&name]).await?;
    if let Some((table, (rows, key))) = rogue(target).await?.into_iter().next() {
        return Err(CutoverError::GivenUp(format!(
            "somebody else has written {rows} rows to table {table} of the target, the last with {key}"
        )));
    }
    Ok(BackFrom { lsn: model::Lsn(row.get::<_, i64>(0) as u64), seq: model::Seq(row.get::<_, i64>(1) as u64) })
}

/// Rows that others have written to the target since it was compared in full, by table: how many, and the last one's key.
pub(crate) async fn rogue(target: &Session) -> Result<BTreeMap<TableName, (i64, String)>, CutoverError> {
    if !target.query_one("SELECT to_regclass('crossfade.rogue') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(BTreeMap::new());
    }
    let rows = target.query("SELECT schema, name, rows, key FROM crossfade.rogue", &[]).await?;
    let one = |row: &tokio_postgres::Row| {
        (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), (row.get(2), row.get(3)))
    };
    Ok(rows.iter().map(one).collect())
}
