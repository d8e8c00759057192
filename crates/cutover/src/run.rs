use std::time::Duration;

use apply::Counted;
use model::{Code, Problem, TableName};
use pg::Session;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bolts;
use crate::bouncer;
use crate::cancel::{self, Undone, cancel as undo};
use crate::drain::Ear;
use crate::error::CutoverError;
use crate::history::History;
use crate::journal::{self, Entry, State};
use crate::old::{self, Old};
use crate::report::{Outcome, Refusal, Report};
use crate::way::Way;
use crate::{forward, refusals, report};

/// What a cutover needs: what a comparison does.
pub struct Job {
    /// The plan, its endpoints and its log.
    pub verify: verify::Job,
}

/// What is asked of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Look only.
    pub dry_run: bool,
    /// How long it may take from the first step on; then it is cancelled.
    pub timeout: Duration,
    /// How far the target may be behind at the beginning.
    pub max_lag: Duration,
    /// How old the last verdict on a table may be.
    pub max_verify_age: Duration,
    /// What is written to the target afterwards need not go back.
    pub no_way_back: bool,
}

/// How far the target may be behind: most of it is made up for at once when nobody writes any more.
const NEAR: Duration = Duration::from_millis(300);

/// How far it may be where it does not come closer, for the machines are busy.
const NEAR_ENOUGH: Duration = Duration::from_secs(1);

/// For how long the better of the two is hoped for.
const HOPE: Duration = Duration::from_secs(3);

/// Rows that may be left to be compared while nobody can write: a fifth of a second's work.
const FEW: usize = 3_000;

/// How often it is tried to get there: each comparison leaves what is touched meanwhile.
const ROUNDS: u32 = 3;

/// How long what is committed at the target may be on its way into the way back's log.
const HEARD: Duration = Duration::from_secs(10);

/// Between two looks at what became of a decision that was sent.
const AGAIN: Duration = Duration::from_millis(250);

/// How long the target may be away before it is said that the outcome is unknown.
const UNKNOWN: Duration = Duration::from_secs(10);

/// Cuts over; what an earlier process has left is brought to its end first. `stop` cancels it, before the decision.
///
/// # Errors
/// It could not run.
pub async fn run(job: &Job, options: &Options, stop: &CancellationToken) -> Result<Report, Problem> {
    Ok(cut_over(job, options, stop).await?)
}

/// Cancels a cutover that is under way and not decided, whoever runs it.
///
/// # Errors
/// It could not run.
pub async fn cancel(job: &Job) -> Result<Report, Problem> {
    Ok(cancel_now(job).await?)
}

async fn cancel_now(job: &Job) -> Result<Report, CutoverError> {
    let target = target(job).await?;
    let nothing = || job.refused("nothing_to_cancel", format!("no {} is under way", job.name()));
    let decided = |epoch: i64| {
        job.refused("decided", format!("epoch {epoch} is decided: the {} is the writable side", job.opens()))
    };
    if journal::last(&target).await?.is_none() {
        return Ok(nothing());
    }
    let mut olds = olds(job).await?;
    let history = History::read(olds.iter().map(|old| &old.session), &target).await?;
    let Some(entry) = history.last.filter(|entry| entry.back == job.is_back()) else { return Ok(nothing()) };
    if entry.state > State::Cancelled {
        return Ok(decided(entry.epoch));
    }
    if entry.state == State::Cancelled && !closed(&olds).await? {
        // Who has cancelled it may not have reached them.
        bouncer::resume(&job.verify.plan).await?;
        return Ok(nothing());
    }
    match undo(&job.verify.plan, &mut olds, &target, entry.epoch, true, "somebody asked for it").await? {
        undone @ Undone { state: State::Cancelled, .. } => cancelled(&target, entry.epoch, undone).await,
        _ => Ok(decided(entry.epoch)),
    }
}

/// What is said of an epoch that is cancelled.
async fn cancelled(target: &Session, epoch: i64, undone: Undone) -> Result<Report, CutoverError> {
    let left: Vec<String> = undone.bolted.into_iter().chain(undone.paused).map(|problem| problem.to_string()).collect();
    let unfinished = Some(left.join("; ")).filter(|left| !left.is_empty());
    Ok(Report { unfinished, ..report::of(target, epoch, Outcome::Cancelled).await? })
}

impl Job {
    /// It leads back.
    pub(crate) fn is_back(&self) -> bool {
        self.verify.plan.is_back()
    }

    /// The command, as people call it.
    pub(crate) fn name(&self) -> &'static str {
        if self.is_back() { "rollback" } else { "cutover" }
    }

    /// The side that becomes writable, as people call it.
    pub(crate) fn opens(&self) -> &'static str {
        if self.is_back() { "source" } else { "target" }
    }

    /// The side that is closed, as people call it.
    pub(crate) fn closes(&self) -> &'static str {
        if self.is_back() { "target" } else { "source" }
    }

    /// A side that is closed, as people call it; `source` is its name in the plan.
    pub(crate) fn leaves(&self, source: &str) -> String {
        if self.is_back() { "the target".to_owned() } else { format!("source {source:?}") }
    }

    pub(crate) fn report(&self, outcome: Outcome) -> Report {
        Report { direction: self.verify.plan.direction.as_str(), ..Report::new(outcome) }
    }

    fn refused(&self, code: &'static str, text: String) -> Report {
        Report { refused: vec![Refusal { code, text }], ..self.report(Outcome::Refused) }
    }
}

async fn target(job: &Job) -> Result<Session, CutoverError> {
    let target = pg::connect(&job.verify.target, "cutover").await?;
    if !job.is_back() && !apply::knows(&target, &job.verify.plan.name).await? {
        return Err(Problem::new(
            Code::NoTables,
            format!("plan {:?}", job.verify.plan.name),
            "the target does not know of it: nothing of it has been copied",
            "start `crossfade run`, or `crossfade capture` and `crossfade apply`, first",
        )
        .into());
    }
    Ok(target)
}

async fn olds(job: &Job) -> Result<Vec<Old>, CutoverError> {
    let mut olds = Vec::new();
    for (source, endpoint) in job.verify.plan.sources.iter().zip(&job.verify.sources) {
        olds.push(Old::open(&job.verify.plan, source, endpoint).await?);
    }
    Ok(olds)
}

/// Whether a source is closed by a fence of ours.
async fn closed(olds: &[Old]) -> Result<bool, CutoverError> {
    let mut closed = false;
    for old in olds {
        closed |= old.look().await?.is_some_and(|line| line.closed);
    }
    Ok(closed)
}

/// All that is done before anything is changed.
struct Ready<'a> {
    target: Session,
    remainder: verify::Remainder<'a>,
    ear: Ear,
    findings: Vec<Counted>,
}

async fn cut_over(job: &Job, options: &Options, stop: &CancellationToken) -> Result<Report, CutoverError> {
    let ready = tokio::select! {
        biased;
        () = stop.cancelled() => return Err(CutoverError::GivenUp("it was told to stop before it had begun".to_owned())),
        ready = ready(job, options) => match ready? {
            Ok(ready) => ready,
            Err(report) => return Ok(*report),
        },
    };
    let Ready { target, mut remainder, mut ear, findings } = ready;
    journal::open(&target).await?;
    let mut olds = olds(job).await?;
    let history = History::read(olds.iter().map(|old| &old.session), &target).await?;
    if !history.leaves(&job.verify.plan) {
        return Err(CutoverError::Overtaken("another one has been decided meanwhile".to_owned()));
    }
    let epoch = history.epoch() + 1;
    for old in &mut olds {
        old.lead(options.timeout + cancel::LIMIT, false, epoch - 1).await?;
    }
    let token = olds.first().map_or(0, |old| old.token);
    journal::begin(&target, &job.verify.plan.direction, epoch, token).await?;
    model::failpoint!("cutover_begun");
    let mut way = Way::new(job, epoch, token, Instant::now() + options.timeout, options.no_way_back);
    let went = tokio::select! {
        biased;
        () = stop.cancelled() => Err(CutoverError::GivenUp("it was told to stop".to_owned())),
        () = tokio::time::sleep_until(way.until) => {
            Err(CutoverError::GivenUp(format!("it took longer than --timeout, {:?}", options.timeout)))
        }
        went = way.prepare(&target, &mut olds, &mut ear, &mut remainder) => went,
    };
    let went = match went {
        Ok(switch) => way.decide(&target, &switch).await,
        Err(error) => Err(error),
    };
    let target = match went {
        Ok(()) => target,
        // Whoever leads now brings it to an end. What this one has paused, the other one may have resumed before.
        Err(error @ CutoverError::Overtaken(_)) => {
            if way.paused {
                let _ = bouncer::resume(&job.verify.plan).await;
            }
            return Err(error);
        }
        Err(error) => {
            let problem = Problem::from(error);
            warn!("giving up: {problem}");
            // What it has under way there is over with it.
            drop(target);
            match give_up(job, &mut olds, epoch, &problem.why).await {
                Ok((undone @ Undone { state: State::Cancelled, .. }, target)) => {
                    let why = Some(format!("{}: {}; {}", problem.what, problem.why, problem.next));
                    return Ok(Report { why, ..cancelled(&target, epoch, undone).await? });
                }
                // It was decided after all.
                Ok((_, target)) => target,
                Err(CutoverError::Stop(problem)) if problem.code == Code::OutcomeUnknown => {
                    let why = Some(format!("{}: {}; {}", problem.what, problem.why, problem.next));
                    return Ok(Report { epoch, why, ..job.report(Outcome::Unknown) });
                }
                Err(error) => return Err(error),
            }
        }
    };
    let report = forward::roll(job, &target, &olds, epoch, token).await?;
    Ok(Report {
        rechecked: way.rest.rows,
        left_out: way.rest.left_out.iter().map(TableName::to_string).collect(),
        sequences_left: way.sequences_left,
        findings,
        ..report
    })
}

/// Looks, compares, and opens what is needed. If that is all there is to do, says how it ended.
async fn ready<'a>(job: &'a Job, options: &Options) -> Result<Result<Ready<'a>, Box<Report>>, CutoverError> {
    let done = |report: Report| Ok(Err(Box::new(report)));
    let target = target(job).await?;
    if let Some(report) = earlier(job, options, &target).await? {
        return done(report);
    }
    // Once, for that may take a while.
    let findings = match job.is_back() {
        true => Vec::new(),
        false => apply::findings(&job.verify.target, &job.verify.plan).await,
    };
    let begun = Instant::now();
    let mut found = loop {
        let found = refusals::find(job, options, &target).await?;
        // Where the other direction has just ended, apply takes a moment to take up this one.
        let passes = !found.is_empty() && found.iter().all(|refusal| ["apply_down", "lag"].contains(&refusal.code));
        if !passes || begun.elapsed() > HOPE {
            break found;
        }
        tokio::time::sleep(AGAIN).await;
    };
    refusals::findings(&findings, &mut found);
    if !found.is_empty() {
        return done(Report { refused: found, findings, ..job.report(Outcome::Refused) });
    }
    let mut ear = Ear::open(&job.verify.target).await?;
    if !options.no_way_back
        && !job.is_back()
        && let Some(back) = job.verify.plan.back()
    {
        for source in &back.sources {
            if tokio::time::timeout(HEARD, ear.echo(&source.name, &target)).await.is_err() {
                let text = format!(
                    "what is written to the target was not captured for the way back within {} s: `crossfade status` shows why; or `crossfade cutover --no-way-back`",
                    HEARD.as_secs()
                );
                return done(job.refused("way_back", text));
            }
        }
    }
    let mut remainder = None;
    for _ in 0..ROUNDS {
        near(job, &mut ear).await?;
        info!("comparing what was touched since the tables were compared");
        let recheck = verify::Options { recheck: true, ..verify::Options::default() };
        let compared = verify::run(&job.verify, &recheck, &()).await?;
        if compared.verdict != verify::Verdict::Equal {
            let other = compared.tables.iter().find(|table| table.verdict != verify::Verdict::Equal);
            let table = other.map_or("a table", |table| table.table.as_str());
            let text = format!("table {table} is {}: `crossfade verify` shows the rows", compared.verdict.as_str());
            return done(job.refused("verify_different", text));
        }
        let ready = remainder.insert(verify::Remainder::prepare(&job.verify).await?);
        if ready.rows() <= FEW {
            break;
        }
    }
    let Some(mut remainder) = remainder else { return done(job.report(Outcome::Refused)) };
    if options.dry_run {
        let begun = Instant::now();
        for (source, endpoint) in job.verify.plan.sources.iter().zip(&job.verify.sources) {
            ear.echo(&source.name, &pg::connect(endpoint, "cutover").await?).await?;
        }
        // While others write there is no comparing; reading up to now is what takes time.
        remainder.read_on().await?;
        let write_gap_ms = Some(report::milliseconds(begun));
        return done(Report { write_gap_ms, findings, ..job.report(Outcome::Possible) });
    }
    Ok(Ok(Ready { target, remainder, ear, findings }))
}

/// Waits until the target is so close behind that nobody has to wait long for it, once the source is closed.
async fn near(job: &Job, ear: &mut Ear) -> Result<(), CutoverError> {
    let begun = Instant::now();
    for (source, endpoint) in job.verify.plan.sources.iter().zip(&job.verify.sources) {
        let session = pg::connect(endpoint, "cutover").await?;
        loop {
            let asked = Instant::now();
            ear.echo(&source.name, &session).await?;
            if asked.elapsed() <= if begun.elapsed() < HOPE { NEAR } else { NEAR_ENOUGH } {
                break;
            }
            info!(source = source.name, "the target is {} ms behind; waiting for it", asked.elapsed().as_millis());
        }
    }
    Ok(())
}

/// Brings to its end what an earlier process has left. Says how, if that is all there is to do.
async fn earlier(job: &Job, options: &Options, target: &Session) -> Result<Option<Report>, CutoverError> {
    let plan = &job.verify.plan;
    // Decided here and not at its end: without the other side one can still go on.
    let here = journal::last(target).await?.filter(|entry| entry.state > State::Cancelled && !entry.done());
    let (mut sessions, mut lines) = (Vec::new(), Vec::new());
    for (source, endpoint) in plan.sources.iter().zip(&job.verify.sources) {
        let looked = async {
            let session = pg::connect_read_only(endpoint, "cutover").await?;
            let line = old::look(&session, &plan.source_side(source)).await?;
            Ok::<_, CutoverError>((session, line))
        };
        match looked.await {
            Ok((session, line)) => {
                sessions.push(session);
                lines.extend(line.map(|line| (&source.name, line)));
            }
            Err(error) if here.is_some() => warn!(source = source.name, "{error}"),
            Err(error) => return Err(error),
        }
    }
    let history = History::read(&sessions, target).await?;
    if let Some(report) = other_way(job, &history, handed_over(target).await?) {
        return Ok(Some(report));
    }
    let side = old::look(target, &plan.target_side()).await?.map(|line| (&plan.name, line));
    for (name, line) in side.iter().chain(&lines) {
        if line.epoch > history.epoch() {
            return Err(old::unknown(name, line.epoch, history.epoch()));
        }
    }
    let name = job.name();
    if let Some(seconds) = lines.iter().find_map(|(_, line)| line.led) {
        let text = format!(
            "another `crossfade {name}` is at it, for {seconds:.0} s at most: wait for it, or `crossfade {name} --cancel`"
        );
        return Ok(Some(job.refused("running", text)));
    }
    let Some(entry) = history.last.filter(|entry| entry.back == job.is_back()) else { return Ok(None) };
    let decided = entry.state > State::Cancelled;
    if options.dry_run {
        let text = format!("epoch {} is decided and not at its end: `crossfade {name}` goes on with it", entry.epoch);
        return Ok(decided.then(|| job.refused("already", text)));
    }
    if decided {
        return Ok(Some(forward_again(job, options, target, &entry).await?));
    }
    let mut olds = olds(job).await?;
    if entry.state.undecided() || closed(&olds).await? {
        let why = "the process that ran it is gone, or was out of time";
        undo(plan, &mut olds, target, entry.epoch, false, why).await?;
    } else {
        // Who has cancelled it may not have reached them.
        bouncer::resume(plan).await?;
    }
    Ok(None)
}

/// Whether apply may write to the side that this direction leads to: what the other direction decided has had its effect.
async fn handed_over(target: &Session) -> Result<bool, CutoverError> {
    if !target.query_one("SELECT to_regclass('crossfade.lease') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(true);
    }
    Ok(!apply::is_barred(target).await?)
}

/// What is to be said because of an epoch of the other direction, or because this one has nothing to leave.
fn other_way(job: &Job, history: &History, handed_over: bool) -> Option<Report> {
    if let Some(entry) = history.last.as_ref().filter(|entry| !entry.done()) {
        if entry.back == job.is_back() {
            return None;
        }
        if entry.state.undecided() {
            let (epoch, name) = (entry.epoch, entry.name());
            let text = format!("{name} {epoch} is under way: wait for it, or `crossfade {name} --cancel`");
            return Some(job.refused("running", text));
        }
        // A hook that always fails is no reason to stay.
        if !handed_over && (entry.back || entry.from.is_some()) {
            let (epoch, name) = (entry.epoch, entry.name());
            let text = format!("{name} {epoch} is decided and not at its end: `crossfade {name}` goes on with it");
            return Some(job.refused("running", text));
        }
    }
    match &history.decided {
        Some(entry) if entry.back == job.is_back() => {
            let text = format!("it is done: the {} is the writable side since epoch {}", job.opens(), entry.epoch);
            Some(job.refused("already", text))
        }
        None if job.is_back() => {
            Some(job.refused("already", "nothing was ever cut over: the source is the writable side".to_owned()))
        }
        Some(entry) if job.is_back() && entry.from.is_none() => {
            let text = format!(
                "cutover {} was one without a way back: what was written to the target since is not in the source",
                entry.epoch
            );
            Some(job.refused("no_way_back", text))
        }
        Some(_) | None => None,
    }
}

/// Goes on where the process died that had decided; without sources that cannot be reached.
async fn forward_again(job: &Job, options: &Options, target: &Session, entry: &Entry) -> Result<Report, CutoverError> {
    let mut olds = Vec::new();
    for (source, endpoint) in job.verify.plan.sources.iter().zip(&job.verify.sources) {
        let led = async {
            let mut old = Old::open(&job.verify.plan, source, endpoint).await?;
            old.lead(options.timeout, false, entry.epoch).await?;
            Ok(old)
        };
        match led.await {
            Ok(old) => olds.push(old),
            Err(error @ CutoverError::Overtaken(_)) => return Err(error),
            Err(error) => warn!(source = source.name, "{error}"),
        }
    }
    let first = job.verify.plan.sources.first();
    let token = match olds.first().filter(|old| first.is_some_and(|source| source.name == old.name)) {
        Some(old) => {
            journal::lead(target, entry.epoch, old.token, true).await?;
            old.token
        }
        None => entry.token,
    };
    forward::roll(job, target, &olds, entry.epoch, token).await
}

/// Cancels it, if it is not decided after all. Says what it is, with a session to go on with.
async fn give_up(job: &Job, olds: &mut [Old], epoch: i64, why: &str) -> Result<(Undone, Session), CutoverError> {
    let begun = Instant::now();
    loop {
        let ended = async {
            let target = pg::connect(&job.verify.target, "cutover").await?;
            // The answer may have been lost, and with it nothing else.
            if let Some(entry) =
                journal::last(&target).await?.filter(|entry| entry.epoch == epoch && entry.state > State::Cancelled)
            {
                return Ok((Undone::new(entry.state), target));
            }
            // What is under way in the sessions from before comes to nothing, or has its effect before this.
            for old in olds.iter_mut() {
                old.again().await?;
            }
            Ok((undo(&job.verify.plan, olds, &target, epoch, false, why).await?, target))
        };
        let error = match tokio::time::timeout(UNKNOWN + bolts::patience(&job.verify.plan), ended).await {
            Ok(Ok(ended)) => return Ok(ended),
            Ok(Err(CutoverError::Pg(error))) => error.to_string(),
            Ok(Err(error)) => return Err(error),
            Err(_) => format!("no answer within {} s", UNKNOWN.as_secs()),
        };
        if begun.elapsed() > UNKNOWN {
            return Err(Problem::new(
                Code::OutcomeUnknown,
                format!("epoch {epoch} of plan {:?}", job.verify.plan.name),
                format!("{error}; the {} stays closed, for the {} may have been opened", job.closes(), job.opens()),
                "bring source and target back: any process of the plan then cancels it or finds it committed; or `crossfade cutover` again",
            )
            .into());
        }
        tokio::time::sleep(AGAIN).await;
    }
}
