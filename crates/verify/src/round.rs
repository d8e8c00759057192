//! Parts that are compared under one fence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use model::TableName;
use pg::{Endpoint, Session};
use tokio::time::Instant;

use crate::delta::Delta;
use crate::error::VerifyError;
use crate::fence::{self, Ends, Fence};
use crate::pair::{At, Pair};
use crate::parts::Part;
use crate::report::Difference;
use crate::rows::{Both, KEYS, MOST, compare};
use crate::side::Row;
use crate::state::Done;
use crate::sums::{Hash, Sum};
use crate::touched::Touched;

/// How often it is looked whether the application, or apply, waits for our locks.
const LOOK: Duration = Duration::from_millis(500);

/// What a round needs, besides its parts.
pub(crate) struct Round<'a, 't> {
    pub ends: Ends<'a>,
    pub hash: Hash,
    /// How old its snapshots may get.
    pub renew: Duration,
    /// How long somebody may wait for our locks.
    pub lock_timeout: Duration,
    pub pace: &'a Pace,
    /// What was touched since tables were compared.
    pub touched: Option<&'a tokio::sync::Mutex<Touched<'t>>>,
}

/// What a round has done.
#[derive(Default)]
pub(crate) struct Passed {
    /// What the source showed was no prefix of its commits.
    pub no_prefix: bool,
    pub parts: usize,
}

/// Keeps to the rows that may be read in a second.
pub(crate) struct Pace {
    rows_per_second: Option<u64>,
    next: Mutex<Instant>,
}

impl Pace {
    pub fn new(rows_per_second: Option<u64>) -> Pace {
        Pace { rows_per_second, next: Mutex::new(Instant::now()) }
    }

    /// Waits for as long as so many rows take; no time that was not used is made up for.
    async fn read(&self, rows: i64) {
        let Some(limit) = self.rows_per_second else { return };
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = (*next).max(Instant::now()) + Duration::from_secs_f64(rows.max(0) as f64 / limit as f64);
            *next
        };
        tokio::time::sleep_until(until).await;
    }
}

impl Round<'_, '_> {
    /// Compares as many of the parts as can be under one fence; `done` is called with each that is.
    ///
    /// # Errors
    /// What was not done has to be done under another one.
    pub async fn run(
        &self,
        parts: &[Part],
        done: impl AsyncFn(&Part, Done) -> Result<(), VerifyError>,
    ) -> Result<Passed, VerifyError> {
        let mut pairs: BTreeMap<&TableName, &Pair> = BTreeMap::new();
        for part in parts {
            pairs.insert(&part.pair.table, &part.pair);
        }
        let pairs: Vec<&Pair> = pairs.into_values().collect();
        tokio::select! {
            biased;
            result = self.watched(&pairs, parts, done) => result,
            result = self.give_way(0) => result,
            result = self.give_way(1) => result,
        }
    }

    async fn watched(
        &self,
        pairs: &[&Pair],
        parts: &[Part],
        done: impl AsyncFn(&Part, Done) -> Result<(), VerifyError>,
    ) -> Result<Passed, VerifyError> {
        let fence = fence::take(&self.ends, pairs).await?;
        let begun = Instant::now();
        let mut keys = BTreeMap::new();
        if let Some(touched) = self.touched {
            let mut touched = touched.lock().await;
            touched.until(fence.seq).await?;
            keys.extend(pairs.iter().filter_map(|pair| Some((&pair.table, touched.keys(&pair.table)?.clone()))));
        }
        let mut deltas = BTreeMap::new();
        for pair in pairs {
            deltas.insert(&pair.table, (Delta::of(pair, &fence.between.changes)?, AtomicBool::new(false)));
        }
        let mut passed = Passed { no_prefix: fence.between.transactions > 0, parts: 0 };
        let closed = AtomicBool::new(false);
        let work = parts.iter().filter_map(|part| Some((part, deltas.get(&part.pair.table)?))).map(
            |(part, (delta, judged))| {
                let (fence, closed, keys) = (&fence, &closed, &keys);
                async move {
                    if closed.load(Ordering::Relaxed) {
                        return Ok(None);
                    }
                    let both =
                        Both { source: &fence.source, target: &fence.target, pair: &part.pair, hash: self.hash, delta };
                    // Once for all parts of a table.
                    let judge = !judged.swap(true, Ordering::Relaxed);
                    let found = match keys.get(&part.pair.table).filter(|_| part.touched) {
                        Some(keys) => compare_keys(&both, keys).await?,
                        None => compare_part(&both, part, judge).await?,
                    };
                    self.pace.read(found.rows).await;
                    Ok::<_, VerifyError>(Some((part, found)))
                }
            },
        );
        let mut work = futures::stream::iter(work).buffer_unordered(self.ends.readers.max(1));
        while let Some(result) = work.next().await {
            let Some((part, found)) = result? else { continue };
            // While both leaders live, nothing can have emptied the table under its readers.
            fence.source.lives().await?;
            fence.target.lives().await?;
            done(part, stamped(found, &fence)).await?;
            passed.parts += 1;
            closed.fetch_or(begun.elapsed() > self.renew, Ordering::Relaxed);
        }
        Ok(passed)
    }

    /// Ends, with an error, when somebody has waited too long for a lock that this round holds.
    async fn give_way(&self, end: usize) -> Result<Passed, VerifyError> {
        let endpoint: &Endpoint = self.ends.endpoints[end];
        let session: Session = pg::connect_read_only(endpoint, "verify watch").await?;
        let name = format!("crossfade {}", self.ends.purpose);
        loop {
            tokio::time::sleep(LOOK).await;
            if pg::somebody_waits(&session, &name, None, self.lock_timeout).await? {
                return Err(VerifyError::Again("somebody waited for a lock that it held".to_owned()));
            }
        }
    }
}

fn stamped(found: Done, fence: &Fence) -> Done {
    Done { lsn: fence.lsn, seq: fence.seq, held_ms: fence.held.as_millis() as u64, ..found }
}

/// Compares a part; with `judge` also the rows that lie between, wherever they are in the table.
async fn compare_part(both: &Both<'_>, part: &Part, judge: bool) -> Result<Done, VerifyError> {
    let rows = |at: At| part.rows(at);
    let keys: Vec<Vec<String>> = both.delta.keys().into_iter().collect();
    let mut done = Done::default();
    let mut judged = BTreeSet::new();
    let (mut source, mut target) = both.sums(rows).await?;
    done.rows = source.rows;
    done.sum = Some(target);
    if !keys.is_empty() {
        for some in keys.chunks(KEYS) {
            let among = |at| format!("({}) AND ({})", rows(at), both.pair.among(at, some.iter().map(Vec::as_slice)));
            let (ours, theirs) = both.sums(among).await?;
            source = source - ours;
            target = target - theirs;
        }
        let (found, seen) = judge_rows(both, &keys).await?;
        judged = seen;
        if judge {
            done.rechecked = judged.len() as u64;
            done.found = found;
        }
    } else if !both.delta.is_empty() {
        source = source + Sum::given(both.source, both.hash, &both.delta.plus).await?
            - Sum::given(both.source, both.hash, &both.delta.minus).await?;
        done.rechecked = (both.delta.plus.len() + both.delta.minus.len()) as u64;
    }
    if source != target {
        let found = both.differences(rows, source.rows.max(target.rows), &judged).await?;
        if found.is_empty() {
            return Err(VerifyError::Again(format!("sums of table {} differ and no rows do", part.pair.table)));
        }
        done.more = found.len() >= MOST;
        done.found.extend(found);
    }
    Ok(done)
}

/// Compares the rows with these keys, and those that lie between.
async fn compare_keys(both: &Both<'_>, keys: &BTreeSet<Vec<String>>) -> Result<Done, VerifyError> {
    let between: Vec<Vec<String>> = both.delta.keys().into_iter().collect();
    let (mut found, judged) = judge_rows(both, &between).await?;
    let others: Vec<Vec<String>> = keys.difference(&judged).cloned().collect();
    for some in others.chunks(KEYS) {
        let (source, target) = tokio::try_join!(both.keyed(At::Source, some), both.keyed(At::Target, some))?;
        // The values' equality may take others for these keys, which lie between.
        let only = |rows: BTreeMap<Vec<String>, Row>| -> BTreeMap<Vec<String>, Row> {
            rows.into_iter().filter(|(key, _)| !judged.contains(key)).collect()
        };
        found.extend(compare(both.pair, &only(source), &only(target)));
    }
    let more = found.len() > MOST;
    found.truncate(MOST);
    let rows = (judged.len() + others.len()) as i64;
    Ok(Done { rows, rechecked: judged.len() as u64, found, more, ..Done::default() })
}

/// The rows that lie between: what the target has is compared with what the log makes of what the source's snapshot sees. Returns also the keys of all rows looked at.
async fn judge_rows(
    both: &Both<'_>,
    keys: &[Vec<String>],
) -> Result<(Vec<Difference>, BTreeSet<Vec<String>>), VerifyError> {
    let (source, target) = tokio::try_join!(both.keyed(At::Source, keys), both.keyed(At::Target, keys))?;
    let looked_at = keys.iter().chain(source.keys()).chain(target.keys()).cloned().collect();
    let mut expected = both.delta.expected(both.pair, source)?;
    // The log has no generated values: those of rows that it changed are not known.
    for (key, row) in &mut expected {
        let Some(theirs) = target.get(key).filter(|_| keys.contains(key)) else { continue };
        for (at, _) in both.pair.columns.iter().enumerate().filter(|(_, column)| column.generated) {
            row[at].clone_from(&theirs[at]);
        }
    }
    Ok((compare(both.pair, &expected, &target), looked_at))
}
