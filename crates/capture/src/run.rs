use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use std::time::Duration;

use ::log::{Log, LogError};
use model::{Backoff, Code, Header, Identity, Lsn, Oid, Problem};
use offsets::Store;
use pg::catalog::Table;
use pg::{Endpoint, Session};
use plan::{Plan, Source};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::copy::Progress;
use crate::{CaptureError, barrier, claim, copy, preflight, publication, select, slot, tail, watch};

/// What capture of one source needs.
#[derive(Clone)]
pub struct Job {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The source in it.
    pub source: Source,
    /// How to reach it.
    pub endpoint: Endpoint,
    /// Where everything goes.
    pub log: Arc<dyn Log>,
    /// The local store.
    pub offsets: Store,
    /// Which database the plan leads into.
    pub target: Identity,
    /// A value of this plan's own, used if the log has none yet.
    pub nonce: String,
    /// `host:pid` of this process, for people.
    pub worker: String,
}

/// What the parts of a running capture share.
pub(crate) struct Running {
    pub job: Job,
    pub header: Header,
    /// A 64-bit transaction id near those that are in use, for widening the 32-bit ones of the tail.
    pub near: AtomicU64,
    /// Under which it copies.
    pub writer: String,
    /// Those of the tail that this process has been.
    pub writers: tail::Writers,
    /// Id of the last catalog marker that came back through the tail.
    pub catalog: tokio::sync::watch::Sender<String>,
    /// The plan's tables when they were published: what is copied, and what must stay as it was.
    pub tables: Vec<Table>,
    truncated: Mutex<HashMap<Oid, u64>>,
}

impl Running {
    /// The tail has seen these tables emptied.
    pub fn note_truncate(&self, tables: &[Oid]) {
        let mut counts = self.truncated.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for table in tables {
            *counts.entry(*table).or_default() += 1;
        }
    }

    /// How often the tail has seen tables emptied.
    pub fn truncates(&self) -> HashMap<Oid, u64> {
        self.truncated.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Captures a source until `stop` is cancelled. Once it has run, connections that break are made anew for ever.
///
/// # Errors
/// It could not start, or something stopped it that only a person can mend.
pub async fn run(job: Job, stop: CancellationToken) -> Result<(), Problem> {
    let mut started = false;
    let writers = tail::Writers::default();
    let mut backoff = Backoff::default();
    loop {
        let begun = tokio::time::Instant::now();
        let error = match attempt(&job, &stop, &mut started, &writers).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !started || !(error.retry() || error.is_barrier_timeout()) {
            return Err(error.into());
        }
        let pause = backoff.after(begun.elapsed());
        warn!(source = job.source.name, "capture is interrupted: {error}; trying again in {} ms", pause.as_millis());
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn attempt(
    job: &Job,
    stop: &CancellationToken,
    started: &mut bool,
    writers: &tail::Writers,
) -> Result<(), CaptureError> {
    let ready = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        ready = prepare(job, !*started, writers) => ready?,
    };
    *started = true;
    let Ready { running, from } = ready;
    let running = Arc::new(running);
    let (begun, holds_slot) = tokio::sync::watch::channel(false);
    // The tail ends the others when it stops; they end it when they fail.
    let tail = follow(&running, from, begun, stop);
    let copy = async {
        // Only who holds the slot copies: two at once would number their epochs and chunks alike.
        if holds_slot.clone().wait_for(|holds| *holds).await.is_ok() {
            copy::run(&running).await?;
        }
        std::future::pending::<Result<(), CaptureError>>().await
    };
    tokio::select! {
        biased;
        result = tail => result,
        result = copy => result,
        result = watch::run(&running) => result,
    }
}

/// The tail, begun again as often as the log is full: what waits for room must not cost the tables' copies their epochs.
async fn follow(
    running: &Arc<Running>,
    mut from: tail::Resume,
    begun: tokio::sync::watch::Sender<bool>,
    stop: &CancellationToken,
) -> Result<(), CaptureError> {
    loop {
        match tail::run(Arc::clone(running), from, &begun, stop).await {
            Err(CaptureError::Log(LogError::Full)) => {
                warn!(source = running.job.source.name, "the log is full; the tail waits until there is room");
            }
            other => return other,
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(FULL) => {}
        }
        let resume = tail::resume_point(&*running.job.log, &running.job.offsets, &running.header).await?;
        from = tail::Resume { lsn: resume.lsn.or(from.lsn), ..resume };
    }
}

/// How often a full log is tried again.
const FULL: Duration = Duration::from_secs(2);

struct Ready {
    running: Running,
    /// Where the tail goes on.
    from: tail::Resume,
}

/// Everything that comes before the first row: identity, streams, publication, slot, gap check.
async fn prepare(job: &Job, first: bool, writers: &tail::Writers) -> Result<Ready, CaptureError> {
    let session = pg::connect(&job.endpoint, "capture").await?;
    if first {
        // Later, what it would find may pass: a server that is not done with its restart, senders that are busy.
        let findings = preflight(&job.plan, &job.source, &session).await?;
        if let Some(blocker) = findings.into_iter().find(|finding| finding.severity == model::Severity::Blocker) {
            return Err(blocker.problem.into());
        }
    }
    let header = claim_streams(job, &session).await?;
    writers.check(&*job.log, &claim::streams(&job.plan.name, &job.source.name).tail).await?;
    let progress = copy::progress(&job.log, &header).await?;
    let name = slot::slot_name(&job.plan.name, &job.source.name);
    let limit = job.plan.limits.barrier_timeout;
    let found = slot::settled(&session, &name, limit).await?;
    let resume = tail::resume_point(&*job.log, &job.offsets, &header).await?;
    check_chain(&header, &name, found.as_ref(), resume, &progress)?;

    let tables = select::tables(&session, &job.source).await?;
    progress.check_columns(&tables)?;
    let changed =
        publication::publish(&session, job, &tables, |table| found.is_some() && progress.is_done(table)).await?;
    let lsn = match (&found, resume.lsn) {
        (Some(_), Some(lsn)) => lsn,
        // Nothing was logged since the slot was made, so nothing was confirmed either: it still stands at its start.
        (Some(slot), None) => slot.confirmed,
        (None, _) => slot::create(&session, &job.endpoint, &name, limit).await?,
    };
    if changed || found.is_none() || !progress.complete(&tables) {
        barrier::pass(&session, limit).await?;
    }
    let near: String = session.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?.get(0);
    let near = AtomicU64::new(near.parse().unwrap_or_default());
    info!(source = job.source.name, tables = tables.len(), from = %lsn, "capture starts");
    Ok(Ready {
        running: Running {
            job: job.clone(),
            header,
            near,
            writer: uuid::Uuid::new_v4().to_string(),
            writers: writers.clone(),
            catalog: tokio::sync::watch::Sender::new(String::new()),
            tables,
            truncated: Mutex::default(),
        },
        from: tail::Resume { lsn: Some(lsn), ..resume },
    })
}

async fn claim_streams(job: &Job, session: &Session) -> Result<Header, CaptureError> {
    let identity = pg::catalog::identity(session).await?;
    let header = Header {
        plan: job.plan.name.clone(),
        source: job.source.name.clone(),
        nonce: job.nonce.clone(),
        source_identity: identity,
        target_identity: job.target.clone(),
    };
    claim::claim(&*job.log, header).await
}

/// Slot, log and copy must meet without a gap.
fn check_chain(
    header: &Header,
    name: &str,
    slot: Option<&slot::SlotState>,
    resume: tail::Resume,
    progress: &Progress,
) -> Result<(), Problem> {
    let begun = resume.lsn.is_some() || progress.begun();
    let lost = |why: &str| {
        Problem::new(
            Code::SlotLost,
            format!("slot {name} of source {:?}", header.source),
            why,
            "the changes in between are gone: end the plan with `crossfade complete`, empty the target, and start anew",
        )
    };
    match slot {
        None if begun => Err(lost("it does not exist any more")),
        Some(slot) if slot.wal_status == "lost" => {
            Err(lost("the server has removed WAL that it needs (max_slot_wal_keep_size)"))
        }
        Some(_) if resume.lsn.is_none() && progress.begun() => {
            Err(claim::gap(header, "the tail stream is empty although tables have been copied: it was purged"))
        }
        Some(slot) if resume.lsn.is_some_and(|lsn| slot.confirmed > lsn) => Err(claim::gap(
            header,
            format!(
                "the log ends at {}, the slot was told that everything up to {} is safe: the log has lost what is between",
                resume.lsn.unwrap_or(Lsn::ZERO),
                slot.confirmed
            ),
        )),
        None | Some(_) => Ok(()),
    }
}
