//! Rows that were found to be different are put right from the source, through the log: while the tail stands still it is known what they must be at that commit, and the log is told so. Apply
//! puts them right before it goes on; whoever applies the log later comes by the same commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use log::StreamKind;
use model::{Cell, Code, Column, Mend, Oid, Problem, Record, Relation, ReplicaIdentity, TableName, Tuple};
use pg::{Endpoint, Session};
use tokio::time::Instant;

use crate::delta::Delta;
use crate::error::VerifyError;
use crate::fence::{self, Ends, Held};
use crate::idle::{Idle, idle};
use crate::pair::{self, At, Pair};
use crate::round::give_way;
use crate::run::nonce;
use crate::side::{Row, rows};
use crate::{Job, LogAccess};

/// Rows that are put right at a time: they are read while the tail stands still, and are in memory at both ends.
const AT_ONCE: usize = 100;

/// What they may take together in the log, in bytes.
const LARGE: usize = 32 << 20;

/// Tries to bring both sides together.
const TRIES: u32 = 10;

/// Between two tries, at first; then longer.
const PAUSE: Duration = Duration::from_millis(300);

/// How long apply may take to put rows right once it goes on.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Rows of a table, as a report names them.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The source that they come from.
    pub source: String,
    /// At the target.
    pub table: TableName,
    /// Each of them.
    pub rows: Vec<Named>,
}

/// A row that somebody has named.
#[derive(Clone, Debug)]
pub struct Named {
    /// Where: file and line.
    pub place: String,
    /// The values of its key, by column.
    pub key: BTreeMap<String, String>,
}

/// What became of rows of a table.
#[derive(Clone, Debug)]
pub struct Mended {
    /// The source that they come from.
    pub source: String,
    /// At the target.
    pub table: TableName,
    /// How many.
    pub rows: usize,
    /// Why they are not put right, if they are not.
    pub why: Option<String>,
}

/// Puts rows right.
///
/// # Errors
/// It could not run: the plan's log is embedded, a server cannot be reached, capture or apply does not run, or a table is not the plan's or has no key.
pub async fn mend(job: &Job, wanted: &[Rows]) -> Result<Vec<Mended>, Problem> {
    Ok(all(job, wanted).await?)
}

async fn all(job: &Job, wanted: &[Rows]) -> Result<Vec<Mended>, VerifyError> {
    if let LogAccess::Embedded(_) = job.log {
        return Err(Problem::new(
            Code::EmbeddedLog,
            "rows",
            "they go through the log, and an embedded one is open in `crossfade run`, which follows the source meanwhile",
            "copy their tables again: `crossfade recopy TABLE`; or give the plan a NATS log",
        )
        .into());
    }
    let target = pg::connect(&job.target, "mend").await?;
    let there = "SELECT to_regclass('crossfade.mend') IS NOT NULL";
    if !apply::knows(&target, &job.plan.name).await? || !target.query_one(there, &[]).await?.get::<_, bool>(0) {
        let why = "the target does not know of it, or apply has not run since crossfade was upgraded";
        let next = "start `crossfade run`, or `crossfade apply`, first";
        return Err(Problem::new(Code::NoTables, format!("plan {:?}", job.plan.name), why, next).into());
    }
    let mut mended = Vec::new();
    for (source, endpoint) in job.plan.sources.iter().zip(&job.sources) {
        for rows in wanted.iter().filter(|rows| rows.source == source.name) {
            let session = pg::connect_read_only(endpoint, "mend").await?;
            let pair = pair_of(&session, &target, source, rows).await?;
            let keys = keys(&session, &pair, rows).await?;
            if let Some(Idle { why, next }) = idle(&session, &target, &job.plan.name, &source.name).await? {
                return Err(Problem::new(Code::NotRunning, format!("table {}", rows.table), why, next).into());
            }
            drop(session);
            for some in keys.chunks(AT_ONCE) {
                let why = some_rows(job, endpoint, &target, &rows.source, &pair, some).await?;
                add(
                    &mut mended,
                    Mended { source: rows.source.clone(), table: rows.table.clone(), rows: some.len(), why },
                );
            }
        }
    }
    Ok(mended)
}

/// People are told once what is so of several lots of a table's rows.
fn add(mended: &mut Vec<Mended>, more: Mended) {
    let same =
        |known: &&mut Mended| (&known.source, &known.table, &known.why) == (&more.source, &more.table, &more.why);
    match mended.iter_mut().find(same) {
        Some(known) => known.rows += more.rows,
        None => mended.push(more),
    }
}

async fn pair_of(
    session: &Session,
    target: &Session,
    source: &plan::Source,
    rows: &Rows,
) -> Result<Arc<Pair>, VerifyError> {
    let found = pair::load(session, target, source, std::slice::from_ref(&rows.table)).await?;
    let place = rows.rows.first().map_or("", |row| row.place.as_str());
    if let Some((table, why)) = found.inconclusive.into_iter().next() {
        return Err(refused(place, &table, why).into());
    }
    match found.pairs.into_iter().find(|pair| pair.table == rows.table) {
        Some(pair) if pair.key.is_empty() => {
            Err(refused(place, &rows.table, "it has no key by which rows could be named").into())
        }
        Some(pair) => Ok(Arc::new(pair)),
        None => Err(refused(place, &rows.table, "no copy of it has begun").into()),
    }
}

fn refused(place: &str, table: &TableName, why: impl Into<String>) -> Problem {
    let next = format!("copy it again: `crossfade recopy {table}`; or take its lines out of the file");
    Problem::new(Code::NoTables, format!("{place}, table {table}"), why, next)
}

/// The keys in the order of the pair's key, each once. The source is asked whether they can be such keys, before anything is held for them.
async fn keys(session: &Session, pair: &Pair, rows: &Rows) -> Result<Vec<Vec<String>>, VerifyError> {
    let names: Vec<&str> = pair.key.iter().map(|at| pair.columns[*at].name.as_str()).collect();
    let mut keys: BTreeMap<Vec<String>, &str> = BTreeMap::new();
    for Named { place, key } in &rows.rows {
        let values: Option<Vec<String>> = names.iter().map(|name| key.get(*name).cloned()).collect();
        let Some(values) = values.filter(|_| key.len() == names.len()) else {
            let named = key.keys().cloned().collect::<Vec<_>>().join(", ");
            let why = format!("the row is named by {named:?}, and its key is {:?}", names.join(", "));
            return Err(refused(place, &pair.table, why).into());
        };
        keys.entry(values).or_insert(place);
    }
    let keys: Vec<(Vec<String>, &str)> = keys.into_iter().collect();
    for some in keys.chunks(AT_ONCE) {
        if no_keys(session, pair, some).await?.is_none() {
            continue;
        }
        // One of them is it.
        for one in some {
            if let Some(why) = no_keys(session, pair, std::slice::from_ref(one)).await? {
                let next = "correct the value, or take the line out of the file";
                return Err(
                    Problem::new(Code::PlanInvalid, format!("{}, table {}", one.1, pair.table), why, next).into()
                );
            }
        }
    }
    Ok(keys.into_iter().map(|(key, _)| key).collect())
}

/// Why the server takes the values of some of these for none of their columns, if it does not take them.
async fn no_keys(session: &Session, pair: &Pair, keys: &[(Vec<String>, &str)]) -> Result<Option<String>, VerifyError> {
    let among = pair.among(At::Source, keys.iter().map(|(key, _)| key.as_slice()));
    // The values are read, and the table is not.
    let query = format!("SELECT FROM {} WHERE false AND {among}", pair.from(At::Source));
    match rows(session, &query).await {
        Ok(_) => Ok(None),
        Err(VerifyError::Pg(error)) if error.sqlstate().is_some_and(|state| state.starts_with("22")) => {
            Ok(Some(format!("its key has a value that cannot be one: {error}")))
        }
        Err(error) => Err(error),
    }
}

/// Says why they are not put right, if they are not.
async fn some_rows(
    job: &Job,
    endpoint: &Endpoint,
    target: &Session,
    source: &str,
    pair: &Pair,
    keys: &[Vec<String>],
) -> Result<Option<String>, VerifyError> {
    let nonce = nonce(job, source).await?;
    let ends = Ends {
        plan: &job.plan.name,
        source,
        nonce: &nonce,
        endpoints: [endpoint, &job.target],
        log: &job.log,
        readers: 0,
        hold: job.plan.verify.hold,
        purpose: "mend",
    };
    let (mut tries, pairs) = (0, [pair]);
    let id = loop {
        // One of its own for each try: what an earlier one has told the log stays there.
        let id = uuid::Uuid::new_v4().to_string();
        let taken = fence::take_with(&ends, &pairs, async |held: Held<'_>| {
            let record = truth(pair, keys, &held, &id).await?;
            let stream = log::StreamName::new(ends.plan, source, StreamKind::Copy);
            log::append_record(&*job.log.open().await?, &stream, record).await?;
            // It must be known to apply before that goes on.
            while outcome(target, source, &id).await?.is_none() {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        });
        let taken = tokio::select! {
            biased;
            taken = taken => taken.map(|_| ()),
            given = give_way(endpoint, ends.purpose, job.plan.limits.lock_timeout) => given,
        };
        let error = match taken {
            Ok(()) => break id,
            Err(error) => error,
        };
        // It may have come so far nevertheless.
        if let Some(Outcome { done: true, why: None }) = outcome(target, source, &id).await? {
            return Ok(None);
        }
        match error {
            error if error.retry() && tries < TRIES => {
                tries += 1;
                tracing::info!("once more: {error}");
                tokio::time::sleep(PAUSE * tries).await;
            }
            VerifyError::Still(why) | VerifyError::Table(_, why) => return Ok(Some(why)),
            error if error.retry() => return Ok(Some(error.to_string())),
            error => return Err(error),
        }
    };
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(Outcome { done: true, why }) = outcome(target, source, &id).await? {
            return Ok(why);
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(Some(format!("apply has not done it within {} s: is it running?", PATIENCE.as_secs())))
}

struct Outcome {
    done: bool,
    why: Option<String>,
}

/// What apply has made of it, once it knows of it.
async fn outcome(target: &Session, source: &str, id: &str) -> Result<Option<Outcome>, VerifyError> {
    let query = "SELECT done_at IS NOT NULL, outcome FROM crossfade.mend WHERE source = $1::text AND id = $2::text";
    let row = target.query_opt(query, &[&source, &id]).await?;
    Ok(row.map(|row| Outcome { done: row.get(0), why: row.get(1) }))
}

/// What the rows must be where the tail stands.
async fn truth(pair: &Pair, keys: &[Vec<String>], held: &Held<'_>, id: &str) -> Result<Record, VerifyError> {
    let delta = Delta::of(pair, &held.between.changes)?;
    let touched = delta.keys();
    let asked: BTreeSet<Vec<String>> = keys.iter().chain(&touched).cloned().collect();
    let asked: Vec<&[String]> = asked.iter().map(Vec::as_slice).collect();
    let query = format!(
        "SELECT {} FROM {} WHERE {}",
        pair.each_cell().join(", "),
        pair.from(At::Source),
        pair.among(At::Source, asked)
    );
    let by_key = |row: Row| -> (Vec<String>, Row) {
        (pair.key.iter().map(|at| row[*at].clone().unwrap_or_default()).collect(), row)
    };
    let seen: BTreeMap<Vec<String>, Row> = rows(held.source, &query).await?.into_iter().map(by_key).collect();
    let also: Vec<Vec<String>> = seen.keys().cloned().collect();
    let expected = delta.expected(pair, seen)?;
    // The values' equality may take others for the keys that were asked for: all that would be taken away is put back.
    let named: BTreeSet<&Vec<String>> = keys.iter().chain(&touched).chain(&also).chain(expected.keys()).collect();
    let of_key = |key: &&Vec<String>| {
        let cell = |at: usize| pair.key.iter().position(|place| *place == at).map(|place| key[place].as_str());
        tuple(pair, (0..pair.columns.len()).map(cell))
    };
    let mend = Mend {
        id: id.to_owned(),
        lsn: held.between.through,
        xid: held.xid,
        relation: relation(pair),
        keys: named.iter().map(of_key).collect(),
        rows: expected.values().map(|row| tuple(pair, row.iter().map(Option::as_deref))).collect(),
    };
    let bytes: usize = mend.rows.iter().map(|row| row.bytes().len()).sum();
    if bytes > LARGE {
        let why = format!(
            "{} rows take {} MiB: copy the table again, `crossfade recopy {}`",
            mend.rows.len(),
            bytes >> 20,
            pair.table
        );
        return Err(VerifyError::Table(pair.table.clone(), why));
    }
    Ok(Record::Mend(mend))
}

/// Generated columns are nobody's to write.
fn tuple<'a>(pair: &Pair, cells: impl Iterator<Item = Option<&'a str>>) -> Tuple {
    let cell = |text: Option<&'a str>| text.map_or(Cell::Null, |text| Cell::Text(text.as_bytes()));
    let cells: Vec<Cell<'a>> =
        pair.columns.iter().zip(cells).filter(|(column, _)| !column.generated).map(|(_, text)| cell(text)).collect();
    Tuple::from_cells(cells.into_iter())
}

/// The table as the tail would describe it.
fn relation(pair: &Pair) -> Relation {
    let column = |(at, column): (usize, &pair::Column)| Column {
        name: column.name.clone(),
        key: pair.key.contains(&at),
        type_oid: Oid(0),
        modifier: -1,
    };
    let columns = pair.columns.iter().enumerate().filter(|(_, column)| !column.generated).map(column);
    Relation {
        id: Oid(0),
        // All of them lead into the same one.
        table: pair.sources.first().unwrap_or(&pair.table).clone(),
        identity: ReplicaIdentity::Default,
        columns: columns.collect(),
    }
}
