use std::time::Duration;

use model::{Code, Problem, TableName};
use pg::{PgError, Session};
use plan::SchemaMode;
use status::{Gather, Phase as Standing};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use verify::Verdict;

use crate::rehearse::Phase;
use crate::rehearse::drill::load::{self, Load, Side};
use crate::rehearse::drill::report::{DrillReport, Switch};
use crate::rehearse::drill::rows::Witness;
use crate::rehearse::drill::{Job, rows};
use crate::report::{self, Outcome};
use crate::run::{self, Options};

/// Between two looks at how the migration stands: it takes minutes, or hours.
const LOOK: Duration = Duration::from_millis(200);

/// How long the way back may take to begin once the tables are there. After that the cutover says what is in its way.
const WAY_BACK: Duration = Duration::from_secs(60);

/// How often a cutover is tried that is refused because the other side was behind: a person would try it again, too.
const TRIES: u32 = 3;

/// The next step where it fails.
const FIND: &str = "what is in its way here may be in the live one's: find it before you cut over";

/// What `crossfade cutover` takes, if it is told nothing else.
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_LAG: Duration = Duration::from_secs(5);

/// Plays, and notes in `drill` how it goes.
///
/// # Errors
/// Why it failed.
pub(crate) async fn play(
    job: &Job,
    drill: &mut DrillReport,
    processes: &mut JoinSet<Result<(), Problem>>,
    inner: &CancellationToken,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let source = pg::connect(&job.rehearsal.into, "drill").await?;
    let target = pg::connect(&job.comparison.target, "drill").await?;
    source.batch_execute(load::CREATE).await.map_err(PgError::from)?;
    if job.comparison.plan.target.schema == SchemaMode::Exists {
        target.batch_execute(load::CREATE).await.map_err(PgError::from)?;
    }
    processes.spawn((job.processes)(job.comparison.plan.clone(), inner.clone()));
    let mut play = Play { job, drill, source, target, stop };
    tokio::select! {
        biased;
        ended = processes.join_next() => Err(ended_early(ended)),
        played = play.all() => played,
    }
}

/// The processes run until they are told to stop, or cannot go on.
fn ended_early(ended: Option<Result<Result<(), Problem>, tokio::task::JoinError>>) -> Problem {
    let why = match ended {
        Some(Ok(Err(problem))) => return problem,
        Some(Err(error)) => error.to_string(),
        Some(Ok(Ok(()))) | None => "it ended before it was told to".to_owned(),
    };
    Problem::new(Code::Internal, "the drill's capture and apply", why, "drill again, and report it")
}

struct Play<'a> {
    job: &'a Job,
    drill: &'a mut DrillReport,
    source: Session,
    target: Session,
    stop: &'a CancellationToken,
}

impl Play<'_> {
    async fn all(&mut self) -> Result<(), Problem> {
        let begun = Instant::now();
        self.follows().await?;
        self.took("follow", begun);
        let rows = rows::find(&self.job.comparison.plan, &self.source).await?;
        let load = Load::start(&self.job.comparison.sources[0], &self.job.comparison.target, rows).await?;
        let played = self.under(&load).await;
        self.drill.load = Some(load.report());
        drop(load);
        played
    }

    /// There and back, while the writers are at it.
    async fn under(&mut self, load: &Load) -> Result<(), Problem> {
        self.there_and_back(load).await?;
        self.closed(load, Side::Target).await?;
        load.well()
    }

    async fn there_and_back(&mut self, load: &Load) -> Result<(), Problem> {
        load.on(Side::Source).await?;
        self.compared("verify", forth(self.job)).await?;
        let options = Options {
            dry_run: false,
            timeout: TIMEOUT,
            max_lag: MAX_LAG,
            max_verify_age: Duration::MAX,
            no_way_back: false,
        };
        let sent = self.sent(load, Side::Source).await?;
        let begun = Instant::now();
        let mut switch = self.switched(forth(self.job), &options).await?;
        self.took("cutover", begun);
        let led = self.led(load, Side::Target, &sent, &mut switch).await;
        self.drill.cutover = Some(switch);
        led?;
        self.compared("verify_reversing", self.back().await?).await?;
        let sent = self.sent(load, Side::Target).await?;
        let begun = Instant::now();
        let mut switch = self.switched(self.back().await?, &Options { no_way_back: true, ..options }).await?;
        self.took("rollback", begun);
        let led = self.led(load, Side::Source, &sent, &mut switch).await;
        self.drill.rollback = Some(switch);
        led?;
        self.compared("verify_again", forth(self.job)).await
    }

    fn took(&mut self, phase: &'static str, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        info!("the drill's {} took {seconds:.1} s", phase.replace('_', " "));
        self.drill.phases.push(Phase { phase, seconds, last_seconds: None });
    }

    /// Waits until the copy of the target follows, and the way back is captured.
    async fn follows(&self) -> Result<(), Problem> {
        let (plan, log) = (&self.job.comparison.plan, &self.job.comparison.log);
        let mut gather = Gather::new(plan.clone())?;
        let mut since = None;
        loop {
            let status = gather.now(async || Ok(Some(log.open().await?))).await;
            if status.follows == Some(Standing::Following) {
                let since = *since.get_or_insert_with(Instant::now);
                if self.captured_back().await? || since.elapsed() > WAY_BACK {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn captured_back(&self) -> Result<bool, Problem> {
        let plan = &self.job.comparison.plan;
        for source in plan.back().iter().flat_map(|back| &back.sources) {
            let name = capture::slot_name(&plan.name, &source.name);
            let slot = capture::slot_state(&self.target, &name).await.map_err(PgError::from)?;
            if slot.is_none_or(|slot| slot.active_pid.is_none()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The other direction's job.
    async fn back(&self) -> Result<verify::Job, Problem> {
        let next = "drill again, and report it";
        let none = || Problem::new(Code::Internal, "the drill's way back", "there is none", next);
        crate::reversed(&forth(self.job)).await?.ok_or_else(none)
    }

    /// Every row of every table is on both sides.
    async fn compared(&mut self, phase: &'static str, job: verify::Job) -> Result<(), Problem> {
        let begun = Instant::now();
        let compared = verify::run(&job, &verify::Options::default(), &()).await?;
        self.took(phase, begun);
        if compared.verdict == Verdict::Equal {
            return Ok(());
        }
        let other = compared.tables.iter().find(|table| table.verdict != Verdict::Equal);
        let table = other.map_or("a table", |table| table.table.as_str());
        let why =
            other.and_then(|table| table.why.clone()).unwrap_or_else(|| "the two copies hold other rows".to_owned());
        let verdict = compared.verdict.as_str();
        let next = "what makes them differ here may make the live ones: find it before you cut over";
        Err(Problem::new(
            Code::CutoverRefused,
            format!("table {table} in {}", phase.replace('_', " ")),
            format!("{verdict}: {why}"),
            next,
        ))
    }

    /// Leads from the side that takes writes to the other one.
    async fn switched(&self, verify: verify::Job, options: &Options) -> Result<Switch, Problem> {
        let job = run::Job { verify };
        let mut tries = 1;
        let report = loop {
            let report = run::run(&job, options, self.stop).await?;
            let behind = !report.refused.is_empty() && report.refused.iter().all(|refusal| refusal.code == "lag");
            if !behind || tries == TRIES {
                break report;
            }
            tries += 1;
        };
        let why = match &report {
            report::Report { unfinished: Some(unfinished), .. } => Some(format!("still to be done: {unfinished}")),
            report::Report { outcome: Outcome::Committed, .. } => None,
            report => report.why.clone().or(report.refused.first().map(|refusal| refusal.text.clone())),
        };
        Ok(Switch {
            outcome: report.outcome.as_str(),
            why,
            refused: report.refused,
            write_gap_ms: report.write_gap_ms,
            last_write_gap_ms: None,
            waited_ms: None,
            acknowledged: None,
            lost: None,
        })
    }

    /// Writes every witness anew on that side, and returns which versions of them the other one has until that gets there.
    async fn sent(&self, load: &Load, side: Side) -> Result<Vec<Option<String>>, Problem> {
        let before = self.versions(load, side.other()).await?;
        for witness in &load.rows().witnesses {
            load::rewrite(self.session(side), side, witness).await?;
        }
        Ok(before)
    }

    /// Of each witness which transaction has written it there; none where the row is not there.
    async fn versions(&self, load: &Load, side: Side) -> Result<Vec<Option<String>>, Problem> {
        let mut versions = Vec::new();
        for Witness { table, condition, .. } in &load.rows().witnesses {
            let query = format!("SELECT xmin::text FROM ONLY {} WHERE {condition}", table.quoted());
            let row = self.session(side).query_opt(&query, &[]).await.map_err(PgError::from)?;
            versions.push(row.map(|row| row.get(0)));
        }
        Ok(versions)
    }

    /// Every table of that side refuses what the application may send, even if it is no row. Where a rule stands in place of the statement, that cannot be asked.
    async fn closed(&self, load: &Load, side: Side) -> Result<(), Problem> {
        let session = self.session(side);
        let tables: Vec<String> = load.rows().tables().map(TableName::quoted).collect();
        let query = "SELECT name FROM unnest($1::text[]) name JOIN pg_class c ON c.oid = to_regclass(name) WHERE NOT c.relhasrules";
        for row in session.query(query, &[&tables]).await.map_err(PgError::from)? {
            let table: String = row.get(0);
            let why = match session.batch_execute(&format!("DELETE FROM ONLY {table} WHERE false")).await {
                Ok(()) => "it takes writes, and the other side does, too".to_owned(),
                Err(error) => match PgError::from(error) {
                    error if error.sqlstate() == Some(load::CLOSED) => continue,
                    error => format!("it is not its fence that refuses a write: {error}"),
                },
            };
            let what = format!("table {table} in the copy of the {}, which is closed", side.as_str());
            return Err(Problem::new(Code::CutoverRefused, what, why, FIND));
        }
        Ok(())
    }

    fn session(&self, side: Side) -> &Session {
        match side {
            Side::Target => &self.target,
            Side::Source => &self.source,
        }
    }

    /// The writers get to that side, and nobody to the other one; it has all that they were told to be committed, and what was `sent` to it before.
    async fn led(&self, load: &Load, side: Side, sent: &[Option<String>], switch: &mut Switch) -> Result<(), Problem> {
        let name = match side {
            Side::Target => "cutover",
            Side::Source => "rollback",
        };
        let failed = |why: String| Err(Problem::new(Code::CutoverRefused, format!("the drill's {name}"), why, FIND));
        if let Some(why) = &switch.why {
            return failed(format!("{}: {why}", switch.outcome));
        }
        if switch.outcome != Outcome::Committed.as_str() {
            return failed(switch.outcome.to_owned());
        }
        let waited = load.on(side).await?;
        switch.waited_ms = waited.map(|waited| waited.as_millis().try_into().unwrap_or(i64::MAX));
        self.closed(load, side.other()).await?;
        let (acknowledged, lost) = load.lost(self.session(side)).await?;
        (switch.acknowledged, switch.lost) = (Some(acknowledged), Some(lost));
        if lost > 0 {
            return failed(format!("{lost} of {acknowledged} writes were acknowledged and are not on the new side"));
        }
        let now = self.versions(load, side).await?;
        let same = sent.iter().zip(&now).position(|(before, now)| before == now);
        match same.and_then(|at| load.rows().witnesses.get(at)) {
            None => Ok(()),
            Some(Witness { table, .. }) => {
                failed(format!("a row of table {table} was written before, and that is not on the new side"))
            }
        }
    }
}

/// From the copy of the source to that of the target.
fn forth(job: &Job) -> verify::Job {
    let verify::Job { plan, sources, target, log } = &job.comparison;
    verify::Job { plan: plan.clone(), sources: sources.clone(), target: target.clone(), log: log.clone() }
}
