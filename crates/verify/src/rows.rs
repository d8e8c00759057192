//! From sums that differ to the rows that do: first to a few of many buckets, into which rows fall by their hash, then to the rows in these.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::delta::Delta;
use crate::error::VerifyError;
use crate::pair::{At, Pair};
use crate::report::{Difference, Kind};
use crate::side::{Row, Side};
use crate::sums::{Hash, Sum};

/// Rows that fall into a bucket, as a rule: a few are listed for one that differs.
const IN_BUCKET: i64 = 256;

/// Rows listed at a time, with key and hash.
const LISTED: i64 = 100_000;

/// Differences that are listed of a part of a table; what is beyond is not counted. Who has so many needs no longer list.
pub(crate) const MOST: usize = 10_000;

/// Keys looked up by one statement.
pub(crate) const KEYS: usize = 500;

/// What is compared: rows of a pair on both sides.
#[derive(Clone, Copy)]
pub(crate) struct Both<'a> {
    pub source: &'a Side,
    pub target: &'a Side,
    pub pair: &'a Pair,
    pub hash: Hash,
    /// What lies between the two.
    pub delta: &'a Delta,
}

impl Both<'_> {
    fn side(&self, at: At) -> &Side {
        match at {
            At::Source => self.source,
            At::Target => self.target,
        }
    }

    /// Asks both sides at once.
    async fn ask(&self, query: impl Fn(At) -> String) -> Result<(Vec<Row>, Vec<Row>), VerifyError> {
        let (source, target) = (query(At::Source), query(At::Target));
        tokio::try_join!(self.source.rows(&source), self.target.rows(&target))
    }

    /// The sums of the rows that meet a condition.
    pub async fn sums(&self, condition: impl Fn(At) -> String) -> Result<(Sum, Sum), VerifyError> {
        let (source, target) = (condition(At::Source), condition(At::Target));
        tokio::try_join!(
            Sum::of(self.source, At::Source, self.pair, self.hash, &source),
            Sum::of(self.target, At::Target, self.pair, self.hash, &target),
        )
    }

    /// The rows that differ among those that meet a condition; those with these keys are looked at elsewhere.
    pub async fn differences(
        &self,
        condition: impl Fn(At) -> String,
        rows: i64,
        but: &BTreeSet<Vec<String>>,
    ) -> Result<Vec<Difference>, VerifyError> {
        let buckets = (rows / IN_BUCKET).clamp(1, 1 << 20).unsigned_abs().next_power_of_two();
        let mut found = Vec::new();
        for some in self.buckets(&condition, buckets).await? {
            found.extend(self.listed(&condition, buckets, &some, but).await?);
            if found.len() >= MOST {
                found.truncate(MOST);
                break;
            }
        }
        Ok(found)
    }

    /// The buckets that differ, in lots that can be listed at a time.
    async fn buckets(&self, condition: &impl Fn(At) -> String, buckets: u64) -> Result<Vec<Vec<String>>, VerifyError> {
        let query = |at| {
            let hashes = self.hash.rows(self.pair, at, &self.pair.key_cells(), &condition(at));
            format!("SELECT a & {}, count(*), sum(a), sum(b) FROM ({hashes}) h GROUP BY 1", buckets - 1)
        };
        let (source, target) = self.ask(query).await?;
        let by_bucket = |rows: Vec<Row>| -> BTreeMap<String, Sum> {
            rows.iter().filter_map(|row| Some((row.first()?.clone()?, Sum::parse(&row[1..])?))).collect()
        };
        let (source, target) = (by_bucket(source), by_bucket(target));
        // What lies between is missing in one of them, and need not show in the sums as they are.
        let between = self.between_buckets(buckets).await?;
        let mut lots: Vec<Vec<String>> = Vec::new();
        let mut room = 0;
        for bucket in source.keys().chain(target.keys()).chain(&between).collect::<BTreeSet<_>>() {
            let (ours, theirs) = (source.get(bucket), target.get(bucket));
            if ours == theirs && !between.contains(bucket) {
                continue;
            }
            let rows = ours.map_or(0, |sum| sum.rows) + theirs.map_or(0, |sum| sum.rows);
            match lots.last_mut() {
                Some(lot) if room >= rows => lot.push(bucket.clone()),
                _ => {
                    lots.push(vec![bucket.clone()]);
                    room = LISTED;
                }
            }
            room -= rows;
        }
        Ok(lots)
    }

    async fn listed(
        &self,
        condition: &impl Fn(At) -> String,
        buckets: u64,
        some: &[String],
        but: &BTreeSet<Vec<String>>,
    ) -> Result<Vec<Difference>, VerifyError> {
        let within = |at| {
            let hashes = self.hash.rows(self.pair, at, &self.pair.key_cells(), &condition(at));
            format!("SELECT * FROM ({hashes}) h WHERE a & {} = ANY ('{{{}}}'::int8[])", buckets - 1, some.join(","))
        };
        if self.pair.key.is_empty() {
            // Equal rows are counted there: there may be very many.
            let counts = |at| format!("SELECT a, b, count(*) FROM ({}) w GROUP BY 1, 2", within(at));
            let (source, target) = self.ask(counts).await?;
            let (mut source, target) = (counted(source), counted(target));
            self.bring_forward(&mut source, buckets, some).await?;
            return self.multisets(condition, &source, &target).await;
        }
        let (source, target) = self.ask(within).await?;
        let mut found = Vec::new();
        let mut keyed = |rows: Vec<Row>| -> HashMap<Vec<String>, [Option<String>; 2]> {
            let mut keyed = HashMap::with_capacity(rows.len());
            for row in rows {
                let mut cells = row.into_iter();
                let hashes = [cells.next().flatten(), cells.next().flatten()];
                let key: Vec<String> = cells.map(Option::unwrap_or_default).collect();
                // Only a target that somebody else has made lets a key be there twice.
                if keyed.insert(key.clone(), hashes).is_some() {
                    found.push(Difference::again(self.pair, &key));
                }
            }
            keyed
        };
        let (source, target) = (keyed(source), keyed(target));
        let differ = source.keys().chain(target.keys()).filter(|key| source.get(*key) != target.get(*key));
        let keys: BTreeSet<Vec<String>> = differ.filter(|key| !but.contains(*key)).take(MOST).cloned().collect();
        let keys: Vec<Vec<String>> = keys.into_iter().collect();
        for keys in keys.chunks(KEYS) {
            let (source, target) = tokio::try_join!(self.keyed(At::Source, keys), self.keyed(At::Target, keys))?;
            let keys: BTreeSet<&Vec<String>> = keys.iter().collect();
            // The values' equality may take others for these keys.
            let only = |rows: BTreeMap<Vec<String>, Row>| -> BTreeMap<Vec<String>, Row> {
                rows.into_iter().filter(|(key, _)| keys.contains(key)).collect()
            };
            found.extend(compare(self.pair, &only(source.rows), &only(target.rows)));
        }
        Ok(found)
    }

    /// The rows with these keys, by key.
    pub async fn keyed(&self, at: At, keys: &[Vec<String>]) -> Result<Keyed, VerifyError> {
        let mut found = Keyed::default();
        for some in keys.chunks(KEYS) {
            let among = self.pair.among(at, some.iter().map(Vec::as_slice));
            let query =
                format!("SELECT {} FROM {} WHERE {among}", self.pair.each_cell().join(", "), self.pair.from(at));
            for row in self.side(at).rows(&query).await? {
                let key: Vec<String> = self.pair.key.iter().map(|at| row[*at].clone().unwrap_or_default()).collect();
                if found.rows.insert(key.clone(), row).is_some() {
                    found.again.push(key);
                }
            }
        }
        Ok(found)
    }

    /// The buckets of rows without key that lie between.
    async fn between_buckets(&self, buckets: u64) -> Result<BTreeSet<String>, VerifyError> {
        let mut found = BTreeSet::new();
        for rows in [&self.delta.plus, &self.delta.minus] {
            found.extend(self.hash.each(self.source, rows).await?.iter().map(|hashes| bucket(hashes, buckets)));
        }
        Ok(found)
    }

    /// Adds what lies between to the rows that the source's snapshot sees, where it falls into these buckets.
    async fn bring_forward(&self, source: &mut Counted, buckets: u64, some: &[String]) -> Result<(), VerifyError> {
        for (rows, sign) in [(&self.delta.plus, 1), (&self.delta.minus, -1)] {
            for hashes in self.hash.each(self.source, rows).await? {
                if some.contains(&bucket(&hashes, buckets)) {
                    *source.entry(hashes).or_default() += sign;
                }
            }
        }
        Ok(())
    }

    /// Rows that are there more often on one side than on the other.
    async fn multisets(
        &self,
        condition: &impl Fn(At) -> String,
        source: &Counted,
        target: &Counted,
    ) -> Result<Vec<Difference>, VerifyError> {
        let mut found = Vec::new();
        for (at, more, fewer, kind) in
            [(At::Source, source, target, Kind::Missing), (At::Target, target, source, Kind::Extra)]
        {
            let surplus = |(hashes, count): (&[String; 2], &i64)| {
                let surplus = count - fewer.get(hashes).copied().unwrap_or_default();
                (surplus > 0).then(|| (hashes.clone(), surplus))
            };
            let surplus: Vec<([String; 2], i64)> = more.iter().filter_map(surplus).take(MOST).collect();
            for some in surplus.chunks(KEYS) {
                found.extend(self.shown(at, condition, some, kind).await?);
            }
        }
        Ok(found)
    }

    /// The rows with these hashes, as often as is said.
    async fn shown(
        &self,
        at: At,
        condition: &impl Fn(At) -> String,
        surplus: &[([String; 2], i64)],
        kind: Kind,
    ) -> Result<Vec<Difference>, VerifyError> {
        let hashes: Vec<String> = surplus.iter().map(|([a, b], _)| format!("({a}, {b})")).collect();
        let rows = self.hash.rows(self.pair, at, &self.pair.each_cell(), &condition(at));
        let query = format!("SELECT DISTINCT ON (a, b) * FROM ({rows}) h WHERE (a, b) IN ({})", hashes.join(", "));
        let mut seen: HashMap<[String; 2], Row> = HashMap::new();
        for mut row in self.side(at).rows(&query).await? {
            let cells = row.split_off(2);
            let mut hashes = row.into_iter().flatten();
            if let (Some(a), Some(b)) = (hashes.next(), hashes.next()) {
                seen.insert([a, b], cells);
            }
        }
        // One that lies between is not to be seen at the source.
        let between = self.hash.each(self.source, &self.delta.plus).await?;
        seen.extend(between.into_iter().zip(self.delta.plus.iter().cloned()));
        let mut found = Vec::new();
        for (hashes, count) in surplus {
            let Some(row) = seen.get(hashes) else { continue };
            for _ in 0..*count {
                found.push(Difference::whole(self.pair, kind, row));
            }
        }
        Ok(found)
    }
}

/// Rows by their key.
#[derive(Default)]
pub(crate) struct Keyed {
    pub rows: BTreeMap<Vec<String>, Row>,
    /// Keys that were there already: only a target that somebody else has made lets them.
    again: Vec<Vec<String>>,
}

impl Keyed {
    /// Rows too many.
    pub fn again(&self, pair: &Pair) -> Vec<Difference> {
        self.again.iter().map(|key| Difference::again(pair, key)).collect()
    }
}

/// How often rows with these two hashes are there.
type Counted = HashMap<[String; 2], i64>;

/// The bucket of a row with these hashes, as Postgres works it out.
fn bucket([a, _]: &[String; 2], buckets: u64) -> String {
    // A number that the server printed.
    (a.parse::<i64>().unwrap_or_default() & (buckets as i64 - 1)).to_string()
}

fn counted(rows: Vec<Row>) -> Counted {
    let entry = |row: Row| {
        let mut cells = row.into_iter().flatten();
        Some(([cells.next()?, cells.next()?], cells.next()?.parse().ok()?))
    };
    rows.into_iter().filter_map(entry).collect()
}

/// The rows of both sides, by key, that are not the same.
pub(crate) fn compare(
    pair: &Pair,
    source: &BTreeMap<Vec<String>, Row>,
    target: &BTreeMap<Vec<String>, Row>,
) -> Vec<Difference> {
    let mut found = Vec::new();
    for key in source.keys().chain(target.keys()).collect::<BTreeSet<_>>() {
        match (source.get(key), target.get(key)) {
            (Some(row), None) => found.push(Difference::whole(pair, Kind::Missing, row)),
            (None, Some(row)) => found.push(Difference::whole(pair, Kind::Extra, row)),
            (Some(ours), Some(theirs)) => found.extend(Difference::between(pair, ours, theirs)),
            (None, None) => {}
        }
    }
    found
}
