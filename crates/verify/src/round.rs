//! Parts that are compared under one fence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use model::TableName;
use pg::Endpoint;
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
}

/// Keeps to what the servers may be asked for: rows in a second, and rest after work.
pub(crate) struct Pace {
    rows_per_second: Option<u64>,
    /// In per cent of the time that the work took.
    rest: u32,
    next: Mutex<Instant>,
}

impl Pace {
    pub fn new(rows_per_second: Option<u64>, rest: u32) -> Pace {
        Pace { rows_per_second, rest, next: Mutex::new(Instant::now()) }
    }

    fn next(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there may be more.
    async fn ready(&self) {
        let next = *self.next();
        tokio::time::sleep_until(next).await;
    }

    /// So many rows were read, in this time; no time that was not used is made up for.
    fn took(&self, rows: i64, time: Duration) {
        let rows = self.rows_per_second.map_or(0.0, |limit| rows.max(0) as f64 / limit as f64);
        let rest = time.mul_f64(f64::from(self.rest) / 100.0).max(Duration::from_secs_f64(rows).saturating_sub(time));
        let mut next = self.next();
        *next = (*next).max(Instant::now()) + rest;
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
            given = self.give_way(0) => Err(given),
            given = self.give_way(1) => Err(given),
            result = self.watched(&pairs, parts, done) => result,
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
        let mut tables = BTreeMap::new();
        for pair in pairs {
            tables.insert(&pair.table, self.between(&fence, pair).await?);
        }
        let passed = Passed { no_prefix: fence.between.transactions > 0 };
        let (closed, any) = (AtomicBool::new(false), AtomicBool::new(false));
        let work =
            parts.iter().filter_map(|part| Some((part, tables.get(&part.pair.table)?))).map(|(part, between)| {
                let (fence, closed, any, keys) = (&fence, &closed, &any, &keys);
                async move {
                    self.pace.ready().await;
                    // With nothing done at all it would never be.
                    let old = begun.elapsed() > self.renew && any.load(Ordering::Relaxed);
                    if closed.load(Ordering::Relaxed) || old {
                        return Ok(None);
                    }
                    let work = Instant::now();
                    let both = self.both(fence, &part.pair, &between.delta);
                    let found = match keys.get(&part.pair.table).filter(|_| part.touched) {
                        Some(keys) => compare_keys(&both, keys, &between.judged).await?,
                        None => compare_part(&both, part, &between.judged).await?,
                    };
                    self.pace.took(found.rows, work.elapsed());
                    Ok::<_, VerifyError>(Some((part, found)))
                }
            });
        let mut work = futures::stream::iter(work).buffer_unordered(self.ends.readers.max(1));
        while let Some(result) = work.next().await {
            let Some((part, mut found)) = result? else { continue };
            // While both leaders live, nothing can have emptied the table under its readers.
            fence.source.lives().await?;
            fence.target.lives().await?;
            if let Some(between) = tables.get(&part.pair.table) {
                // With the first part that is noted, so that it is not lost with one that is not.
                let rows = std::mem::take(&mut *between.found.lock().unwrap_or_else(PoisonError::into_inner));
                found.rechecked += rows.as_ref().map_or(0, |_| between.judged.len() as u64);
                found.found.extend(rows.unwrap_or_default());
            }
            done(part, stamped(found, part, &fence)).await?;
            any.store(true, Ordering::Relaxed);
            closed.fetch_or(begun.elapsed() > self.renew, Ordering::Relaxed);
        }
        Ok(passed)
    }

    async fn give_way(&self, end: usize) -> VerifyError {
        match give_way(self.ends.endpoints[end], self.ends.purpose, self.lock_timeout).await {
            Err(error) => error,
            // It has no other end.
            Ok(()) => VerifyError::Again("nobody looks who waits any more".to_owned()),
        }
    }

    fn both<'b>(&self, fence: &'b Fence, pair: &'b Pair, delta: &'b Delta) -> Both<'b> {
        Both { source: &fence.source, target: &fence.target, pair, hash: self.hash, delta }
    }

    /// What lies between, of a table: looked at before everything else.
    async fn between(&self, fence: &Fence, pair: &Pair) -> Result<Judged, VerifyError> {
        let delta = Delta::of(pair, &fence.between.changes)?;
        let keys: Vec<Vec<String>> = delta.keys().into_iter().collect();
        let (found, judged) = judge_rows(&self.both(fence, pair, &delta), &keys).await?;
        Ok(Judged { delta, judged, found: Mutex::new(Some(found)) })
    }
}

/// Ends, with an error, when somebody has waited too long for a lock that sessions of this purpose hold.
pub(crate) async fn give_way(endpoint: &Endpoint, purpose: &str, limit: Duration) -> Result<(), VerifyError> {
    // Calls itself what the others do, whatever the URL makes of that.
    let session = pg::connect_read_only(endpoint, purpose).await?;
    let name: String = session.query_one("SELECT current_setting('application_name')", &[]).await?.get(0);
    loop {
        tokio::time::sleep(LOOK).await;
        if pg::somebody_waits(&session, &name, None, limit).await? {
            return Err(VerifyError::Again(
                "somebody waited for a lock that it held; try again when nobody changes the table's definition"
                    .to_owned(),
            ));
        }
    }
}

/// What lies between, of a table.
struct Judged {
    delta: Delta,
    /// The keys of all rows that were looked at.
    judged: BTreeSet<Vec<String>>,
    /// Those of them that differ, until a part takes them along.
    found: Mutex<Option<Vec<Difference>>>,
}

fn stamped(found: Done, part: &Part, fence: &Fence) -> Done {
    let copies = fence.copies.get(&part.pair.table).cloned().unwrap_or_default();
    Done { lsn: fence.lsn, seq: fence.seq, copies, held_ms: fence.held.as_millis() as u64, ..found }
}

/// Compares a part, but for the rows that were `judged`.
async fn compare_part(both: &Both<'_>, part: &Part, judged: &BTreeSet<Vec<String>>) -> Result<Done, VerifyError> {
    let rows = |at: At| part.rows(at);
    let keys: Vec<&[String]> = judged.iter().map(Vec::as_slice).collect();
    let mut done = Done::default();
    let (mut source, mut target) = both.sums(rows).await?;
    done.rows = source.rows;
    done.sum = Some(target);
    for some in keys.chunks(KEYS) {
        let among = |at| format!("({}) AND ({})", rows(at), both.pair.among(at, some.iter().copied()));
        let (ours, theirs) = both.sums(among).await?;
        source = source - ours;
        target = target - theirs;
    }
    if both.pair.key.is_empty() && !both.delta.is_empty() {
        source = source + Sum::given(both.source, both.hash, &both.delta.plus).await?
            - Sum::given(both.source, both.hash, &both.delta.minus).await?;
        done.rechecked = (both.delta.plus.len() + both.delta.minus.len()) as u64;
    }
    if source != target {
        done.found = both.differences(rows, source.rows.max(target.rows), judged).await?;
        if done.found.is_empty() {
            return Err(VerifyError::Again(format!("sums of table {} differ and no rows do", part.pair.table)));
        }
        done.more = done.found.len() >= MOST;
    }
    Ok(done)
}

/// Compares the rows with these keys, but for those that were `judged`.
async fn compare_keys(
    both: &Both<'_>,
    keys: &BTreeSet<Vec<String>>,
    judged: &BTreeSet<Vec<String>>,
) -> Result<Done, VerifyError> {
    let others: Vec<Vec<String>> = keys.difference(judged).cloned().collect();
    let mut found = Vec::new();
    for some in others.chunks(KEYS) {
        let (source, target) = tokio::try_join!(both.keyed(At::Source, some), both.keyed(At::Target, some))?;
        found.extend(target.again(both.pair));
        let (source, target) = (source.rows, target.rows);
        // The values' equality may take others for these keys, which lie between.
        let only = |rows: BTreeMap<Vec<String>, Row>| -> BTreeMap<Vec<String>, Row> {
            rows.into_iter().filter(|(key, _)| !judged.contains(key)).collect()
        };
        found.extend(compare(both.pair, &only(source), &only(target)));
    }
    let more = found.len() > MOST;
    found.truncate(MOST);
    Ok(Done { rows: (judged.len() + others.len()) as i64, found, more, ..Done::default() })
}

/// The rows that lie between: what the target has is compared with what the log makes of what the source's snapshot sees. Returns also the keys of all rows looked at.
async fn judge_rows(
    both: &Both<'_>,
    keys: &[Vec<String>],
) -> Result<(Vec<Difference>, BTreeSet<Vec<String>>), VerifyError> {
    let (source, target) = tokio::try_join!(both.keyed(At::Source, keys), both.keyed(At::Target, keys))?;
    let again = target.again(both.pair);
    let (source, target) = (source.rows, target.rows);
    let looked_at = keys.iter().chain(source.keys()).chain(target.keys()).cloned().collect();
    let changed: BTreeSet<&Vec<String>> = keys.iter().collect();
    let mut expected = both.delta.expected(both.pair, source)?;
    // The log has no generated values: those of rows that it changed are not known.
    for (key, row) in &mut expected {
        let Some(theirs) = target.get(key).filter(|_| changed.contains(key)) else { continue };
        for (at, _) in both.pair.columns.iter().enumerate().filter(|(_, column)| column.generated) {
            row[at].clone_from(&theirs[at]);
        }
    }
    let mut found = compare(both.pair, &expected, &target);
    found.extend(again);
    Ok((found, looked_at))
}
