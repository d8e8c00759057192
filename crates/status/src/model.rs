use apply::Counted;
use serde::Serialize;

/// How a migration stands. As JSON it is what scripts and alarms rely on: names, types and meanings stay.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Of this form: 1.
    pub schema_version: u32,
    /// The plan's name.
    pub plan: String,
    /// Cutovers and rollbacks so far.
    pub epoch: u64,
    /// Absent while the target cannot be asked.
    pub phase: Option<Phase>,
    /// How far copy and tail are, whatever cutovers there were.
    #[serde(skip)]
    pub follows: Option<Phase>,
    /// The way back; absent where there is none, or not yet.
    pub way_back: Option<WayBack>,
    /// Rows that others than apply have written to the target since it was last compared in full.
    pub rogue: Vec<Rogue>,
    /// Where the application may write: `source`, `target`, `none`, or `unknown` while a server cannot be asked that decides it.
    pub writable_side: &'static str,
    /// In the plan's order.
    pub sources: Vec<SourceState>,
    /// By source and name.
    pub tables: Vec<TableProgress>,
    /// What the target has.
    pub apply: Applied,
    /// What the log holds.
    pub log: LogState,
    /// What `crossfade verify` has found; absent while the target cannot be asked.
    pub verify: Option<Verified>,
    /// Rows that rules leave out, or let be less than they were, as they were counted last: those of the plan, in its order, and then crossfade's own.
    pub findings: Vec<Counted>,
    /// What is wrong, or not known.
    pub warnings: Vec<Warning>,
}

/// How far the migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing has reached the target.
    Starting,
    /// Tables are being copied.
    Copying,
    /// All are copied; the tail catches up with the copy, keys are built.
    Joining,
    /// The target follows the source.
    Following,
    /// A cutover closes the source to writes.
    Fencing,
    /// Nobody can write.
    Fenced,
    /// The target has everything that the source has.
    Drained,
    /// It can be decided.
    Prepared,
    /// The target is the writable side; the application is being led over.
    Committed,
    /// The application is led over.
    Routed,
    /// The same, and what it writes goes back into the source.
    Reversing,
}

/// How what is written to the target gets into the source. Before a cutover it is only captured.
#[derive(Clone, Debug, Serialize)]
pub struct WayBack {
    /// The target as what is captured, and how far the source is behind it after a cutover.
    #[serde(flatten)]
    pub state: SourceState,
    /// `host:pid` of the process that applies it to the source.
    pub worker: Option<String>,
    /// Transactions that it has applied.
    pub transactions: u64,
}

/// Rows of a table.
#[derive(Clone, Debug, Serialize)]
pub struct Rogue {
    /// `schema.name` in the target.
    pub table: String,
    /// How many.
    pub rows: u64,
    /// The last one's key, or `TRUNCATE`.
    pub key: String,
    /// When that was committed, RFC 3339.
    pub at: String,
}

/// A source. LSNs are in Postgres's form.
#[derive(Clone, Debug, Serialize)]
pub struct SourceState {
    /// Its name in the plan.
    pub name: String,
    /// Its slot's name.
    pub slot: String,
    /// How far its WAL is written.
    pub source_lsn: Option<String>,
    /// What the slot was told to be safe.
    pub confirmed_lsn: Option<String>,
    /// How far the log is complete.
    pub logged_lsn: Option<String>,
    /// End of the last commit that the target has.
    pub applied_lsn: Option<String>,
    /// WAL kept back for the slot, in bytes.
    pub wal_kept_bytes: Option<i64>,
    /// How far the target is behind.
    pub lag: Lag,
}

/// How far the target is behind a source. All 0 when it has everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lag {
    /// Of WAL, where anything of the plan's is still to be applied.
    pub bytes: Option<u64>,
    /// Age of the oldest commit that the target lacks.
    pub seconds: Option<f64>,
    /// Logged and not applied.
    pub transactions: Option<u64>,
}

/// A table's way into the target.
#[derive(Clone, Debug, Serialize)]
pub struct TableProgress {
    /// The source's name in the plan.
    pub source: String,
    /// `schema.name` there.
    pub table: String,
    /// `schema.name` in the target.
    pub into: String,
    /// How far it is.
    pub state: TableState,
    /// Rows that are in the target by the copy.
    pub rows_copied: u64,
    /// How many they will be, by the source's statistics; exact once all are logged.
    pub rows_estimated: u64,
    /// Bytes of COPY text that are in the target.
    pub bytes_copied: u64,
}

/// How far a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableState {
    /// Its copy has not begun.
    Waiting,
    /// Rows are on their way.
    Copying,
    /// All rows are in, and its keys are built.
    Copied,
    /// All rows are in, its keys are being built.
    Indexing,
    /// It follows the source.
    Joined,
}

/// What apply has done, all sources together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Applied {
    /// `host:pid` of the process that holds the lease.
    pub worker: Option<String>,
    /// End of the newest commit, of the source that it came from.
    pub lsn: Option<String>,
    /// When that was committed, RFC 3339.
    pub commit_time: Option<String>,
    /// Transactions applied from the tail.
    pub transactions: u64,
    /// Rows written from the tail.
    pub rows: u64,
}

/// What the log holds, all streams of the plan together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogState {
    /// Without secrets.
    pub url: Option<String>,
    /// On its disk.
    pub bytes: Option<u64>,
    /// How many.
    pub messages: Option<u64>,
}

/// What was compared of the copies that the target has now, table by table: a verdict on an earlier copy is none.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// Tables whose last verdict that is.
    pub equal: u64,
    /// See `equal`.
    pub different: u64,
    /// See `equal`.
    pub inconclusive: u64,
    /// Tables that no comparison has come to an end on.
    pub unverified: u64,
    /// Of those that are equal or different, the tables of which only a sample was compared.
    pub sampled: u64,
    /// The tables that are different, and those of which nothing can be said.
    pub not_equal: Vec<NotEqual>,
    /// The oldest verdict that is equal or different.
    pub oldest: Option<Oldest>,
    /// The last comparison, if it has not come to its end.
    pub unfinished: Option<Unfinished>,
}

/// A table whose last verdict is not `equal`.
#[derive(Clone, Debug, Serialize)]
pub struct NotEqual {
    /// The source's name in the plan.
    pub source: String,
    /// `schema.name` in the target.
    pub table: String,
    /// `different` or `inconclusive`.
    pub verdict: String,
    /// Why nothing can be said of it.
    pub why: Option<String>,
}

/// How old the oldest verdict is.
#[derive(Clone, Debug, Serialize)]
pub struct Oldest {
    /// The commit that both sides were compared at, in Postgres's form.
    pub lsn: String,
    /// When it was given, RFC 3339.
    pub at: String,
    /// How long ago, in seconds.
    pub age: f64,
}

/// A comparison that is under way, or was cut off.
#[derive(Clone, Debug, Serialize)]
pub struct Unfinished {
    /// Which.
    pub id: String,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// Whether a process is at it.
    pub running: bool,
    /// It is a `--recheck`, which cannot be resumed.
    pub recheck: bool,
    /// Parts of tables, as far as it has divided them, and how many of them are done.
    pub parts: u64,
    /// See `parts`.
    pub done: u64,
}

/// Something that a person should know.
#[derive(Clone, Debug, Serialize)]
pub struct Warning {
    /// What scripts go by.
    pub code: &'static str,
    /// For people.
    pub text: String,
}

impl Warning {
    pub(crate) fn new(code: &'static str, text: impl Into<String>) -> Self {
        Warning { code, text: text.into() }
    }
}
