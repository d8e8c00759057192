//! Rounds, each under one fence, until every part is done or nothing can be said of its table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model::TableName;
use pg::PgError;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::comparison::{Comparison, Origin};
use crate::error::VerifyError;
use crate::fence::Ends;
use crate::parts::Part;
use crate::round::{Pace, Round};
use crate::state::Done;
use crate::touched::Touched;

/// Tables under one fence, over all the sessions that lock them: with their indexes they have to fit into the servers' lock tables, beside what the application locks.
const TABLES: usize = 128;

/// Tries without anything done before a round's tables are called inconclusive.
const TRIES: u32 = 30;

/// Between two tries, at first; then longer, up to [`REST`].
const PAUSE: Duration = Duration::from_millis(200);

/// Between two tries.
const REST: Duration = Duration::from_secs(5);

/// How often progress is told.
const TOLD: Duration = Duration::from_secs(5);

impl Comparison<'_> {
    /// Brings both sides together as often as it takes; notes `why` nothing can be said of a table.
    pub async fn rounds(
        &self,
        origin: &Origin<'_>,
        mut open: VecDeque<Part>,
        touched: Option<&Mutex<Touched<'_>>>,
        why: &mut BTreeMap<TableName, String>,
    ) -> Result<(), VerifyError> {
        let plan = &self.job.plan;
        let purpose = format!("verify {}", &self.id[..8]);
        let pace = Pace::new(plan.verify.rows_per_second, plan.verify.rest);
        let progress = Progress::new(open.len());
        let most = (TABLES / (plan.verify.connections + 1)).max(1);
        let (mut tries, mut tables) = (0, most);
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
            let finished = Mutex::new(BTreeSet::new());
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
                (tries, tables) = (0, most.min(tables * 2));
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
                error if error.retry() => {
                    give_up(&mut open, Some(&parts), &error, why);
                    tries = 0;
                }
                // What a server does not allow of one table need not keep the others from being compared.
                VerifyError::Pg(PgError::Server(_)) if tables > 1 => tables = 1,
                VerifyError::Pg(PgError::Server(_)) => give_up(&mut open, Some(&parts), &error, why),
                error => return Err(error),
            }
        }
        Ok(())
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
