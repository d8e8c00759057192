//! What tables were at some commits: how many rows, and the sums of their hashes, part by part. A verify leaves it in the log, in markers of kind `verified`; the target can be asked for
//! it as well. Whoever fills another database from the log can say whether that holds the same, without source and target.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Code, Lsn, Problem, TableName};
use pg::{Endpoint, Session};
use plan::Plan;
use serde::{Deserialize, Serialize};

use crate::error::VerifyError;
use crate::pair::{At, Pair};
use crate::round::give_way;
use crate::side::Side;
use crate::state::{self, HeldPart};
use crate::sums::{Hash, Sum};

/// Bytes of lines in one marker: it is written into the source's WAL in one piece.
const MESSAGE: usize = 32 << 10;

/// A part of a table, as a line of a marker has it. What is as in the line before it, of the same table, is left out.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// `schema.name`, at the target; `schema` tells where the name begins.
    table: String,
    schema: String,
    part: i32,
    low: Option<String>,
    high: Option<String>,
    lsn: String,
    seq: i64,
    rows: i64,
    sum: String,
    hash: String,
    probe: String,
    equal: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copies: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    columns: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// What a comparison found the target to hold, as the data of markers.
pub(crate) fn messages(held: &[HeldPart], pairs: &[impl Borrow<Pair>], hash: Hash, probe: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let mut message = String::new();
    let mut before: Option<&HeldPart> = None;
    for part in held {
        let Some(pair) = pairs.iter().map(Borrow::borrow).find(|pair| pair.table == part.table) else { continue };
        let first = before.is_none_or(|before| before.table != part.table);
        let name = |at: usize| pair.columns[at].name.clone();
        let line = Line {
            table: part.table.to_string(),
            schema: part.table.schema.clone(),
            part: part.number,
            low: part.low.clone(),
            high: part.high.clone(),
            lsn: part.lsn.clone(),
            seq: part.seq,
            rows: part.rows,
            sum: part.sum.clone(),
            hash: hash.name(),
            probe: probe.to_owned(),
            equal: part.equal,
            copies: before.is_none_or(|before| first || before.copies != part.copies).then(|| part.copies.clone()),
            columns: first.then(|| (0..pair.columns.len()).map(name).collect()),
            key: pair.key.first().filter(|_| first).map(|at| name(*at)),
        };
        before = Some(part);
        // It is made of strings and numbers.
        let Ok(line) = serde_json::to_string(&line) else { continue };
        if !message.is_empty() && message.len() + line.len() >= MESSAGE {
            messages.push(std::mem::take(&mut message));
        }
        if !message.is_empty() {
            message.push('\n');
        }
        message.push_str(&line);
    }
    messages.extend(Some(message).filter(|message| !message.is_empty()));
    messages
}

/// What a table was.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its name in the database that was looked at.
    pub table: TableName,
    /// Which comparison says so; empty if it was none.
    pub verify: String,
    /// The copies that lead into it, as [`state::copies`] tells them.
    copies: String,
    columns: Vec<String>,
    key: Option<String>,
    hash: Hash,
    probe: String,
    parts: BTreeMap<i32, RecordedPart>,
    /// All parts are of the same copies, and nothing was different.
    good: bool,
}

#[derive(Clone, Debug)]
struct RecordedPart {
    low: Option<String>,
    high: Option<String>,
    lsn: Lsn,
    rows: i64,
    sum: String,
}

impl Recorded {
    /// The commits as of which it is known what its parts were.
    #[must_use]
    pub fn commits(&self) -> BTreeSet<Lsn> {
        self.parts.values().map(|part| part.lsn).collect()
    }

    /// How many rows it had.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.parts.values().map(|part| part.rows).sum()
    }

    /// It is of these copies of tables, under their epochs, in the log of this nonce.
    #[must_use]
    pub fn is_of(&self, nonce: &str, copies: &[(TableName, u32)]) -> bool {
        let all: Vec<String> = copies.iter().map(|(table, epoch)| format!(" {table} {epoch}")).collect();
        let all = all.join(",");
        let all = pieces(&all);
        self.copies.strip_prefix(nonce).is_some_and(|copies| pieces(copies).is_subset(&all))
    }

    /// All of it was compared, and was equal.
    #[must_use]
    pub fn is_whole_and_equal(&self) -> bool {
        let parts: Vec<&RecordedPart> = self.parts.values().collect();
        let open = parts.first().is_some_and(|first| first.low.is_none());
        let closed = parts.last().is_some_and(|last| last.high.is_none());
        let meets = |pair: &[&RecordedPart]| pair[0].high.is_some() && pair[0].high == pair[1].low;
        self.good && open && closed && parts.windows(2).all(meets)
    }
}

/// Copies that lead into a table, in whatever order a database's collation has put them.
fn pieces(copies: &str) -> BTreeSet<&str> {
    copies.split(',').collect()
}

/// Whether they are the same copies. The first of them stands behind the nonce, which has no blanks.
fn same(ours: &str, theirs: &str) -> bool {
    match (ours.split_once(' '), theirs.split_once(' ')) {
        (Some((our_nonce, ours)), Some((their_nonce, theirs))) => {
            let sorted = |copies: &str| {
                pieces(copies).into_iter().map(|piece| piece.trim_start().to_owned()).collect::<BTreeSet<_>>()
            };
            our_nonce == their_nonce && sorted(ours) == sorted(theirs)
        }
        _ => false,
    }
}

/// What comparisons say, as their markers come by.
#[derive(Debug, Default)]
pub struct Recordings {
    verify: String,
    open: BTreeMap<TableName, Recorded>,
}

impl Recordings {
    /// Takes a marker's id and data. Returns what the comparison before has said, once another one begins to say something.
    pub fn take(&mut self, verify: &str, data: &str) -> Vec<Recorded> {
        let before = match self.verify == verify {
            true => Vec::new(),
            false => std::mem::take(self).end(),
        };
        verify.clone_into(&mut self.verify);
        for line in data.lines() {
            // A version to come may say something else there.
            if let Ok(line) = serde_json::from_str::<Line>(line) {
                self.line(line);
            }
        }
        before
    }

    /// What the last comparison has said.
    #[must_use]
    pub fn end(self) -> Vec<Recorded> {
        self.open.into_values().collect()
    }

    fn line(&mut self, line: Line) {
        let name = line.table.strip_prefix(&line.schema).and_then(|rest| rest.strip_prefix('.'));
        let (Some(name), Some(hash), Ok(lsn)) = (name, Hash::of_name(&line.hash), line.lsn.parse::<Lsn>()) else {
            return;
        };
        let table = TableName::new(line.schema.clone(), name);
        let copies = line.copies;
        let recorded = match line.columns {
            Some(columns) => {
                let recorded = Recorded {
                    table: table.clone(),
                    verify: self.verify.clone(),
                    copies: copies.clone().unwrap_or_default(),
                    columns,
                    key: line.key,
                    hash,
                    probe: line.probe,
                    parts: BTreeMap::new(),
                    good: true,
                };
                // It may be said again, by a run that was cut off while it said so.
                self.open.insert(table.clone(), recorded);
                self.open.get_mut(&table)
            }
            None => self.open.get_mut(&table),
        };
        let Some(recorded) = recorded else { return };
        recorded.good &= line.equal && copies.is_none_or(|copies| copies == recorded.copies);
        let (low, high, rows, sum) = (line.low, line.high, line.rows, line.sum);
        recorded.parts.insert(line.part, RecordedPart { low, high, lsn, rows, sum });
    }
}

/// Why nothing can be said of a table that was copied again since.
pub const ANOTHER_COPY: &str =
    "the log has another copy of it than the one that was compared; `crossfade verify` compares it again";

/// A part of a table that is not what was recorded.
#[derive(Clone, Debug, Serialize)]
pub struct PartDiffers {
    /// The least value of the table's leading key column; null for no bound.
    pub low: Option<String>,
    /// The first value beyond it; null for no bound.
    pub high: Option<String>,
    /// How many rows were recorded.
    pub recorded_rows: i64,
    /// How many there are.
    pub rows: i64,
}

/// A database that was filled from the log, and stands still.
pub struct Replay {
    side: Side,
}

impl Replay {
    /// Opens it, with so many sessions that read.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn open(endpoint: &Endpoint, readers: usize) -> Result<Replay, Problem> {
        let side = Side::open_idle(endpoint, PURPOSE, readers.max(1)).await.map_err(Problem::from)?;
        Ok(Replay { side })
    }

    /// Compares the parts of a table that were recorded as of this commit. Returns how many there were, and those that are not the same; or why that cannot be said.
    ///
    /// # Errors
    /// The database.
    pub async fn compare(
        &self,
        source: &str,
        recorded: &Recorded,
        lsn: Lsn,
    ) -> Result<Result<(u64, Vec<PartDiffers>), String>, Problem> {
        Ok(self.parts(source, recorded, lsn).await?)
    }

    async fn parts(
        &self,
        source: &str,
        recorded: &Recorded,
        lsn: Lsn,
    ) -> Result<Result<(u64, Vec<PartDiffers>), String>, VerifyError> {
        let session = &self.side.leader;
        let copies = state::epochs(session, source).await?;
        if !copies.get(&recorded.table).is_some_and(|copies| same(copies, &recorded.copies)) {
            return Ok(Err(ANOTHER_COPY.to_owned()));
        }
        if recorded.hash.probe(session).await? != recorded.probe {
            let why = format!("the server at {} hashes rows in another way than the target's", session.place());
            return Ok(Err(format!("{why}; rehearse on one of the target's kind and encoding")));
        }
        let pair = match Pair::alone(session, &recorded.table, &recorded.columns, recorded.key.as_ref()).await? {
            Ok(pair) => pair,
            Err(why) => return Ok(Err(why)),
        };
        let parts = recorded.parts.values().filter(|part| part.lsn == lsn);
        let (side, pair) = (&self.side, &pair);
        let sums = parts.map(|part| async move {
            let condition = pair.between(At::Target, part.low.as_deref(), part.high.as_deref());
            Ok::<_, VerifyError>((part, Sum::of(side, At::Target, pair, recorded.hash, &condition).await?))
        });
        // Each waits for a session that is free.
        let sums = futures::future::try_join_all(sums).await?;
        let differs = |(part, sum): &(&RecordedPart, Sum)| sum.rows != part.rows || sum.hex() != part.sum;
        let different = sums.iter().filter(|found| differs(found)).map(|(part, sum)| PartDiffers {
            low: part.low.clone(),
            high: part.high.clone(),
            recorded_rows: part.rows,
            rows: sum.rows,
        });
        Ok(Ok((sums.len() as u64, different.collect())))
    }
}

/// What a target holds of each source: as of which commit, and each of its tables.
pub type Held = BTreeMap<String, (Lsn, Vec<Recorded>)>;

/// Tries to read the target while others want locks that are in the way of ours.
const TRIES: u32 = 30;

/// Between two tries, at first; then longer, up to [`REST`].
const PAUSE: Duration = Duration::from_millis(200);

/// Between two tries.
const REST: Duration = Duration::from_secs(5);

/// What the plan's target holds now. It is read in one snapshot, in which rows and checkpoint stand together, while apply goes on; it gives way to who waits for its locks.
///
/// # Errors
/// The target; or what it holds is no commit of the source: copy and tail are not joined, or the application writes to it.
pub async fn of_target(plan: &Plan, endpoint: &Endpoint) -> Result<Held, Problem> {
    let mut tries = 1;
    loop {
        let held = tokio::select! {
            biased;
            given = give_way(endpoint, PURPOSE, plan.limits.lock_timeout) => given.map(|()| Held::new()),
            held = target(plan, endpoint) => held,
        };
        match held {
            Err(error) if in_the_way(&error) && tries < TRIES => {
                tokio::time::sleep((PAUSE * tries).min(REST)).await;
                tries += 1;
            }
            held => return Ok(held?),
        }
    }
}

/// Somebody wanted a lock that it held, or held one that it wanted.
fn in_the_way(error: &VerifyError) -> bool {
    match error {
        VerifyError::Again(_) => true,
        VerifyError::Pg(error) => matches!(error.sqlstate(), Some("55P03" | "40P01")),
        _ => false,
    }
}

/// What the sessions that compare call themselves.
const PURPOSE: &str = "rehearse compare";

/// True while the application writes to the target.
const OPEN: &str = "SELECT coalesce((SELECT to_jsonb(l) ->> 'barred' = 'true' FROM crossfade.lease l), false)
    OR EXISTS (SELECT FROM crossfade.fence f, crossfade.plan p WHERE f.side = p.name || ' target' AND f.opened >= f.closed)";

async fn target(plan: &Plan, endpoint: &Endpoint) -> Result<Held, VerifyError> {
    let session = pg::connect_read_only(endpoint, PURPOSE).await?;
    let refused = |why: &str| {
        VerifyError::Stop(Problem::new(Code::NothingRecorded, "the target", why, "rehearse without --against target"))
    };
    if !apply::knows(&session, &plan.name).await? {
        return Err(refused("nothing of the plan has been copied into it"));
    }
    if session.query_one(OPEN, &[]).await?.get(0) {
        return Err(refused("the application writes to it since the cutover, and the log knows nothing of that"));
    }
    let mut tables = Vec::new();
    for source in &plan.sources {
        for (table, copies) in state::copies(&session, &source.name).await? {
            tables.push((source.name.clone(), columns(&session, table).await?, copies));
        }
    }
    let relations: Vec<String> = tables.iter().flat_map(|(_, pair, _)| pair.relations(At::Target)).collect();
    let side = Side::open(endpoint, PURPOSE, plan.verify.connections.max(1), &relations).await?;
    let snapshot: String = side.leader.query_one("SELECT pg_export_snapshot()", &[]).await?.get(0);
    side.share(&snapshot).await?;
    let probe = Hash::Extended.probe(&side.leader).await?;
    let mut held = Held::new();
    for source in &plan.sources {
        let query = "SELECT (lsn - '0/0')::int8 FROM crossfade.checkpoint WHERE source = $1::text";
        let lsn = Lsn(side.leader.query_one(query, &[&source.name]).await?.get::<_, i64>(0) as u64);
        held.insert(source.name.clone(), (lsn, Vec::new()));
    }
    let sums = tables.iter().map(|(source, pair, copies)| {
        let side = &side;
        async move {
            let sum = Sum::of(side, At::Target, pair, Hash::Extended, "true").await?;
            Ok::<_, VerifyError>((source, pair, copies, sum))
        }
    });
    for (source, pair, copies, sum) in futures::future::try_join_all(sums).await? {
        let Some((lsn, tables)) = held.get_mut(source) else { continue };
        let part = RecordedPart { low: None, high: None, lsn: *lsn, rows: sum.rows, sum: sum.hex() };
        tables.push(Recorded {
            table: pair.table.clone(),
            verify: String::new(),
            copies: copies.clone(),
            columns: pair.columns.iter().map(|column| column.name.clone()).collect(),
            key: None,
            hash: Hash::Extended,
            probe: probe.clone(),
            parts: BTreeMap::from([(0, part)]),
            good: true,
        });
    }
    // While the leader lives, nothing can have emptied the tables under its readers.
    side.lives().await?;
    Ok(held)
}

/// A table of the target, with all columns that it has.
async fn columns(session: &Session, table: TableName) -> Result<Pair, VerifyError> {
    let names = pg::catalog::target_columns(session, &table).await?;
    let names: Vec<String> = names.into_iter().map(|column| column.name).collect();
    match Pair::alone(session, &table, &names, None).await? {
        Ok(pair) => Ok(pair),
        Err(why) => Err(VerifyError::Table(table, why)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn part(number: i32, low: Option<&str>, high: Option<&str>) -> Line {
        Line {
            table: "public.t".into(),
            schema: "public".into(),
            part: number,
            low: low.map(Into::into),
            high: high.map(Into::into),
            lsn: format!("0/{}", number + 1),
            seq: 1,
            rows: 10,
            sum: "0".into(),
            hash: Hash::Md5.name(),
            probe: String::new(),
            equal: true,
            copies: (number == 0).then(|| "nonce public.t 1".into()),
            columns: (number == 0).then(|| vec!["id".into()]),
            key: (number == 0).then(|| "id".into()),
        }
    }

    fn recorded(lines: impl IntoIterator<Item = Line>) -> Recorded {
        let mut recordings = Recordings::default();
        for line in lines {
            // Each in a marker of its own.
            assert!(recordings.take("one", &serde_json::to_string(&line).unwrap()).is_empty());
        }
        recordings.end().pop().unwrap()
    }

    #[test]
    fn a_table_is_whole_if_its_parts_leave_no_gap() {
        let whole = [part(0, None, Some("5")), part(1, Some("5"), Some("9")), part(2, Some("9"), None)];
        let table = recorded(whole);
        assert!(table.is_whole_and_equal());
        assert_eq!((table.rows(), table.commits()), (30, BTreeSet::from([Lsn(1), Lsn(2), Lsn(3)])));
        assert!(recorded([part(0, None, None)]).is_whole_and_equal());
        assert!(!recorded([part(0, None, Some("5")), part(2, Some("9"), None)]).is_whole_and_equal());
        assert!(!recorded([part(0, None, Some("5"))]).is_whole_and_equal());
        assert!(!recorded([part(0, Some("5"), None)]).is_whole_and_equal());
        assert!(!recorded([part(0, None, None), part(1, None, None)]).is_whole_and_equal());
    }

    #[test]
    fn what_was_different_or_of_two_copies_does_not_count() {
        let second = || part(1, Some("5"), None);
        assert!(recorded([part(0, None, Some("5")), second()]).is_whole_and_equal());
        assert!(!recorded([part(0, None, Some("5")), Line { equal: false, ..second() }]).is_whole_and_equal());
        let other = Some("nonce public.t 2".to_owned());
        assert!(!recorded([part(0, None, Some("5")), Line { copies: other, ..second() }]).is_whole_and_equal());
    }

    #[test]
    fn copies_are_told_by_nonce_and_epoch_in_any_order() {
        let epochs = [(TableName::new("public", "t"), 1), (TableName::new("public", "odd, one"), 3)];
        let table =
            recorded([Line { copies: Some("nonce public.t 1, public.odd, one 3".into()), ..part(0, None, None) }]);
        assert!(table.is_of("nonce", &epochs) && !table.is_of("other", &epochs) && !table.is_of("nonce", &epochs[..1]));
        assert!(same("nonce public.t 1, public.a 2", "nonce public.a 2, public.t 1"));
        assert!(!same("nonce public.t 1", "nonce public.t 2") && !same("nonce public.t 1", "other public.t 1"));
    }

    #[test]
    fn another_comparison_ends_the_one_before() {
        let line = serde_json::to_string(&part(0, None, None)).unwrap();
        let mut recordings = Recordings::default();
        assert!(recordings.take("one", &line).is_empty());
        assert_eq!(recordings.take("two", &line).pop().unwrap().verify, "one");
        assert_eq!(recordings.end().pop().unwrap().verify, "two");
    }
}
