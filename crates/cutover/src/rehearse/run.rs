use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use log::{Log, StreamKind, StreamName};
use model::{Code, Header, Identity, Lsn, Problem, Record, TableName};
use pg::{Endpoint, PgError, Session};
use plan::{Plan, SchemaMode};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use verify::{PartDiffers, Recorded, Replay, Verdict};

use crate::rehearse::copies::{self, Copies};
use crate::rehearse::phases::{self, Phases};
use crate::rehearse::refusals;
use crate::rehearse::report::{Phase, Report, SourceReport, TableReport};
use crate::rehearse::tail::{self, Tail, Until};
use crate::rehearse::view::{End, View};

/// What a rehearsal needs.
pub struct Job {
    /// The plan. Its sources and its target are not touched.
    pub plan: Arc<Plan>,
    /// The database that is filled.
    pub into: Endpoint,
    /// The log; it is only read.
    pub log: Arc<dyn Log>,
    /// What apply calls itself there.
    pub worker: String,
    /// How far it goes; as far as something was recorded, if nothing is said.
    pub until: Option<Until>,
    /// The target, if it is what the database is compared with. It is read.
    pub against: Option<Endpoint>,
}

/// A source, as the log has it.
struct Origin {
    name: String,
    copies: Copies,
    tail: Tail,
    /// What its tables are to be, and the commits at which they are compared; the last one is where it ends.
    recorded: BTreeMap<TableName, Recorded>,
    stops: Vec<Lsn>,
}

/// What was found of a table so far.
#[derive(Default)]
struct Found {
    parts: u64,
    different: Vec<PartDiffers>,
    why: Option<String>,
}

/// Fills the database from the log, and compares.
///
/// # Errors
/// It could not run: the log has nothing to go by, the database is refused, or apply was stopped.
pub async fn run(job: &Job) -> Result<Report, Problem> {
    let (at, begun) = (SystemTime::now(), Instant::now());
    if let (Some(Until::Lsn(lsn)), [_, second, ..]) = (job.until, job.plan.sources.as_slice()) {
        let why = format!("the plan has several sources, and source {:?} has other LSNs than the first", second.name);
        return Err(Problem::new(
            Code::PlanInvalid,
            format!("--until {lsn}"),
            why,
            "name a time: --until 2026-01-31T12:00:00Z",
        ));
    }
    let session = pg::connect(&job.into, "rehearse").await?;
    let me = pg::catalog::identity(&session).await.map_err(PgError::from)?;
    let mut copies = Vec::new();
    for source in &job.plan.sources {
        copies.push(copies::read(&job.log, &job.plan.name, &source.name).await?);
    }
    let headers: Vec<Header> = copies.iter().map(Copies::now).collect();
    let tables = copies.iter().flat_map(|copies| copies.tables.iter().cloned()).collect();
    refusals::look(&session, "--into", job.plan.target.schema, &me, &headers, &tables).await?;
    let origins = origins(job, copies).await?;
    info!("the log is read; filling {}", session.place());
    let mut rehearsal = Rehearsal {
        job,
        me,
        session,
        origins,
        phases: Phases::default(),
        found: BTreeMap::new(),
        log: begun.elapsed(),
        compare: Duration::ZERO,
    };
    let tail = rehearsal.rounds().await?;
    let foreign = match job.plan.target.schema {
        SchemaMode::Clone => phases::finished(&rehearsal.session).await?,
        SchemaMode::Exists => 0.0,
    };
    let report = rehearsal.report(at, begun, tail, foreign).await?;
    rehearsal.tidy().await;
    Ok(report)
}

/// What was found of a derived table: it is held against its query, and not against what was recorded.
fn of_derived(found: verify::TableReport) -> TableReport {
    let rows = || {
        let counts = (found.missing, found.extra, found.different);
        format!(
            "of what its query gives {} rows are missing, {} are different, and {} are there that it does not give",
            counts.0, counts.2, counts.1
        )
    };
    TableReport {
        why: if found.verdict == Verdict::Different { Some(rows()) } else { found.why.clone() },
        lsn: (found.verdict != Verdict::Inconclusive).then(|| found.lsn.clone()),
        verify: None,
        rows: found.rows,
        parts: found.parts,
        different: Vec::new(),
        verdict: found.verdict,
        source: found.source,
        table: found.table,
    }
}

/// Reads what the log holds of each source, and says where to stop.
async fn origins(job: &Job, copies: Vec<Copies>) -> Result<Vec<Origin>, Problem> {
    let mut live = match &job.against {
        Some(target) => verify::of_target(&job.plan, target).await?,
        None => verify::Held::new(),
    };
    let mut origins = Vec::new();
    for (source, copies) in job.plan.sources.iter().zip(copies) {
        let live = live.remove(&source.name);
        // What the target has is in the log since it was applied.
        let until = live.as_ref().map_or(job.until, |(lsn, _)| Some(Until::Lsn(*lsn)));
        let mut tail = tail::read(&job.log, &job.plan.name, &source.name, &copies, until).await?;
        let recorded = match live {
            Some((_, tables)) => tables.into_iter().map(|table| (table.table.clone(), table)).collect(),
            None => std::mem::take(&mut tail.recorded),
        };
        let mut commits = Tail::commits(recorded.values());
        let joined = joined(&tail)?;
        commits.insert(match until {
            Some(_) => tail.end,
            // Before that no foreign key is built, and what was copied does not agree with each other.
            None => joined.max(commits.last().copied().unwrap_or_default()),
        });
        origins.push(Origin {
            name: source.name.clone(),
            copies,
            tail,
            recorded,
            stops: commits.into_iter().collect(),
        });
    }
    if job.until.is_none() && origins.iter().all(|origin| origin.recorded.is_empty()) {
        return Err(Problem::new(
            Code::NothingRecorded,
            format!("the log of plan {:?}", job.plan.name),
            "there is no verify in it that has found a table equal as a whole, so there is nothing to compare with",
            "`crossfade verify`, and rehearse then; or say how far to go with --until",
        ));
    }
    Ok(origins)
}

/// Where copy and tail of a source are joined, which is not behind its end.
fn joined(tail: &Tail) -> Result<Lsn, Problem> {
    match tail.joined {
        Some(joined) if joined <= tail.end => Ok(joined),
        joined => {
            let why = match joined {
                Some(joined) => format!(
                    "its tables agree with each other from {joined} on, which is behind where the rehearsal is to end"
                ),
                None => "copy and tail are not joined in it yet".to_owned(),
            };
            let next = "go further with --until, or rehearse once `crossfade status` says phase following";
            Err(Problem::new(Code::NothingRecorded, "the log", why, next))
        }
    }
}

struct Rehearsal<'a> {
    job: &'a Job,
    /// The database that is filled.
    me: Identity,
    session: Session,
    origins: Vec<Origin>,
    phases: Phases,
    found: BTreeMap<(String, TableName), Found>,
    /// How long the log was read, and how long was compared.
    log: Duration,
    compare: Duration,
}

impl Rehearsal<'_> {
    /// Lets apply run from stop to stop, and compares at each. Returns how long the tail took, in seconds.
    async fn rounds(&mut self) -> Result<f64, Problem> {
        let rounds = self.origins.iter().map(|origin| origin.stops.len()).max().unwrap_or(0);
        let mut tail = Duration::ZERO;
        for round in 0..rounds {
            let ends = self.ends(round);
            let begun = Instant::now();
            self.apply(&ends, round + 1 == rounds).await?;
            // In the first round the copy comes first.
            tail += self.phases.indexes.filter(|_| round == 0).map_or(begun.elapsed(), |started| started.elapsed());
            let begun = Instant::now();
            self.look(round).await?;
            self.compare += begun.elapsed();
        }
        Ok(tail.as_secs_f64())
    }

    /// Where each source stands at the end of a round.
    fn ends(&self, round: usize) -> BTreeMap<String, Lsn> {
        let end = |origin: &Origin| origin.stops.get(round).or(origin.stops.last()).copied();
        self.origins.iter().filter_map(|origin| Some((origin.name.clone(), end(origin)?))).collect()
    }

    /// Applies the log up to these commits; in the last round also what is built once copy and tail are joined.
    async fn apply(&mut self, ends: &BTreeMap<String, Lsn>, last: bool) -> Result<(), Problem> {
        let (plan, stop) = (&self.job.plan, CancellationToken::new());
        let job = apply::Job {
            plan: Arc::clone(plan),
            endpoint: self.job.into.clone(),
            log: Arc::new(self.view(ends).await?),
            worker: self.job.worker.clone(),
            cut_off: apply::CutOff::default(),
            alone: true,
        };
        let applying = apply::run(job, stop.clone());
        tokio::pin!(applying);
        let (phases, session) = (&mut self.phases, &self.session);
        let reached = async {
            phases.until(session, ends).await?;
            if last && plan.target.schema == SchemaMode::Clone {
                phases::finished(session).await?;
            }
            if last {
                phases::filled(session, plan).await?;
            }
            Ok::<_, PgError>(())
        };
        tokio::select! {
            biased;
            ended = &mut applying => {
                ended?;
                return Err(Problem::new(Code::Internal, "apply", "it ended before everything was there", "rehearse again, and report it"));
            }
            reached = reached => reached?,
        }
        stop.cancel();
        applying.await
    }

    /// The log as it was at these commits, leading here.
    async fn view(&self, ends: &BTreeMap<String, Lsn>) -> Result<View, Problem> {
        let (mut cut, mut headers) = (HashMap::new(), HashMap::new());
        for origin in &self.origins {
            let name = |kind| StreamName::new(&*self.job.plan.name, &*origin.name, kind);
            cut.insert(name(StreamKind::Copy), End { last: origin.copies.end, payload: None });
            if let Some(lsn) = ends.get(&origin.name) {
                let (last, payload) = origin.tail.cut(&self.job.log, *lsn).await?;
                cut.insert(name(StreamKind::Tail), End { last, payload: Some(payload) });
            }
            // Apply refuses a log that leads elsewhere. That this database is another one is what is wanted here, and it was looked at.
            let header = Header { target_identity: self.me.clone(), ..origin.copies.header.clone() };
            headers.insert(name(StreamKind::Copy), Record::Header(header).encode());
        }
        Ok(View::new(&self.job.log, cut, headers))
    }

    /// Compares what was recorded as of the commits at which the sources have just arrived.
    async fn look(&mut self, round: usize) -> Result<(), Problem> {
        let replay = Replay::open(&self.job.into, self.job.plan.limits.copy_workers).await?;
        for origin in &self.origins {
            let Some(lsn) = origin.stops.get(round) else { continue };
            for recorded in origin.recorded.values().filter(|recorded| recorded.commits().contains(lsn)) {
                let found = self.found.entry((origin.name.clone(), recorded.table.clone())).or_default();
                match replay.compare(&origin.name, recorded, *lsn).await? {
                    Ok((parts, different)) => {
                        found.parts += parts;
                        found.different.extend(different);
                    }
                    Err(why) => found.why = Some(why),
                }
            }
        }
        Ok(())
    }

    async fn report(&self, at: SystemTime, begun: Instant, tail: f64, foreign: f64) -> Result<Report, Problem> {
        let mut tables = Vec::new();
        for origin in &self.origins {
            // Where nothing is stored of a table, there is what is streamed from it.
            let query = "SELECT DISTINCT coalesce(d.into_schema, t.into_schema), coalesce(d.into_name, t.into_name)
                           FROM (SELECT *, into_schema = 'crossfade' AND starts_with(into_name, 'shape ') AS shape FROM crossfade.tables) t
                           LEFT JOIN crossfade.derived d ON t.shape AND d.declared <> '' AND d.reads = ARRAY[t.source || '.' || t.schema || '.' || t.name]
                          WHERE t.source = $1::text AND (d.into_name IS NOT NULL OR NOT t.shape)";
            let rows = self.session.query(query, &[&origin.name]).await.map_err(PgError::from)?;
            let there = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
            let names: BTreeSet<TableName> = there.chain(origin.recorded.keys().cloned()).collect();
            tables.extend(names.iter().map(|name| self.table(origin, name)));
        }
        tables.extend(verify::derived(&self.job.into, &self.job.plan).await?.into_iter().map(of_derived));
        let since = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
            _ => 0.0,
        };
        let Phases { schema, copy, indexes } = self.phases;
        let phase = |phase, seconds| Phase { phase, seconds, last_seconds: None };
        Ok(Report {
            verdict: Verdict::of(tables.iter().map(|table| table.verdict)),
            why: tables.iter().find_map(|table| table.why.clone()),
            at: humantime::format_rfc3339_millis(at).to_string(),
            into: self.session.place().to_owned(),
            against: if self.job.against.is_some() { "target" } else { "log" },
            seconds: begun.elapsed().as_secs_f64(),
            phases: vec![
                phase("log", self.log.as_secs_f64()),
                phase("schema", since(Some(begun + self.log), schema)),
                phase("copy", since(schema, copy)),
                phase("indexes", since(copy, indexes)),
                phase("tail", tail),
                phase("foreign_keys", foreign),
                phase("compare", self.compare.as_secs_f64()),
            ],
            last: None,
            drill: None,
            sources: self.sources().await.map_err(PgError::from)?,
            tables,
            findings: apply::findings(&self.job.into, &self.job.plan).await,
        })
    }

    fn table(&self, origin: &Origin, name: &TableName) -> TableReport {
        let recorded = origin.recorded.get(name);
        let found = self.found.get(&(origin.name.clone(), name.clone()));
        let (parts, different) = found.map_or((0, Vec::new()), |found| (found.parts, found.different.clone()));
        let mut why = found.and_then(|found| found.why.clone());
        if recorded.is_none() {
            why = Some(match origin.tail.outdated.contains(name) {
                true => verify::ANOTHER_COPY.to_owned(),
                false => {
                    "no verify in the log, up to there, has found it equal as a whole; `crossfade verify` compares it"
                        .to_owned()
                }
            });
        }
        let verdict = match (&why, different.is_empty()) {
            (_, false) => Verdict::Different,
            (None, true) if parts > 0 => Verdict::Equal,
            _ => Verdict::Inconclusive,
        };
        TableReport {
            source: origin.name.clone(),
            table: name.to_string(),
            verdict,
            why,
            lsn: recorded.filter(|_| parts > 0).and_then(|recorded| recorded.commits().last().map(ToString::to_string)),
            verify: recorded.map(|recorded| recorded.verify.clone()).filter(|verify| !verify.is_empty()),
            rows: recorded.map_or(0, Recorded::rows),
            parts,
            different,
        }
    }

    /// Takes away what apply has made there for itself, the fence above all: what is left is the application's. That it cannot is no reason to fail.
    async fn tidy(&self) {
        let (plan, session) = (&self.job.plan.name, &self.session);
        let gone = async {
            pg::fence::remove(session, &plan::target_side(plan)).await?;
            session.batch_execute("SET client_min_messages = warning; DROP SCHEMA crossfade CASCADE").await
        };
        if let Err(error) = gone.await {
            warn!("what apply has made in {} for itself is left there: {error}", session.place());
        }
    }

    async fn sources(&self) -> Result<Vec<SourceReport>, tokio_postgres::Error> {
        let query = "SELECT source, lsn::text, to_char(commit_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), transactions, rows
                       FROM crossfade.checkpoint ORDER BY source";
        let rows = self.session.query(query, &[]).await?;
        let source = |row: &tokio_postgres::Row| SourceReport {
            name: row.get(0),
            lsn: row.get(1),
            commit_time: row.get(2),
            transactions: row.get(3),
            rows: row.get(4),
        };
        Ok(rows.iter().map(source).collect())
    }
}
