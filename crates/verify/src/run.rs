use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::StreamKind;
use model::{Code, Lsn, Problem, Record, Seq, TableName};
use pg::{Endpoint, Session};
use plan::Plan;
use tokio::time::Instant;

use crate::comparison::{Comparison, Notes, Totals};
use crate::error::VerifyError;
use crate::report::{Report, Verdict};
use crate::{Difference, LogAccess, state};

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

/// How often a comparison goes on that locks of the application were in the way of: it waits behind the application's sessions, and any of those that wait may be a deadlock's victim.
const TRIES: u32 = 10;

/// Who is told of a comparison while it is under way.
pub trait Watch: Sync {
    /// It has begun: from here on what is done is kept, and can be gone on with.
    fn begun(&self);

    /// A row differs, of this source and table.
    fn found(&self, source: &str, table: &TableName, difference: &Difference);

    /// It has come to its end, and cannot be gone on with.
    fn ended(&self);
}

/// Nobody is told.
impl Watch for () {
    fn begun(&self) {}

    fn found(&self, _: &str, _: &TableName, _: &Difference) {}

    fn ended(&self) {}
}

/// Compares both sides, and tells `watch` of it.
///
/// # Errors
/// It could not run; what was done stays done, and can be gone on with.
pub async fn run(job: &Job, options: &Options, watch: &dyn Watch) -> Result<Report, Problem> {
    Ok(compare(job, options, watch).await?)
}

async fn compare(job: &Job, options: &Options, watch: &dyn Watch) -> Result<Report, VerifyError> {
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
    let comparison = Comparison::new(job, Notes::new(&job.target, target, &id).await?, &id, sample, options, watch);
    watch.begun();
    let mut tables = Vec::new();
    for (source, endpoint) in job.plan.sources.iter().zip(&job.sources) {
        let mut tries = 1;
        tables.extend(loop {
            match comparison.source(source, endpoint, &named).await {
                // Of the application's; what is done is noted, and not done again.
                Err(error) if error.locked_out() && tries < TRIES => {
                    tries += 1;
                    tracing::info!(source = source.name, "once more: {error}");
                }
                compared => break compared?,
            }
        });
    }
    tables.extend(comparison.derived(&named).await?);
    // What an earlier run of it had done is not given up because nobody moves the tail just now.
    if !(options.resume && comparison.totals.idle.load(Ordering::Relaxed)) {
        state::end(&*comparison.notes.session().await?, &id).await?;
        watch.ended();
    }
    if tables.is_empty() {
        return Err(nothing(&named).into());
    }
    let lsn = tables.iter().filter(|table| table.verdict != Verdict::Inconclusive).map(|table| &table.lsn);
    let lsn = lsn.min_by_key(|lsn| lsn.parse::<Lsn>().unwrap_or_default()).cloned();
    let Totals { held_ms, fences, no_prefix, .. } = comparison.totals;
    Ok(Report {
        verdict: Verdict::of(tables.iter().map(|table| table.verdict)),
        why: tables.iter().find_map(|table| table.why.clone()),
        lsn: lsn.unwrap_or_else(|| "0/0".to_owned()),
        held_ms: held_ms.into_inner(),
        seconds: begun.elapsed().as_secs_f64(),
        sample,
        fences: fences.into_inner(),
        no_prefix: no_prefix.into_inner(),
        tables,
        findings: Vec::new(),
        id,
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
            "it was not cut off: only the last one can be gone on with, and a later one takes its place",
            "start one: `crossfade verify`",
        )
        .into());
    };
    let names = known.tables.iter().filter_map(|name| name.split_once('.'));
    Ok((known.id, names.map(|(schema, name)| TableName::new(schema, name)).collect(), known.sample))
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
