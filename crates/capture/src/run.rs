use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use std::time::Duration;

use ::log::{Log, LogError};
use model::{Backoff, Header, Identity, Oid, Problem};
use offsets::Store;
use pg::Endpoint;
use pg::catalog::Table;
use plan::{Plan, Source};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::copy::Progress;
use crate::{CaptureError, barrier, chain, claim, copy, guard, preflight, publication, select, slot, tail, watch};

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
    /// The recopy of everything for which the tail has to start anew; none once it has.
    pub anew: Mutex<Option<String>>,
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

    /// The recopy of everything for which the tail has to start anew.
    pub fn anew(&self) -> Option<String> {
        self.anew.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The tail has started anew, and that is logged.
    pub fn begun_anew(&self) {
        self.anew.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
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
    let kept = tokio::select! {
        biased;
        result = capture(&job, &stop) => return result,
        kept = guard::watch(&job) => kept,
    };
    Err(guard::give_up(&job, kept).await)
}

async fn capture(job: &Job, stop: &CancellationToken) -> Result<(), Problem> {
    let mut started = false;
    let writers = tail::Writers::default();
    let mut backoff = Backoff::default();
    loop {
        let begun = tokio::time::Instant::now();
        let error = match attempt(job, stop, &mut started, &writers).await {
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
    let Ready { running, from, progress } = ready;
    let running = Arc::new(running);
    let (begun, holds_slot) = tokio::sync::watch::channel(false);
    // The tail ends the others when it stops; they end it when they fail.
    let tail = follow(&running, from, begun, stop);
    let copy = async {
        // Only who holds the slot copies: two at once would number their epochs and chunks alike. On the way back the rows are there already.
        if !running.job.plan.is_back() && holds_slot.clone().wait_for(|holds| *holds).await.is_ok() {
            copy::run(&running, progress).await?;
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
            // Not before it has started anew: that begins with a slot of its own.
            Err(CaptureError::Log(LogError::Full)) if running.anew().is_none() => {
                warn!(source = running.job.source.name, "the log is full; the tail waits until there is room");
            }
            other => return other,
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(FULL) => {}
        }
        let resume = tail::resume_point(&*running.job.log, &running.job.offsets, &running.header, from.begin).await?;
        from = tail::Resume { lsn: resume.lsn.or(from.lsn), ..resume };
    }
}

/// How often a full log is tried again.
const FULL: Duration = Duration::from_secs(2);

struct Ready {
    running: Running,
    /// Where the tail goes on.
    from: tail::Resume,
    progress: Progress,
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
    let identity = pg::catalog::identity(&session).await?;
    let header = claim_streams(job, identity.clone()).await?;
    writers.check(&*job.log, &claim::streams(&job.plan.name, &job.source.name).tail).await?;
    let progress = copy::progress(&job.log, &header).await?;
    claim::compare_source(&header, progress.source_identity(&header), &identity)?;
    let anew = progress.anew().map(str::to_owned);
    let name = slot::slot_name(&job.plan.name, &job.source.name);
    let limit = job.plan.limits.barrier_timeout;
    let mut found = slot::settled(&session, &name, limit).await?;
    let mut resume = tail::resume_point(&*job.log, &job.offsets, &header, progress.tail_begin()).await?;
    if anew.is_some() {
        // What it still could send does not meet what the log has, or is not wanted.
        slot::give_up(&session, &name).await?;
        (found, resume.lsn) = (None, None);
    } else {
        let position = pg::catalog::wal_position(&session).await?;
        chain::check(&header, &name, found.as_ref(), resume, &progress, position)?;
    }

    let mut tables = select::tables(&session, &job.source).await?;
    progress.check_columns(&tables)?;
    let changed =
        publication::publish(&session, job, &tables, |table| found.is_some() && progress.is_done(table)).await?;
    if found.is_none() {
        slot::create(&session, &job.endpoint, &name, limit).await?;
    }
    if resume.lsn.is_none() {
        publication::touch(&session, &job.plan.name, &job.source.name).await?;
        model::failpoint!("catalog_touched");
    }
    let copied = job.plan.is_back() || progress.complete(&tables);
    let wait = changed || resume.lsn.is_none() || !copied;
    if wait {
        barrier::pass(&session, limit).await?;
        model::failpoint!("barrier_passed");
    }
    let lsn = match resume.lsn {
        Some(lsn) => lsn,
        // Not where the slot starts: whoever commits from here on began after the catalog was touched. Who committed before is not in the tail, and may not be visible
        // yet: another barrier.
        None => {
            let written = barrier::written(&session).await?;
            barrier::flushed(&session, written).await?;
            barrier::pass(&session, limit).await?;
            written
        }
    };
    if wait {
        refresh(&mut tables, &select::tables(&session, &job.source).await?, &progress);
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
            anew: Mutex::new(anew),
            catalog: tokio::sync::watch::Sender::new(String::new()),
            tables,
            truncated: Mutex::default(),
        },
        from: tail::Resume { lsn: Some(lsn), ..resume },
        progress,
    })
}

/// The tail does not tell of a TRUNCATE before its start, or before the table was published: such a table has another heap than when it was looked at,
/// and nothing was missed. Only of tables that are still to be copied; of the others nobody may rewrite one unseen.
fn refresh(tables: &mut [Table], now: &[Table], progress: &Progress) {
    for table in tables.iter_mut().filter(|table| !progress.is_done(&table.name)) {
        if let Some(now) = now.iter().find(|now| now.oid == table.oid) {
            table.filenode = now.filenode;
        }
    }
}

async fn claim_streams(job: &Job, identity: Identity) -> Result<Header, CaptureError> {
    let header = Header {
        plan: job.plan.name.clone(),
        source: job.source.name.clone(),
        nonce: job.nonce.clone(),
        source_identity: identity,
        target_identity: job.target.clone(),
    };
    claim::claim(&*job.log, header).await
}
