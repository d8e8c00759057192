use std::time::Duration;

use model::{Code, Problem, TableName};
use pg::Session;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cancel::{self, cancel as undo};
use crate::drain::Ear;
use crate::error::CutoverError;
use crate::journal::{self, Entry, State};
use crate::old::{self, Old};
use crate::report::{Outcome, Phase, Refusal, Report};
use crate::{hooks, refusals, sequences, triggers};

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

/// Between two looks at what became of a decision that was sent.
const AGAIN: Duration = Duration::from_millis(250);

/// How long the target may be away before it is said that the outcome is unknown.
const UNKNOWN: Duration = Duration::from_secs(10);

/// Cuts over; what an earlier process has left is brought to its end first. `stop` cancels it, before the decision.
///
/// # Errors
/// It could not run; or what became of it cannot be known.
pub async fn run(job: &Job, options: &Options, stop: &CancellationToken) -> Result<Report, Problem> {
    Ok(cut_over(job, options, stop).await?)
}

/// Cancels a cutover that is under way and not decided, whoever runs it; none is told apart.
///
/// # Errors
/// It could not run, there is none, or it is decided.
pub async fn cancel(job: &Job) -> Result<Report, Problem> {
    Ok(cancel_now(job).await?)
}

async fn cancel_now(job: &Job) -> Result<Report, CutoverError> {
    let target = target(job).await?;
    journal::open(&target).await?;
    let mut olds = olds(job).await?;
    let last = journal::last(&target).await?;
    let closed = closed(job, &olds).await?;
    match last {
        Some(entry) if entry.state.open() || (entry.state == State::Cancelled && closed) => {
            let state = undo(&mut olds, &target, entry.epoch, true, "somebody asked for it").await?;
            let outcome = if state == State::Cancelled { Outcome::Cancelled } else { Outcome::Committed };
            let now = journal::last(&target).await?.unwrap_or(entry);
            report(&target, &now, outcome).await
        }
        Some(entry) if entry.state > State::Cancelled => {
            let text = format!("epoch {} is decided: the target is the writable side", entry.epoch);
            Ok(refused(vec![Refusal { code: "decided", text }]))
        }
        _ => Ok(refused(vec![Refusal { code: "nothing_to_cancel", text: "no cutover is under way".to_owned() }])),
    }
}

async fn target(job: &Job) -> Result<Session, CutoverError> {
    let target = pg::connect(&job.verify.target, "cutover").await?;
    if !apply::knows(&target, &job.verify.plan.name).await? {
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
        olds.push(Old::open(&job.verify.plan.name, &source.name, endpoint).await?);
    }
    Ok(olds)
}

/// Whether a source is closed by a fence of ours.
async fn closed(job: &Job, olds: &[Old]) -> Result<bool, CutoverError> {
    let mut closed = false;
    for (old, source) in olds.iter().zip(&job.verify.plan.sources) {
        closed |= old::look(&old.session, &source.name).await?.is_some_and(|line| line.closed);
    }
    Ok(closed)
}

fn refused(refused: Vec<Refusal>) -> Report {
    Report { refused, ..Report::new(Outcome::Refused) }
}

async fn cut_over(job: &Job, options: &Options, stop: &CancellationToken) -> Result<Report, CutoverError> {
    let mut target = target(job).await?;
    if let Some(report) = earlier(job, options, &target).await? {
        return Ok(report);
    }
    let found = refusals::find(job, options, &target).await?;
    if !found.is_empty() {
        return Ok(refused(found));
    }
    info!("comparing what was touched since the tables were compared");
    let recheck = verify::Options { recheck: true, ..verify::Options::default() };
    let compared = verify::run(&job.verify, &recheck, &()).await?;
    if compared.verdict != verify::Verdict::Equal {
        let other = compared.tables.iter().find(|table| table.verdict != verify::Verdict::Equal);
        let table = other.map_or("a table", |table| table.table.as_str());
        let text = format!("table {table} is {}: `crossfade verify` shows the rows", compared.verdict.as_str());
        return Ok(refused(vec![Refusal { code: "verify_different", text }]));
    }
    let mut remainder = verify::Remainder::prepare(&job.verify).await?;
    let mut ear = Ear::open(&job.verify.target).await?;
    if options.dry_run {
        return rehearsed(job, &mut remainder, &mut ear).await;
    }
    journal::open(&target).await?;
    let epoch = journal::last(&target).await?.map_or(0, |entry| entry.epoch) + 1;
    let mut olds = olds(job).await?;
    for old in &mut olds {
        old.lead(options.timeout + cancel::LIMIT, false).await?;
    }
    let Some(token) = olds.first().map(|old| old.token) else { return Ok(refused(Vec::new())) };
    journal::begin(&target, epoch, token).await?;
    model::failpoint!("cutover_begun");
    let mut way = Way {
        job,
        epoch,
        token,
        until: Instant::now() + options.timeout,
        last: Instant::now(),
        closed: None,
        lsn: None,
        rest: verify::Rest::default(),
    };
    let went = tokio::select! {
        biased;
        () = stop.cancelled() => Err(CutoverError::GivenUp("it was told to stop".to_owned())),
        () = tokio::time::sleep_until(way.until) => Err(CutoverError::GivenUp(format!("it took longer than --timeout, {} s", options.timeout.as_secs()))),
        went = way.prepare(&target, &mut olds, &mut ear, &mut remainder) => went,
    };
    let went = match went {
        Ok(switch) => way.decide(&target, &switch).await,
        Err(error) => Err(error),
    };
    let why = match went {
        Ok(()) => None,
        // Whoever leads now brings it to an end.
        Err(error @ CutoverError::Overtaken(_)) => return Err(error),
        Err(error) => Some(Problem::from(error)),
    };
    if let Some(problem) = why {
        tracing::warn!("giving up: {problem}");
        target = match way.give_up(&mut olds, &problem.why).await? {
            (State::Cancelled, target) => {
                let entry = journal::last(&target).await?.filter(|entry| entry.epoch == epoch);
                let mut report = match entry {
                    Some(entry) => report(&target, &entry, Outcome::Cancelled).await?,
                    None => Report::new(Outcome::Cancelled),
                };
                report.why = Some(format!("{}: {}; {}", problem.what, problem.why, problem.next));
                return Ok(report);
            }
            // It was decided after all.
            (_, target) => target,
        };
    }
    let mut report = roll_forward(job, &target, &olds, epoch).await?;
    report.rechecked = way.rest.rows;
    report.left_out = way.rest.left_out.iter().map(TableName::to_string).collect();
    Ok(report)
}

/// Brings to its end what an earlier process has left. Says how, if that is all there is to do.
async fn earlier(job: &Job, options: &Options, target: &Session) -> Result<Option<Report>, CutoverError> {
    let last = if journal::exists(target).await? { journal::last(target).await? } else { None };
    let Some(entry) = last else { return Ok(None) };
    let routed = |entry: &Entry| {
        let text = format!("it is done: the target is the writable side since epoch {}", entry.epoch);
        refused(vec![Refusal { code: "already", text }])
    };
    if entry.state == State::Routed {
        return Ok(Some(routed(&entry)));
    }
    let mut olds = Vec::new();
    for (source, endpoint) in job.verify.plan.sources.iter().zip(&job.verify.sources) {
        let session = pg::connect_read_only(endpoint, "cutover").await?;
        if let Some(seconds) = old::look(&session, &source.name).await?.and_then(|line| line.led) {
            let text = format!(
                "another `crossfade cutover` is at it, for {seconds:.0} s at most: wait for it, or `crossfade cutover --cancel`"
            );
            return Ok(Some(refused(vec![Refusal { code: "running", text }])));
        }
        if !options.dry_run {
            olds.push(Old::open(&job.verify.plan.name, &source.name, endpoint).await?);
        }
    }
    if entry.state > State::Cancelled {
        if options.dry_run {
            let text =
                format!("epoch {} is decided and not at its end: `crossfade cutover` goes on with it", entry.epoch);
            return Ok(Some(refused(vec![Refusal { code: "already", text }])));
        }
        for old in &mut olds {
            old.lead(options.timeout, false).await?;
        }
        let token = olds.first().map_or(entry.token, |old| old.token);
        journal::lead(target, entry.epoch, token).await?;
        return Ok(Some(roll_forward(job, target, &olds, entry.epoch).await?));
    }
    if options.dry_run {
        return Ok(None);
    }
    if entry.state.open() || closed(job, &olds).await? {
        undo(&mut olds, target, entry.epoch, false, "the process that ran it is gone, or was out of time").await?;
    }
    Ok(None)
}

/// What a cutover would take now.
async fn rehearsed(job: &Job, remainder: &mut verify::Remainder<'_>, ear: &mut Ear) -> Result<Report, CutoverError> {
    let begun = Instant::now();
    for (source, endpoint) in job.verify.plan.sources.iter().zip(&job.verify.sources) {
        ear.echo(&source.name, &pg::connect(endpoint, "cutover").await?).await?;
    }
    // While others write there is no comparing; reading up to now is what takes time.
    remainder.read_on().await?;
    Ok(Report { write_gap_ms: Some(milliseconds(begun)), ..Report::new(Outcome::Possible) })
}

fn milliseconds(since: Instant) -> i64 {
    since.elapsed().as_millis().try_into().unwrap_or(i64::MAX)
}

/// One epoch, up to its decision.
struct Way<'a> {
    job: &'a Job,
    epoch: i64,
    token: i64,
    until: Instant,
    /// When the last step was taken.
    last: Instant,
    /// When the first source was closed.
    closed: Option<Instant>,
    lsn: Option<String>,
    rest: verify::Rest,
}

impl Way<'_> {
    async fn step(&mut self, target: &Session, from: State, to: State) -> Result<(), CutoverError> {
        let ms = milliseconds(self.last);
        journal::step(target, self.epoch, self.token, from, to, ms).await?;
        info!(epoch = self.epoch, ms, "{}", to.as_str());
        self.last = Instant::now();
        Ok(())
    }

    /// Everything up to the decision. Returns the statements that go with it.
    async fn prepare(
        &mut self,
        target: &Session,
        olds: &mut [Old],
        ear: &mut Ear,
        remainder: &mut verify::Remainder<'_>,
    ) -> Result<String, CutoverError> {
        let plan = &self.job.verify.plan;
        let mut schemas = Vec::new();
        for old in olds.iter_mut() {
            let query = "SELECT schema, name FROM crossfade.tables WHERE source = $1::text ORDER BY 1, 2";
            let rows = target.query(query, &[&old.name]).await?;
            let tables: Vec<TableName> =
                rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
            schemas.extend(tables.iter().map(|table| table.schema.clone()));
            old.prepare(self.epoch, tables, self.until).await?;
        }
        schemas.sort();
        schemas.dedup();
        model::failpoint!("fence_prepared");
        self.hook(target, "before_fence", plan.cutover.hooks.before_fence.as_deref(), "begun", "source").await?;
        remainder.read_on().await?;
        self.step(target, State::Begun, State::Fencing).await?;
        model::failpoint!("cutover_fencing");
        let why = format!("Plan {:?} is cut over to another database (epoch {}).", plan.name, self.epoch);
        for old in olds.iter() {
            old.close(self.epoch, &why, self.until).await?;
            self.closed.get_or_insert_with(Instant::now);
        }
        self.step(target, State::Fencing, State::Fenced).await?;
        model::failpoint!("cutover_fenced");
        for old in olds.iter() {
            let lsn = ear.drained(old).await?;
            self.lsn.get_or_insert(lsn);
        }
        let lsn = self.lsn.clone().unwrap_or_default();
        journal::note_lsn(target, self.epoch, self.token, &lsn).await?;
        self.step(target, State::Fenced, State::Drained).await?;
        model::failpoint!("cutover_drained");
        self.rest = remainder.compare().await?;
        self.judge()?;
        let mut switch = String::new();
        for old in olds.iter() {
            let values = sequences::read(&old.session, &schemas, plan.cutover.sequence_margin).await?;
            sequences::set(target, &values).await?;
            model::failpoint!("sequences_set");
            if plan.target.schema == plan::SchemaMode::Clone {
                switch += &triggers::switch(&old.session, target, &schemas).await?;
            }
        }
        self.hook(target, "drained", plan.cutover.hooks.drained.as_deref(), "drained", "none").await?;
        self.step(target, State::Drained, State::Prepared).await?;
        model::failpoint!("cutover_prepared");
        Ok(switch)
    }

    /// What was compared while both sides stood still.
    fn judge(&self) -> Result<(), CutoverError> {
        if let Some((table, why)) = self.rest.drifted.first() {
            return Err(CutoverError::GivenUp(format!("table {table}: {why}")));
        }
        match self.rest.different.first() {
            None => Ok(()),
            Some((_, table, _)) => Err(CutoverError::GivenUp(format!(
                "{} rows that were just written are not the same on both sides, the first in table {table}: `crossfade verify` shows them",
                self.rest.different.len()
            ))),
        }
    }

    async fn hook(
        &self,
        target: &Session,
        name: &str,
        command: Option<&str>,
        phase: &str,
        writable: &str,
    ) -> Result<(), CutoverError> {
        let lsn = self.lsn.clone().unwrap_or_default();
        hook(self.job, target, self.epoch, name, command, &lsn, phase, writable).await
    }

    /// The decision: one transaction of the target.
    async fn decide(&mut self, target: &Session, switch: &str) -> Result<(), CutoverError> {
        target.batch_execute("BEGIN; SET LOCAL lock_timeout = '2s'").await?;
        let ms = milliseconds(self.last);
        journal::step(target, self.epoch, self.token, State::Prepared, State::Committed, ms).await?;
        // Nothing that apply has under way lands behind this.
        target
            .batch_execute(&format!(
                "UPDATE crossfade.lease SET token = token + 1, worker = NULL, pid = NULL, backend_start = NULL, taken_from = NULL; {switch}"
            ))
            .await?;
        let opened = "UPDATE crossfade.fence SET opened = $2, epoch = $2 WHERE side = $1::text AND opened < closed";
        if target.execute(opened, &[&apply::TARGET, &self.epoch]).await? != 1 {
            return Err(CutoverError::GivenUp("the target's fence has lost its state, or is open already".to_owned()));
        }
        model::failpoint!("decision_written");
        target.batch_execute("COMMIT").await?;
        let gap = self.closed.map(milliseconds);
        model::failpoint!("decision_committed");
        info!(epoch = self.epoch, write_gap_ms = gap, "committed: the target is the writable side");
        let query = "UPDATE crossfade.journal SET write_gap_ms = $2 WHERE epoch = $1";
        target.execute(query, &[&self.epoch, &gap]).await?;
        Ok(())
    }

    /// Cancels it, if it is not decided after all. Says what it is, with a session to go on with.
    async fn give_up(&self, olds: &mut [Old], why: &str) -> Result<(State, Session), CutoverError> {
        let begun = Instant::now();
        loop {
            let ended = async {
                // What is under way in the sessions from before comes to nothing, or has its effect before this.
                for old in olds.iter_mut() {
                    old.again().await?;
                }
                let target = pg::connect(&self.job.verify.target, "cutover").await?;
                Ok((undo(olds, &target, self.epoch, false, why).await?, target))
            };
            let error: CutoverError = match ended.await {
                Ok(ended) => return Ok(ended),
                Err(error @ (CutoverError::Overtaken(_) | CutoverError::Stop(_) | CutoverError::GivenUp(_))) => {
                    return Err(error);
                }
                Err(error) => error,
            };
            if begun.elapsed() > UNKNOWN {
                return Err(Problem::new(
                    Code::OutcomeUnknown,
                    format!("epoch {} of plan {:?}", self.epoch, self.job.verify.plan.name),
                    format!("{error}; the source stays closed, for the target may have been opened"),
                    "bring source and target back: any process of the plan then cancels it or finds it committed; or `crossfade cutover` again",
                )
                .into());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[allow(clippy::too_many_arguments)]
async fn hook(
    job: &Job,
    target: &Session,
    epoch: i64,
    name: &str,
    command: Option<&str>,
    lsn: &str,
    phase: &str,
    writable: &str,
) -> Result<(), CutoverError> {
    let Some(command) = command else { return Ok(()) };
    let plan = &job.verify.plan;
    let begun = Instant::now();
    let told = hooks::Told { plan: &plan.name, epoch, phase, lsn, writable };
    let output = hooks::run(name, command, plan.cutover.hook_timeout, &told).await?;
    info!(epoch, hook = name, "ran in {} ms", begun.elapsed().as_millis());
    journal::note(target, epoch, &format!("hook {name}"), milliseconds(begun), &output).await
}

/// From the decision on.
async fn roll_forward(job: &Job, target: &Session, olds: &[Old], epoch: i64) -> Result<Report, CutoverError> {
    let plan = &job.verify.plan;
    for old in olds {
        let why = format!("Plan {:?} was cut over to another database (epoch {epoch}): write there.", plan.name);
        old.tell(&why).await?;
    }
    let token = olds.first().map_or(0, |old| old.token);
    let lsn = journal::last(target).await?.and_then(|entry| entry.lsn).unwrap_or_default();
    let begun = Instant::now();
    let [route, after] = [&plan.cutover.hooks.route, &plan.cutover.hooks.after].map(Option::as_deref);
    hook(job, target, epoch, "route", route, &lsn, "committed", "target").await?;
    model::failpoint!("application_routed");
    journal::step(target, epoch, token, State::Committed, State::Routed, milliseconds(begun)).await?;
    model::failpoint!("cutover_routed");
    hook(job, target, epoch, "after", after, &lsn, "routed", "target").await?;
    for old in olds {
        old.release().await?;
    }
    let entry = journal::last(target).await?.filter(|entry| entry.epoch == epoch);
    match entry {
        Some(entry) => report(target, &entry, Outcome::Committed).await,
        None => Err(CutoverError::Overtaken("the journal has lost this epoch".to_owned())),
    }
}

/// What the journal says of an epoch.
async fn report(target: &Session, entry: &Entry, outcome: Outcome) -> Result<Report, CutoverError> {
    let rows = target
        .query(
            "SELECT step, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), ms FROM crossfade.journal_step WHERE epoch = $1 ORDER BY at",
            &[&entry.epoch],
        )
        .await?;
    let phases = rows.iter().map(|row| Phase { phase: row.get(0), at: row.get(1), ms: row.get(2) }).collect();
    Ok(Report {
        epoch: entry.epoch,
        lsn: entry.lsn.clone(),
        write_gap_ms: entry.write_gap_ms,
        phases,
        why: entry.why.clone(),
        ..Report::new(outcome)
    })
}
