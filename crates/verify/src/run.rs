use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use log::StreamKind;
use model::{Code, Marker, MarkerKind, Problem, Record, Seq, TableName};
use pg::{Endpoint, Session};
use plan::Plan;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::error::VerifyError;
use crate::fence::Ends;
use crate::pair::{self, Pair};
use crate::parts::{self, Part};
use crate::report::{Report, TableReport, Verdict};
use crate::round::{Pace, Round};
use crate::state::{self, Done, Found};
use crate::sums::Hash;
use crate::touched::Touched;
use crate::{Difference, LogAccess};

/// What a comparison needs.
pub struct Job {
    /// The plan.
    pub plan: Arc<Plan>,
    /// How to reach its sources, in its order.
    pub sources: Vec<Endpoint>,
    /// How to reach the target.
    pub target: Endpoint,
    /// What lies between.
    pub log: LogAccess,
}

/// What is asked of it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// These tables, as they are named at source or target; none for all.
    pub tables: Vec<TableName>,
    /// Per cent of the parts of large tables.
    pub sample: Option<f64>,
    /// The last comparison goes on that was cut off.
    pub resume: bool,
    /// Of tables that were equal only the rows that were touched since.
    pub recheck: bool,
    /// No values of columns in the report.
    pub mask: bool,
}

/// Tables under one fence: their locks have to fit into the servers' lock tables.
const TABLES: usize = 64;

/// Tries without anything done before a round's tables are called inconclusive.
const TRIES: u32 = 30;

/// Between two tries, at first; then longer, up to [`REST`].
const PAUSE: Duration = Duration::from_millis(200);

/// Between two tries.
const REST: Duration = Duration::from_secs(5);

/// Parts that one message of the log tells of: some 30 KiB.
const LINES: usize = 200;

/// How often progress is told.
const TOLD: Duration = Duration::from_secs(5);

/// Compares both sides. Every row that differs is also handed to `found`, with its source and table.
///
/// # Errors
/// It could not run; what was done stays done, and can be gone on with.
pub async fn run(
    job: &Job,
    options: &Options,
    found: &(dyn Fn(&str, &TableName, &Difference) + Sync),
) -> Result<Report, Problem> {
    Ok(compare(job, options, found).await?)
}

async fn compare(
    job: &Job,
    options: &Options,
    found: &(dyn Fn(&str, &TableName, &Difference) + Sync),
) -> Result<Report, VerifyError> {
    let begun = Instant::now();
    let target = pg::connect(&job.target, "verify").await?;
    if !apply::knows(&target, &job.plan.name).await? {
        return Err(Problem::new(
            Code::NoTables,
            format!("plan {:?}", job.plan.name),
            "the target does not know of it: nothing of it has been copied",
            "start `crossfade run`, or `crossfade capture` and `crossfade apply`, first",
        )
        .into());
    }
    state::open(&target).await?;
    let (id, named, sample) = match options.resume {
        true => unfinished(&target).await?,
        false => {
            let id = state::begin(&target, &options.tables, options.sample, options.recheck).await?;
            (id, options.tables.clone(), options.sample)
        }
    };
    let comparison = Comparison {
        job,
        target: &target,
        id: &id,
        sample,
        recheck: options.recheck,
        mask: options.mask,
        found,
        totals: Totals::default(),
    };
    let mut tables = Vec::new();
    for (source, endpoint) in job.plan.sources.iter().zip(&job.sources) {
        tables.extend(comparison.source(&source.name, endpoint, &named).await?);
    }
    state::end(&target, &id).await?;
    if tables.is_empty() {
        return Err(nothing(&named).into());
    }
    let lsn = tables.iter().filter(|table| table.verdict != Verdict::Inconclusive).map(|table| &table.lsn);
    let lsn = lsn.min_by_key(|lsn| lsn.parse::<model::Lsn>().unwrap_or_default()).cloned();
    Ok(Report {
        verdict: Verdict::of(tables.iter().map(|table| table.verdict)),
        id: id.clone(),
        lsn: lsn.unwrap_or_else(|| "0/0".to_owned()),
        held_ms: comparison.totals.held_ms.load(Ordering::Relaxed),
        seconds: begun.elapsed().as_secs_f64(),
        sample,
        fences: comparison.totals.fences.load(Ordering::Relaxed),
        no_prefix: comparison.totals.no_prefix.load(Ordering::Relaxed),
        tables,
    })
}

fn nothing(named: &[TableName]) -> Problem {
    let names: Vec<String> = named.iter().map(ToString::to_string).collect();
    let what = if names.is_empty() { "the plan".to_owned() } else { format!("table {}", names.join(", ")) };
    Problem::new(
        Code::NoTables,
        what,
        "no copy of it has begun: the plan does not select it, or has not been run yet",
        "correct the name (schema.table); `crossfade status` lists the tables",
    )
}

/// The comparison that was cut off: its id, its tables and its sample.
async fn unfinished(target: &Session) -> Result<(String, Vec<TableName>, Option<f64>), VerifyError> {
    let Some(known) = state::unfinished(target).await? else {
        return Err(Problem::new(
            Code::NothingToResume,
            "the last comparison",
            "none was cut off",
            "start one: `crossfade verify`",
        )
        .into());
    };
    let names = known.tables.iter().filter_map(|name| name.split_once('.'));
    Ok((known.id, names.map(|(schema, name)| TableName::new(schema, name)).collect(), known.sample))
}

/// What a report adds up over the fences.
#[derive(Default)]
struct Totals {
    held_ms: AtomicU64,
    fences: AtomicU64,
    no_prefix: AtomicU64,
}

/// A source.
struct Origin<'a> {
    name: &'a str,
    endpoint: &'a Endpoint,
    /// What the plan's markers carry.
    nonce: String,
    /// How its rows and the target's are hashed.
    hash: Hash,
}

struct Comparison<'a> {
    job: &'a Job,
    target: &'a Session,
    id: &'a str,
    sample: Option<f64>,
    recheck: bool,
    mask: bool,
    found: &'a (dyn Fn(&str, &TableName, &Difference) + Sync),
    totals: Totals,
}

impl Comparison<'_> {
    /// Compares the tables of a source.
    async fn source(
        &self,
        name: &str,
        endpoint: &Endpoint,
        only: &[TableName],
    ) -> Result<Vec<TableReport>, VerifyError> {
        let session = pg::connect_read_only(endpoint, "verify").await?;
        let loaded = pair::load(&session, self.target, name, only).await?;
        let mut why: BTreeMap<TableName, String> = loaded.inconclusive.into_iter().collect();
        let pairs: Vec<Arc<Pair>> = loaded.pairs.into_iter().map(Arc::new).collect();
        let touched = self.touched(name, &pairs).await?;
        let mut open = VecDeque::new();
        for pair in &pairs {
            let few = touched.as_ref().is_some_and(|touched| touched.keys(&pair.table).is_some());
            open.extend(self.parts(&session, name, pair, few).await?);
        }
        let touched = touched.map(tokio::sync::Mutex::new);
        let hash = Hash::of(&session, self.target).await?;
        let origin = Origin { name, endpoint, nonce: nonce(self.job, name).await?, hash };
        drop(session);
        self.rounds(&origin, open, touched.as_ref(), &mut why).await?;
        self.say(&origin).await?;
        let mut tables = Vec::new();
        for table in pairs.iter().map(|pair| &pair.table).chain(why.keys()).collect::<BTreeSet<_>>() {
            tables.push(self.judge(name, table, why.get(table)).await?);
        }
        Ok(tables)
    }

    /// The parts of a table that are still to be compared; with `few` touched rows only these.
    async fn parts(&self, source: &Session, name: &str, pair: &Arc<Pair>, few: bool) -> Result<Vec<Part>, VerifyError> {
        let known = state::parts(self.target, self.id, name, pair).await?;
        if !known.is_empty() {
            return Ok(known.into_iter().filter(|(_, done)| !done).map(|(part, _)| part).collect());
        }
        let parts = match (few, self.sample) {
            (true, _) => vec![parts::touched(pair)],
            (false, None) => parts::divide(source, pair).await?,
            (false, Some(percent)) => parts::sample(parts::divide(source, pair).await?, percent),
        };
        state::add(self.target, self.id, name, &parts).await?;
        Ok(parts)
    }

    /// What was touched of tables that were equal, if only that is to be compared.
    async fn touched(&self, name: &str, pairs: &[Arc<Pair>]) -> Result<Option<Touched<'_>>, VerifyError> {
        if !self.recheck {
            return Ok(None);
        }
        let (mut equal, mut from) = (Vec::new(), Seq(u64::MAX));
        for pair in pairs {
            if let Some((lsn, seq)) = state::last_equal(self.target, name, &pair.table).await? {
                equal.push((Arc::clone(pair), lsn));
                from = from.min(seq);
            }
        }
        let query = "SELECT seq FROM crossfade.checkpoint WHERE source = $1::text";
        let now = Seq(self.target.query_one(query, &[&name]).await?.get::<_, i64>(0) as u64);
        let stream = log::StreamName::new(&*self.job.plan.name, name, StreamKind::Tail);
        if equal.is_empty() {
            return Ok(None);
        }
        let mut touched = Touched::new(&self.job.log, stream, from, equal);
        match touched.until(now).await {
            Ok(()) => Ok(Some(touched)),
            // The log does not go back so far: everything is compared.
            Err(VerifyError::Log(log::LogError::Missing { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts what the target held into the log, by way of the source: whoever replays it can compare.
    async fn say(&self, origin: &Origin<'_>) -> Result<(), VerifyError> {
        let session = pg::connect(origin.endpoint, "verify").await?;
        let held = state::held(self.target, self.id, origin.name, &origin.hash.name()).await?;
        for lines in held.chunks(LINES) {
            let data = lines.join("\n");
            let marker = Marker { data, ..Marker::new(&origin.nonce, MarkerKind::Verified, self.id) };
            capture::emit_marker(&session, &marker).await?;
        }
        Ok(())
    }

    /// Brings both sides together as often as it takes; notes `why` nothing can be said of a table.
    async fn rounds(
        &self,
        origin: &Origin<'_>,
        mut open: VecDeque<Part>,
        touched: Option<&tokio::sync::Mutex<Touched<'_>>>,
        why: &mut BTreeMap<TableName, String>,
    ) -> Result<(), VerifyError> {
        let plan = &self.job.plan;
        let purpose = format!("verify {}", &self.id[..8]);
        let pace = Pace::new(plan.verify.rows_per_second);
        let progress = Progress::new(open.len());
        let (mut tries, mut tables) = (0, TABLES);
        while !open.is_empty() {
            let parts = some(&open, tables);
            let round = Round {
                ends: Ends {
                    plan: &plan.name,
                    source: origin.name,
                    nonce: &origin.nonce,
                    endpoints: [origin.endpoint, &self.job.target],
                    log: &self.job.log,
                    readers: plan.verify.connections.min(parts.len()),
                    hold: plan.verify.hold,
                    purpose: &purpose,
                },
                hash: origin.hash,
                renew: plan.verify.renew,
                lock_timeout: plan.limits.lock_timeout,
                pace: &pace,
                touched,
            };
            let finished = tokio::sync::Mutex::new(BTreeSet::new());
            let result = round
                .run(&parts, async |part: &Part, done: Done| {
                    self.noted(origin.name, part, done).await?;
                    finished.lock().await.insert((part.pair.table.clone(), part.number));
                    progress.done();
                    Ok(())
                })
                .await;
            let finished = finished.into_inner();
            open.retain(|part| !finished.contains(&(part.pair.table.clone(), part.number)));
            if !finished.is_empty() {
                (tries, tables) = (0, TABLES.min(tables * 2));
            }
            let error = match result {
                Ok(passed) => {
                    self.totals.fences.fetch_add(1, Ordering::Relaxed);
                    self.totals.no_prefix.fetch_add(u64::from(passed.no_prefix), Ordering::Relaxed);
                    continue;
                }
                Err(VerifyError::Table(table, reason)) => {
                    open.retain(|part| part.pair.table != table);
                    why.insert(table, reason);
                    continue;
                }
                Err(error) => error,
            };
            match error {
                VerifyError::Still(_) => give_up(&mut open, None, &error, why),
                error if error.retry() && tries < TRIES => {
                    tries += 1;
                    info!("once more: {error}");
                    tokio::time::sleep((PAUSE * tries).min(REST)).await;
                    // Whoever is in the way of one table need not be in that of the others: it comes last in the end, and alone.
                    if tables == 1 {
                        open.rotate_left(parts.len().saturating_sub(finished.len()));
                    }
                    tables = (tables / 2).max(1);
                }
                error if error.retry() => give_up(&mut open, Some(&parts), &error, why),
                error => return Err(error),
            }
        }
        Ok(())
    }

    /// Notes a part that is done, and tells of the rows.
    async fn noted(&self, source: &str, part: &Part, mut done: Done) -> Result<(), VerifyError> {
        if self.mask {
            done.found = done.found.into_iter().map(Difference::masked).collect();
        }
        for difference in &done.found {
            (self.found)(source, &part.pair.table, difference);
        }
        state::done(self.target, self.id, source, part, &done).await
    }

    /// The verdict on a table, from its parts.
    async fn judge(&self, source: &str, table: &TableName, why: Option<&String>) -> Result<TableReport, VerifyError> {
        let found: Found = state::found(self.target, self.id, source, table).await?;
        let verdict = match found.missing + found.extra + found.different {
            0 if why.is_some() || found.open > 0 => Verdict::Inconclusive,
            0 => Verdict::Equal,
            _ => Verdict::Different,
        };
        let report = TableReport {
            source: source.to_owned(),
            table: table.to_string(),
            verdict,
            why: why.cloned(),
            lsn: found.lsn,
            rows: found.rows,
            missing: found.missing.unsigned_abs(),
            extra: found.extra.unsigned_abs(),
            different: found.different.unsigned_abs(),
            more: found.more,
            rechecked: found.rechecked.unsigned_abs(),
            samples: found.samples,
        };
        self.totals.held_ms.fetch_max(found.held_ms.unsigned_abs(), Ordering::Relaxed);
        state::judge(self.target, self.id, self.sample, table, found.seq, &report).await?;
        Ok(report)
    }
}

/// What the plan's markers carry.
pub(crate) async fn nonce(job: &Job, source: &str) -> Result<String, VerifyError> {
    let stream = log::StreamName::new(&*job.plan.name, source, StreamKind::Copy);
    let log = job.log.open().await?;
    match log::get_record(&*log, &stream, Seq(1)).await? {
        Record::Header(header) => Ok(header.nonce),
        _ => {
            Err(log::LogError::Damaged(model::DecodeError::Field("the copy stream does not begin with a header"))
                .into())
        }
    }
}

/// Nothing can be said of the tables of these parts; without, of any.
fn give_up(
    open: &mut VecDeque<Part>,
    parts: Option<&[Part]>,
    error: &VerifyError,
    why: &mut BTreeMap<TableName, String>,
) {
    warn!("gives up: {error}");
    let tables: BTreeSet<TableName> = match parts {
        Some(parts) => parts.iter().map(|part| part.pair.table.clone()).collect(),
        None => open.iter().map(|part| part.pair.table.clone()).collect(),
    };
    open.retain(|part| !tables.contains(&part.pair.table));
    why.extend(tables.into_iter().map(|table| (table, error.to_string())));
}

/// The parts of the first so many tables.
fn some(open: &VecDeque<Part>, tables: usize) -> Vec<Part> {
    let mut taken = BTreeSet::new();
    let mut take = |part: &Part| {
        taken.contains(&part.pair.table) || (taken.len() < tables && taken.insert(part.pair.table.clone()))
    };
    open.iter().filter(|part| take(part)).cloned().collect()
}

/// Tells how far it is.
struct Progress {
    begun: Instant,
    told: std::sync::Mutex<Instant>,
    all: usize,
    done: AtomicUsize,
}

impl Progress {
    fn new(all: usize) -> Progress {
        Progress { begun: Instant::now(), told: std::sync::Mutex::new(Instant::now()), all, done: AtomicUsize::new(0) }
    }

    fn done(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.elapsed() >= TOLD && done < self.all {
            *told = Instant::now();
            let left = self.begun.elapsed().as_secs_f64() / done as f64 * (self.all - done) as f64;
            info!("{done} of {} parts compared, about {left:.0} s to go", self.all);
        }
    }
}
