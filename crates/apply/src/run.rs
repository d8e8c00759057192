use std::sync::Arc;
use std::time::Duration;

use log::{Log, StreamKind, StreamName};
use model::{Backoff, Code, Header, Problem, Record, Seq};
use pg::{Endpoint, Session};
use plan::Plan;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::panicked;
use crate::tail::CutOff;
use crate::{
    ApplyError, control, copy, derived, findings, lease, preflight, recopy, rogue, schema, session, state, tables, tail,
};

/// What apply needs.
#[derive(Clone)]
pub struct Job {
    /// The plan.
    pub plan: Arc<Plan>,
    /// How to reach the target.
    pub endpoint: Endpoint,
    /// Where everything comes from.
    pub log: Arc<dyn Log>,
    /// `host:pid`, unique among the processes of a plan.
    pub worker: String,
    /// What it has learnt of the log; empty to begin with.
    pub cut_off: CutOff,
    /// Nobody captures what it writes: it needs no replication origins.
    pub alone: bool,
}

impl Job {
    pub(crate) fn stream(&self, source: &str, kind: StreamKind) -> StreamName {
        StreamName { plan: self.plan.name.clone(), source: source.to_owned(), kind }
    }
}

/// How often an apply process without the lease asks for it.
const ASK: Duration = Duration::from_secs(1);

/// How often it is looked whether capture has begun.
const LOOK: Duration = Duration::from_millis(100);

/// Applies the log to the target until `stop` is cancelled. Once it has run, connections that break are made anew for ever.
///
/// # Errors
/// It could not start, or something stopped it that only a person can mend.
pub async fn run(job: Job, stop: CancellationToken) -> Result<(), Problem> {
    let job = Arc::new(job);
    let mut started = false;
    let held = lease::Held::default();
    let mut backoff = Backoff::default();
    loop {
        let begun = tokio::time::Instant::now();
        let error = match attempt(&job, &stop, &mut started, &held).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !error.retry() || !started {
            let problem = error.into();
            if started {
                note(&job, &problem, &stop).await;
            }
            return Err(problem);
        }
        let pause = if matches!(error, ApplyError::Barred) {
            // Not a failure: once the application writes to the other side again, what it writes there is waited for.
            backoff = Backoff::default();
            info!("apply rests: {error}");
            LOOK
        } else {
            let pause = backoff.after(begun.elapsed());
            warn!("apply is interrupted: {error}; trying again in {} ms", pause.as_millis());
            pause
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Leaves word in the target of what has stopped this process. If it cannot, its own output says so all the same.
async fn note(job: &Job, problem: &Problem, stop: &CancellationToken) {
    let noted = tokio::time::timeout(NOTED, lease::stopped(&job.endpoint, &job.worker, problem));
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        noted = noted => match noted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("`crossfade status` will not say what has stopped apply: {error}"),
            Err(_) => warn!("`crossfade status` will not say what has stopped apply: the target does not answer"),
        },
    }
}

/// How long that may hold up the end: it takes milliseconds where the target can be reached.
const NOTED: Duration = Duration::from_secs(2);

async fn attempt(
    job: &Arc<Job>,
    stop: &CancellationToken,
    started: &mut bool,
    held: &lease::Held,
) -> Result<(), ApplyError> {
    let session = pg::connect(&job.endpoint, "apply").await?;
    let Some(headers) = headers(job, &session, stop).await? else { return Ok(()) };
    check_target(&headers, &pg::catalog::identity(&session).await?)?;
    if !state::exists(&session).await?
        && let Some(problem) = preflight::refusal(preflight(&job.plan, &session).await?)
    {
        return Err(problem.into());
    }
    state::open(&session, &headers, job.plan.is_back()).await?;
    if !job.plan.is_back() {
        tables::enclose_all(&session).await?;
    }
    drop(session);
    *started = true;

    let mut tasks = JoinSet::new();
    let inner = stop.child_token();
    for _ in 0..job.plan.limits.copy_workers.max(1) {
        tasks.spawn(copy::work(Arc::clone(job), inner.clone()));
    }
    let (beat, ended) = (Arc::clone(job), inner.clone());
    tasks.spawn(async move {
        tokio::select! {
            biased;
            () = ended.cancelled() => Ok(()),
            result = lease::beat(&beat.endpoint, &beat.worker) => result,
        }
    });
    tasks.spawn(lead(Arc::clone(job), headers, held.clone(), inner.clone()));
    let result = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            ended = tasks.join_next() => match ended {
                Some(Ok(Ok(()))) | None => {}
                Some(Ok(Err(error))) => break Err(error),
                Some(Err(error)) => break Err(panicked(error)),
            },
        }
    };
    inner.cancel();
    // A copy worker or the tail that is in the middle of a transaction may end it; the rest is undone by the servers.
    let _ = tokio::time::timeout(STOPPING, async {
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Err(error)) = ended {
                warn!("while stopping: {error}");
            }
        }
    })
    .await;
    result
}

/// How long a stop waits for transactions under way; a stop has to be over within five seconds.
const STOPPING: Duration = Duration::from_secs(3);

/// Waits until capture has put a header into each source's copy stream.
///
/// # Errors
/// There is none, and the target has taken in records that were there before.
async fn headers(job: &Job, session: &Session, stop: &CancellationToken) -> Result<Option<Vec<Header>>, ApplyError> {
    let mut headers = Vec::new();
    for source in &job.plan.sources {
        let stream = job.stream(&source.name, StreamKind::Copy);
        let header = loop {
            // Before the log is asked: another process may take in what it gets right behind that.
            let taken = state::has_taken(session, &source.name).await?;
            model::failpoint!("taken_asked");
            let there = job.log.state(&stream).await?.is_some_and(|state| state.last > Seq::ZERO);
            if there {
                match log::get_record(&*job.log, &stream, Seq::ZERO.next()).await? {
                    Record::Header(header) => break header,
                    _ => {
                        return Err(log::LogError::Damaged(model::DecodeError::Field(
                            "the copy stream does not begin with a header",
                        ))
                        .into());
                    }
                }
            }
            if taken {
                let why = "the copy stream is gone, of which the target has taken in a part";
                return Err(recopy::gap(format!("the log of source {:?}", source.name), why));
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(LOOK) => {}
            }
        };
        headers.push(header);
    }
    Ok(Some(headers))
}

fn check_target(headers: &[Header], target: &model::Identity) -> Result<(), Problem> {
    match headers.iter().find(|header| header.target_identity != *target) {
        None => Ok(()),
        Some(header) => Err(Problem::new(
            Code::PlanNameTaken,
            format!("plan {:?} on the log", header.plan),
            format!(
                "its streams lead into database {:?} of cluster {}, this plan's target is {:?} of {}",
                header.target_identity.database,
                header.target_identity.system_identifier,
                target.database,
                target.system_identifier
            ),
            "give this plan another name, or end the other one with `crossfade complete`",
        )),
    }
}

/// Waits for the lease, and then does what only its holder may.
async fn lead(
    job: Arc<Job>,
    headers: Vec<Header>,
    held: lease::Held,
    stop: CancellationToken,
) -> Result<(), ApplyError> {
    let session = session::writer(&job, "apply tail").await?;
    let lease = loop {
        match lease::acquire(&session, &job.worker, &held).await? {
            Some(lease) => break lease,
            None => tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(ASK) => {}
            },
        }
    };
    info!(worker = job.worker, token = lease.token, "holds the lease");
    let mut followers = JoinSet::new();
    let mut caught_up = Vec::new();
    for header in &headers {
        let (sender, receiver) = watch::channel(false);
        caught_up.push(receiver);
        followers.spawn(control::follow(Arc::clone(&job), lease, header.source.clone(), sender));
    }
    if let Some(back) = job.plan.back() {
        for source in back.sources {
            followers.spawn(rogue::watch(Arc::clone(&job), lease, source.name));
        }
    }
    if !job.plan.findings.is_empty() {
        followers.spawn(findings::watch(Arc::clone(&job)));
    }
    let follow = async {
        match followers.join_next().await {
            Some(ended) => ended.map_err(panicked)?,
            None => std::future::pending().await,
        }
    };
    let tail = async {
        // What is said there may be that the tail starts anew, or leaves tables alone that it would not fit to.
        for taken in &mut caught_up {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                taken = taken.wait_for(|taken| *taken) => taken.is_err(),
            };
            if ended {
                // Its own result says why.
                return std::future::pending().await;
            }
        }
        if recopy::waits(&session).await? {
            info!("everything is to be copied again; waiting for capture to begin");
            stop.cancelled().await;
            return Ok(());
        }
        derived::look(&session, lease, &job.plan).await?;
        tail::run(&job, &session, lease, &stop).await
    };
    let result = tokio::select! {
        biased;
        result = tail => result,
        result = follow => result,
        result = schema::finish(&job, lease) => result,
    };
    if result.is_ok() {
        lease.release(&session).await?;
    }
    result
}
