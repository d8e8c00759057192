use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ::log::Log;
use ::model::{Lsn, Problem, Seq, TableName};
use futures::future::join_all;
use pg::{Endpoint, PgError, Session};
use plan::{Plan, Source};

use crate::backlog::{self, Backlog};
use crate::epochs::Epochs;
use crate::model::{
    Applied, Lag, LogState, Phase, Rogue, SourceState, Status, TableProgress, TableState, Verified, Warning, WayBack,
};
use crate::source::{self, SourceNow};
use crate::target::{self, Other, Stopped, TargetNow};

/// What warnings of the way back are called.
const WAY_BACK: &str = "way_back";

/// Gathers the status as often as asked, over connections that it keeps.
pub struct Gather {
    plan: Arc<Plan>,
    sources: Vec<Link>,
    target: Link,
}

struct Link {
    endpoint: Endpoint,
    session: Option<Session>,
}

impl Link {
    fn new(url: &str) -> Result<Link, Problem> {
        Ok(Link { endpoint: Endpoint::parse(url)?, session: None })
    }

    async fn session(&mut self) -> Result<&Session, PgError> {
        let open = match self.session.take() {
            Some(session) if !session.is_closed() => session,
            _ => pg::connect_read_only(&self.endpoint, "status").await?,
        };
        Ok(self.session.insert(open))
    }
}

impl Gather {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The plan's URLs make no sense.
    pub fn new(plan: Arc<Plan>) -> Result<Gather, Problem> {
        let sources = plan.sources.iter().map(|source| Link::new(source.url.expose())).collect::<Result<_, _>>()?;
        let target = Link::new(plan.target.url.expose())?;
        Ok(Gather { plan, sources, target })
    }

    /// How it stands now. `open` gives the log, or none where an embedded one has not been written yet; it is called once
    /// sources and target were asked, since an embedded log shows what was in it when it was opened.
    pub async fn now(&mut self, open: impl AsyncFnOnce() -> Result<Option<Arc<dyn Log>>, Problem>) -> Status {
        let mut warnings = Vec::new();
        let plan = Arc::clone(&self.plan);
        // The sources first: what they had written by then is in the log, unless capture is behind or down.
        let looks =
            self.sources.iter_mut().zip(&plan.sources).map(|(link, source)| look_at_source(link, &plan, source));
        let (sources, target) = tokio::join!(join_all(looks), async { self.target.session().await.map(|_| ()).err() });
        let target = match target {
            Some(error) => Err(error),
            None => look_at_target(&mut self.target, &plan).await,
        };
        let mut target = match target {
            Ok(Ok(now)) => now,
            Ok(Err(Other(name))) => {
                warnings.push(Warning::new(
                    "target_not_empty",
                    format!("the target's schema crossfade is of plan {name:?}"),
                ));
                TargetNow { phase: Some(Phase::Starting), verify: Some(Verified::default()), ..TargetNow::default() }
            }
            Err(error) => {
                warnings.push(Warning::new("target_unreachable", Problem::from(error).to_string()));
                TargetNow::default()
            }
        };
        let mut log_state = LogState::default();
        let log = open().await.unwrap_or_else(|problem| {
            warnings.push(Warning::new("log_unreachable", problem.to_string()));
            None
        });
        let closed = sources.iter().map(|now| now.as_ref().ok().map(|now| now.closed)).collect::<Vec<_>>();
        let epochs = sources.iter().flatten().fold(target.epochs.clone(), |all, now| all.with(now.epochs.clone()));
        let writable = writable(&closed, target.phase.is_some().then_some(target.open));
        let mut states = Vec::new();
        for ((source, link), now) in plan.sources.iter().zip(&mut self.sources).zip(sources) {
            let backlog = match &log {
                Some(log) => look_at_log(&**log, &plan, source, &target, &mut log_state, &mut warnings).await,
                None => None,
            };
            let now = match now {
                Ok(now) => Some(now),
                Err(error) => {
                    warnings.push(Warning::new("source_unreachable", Problem::from(error).to_string()));
                    None
                }
            };
            let clock = clock(link, now.is_some()).await;
            states.push(state(&plan, source, now, backlog, &target, clock, &mut warnings));
        }
        let way_back = self.way_back(log.as_ref(), &target, &mut warnings).await;
        let way_back = way_back.map(|(back, verify)| {
            // What is compared then is the way back.
            if target.open {
                target.verify = verify;
            }
            back
        });
        self.status(
            Looked { sources: states, target, epochs, way_back, writable_side: writable, log: log_state },
            warnings,
        )
        .await
    }

    /// The way back, once something captures it.
    async fn way_back(
        &mut self,
        log: Option<&Arc<dyn Log>>,
        target: &TargetNow,
        warnings: &mut Vec<Warning>,
    ) -> Option<(WayBack, Option<Verified>)> {
        let (back, [link]) = (self.plan.back()?, &mut self.sources[..]) else { return None };
        let source = back.sources.first()?;
        let now = look_at_source(&mut self.target, &back, source).await.ok()?;
        if now.slot.is_none() && !target.open {
            return None;
        }
        let there = look_at_target(link, &back).await.ok()?.unwrap_or_default();
        let mut said = Vec::new();
        let backlog = match log {
            Some(log) => look_at_log(&**log, &back, source, &there, &mut LogState::default(), &mut said).await,
            None => None,
        };
        let clock = clock(&mut self.target, true).await;
        let mut state = state(&back, source, Some(now), backlog, &there, clock, &mut said);
        if !target.open {
            // Nothing is to be applied yet.
            state.lag = Lag::default();
            let begun = backlog.is_some_and(|backlog| backlog.logged.is_some());
            // The slot is there a moment before somebody reads it.
            said.retain(|warning| warning.code != "lag_estimated" && (begun || warning.code != "capture_down"));
        } else if !there.barred {
            said.extend(apply_down(&there));
        }
        warnings.extend(said.into_iter().map(|warning| Warning::new(WAY_BACK, format!("way back: {}", warning.text))));
        let transactions = there.checkpoints.values().map(|checkpoint| checkpoint.transactions.unsigned_abs()).sum();
        let back = WayBack { state, worker: there.worker.map(|(worker, _)| worker), transactions };
        Some((back, there.verify))
    }

    async fn status(&mut self, looked: Looked, mut warnings: Vec<Warning>) -> Status {
        let Looked { sources, target, epochs, way_back, writable_side, log } = looked;
        // After a cutover there is nothing to be applied.
        warnings.extend(apply_down(&target).filter(|_| !target.open));
        warnings.extend(target.rogue.iter().map(|rogue| {
            let Rogue { table, rows, key, .. } = rogue;
            let text = match rows {
                0 => format!("whether somebody else has written to {table} of the target is not known, for {key}"),
                rows => format!("somebody else has written {rows} rows to {table} of the target, the last with {key}"),
            };
            Warning::new("rogue_writes", text)
        }));
        let mut tables = target.tables;
        if matches!(target.phase, Some(Phase::Starting | Phase::Copying)) {
            self.add_waiting(&mut tables).await;
        }
        let newest = target
            .checkpoints
            .values()
            .filter(|checkpoint| checkpoint.lsn > Lsn::ZERO)
            .max_by(|a, b| a.commit_time.cmp(&b.commit_time));
        let sum = |of: fn(&target::Checkpoint) -> i64| target.checkpoints.values().map(|c| of(c) as u64).sum();
        Status {
            schema_version: 1,
            plan: self.plan.name.clone(),
            epoch: epochs.count(),
            phase: target.phase.map(|phase| epochs.phase().unwrap_or(phase)),
            follows: target.phase,
            way_back,
            rogue: target.rogue,
            writable_side,
            sources,
            tables,
            apply: Applied {
                worker: target.worker.map(|(worker, _)| worker),
                lsn: newest.map(|checkpoint| checkpoint.lsn.to_string()),
                commit_time: newest.and_then(|checkpoint| checkpoint.commit_time.clone()),
                transactions: sum(|c| c.transactions),
                rows: sum(|c| c.rows),
            },
            log,
            verify: target.verify,
            findings: target.findings,
            warnings,
        }
    }

    /// Tables that the target has not heard of yet.
    async fn add_waiting(&mut self, tables: &mut Vec<TableProgress>) {
        for (link, source) in self.sources.iter().zip(&self.plan.sources) {
            let Some(Ok(found)) = (match &link.session {
                Some(session) => Some(pg::catalog::tables(session).await),
                None => None,
            }) else {
                continue;
            };
            let selects = |name: &TableName| source.tables.selects(name);
            for table in found.iter().filter(|table| selects(&table.name) || table.root.as_ref().is_some_and(selects)) {
                let name = table.name.to_string();
                if !tables.iter().any(|known| known.source == source.name && known.table == name) {
                    tables.push(TableProgress {
                        source: source.name.clone(),
                        into: name.clone(),
                        table: name,
                        state: TableState::Waiting,
                        rows_copied: 0,
                        rows_estimated: table.rows_estimated.max(0) as u64,
                        bytes_copied: 0,
                    });
                }
            }
        }
        tables.sort_by(|a, b| (&a.source, &a.table).cmp(&(&b.source, &b.table)));
    }
}

/// What was found at all places.
struct Looked {
    sources: Vec<SourceState>,
    target: TargetNow,
    epochs: Epochs,
    way_back: Option<WayBack>,
    writable_side: &'static str,
    log: LogState,
}

/// Whether nobody applies, and why.
fn apply_down(target: &TargetNow) -> Option<Warning> {
    match (&target.worker, target.phase, &target.stopped) {
        (Some((_, true)), ..) | (_, None | Some(Phase::Starting), _) => None,
        (_, _, Some(Stopped { worker, code, text })) => {
            Some(Warning::new("apply_stopped", format!("apply process {worker} was stopped by {code}: {text}")))
        }
        (Some((worker, false)), ..) => {
            Some(Warning::new("apply_down", format!("apply process {worker} has been silent for 6 s or more")))
        }
        (None, ..) => Some(Warning::new("apply_down", "no apply process holds the lease")),
    }
}

async fn look_at_source(link: &mut Link, plan: &Plan, source: &Source) -> Result<SourceNow, PgError> {
    let slot = capture::slot_name(&plan.name, &source.name);
    let place = link.endpoint.describe();
    source::look(link.session().await?, &plan.source_side(source), &slot).await.map_err(|error| error.at(&place))
}

async fn look_at_target(link: &mut Link, plan: &Plan) -> Result<Result<TargetNow, Other>, PgError> {
    let place = link.endpoint.describe();
    let now = target::look(link.session().await?, plan).await.map_err(|error| error.at(&place));
    if now.is_err() {
        // It may be in the middle of a transaction.
        link.session = None;
    }
    now
}

/// Where the application may write. Which sources are closed, and whether the target is open, each if that is known.
fn writable(closed: &[Option<bool>], open: Option<bool>) -> &'static str {
    match open {
        Some(true) => "target",
        _ if closed.contains(&None) => "unknown",
        _ if !closed.contains(&Some(true)) => "source",
        Some(false) => "none",
        None => "unknown",
    }
}

/// The source's clock, or this machine's where the source cannot be asked.
async fn clock(link: &mut Link, reachable: bool) -> i64 {
    let own = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
    match (&link.session, reachable) {
        (Some(session), true) => source::clock(session).await.unwrap_or_else(|_| own()),
        _ => own(),
    }
}

async fn look_at_log(
    log: &dyn Log,
    plan: &Plan,
    source: &Source,
    target: &TargetNow,
    total: &mut LogState,
    warnings: &mut Vec<Warning>,
) -> Option<Backlog> {
    total.url = Some(log.describe());
    let capture::Streams { copy, chunks, tail } = capture::streams(&plan.name, &source.name);
    let look = async {
        let (copy, chunks, state) = (log.state(&copy).await?, log.state(&chunks).await?, log.state(&tail).await?);
        let (bytes, messages) = [copy, chunks, state]
            .into_iter()
            .flatten()
            .fold((0, 0), |(bytes, messages), s| (bytes + s.bytes, messages + s.messages));
        *total.bytes.get_or_insert(0) += bytes;
        *total.messages.get_or_insert(0) += messages;
        let Some(state) = state else { return Ok(Backlog::default()) };
        let checkpoint = target.checkpoints.get(&source.name);
        let (lsn, seq) = checkpoint.map_or((Lsn::ZERO, Seq::ZERO), |checkpoint| (checkpoint.lsn, checkpoint.seq));
        backlog::read(log, &tail, state, lsn, seq).await
    };
    match look.await {
        Ok(backlog) => Some(backlog),
        Err(error) => {
            let problem: Problem = ::log::LogError::into(error);
            warnings.push(Warning::new("log_unreachable", problem.to_string()));
            None
        }
    }
}

/// Puts together what source, log and target say of one source.
fn state(
    plan: &Plan,
    source: &Source,
    now: Option<SourceNow>,
    backlog: Option<Backlog>,
    target: &TargetNow,
    clock: i64,
    warnings: &mut Vec<Warning>,
) -> SourceState {
    let slot_name = capture::slot_name(&plan.name, &source.name);
    let checkpoint = target.checkpoints.get(&source.name);
    let applied = checkpoint.map(|checkpoint| checkpoint.lsn);
    let slot = now.as_ref().and_then(|now| now.slot.as_ref());
    let running = slot.is_some_and(|slot| slot.active_pid.is_some());
    if now.is_some() {
        let begun = backlog.is_some_and(|backlog| backlog.logged.is_some());
        warn_of_slot(plan, source, slot, begun, warnings);
        if !running {
            let text = format!("nobody reads source {:?}: start `crossfade run` or `crossfade capture`", source.name);
            warnings.push(Warning::new("capture_down", text));
        } else if now.as_ref().is_some_and(|now| !now.sent) {
            let text = format!("capture of {:?} has not read all that the source has written", source.name);
            warnings.push(Warning::new("capture_behind", text));
        }
    }
    let lag = lag(now.as_ref(), running, backlog, checkpoint, target.phase.is_some(), clock);
    if backlog.is_some_and(|backlog| backlog.estimated) {
        warnings.push(Warning::new(
            "lag_estimated",
            format!("the backlog of {:?} is long: its transactions are estimated from its beginning", source.name),
        ));
    }
    let text = |lsn: Lsn| lsn.to_string();
    SourceState {
        name: source.name.clone(),
        slot: slot_name,
        source_lsn: now.as_ref().map(|now| text(now.lsn)),
        confirmed_lsn: slot.map(|slot| text(slot.confirmed)),
        logged_lsn: backlog.and_then(|backlog| backlog.logged).map(text),
        applied_lsn: applied.map(text),
        wal_kept_bytes: slot.map(|slot| slot.wal_kept),
        lag,
    }
}

/// See docs: bytes where anything of the plan's is still to be applied, else 0; what is not known is absent.
fn lag(
    now: Option<&SourceNow>,
    running: bool,
    backlog: Option<Backlog>,
    checkpoint: Option<&target::Checkpoint>,
    target_known: bool,
    clock: i64,
) -> Lag {
    let (Some(backlog), true) = (backlog, target_known) else { return Lag::default() };
    // A log that ends before what was applied has lost its end, and is about to be filled again.
    let short = backlog.logged.zip(checkpoint).is_some_and(|(logged, checkpoint)| logged < checkpoint.lsn);
    let complete = now.is_some_and(|now| now.sent) && !short;
    let pending = backlog.transactions > 0 || backlog.oldest.is_some();
    // Before anything is applied, what is missing begins where the slot does.
    let applied = checkpoint.map(|checkpoint| checkpoint.lsn).filter(|lsn| *lsn > Lsn::ZERO);
    let base = applied.or_else(|| now?.slot.as_ref().map(|slot| slot.confirmed));
    let bytes = match (now, base) {
        (Some(_), _) if complete && !pending => Some(0),
        (Some(now), Some(base)) => Some(now.lsn.bytes_since(base)),
        _ => None,
    };
    let age = backlog.oldest.map(|oldest| (clock - oldest).max(0) as f64 / 1e6);
    Lag {
        bytes,
        // The oldest commit that is logged is the oldest there is; with none logged there may be one that capture has not read.
        seconds: if running || now.is_none() { age.or(complete.then_some(0.0)) } else { None },
        transactions: (running || now.is_none()).then_some(backlog.transactions),
    }
}

fn warn_of_slot(
    plan: &Plan,
    source: &Source,
    slot: Option<&capture::SlotState>,
    begun: bool,
    warnings: &mut Vec<Warning>,
) {
    let Some(slot) = slot else {
        if begun {
            let text = format!("the slot of {:?} is gone: `crossfade recopy` copies everything anew", source.name);
            warnings.push(Warning::new("slot_lost", text));
        }
        return;
    };
    if slot.wal_status == "lost" {
        let text = format!(
            "the slot of {:?} can no longer serve: the source has removed WAL that it needs: `crossfade recopy` copies everything anew",
            source.name
        );
        warnings.push(Warning::new("slot_lost", text));
    }
    let kept = u64::try_from(slot.wal_kept).unwrap_or_default();
    let (code, limit) = match kept {
        kept if kept >= plan.limits.wal_critical => ("wal_critical", plan.limits.wal_critical),
        kept if kept >= plan.limits.wal_warn => ("wal_warn", plan.limits.wal_warn),
        _ => return,
    };
    let text = format!(
        "source {:?} keeps back {} MiB of WAL, the plan's limits.{code} is {} MiB",
        source.name,
        kept >> 20,
        limit >> 20
    );
    warnings.push(Warning::new(code, text));
}
