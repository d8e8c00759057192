//! Writers that change the rows of a plan's tables without knowing what they are: each row is written again as it is. What they were told to be committed is counted, in a table of
//! their own, in the same transactions.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{Code, Problem, TableName};
use pg::{Endpoint, PgError, Session};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::rehearse::drill::report::{LeftOut, LoadReport};
use crate::rehearse::drill::rows::{Change, Rows, Witness};

/// Where the writers number their writes.
pub(crate) const SCHEMA: &str = "crossfade_drill";
const TABLE: &str = "written";

/// As pg_dump, which carries it from one side to the other, will find it.
pub(crate) const CREATE: &str = "CREATE SCHEMA crossfade_drill;
    CREATE TABLE crossfade_drill.written (writer integer, number bigint, PRIMARY KEY (writer, number))";

/// The table of their own.
pub fn written() -> TableName {
    TableName::new(SCHEMA, TABLE)
}

/// Sessions that write: enough for some to be in the middle of a transaction when a side is closed, and few enough for the smallest server.
const WRITERS: usize = 4;

/// Each writes once in this time at the most: 200 transactions a second, which any server bears that could be cut over.
const PAUSE: Duration = Duration::from_millis(20);

/// Where both sides refuse a write one of them will take it soon.
const AGAIN: Duration = Duration::from_millis(5);

/// Between two looks at how far the writers are.
const LOOK: Duration = Duration::from_millis(20);

/// Writes of each writer that are waited for, before and behind each switch.
const ENOUGH: u64 = 25;

/// How long the writers may take for these once a side is open.
const LED_OVER: Duration = Duration::from_secs(60);

/// SQLSTATE read_only_sql_transaction: how a fence refuses.
pub(crate) const CLOSED: &str = "25006";

/// A database of the drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source = 0,
    Target = 1,
}

impl Side {
    pub fn other(self) -> Side {
        match self {
            Side::Source => Side::Target,
            Side::Target => Side::Source,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Target => "target",
        }
    }
}

/// Writers at work. They end when this is dropped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    begun: Instant,
    _writers: JoinSet<()>,
}

struct Shared {
    rows: Rows,
    seen: Mutex<Seen>,
}

/// What has come of it so far.
struct Seen {
    writers: Vec<Writer>,
    failed: Option<Problem>,
}

#[derive(Clone, Debug)]
struct Writer {
    /// How much was acknowledged: the numbers from 0 to below that.
    acknowledged: i64,
    /// Where its last write was acknowledged, and when.
    side: Side,
    at: Instant,
    /// Writes there since it was led over.
    there: u64,
    /// Between the last write on the other side and the first one here.
    waited: Option<Duration>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn acknowledged(&mut self, writer: usize, side: Side) {
        let Some(writer) = self.writers.get_mut(writer) else { return };
        let now = Instant::now();
        writer.acknowledged += 1;
        if writer.side != side {
            (writer.side, writer.there, writer.waited) = (side, 0, Some(now.duration_since(writer.at)));
        }
        (writer.at, writer.there) = (now, writer.there + 1);
    }
}

impl Load {
    /// Starts them, on the side that is called source.
    ///
    /// # Errors
    /// A database cannot be reached, or there is nothing that they could write.
    pub async fn start(source: &Endpoint, target: &Endpoint, rows: Rows) -> Result<Load, Problem> {
        let begun = Instant::now();
        let fresh = Writer { acknowledged: 0, side: Side::Source, at: begun, there: 0, waited: None };
        let seen = Seen { writers: vec![fresh; WRITERS], failed: None };
        if rows.witnesses.is_empty() {
            let why = match rows.left_out.first() {
                Some((table, why)) => format!("no table of the plan can be written to; {table}: {why}"),
                None => "the plan has no tables there".to_owned(),
            };
            let next = "rehearse without --drill, or once a table with a key has rows";
            return Err(Problem::new(Code::CutoverRefused, "the drill's writers", why, next));
        }
        let shared = Arc::new(Shared { rows, seen: Mutex::new(seen) });
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let sessions = [pg::connect(source, "drill").await?, pg::connect(target, "drill").await?];
            let shared = Arc::clone(&shared);
            writers.spawn(async move {
                if let Err(problem) = write(number, &sessions, &shared).await {
                    shared.seen().failed.get_or_insert(problem);
                }
            });
        }
        Ok(Load { shared, begun, _writers: writers })
    }

    /// What they write.
    pub fn rows(&self) -> &Rows {
        &self.shared.rows
    }

    /// # Errors
    /// One of them has ended.
    pub fn well(&self) -> Result<(), Problem> {
        self.shared.seen().failed.clone().map_or(Ok(()), Err)
    }

    /// Waits until each of them has written there some times. Says how long it took the slowest of them to get there from the other side.
    ///
    /// # Errors
    /// One of them has ended, or does not get there.
    pub async fn on(&self, side: Side) -> Result<Option<Duration>, Problem> {
        let begun = Instant::now();
        while begun.elapsed() < LED_OVER {
            self.well()?;
            {
                let seen = self.shared.seen();
                if seen.writers.iter().all(|writer| writer.side == side && writer.there >= ENOUGH) {
                    return Ok(seen.writers.iter().filter_map(|writer| writer.waited).max());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        let why = format!("not each of them had {ENOUGH} writes taken there within {} s", LED_OVER.as_secs());
        let next = "the log of this run may say what keeps them; drill again";
        Err(Problem::new(Code::CutoverRefused, format!("the writers, on the copy of the {}", side.as_str()), why, next))
    }

    /// How many writes were acknowledged so far, and how many of them this database does not have.
    ///
    /// # Errors
    /// The database.
    pub async fn lost(&self, session: &Session) -> Result<(u64, u64), PgError> {
        let acknowledged: Vec<i64> = self.shared.seen().writers.iter().map(|writer| writer.acknowledged).collect();
        let query = "SELECT count(*) FROM crossfade_drill.written WHERE writer = $1 AND number < $2";
        let (mut all, mut lost) = (0, 0);
        for (writer, numbers) in acknowledged.iter().enumerate() {
            let there: i64 = session.query_one(query, &[&(writer as i32), numbers]).await?.get(0);
            all += numbers.unsigned_abs();
            lost += (numbers - there).unsigned_abs();
        }
        Ok((all, lost))
    }

    /// What was written so far.
    pub fn report(&self) -> LoadReport {
        let seen = self.shared.seen();
        let transactions = seen.writers.iter().map(|writer| writer.acknowledged.unsigned_abs()).sum();
        let Rows { witnesses, left_out, .. } = &self.shared.rows;
        let left = |(table, why): &(TableName, String)| LeftOut { table: table.to_string(), why: why.clone() };
        LoadReport {
            writers: WRITERS as u64,
            transactions,
            per_second: transactions as f64 / self.begun.elapsed().as_secs_f64().max(f64::EPSILON),
            tables: witnesses.len() as u64,
            left_out: left_out.iter().map(left).collect(),
        }
    }
}

/// Writes for ever, on the side that takes it. A table that refuses a write is one that would refuse the application's, or apply's.
async fn write(writer: usize, sessions: &[Session; 2], shared: &Shared) -> Result<(), Problem> {
    let changes = &shared.rows.changes;
    let mut tick = tokio::time::interval(PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut side = Side::Source;
    for number in 0.. {
        tick.tick().await;
        // Each begins somewhere else, so that they seldom want the same row.
        let change = changes.get((number * WRITERS + writer) % changes.len().max(1));
        let sql = sql(writer, number, change);
        loop {
            match attempt(&sessions[side as usize], &sql).await {
                Ok(()) => break,
                Err(error) if error.sqlstate() == Some(CLOSED) => {
                    side = side.other();
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(refused(change.map(|change| &change.table), side, error)),
            }
        }
        shared.seen().acknowledged(writer, side);
    }
    Ok(())
}

/// Writes a witness anew.
///
/// # Errors
/// That side refuses it.
pub(crate) async fn rewrite(session: &Session, side: Side, witness: &Witness) -> Result<(), Problem> {
    let sql = format!("BEGIN; SET LOCAL session_replication_role = replica; {}; COMMIT", witness.sql);
    attempt(session, &sql).await.map_err(|error| refused(Some(&witness.table), side, error))
}

/// Until it gets through where two of them met, or apply and one of them.
async fn attempt(session: &Session, sql: &str) -> Result<(), PgError> {
    loop {
        let Err(error) = session.batch_execute(sql).await.map_err(PgError::from) else { return Ok(()) };
        // Where even that fails, the reason is what came first.
        let rolled_back = session.batch_execute("ROLLBACK").await.is_ok();
        if !(rolled_back && error.sqlstate().is_some_and(|state| state.starts_with("40"))) {
            return Err(error);
        }
    }
}

fn refused(table: Option<&TableName>, side: Side, error: PgError) -> Problem {
    let problem = Problem::from(error);
    let table = table.map_or_else(|| written().to_string(), TableName::to_string);
    let what = format!("a write to table {table} in the copy of the {}", side.as_str());
    Problem { what, ..problem }
}

/// A write is counted as the application would write, so that the fence holds it back, and with it the transaction. The rest is written as apply writes: triggers, rules and cascades of
/// the application stay still.
fn sql(writer: usize, number: usize, change: Option<&Change>) -> String {
    let counted = format!("INSERT INTO {} VALUES ({writer}, {number})", written().quoted());
    match change {
        Some(Change { sql, .. }) => {
            format!("BEGIN; {counted}; SET LOCAL session_replication_role = replica; {sql}; COMMIT")
        }
        None => counted,
    }
}
