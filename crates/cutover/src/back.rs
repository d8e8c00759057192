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
use crate::journal;
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
    // A partition that is attached later on belongs to them.
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let roots = "SELECT DISTINCT n.nspname::text, c.relname::text FROM unnest($1::text[]) name JOIN pg_class p ON p.oid = to_regclass(name) AND p.relispartition
                   JOIN pg_class c ON c.oid = pg_partition_root(p.oid) JOIN pg_namespace n ON n.oid = c.relnamespace";
    let roots = target.query(roots, &[&names]).await?;
    let roots = roots.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    let tables: Vec<TableName> = roots.filter(|root| source.tables.selects(root)).chain(tables).collect();
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
        let error = match capture_once(&job, &source, &stop).await {
            Ok(Ended::Told | Ended::NoWayBack) => return Ok(()),
            Ok(Ended::OtherTables) => continue,
            Err(error) => error,
        };
        // A connection is made anew, whatever depends on it.
        let lost = matches!(&error, CutoverError::Pg(error) if pg::policy(error) == pg::Policy::Retry);
        let (problem, open) = (Problem::from(error), open(&job).await);
        let problem = for_the_way_back(problem, open);
        if open && !lost {
            return Err(problem);
        }
        if matches!(problem.code, Code::SlotLost | Code::SlotGivenUp | Code::Gap)
            && let Err(error) = anew(&job).await
        {
            warn!("the way back cannot be begun anew: {}", Problem::from(error));
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

/// Where copying again is what helps on the way there, nothing does on the way back: the target must stay as it is, for what it has is nowhere else.
fn for_the_way_back(problem: Problem, open: bool) -> Problem {
    let next = match (problem.code, open) {
        (Code::SchemaChanged, true) => {
            "undo it, if no row of the table was written since, and start again; otherwise there is no way back any more: stay, keep the target as it is, and end with `crossfade complete`"
        }
        (Code::SlotLost | Code::SlotGivenUp | Code::Gap, true) => {
            "there is no way back any more: stay, keep the target as it is, and end with `crossfade complete`"
        }
        (Code::SlotLost | Code::SlotGivenUp | Code::Gap, false) => {
            "it is begun anew; what was written to the target meanwhile is not known, so that a cutover wants `crossfade verify` again"
        }
        (Code::SchemaChanged, false) => "nothing: capture of it begins again with the tables as they are now",
        _ => return problem,
    };
    Problem { next: next.to_owned(), ..problem }
}

/// Nothing depends on the way back yet, and it has lost something: its slot and its streams go, and are made again. What others have written to the target in between nobody
/// knows, which the next verify in full settles.
async fn anew(job: &::capture::Job) -> Result<(), CutoverError> {
    let Some(back) = job.plan.back() else { return Ok(()) };
    let target = pg::connect(&job.endpoint, "way back").await?;
    // One that is under way may have noted where the way back begins.
    let under_way = journal::last(&target).await?.is_some_and(|entry| entry.state.undecided());
    if under_way || ::apply::is_barred(&target).await? {
        return Ok(());
    }
    for source in &back.sources {
        target
            .execute(
                "INSERT INTO crossfade.rogue (source, schema, name, rows, key, lsn, at)
                 SELECT DISTINCT ON (into_schema, into_name) $1::text, into_schema, into_name, 0, 'nobody looked for a while', pg_current_wal_lsn(), clock_timestamp()
                   FROM crossfade.tables ON CONFLICT (source, schema, name) DO UPDATE SET at = excluded.at",
                &[&source.name],
            )
            .await?;
        target.execute("UPDATE crossfade.watched SET seq = 0 WHERE source = $1::text", &[&source.name]).await?;
        ::capture::remove(&target, &back.name, &source.name, true).await?;
        let ::capture::Streams { copy, chunks, tail } = ::capture::streams(&back.name, &source.name);
        // The one that says whose they are goes last.
        for stream in [chunks, tail, copy] {
            job.log.remove(&stream).await.map_err(Problem::from)?;
        }
    }
    Ok(())
}

/// Whether the application writes to the target, as far as that is known.
async fn open(job: &::capture::Job) -> bool {
    let asked = async {
        let session = pg::connect_read_only(&job.endpoint, "way back").await?;
        Ok::<_, CutoverError>(::apply::is_barred(&session).await?)
    };
    asked.await.unwrap_or_default()
}

/// Why a capture has ended.
enum Ended {
    /// It was told to.
    Told,
    /// It was cut over without one, and what captured it is gone.
    NoWayBack,
    /// There are other tables than before.
    OtherTables,
}

async fn capture_once(
    job: &::capture::Job,
    source: &Endpoint,
    stop: &CancellationToken,
) -> Result<Ended, CutoverError> {
    let target = pg::connect_read_only(&job.endpoint, "way back").await?;
    let tables = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(Ended::Told),
        tables = joined(&target, job) => tables?,
    };
    let open = ::apply::is_barred(&target).await?;
    if open && given_up(&target).await? {
        take_away(job).await?;
        return Ok(Ended::NoWayBack);
    }
    let identity = {
        let session = pg::connect_read_only(source, "way back").await?;
        pg::catalog::identity(&session).await?
    };
    let Some(back) = plan_back(&job.plan, &target).await? else { return Ok(Ended::NoWayBack) };
    let Some(captured) = back.sources.first().cloned() else { return Ok(Ended::NoWayBack) };
    if open {
        unpublished(&target, &back.name, &captured).await?;
    }
    let nonce = target.query_one("SELECT nonce FROM crossfade.plan", &[]).await?.get(0);
    let inner = stop.child_token();
    let job = ::capture::Job { plan: Arc::new(back), source: captured, target: identity, nonce, ..job.clone() };
    info!(tables = tables.len(), "capture of the way back starts");
    let stopped = inner.clone();
    let mut capture = std::pin::pin!(::capture::run(job.clone(), stopped));
    tokio::select! {
        ended = &mut capture => Ok(ended.map(|()| Ended::Told)?),
        changed = others(&target, &job, &tables) => {
            let changed = changed.map(drop);
            inner.cancel();
            capture.await?;
            // The next look takes away what is of no use any more.
            Ok(changed.map(|()| Ended::OtherTables)?)
        }
    }
}

/// The last cutover was one without a way back.
async fn given_up(target: &Session) -> Result<bool, CutoverError> {
    Ok(journal::last_decided(target).await?.is_some_and(|entry| !entry.back && entry.from.is_none()))
}

/// What is not used any more keeps back no WAL at the target.
async fn take_away(job: &::capture::Job) -> Result<(), CutoverError> {
    let Some(back) = job.plan.back() else { return Ok(()) };
    let target = pg::connect(&job.endpoint, "way back").await?;
    for source in &back.sources {
        let removed = ::capture::remove(&target, &back.name, &source.name, true).await?;
        if !removed.is_empty() {
            info!("it was cut over without a way back: what captured the target is removed");
        }
    }
    Ok(())
}

/// While the application writes to the target, a table that is not published has rows that nobody knows.
async fn unpublished(target: &Session, plan: &str, source: &plan::Source) -> Result<(), CutoverError> {
    let published = "SELECT DISTINCT schemaname::text, tablename::text FROM pg_publication_tables WHERE starts_with(pubname::text, $1::text)";
    let name = ::capture::slot_name(plan, &source.name);
    let rows = target.query(published, &[&name]).await?;
    let published: Vec<TableName> =
        rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    let selects = |table: &Table| {
        source.tables.selects(&table.name) || table.root.as_ref().is_some_and(|root| source.tables.selects(root))
    };
    let tables = pg::catalog::tables(target).await?;
    match tables.iter().find(|table| selects(table) && !published.contains(&table.name)) {
        None => Ok(()),
        Some(table) => Err(Problem::new(
            Code::Gap,
            format!("table {}", table.name),
            "it came to the target after the cutover, and what was written to it since was not captured for the way back",
            "",
        )
        .into()),
    }
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

/// Waits until there are other tables, or it is cut over without a way back.
async fn others(target: &Session, job: &::capture::Job, tables: &[TableName]) -> Result<(), CutoverError> {
    loop {
        tokio::time::sleep(LOOK).await;
        if now(target, job).await? != tables || ::apply::is_barred(target).await? && given_up(target).await? {
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
            let problem = match ::apply::run(job.clone(), stop.clone()).await {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            };
            let idle = async {
                let source = pg::connect_read_only(&job.endpoint, "way back").await?;
                Ok::<_, CutoverError>(::apply::is_barred(&source).await?)
            };
            if !idle.await.unwrap_or_default() {
                return Err(for_the_way_back(problem, true));
            }
            warn!("nothing is applied to the source now, and could not be: {problem}");
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
