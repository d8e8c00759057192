use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{Code, Problem, TableName};

use crate::{Derived, Direction, Finding, Patterns, Secret, Stages, check};

/// A checked plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `[a-z][a-z0-9_]{0,39}`: part of the names of slots, publications and streams.
    pub name: String,
    /// The file it was read from.
    pub path: PathBuf,
    /// Which way it leads.
    pub direction: Direction,
    /// At least one, ordered by name, names unique.
    pub sources: Vec<Source>,
    /// Where everything goes through.
    pub log: Log,
    /// Where it goes to.
    pub target: Target,
    /// The local folder for offsets, the embedded log and reports. Relative ones count from the plan file's folder.
    pub state_dir: PathBuf,
    /// The tables that queries give, in the order of the file, their `into` unique. Empty: everything goes over as it is.
    pub derived: Vec<Derived>,
    /// Which rows are left out, or are less than they were, in the order of the file, names unique.
    pub findings: Vec<Finding>,
    /// What crossfade keeps within.
    pub limits: Limits,
    /// What is said about tables without replica identity.
    pub identity: BTreeMap<TableName, Identity>,
    /// What a comparison of both sides may cost them.
    pub verify: Verify,
    /// What happens at a cutover.
    pub cutover: Cutover,
    /// What `crossfade reconcile` asks, in the order of the file, names unique.
    pub checks: Vec<Check>,
    /// What applications that switch by flags are told.
    pub stages: Option<Stages>,
    /// Where `run`, `capture` and `apply` serve status and stage; nowhere if it is absent.
    pub http: Option<SocketAddr>,
}

/// A database that data leaves.
#[derive(Clone, Debug)]
pub struct Source {
    /// Same form as the plan's name.
    pub name: String,
    /// `postgres://…`
    pub url: Secret,
    /// Which of its tables are captured; those that the plan ignores are none of them.
    pub tables: Patterns,
    /// Which of those go into the target as they are: all, unless the plan has a [`Derived`]; then those that `mirror` names.
    pub as_is: Patterns,
    /// What `tables` would select, and the plan ignores.
    pub ignored: Patterns,
    /// Which of `tables` the application goes on writing where they are: the target is the same database. No fence closes them.
    pub shared: Patterns,
}

/// Where the event log is.
#[derive(Clone, Debug)]
pub enum Log {
    /// JetStream streams.
    Nats {
        /// `nats://…` or `tls://…`, several with commas between them.
        url: Secret,
        /// Copies of each stream, 1 to 5.
        replicas: usize,
        /// How long after an acknowledgement the server may still lose a message with its power (its `sync_interval`
        /// and a margin). Zero where nothing can be lost.
        sync: Duration,
        /// Certificate authority to trust instead of the system's, PEM.
        ca_file: Option<PathBuf>,
        /// Client certificate, PEM; there if and only if `key_file` is.
        cert_file: Option<PathBuf>,
        /// Its key, PEM.
        key_file: Option<PathBuf>,
        /// NATS credentials (`.creds`).
        credentials_file: Option<PathBuf>,
        /// How large each stream may grow; the server's own limits where none is given.
        max_bytes: Option<u64>,
    },
    /// RocksDB in the state folder, for `crossfade run` on one machine.
    Embedded,
}

/// The database that data enters.
#[derive(Clone, Debug)]
pub struct Target {
    /// `postgres://…`
    pub url: Secret,
    /// Who creates the tables.
    pub schema: SchemaMode,
}

/// Who creates the target's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaMode {
    /// crossfade, from the source's dump.
    Clone,
    /// They are there.
    Exists,
}

/// What crossfade keeps within.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory that a process's buffers may take.
    pub memory: u64,
    /// Bytes of WAL kept back at a source from which on there is a warning.
    pub wal_warn: u64,
    /// Bytes of WAL kept back from which on `on_wal_critical` happens. More than `wal_warn`.
    pub wal_critical: u64,
    /// What happens then.
    pub on_wal_critical: OnWalCritical,
    /// Connections that copy at a time, for each source, at least 1.
    pub copy_workers: usize,
    /// How long the barrier waits for transactions older than the slot.
    pub barrier_timeout: Duration,
    /// How long a copy's lock may make the application wait before it gives way.
    pub lock_timeout: Duration,
}

/// What a comparison of both sides may cost them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// Connections that read at a time, on each side, at least 1.
    pub connections: usize,
    /// Rows that may be read in a second, on each side; none for as many as there are.
    pub rows_per_second: Option<u64>,
    /// Rest after each part of a table, in per cent of the time that it took.
    pub rest: u32,
    /// How long the target's tail may be held.
    pub hold: Duration,
    /// How old a snapshot may get before another one is taken.
    pub renew: Duration,
}

/// What happens at a cutover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cutover {
    /// How far the target's sequences start behind what the source has given out, in steps of the sequence: what is drawn from a sequence is not
    /// kept back by the fence.
    pub sequence_margin: i64,
    /// How long a hook may take.
    pub hook_timeout: Duration,
    /// Commands that are run on the way.
    pub hooks: Hooks,
    /// What closes a side besides the triggers.
    pub fence: Fence,
    /// What the application connects through, and is led over by; none if it is led over by other means.
    pub bouncers: Vec<PgBouncer>,
}

/// What closes a side on top of the triggers, which are there in any case; undone when the side is opened again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// Sessions of the database begin read-only, and those that are there are ended.
    pub read_only: bool,
    /// Commands of the plan.
    pub command: Option<FenceCommand>,
}

/// Commands for `sh -c` that close a side, and open it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceCommand {
    /// Closes it.
    pub close: String,
    /// Undoes that.
    pub undo: String,
}

/// A PgBouncer that the application connects through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgBouncer {
    /// Its admin console, `postgres://…/pgbouncer`.
    pub url: Secret,
    /// What the application's database is called in its `[databases]`; one word.
    pub database: String,
    /// The file that has the line of that database: its ini file, or one that is included there.
    pub file: PathBuf,
    /// What the line says while the source is the writable side, behind the `=`. One line; it may hold a password.
    pub source: Secret,
    /// What it says while the target is.
    pub target: Secret,
    /// How long the transactions that are open when it is paused may take to end.
    pub pause_timeout: Duration,
}

/// Commands for `sh -c`, each at its point of a cutover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Before the source is closed to writes.
    pub before_fence: Option<String>,
    /// The target has everything, nothing is decided, and neither side takes writes.
    pub drained: Option<String>,
    /// It is decided: routes the application to the other side.
    pub route: Option<String>,
    /// The application is routed.
    pub after: Option<String>,
}

/// What happens when the source keeps back too much WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnWalCritical {
    /// The slot stays: the migration is worth more than the disk.
    Keep,
    /// The slot goes, and everything has to be copied again: the source comes first.
    DropSlot,
}

/// How a table without replica identity is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Only inserts and truncates; an update or delete at the source is a problem.
    InsertOnly,
    /// It has `REPLICA IDENTITY FULL`.
    Full,
}

/// A question to the databases whose answer says whether the migration is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What must hold, in one line of the words of whoever wrote the plan.
    pub name: String,
    /// The line of the plan that it begins in.
    pub line: usize,
    /// What is asked, and where.
    pub asks: Asks,
    /// What a finding means.
    pub severity: CheckSeverity,
    /// How many findings are kept to be shown; of an HTTP probe, how many pages are fetched. At least 1.
    pub sample: usize,
    /// A query; the check runs once for each of its rows.
    pub tenants: Option<String>,
    /// Where names without a schema are looked up, in all of its statements.
    pub search_path: Vec<String>,
    /// How long one of its statements may take, more than zero.
    pub timeout: Duration,
}

/// What a [`Check`] asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Each row of a query is a finding.
    Rows {
        /// The query, without a semicolon at its end.
        sql: String,
        /// Where it runs.
        on: Side,
        /// What mends the findings; only where `on` is the target.
        fix: Option<Fix>,
    },
    /// Both sides must give the same rows, in whatever order.
    Same {
        /// The query for the target.
        sql: String,
        /// The name of the source.
        source: String,
        /// The query for it.
        source_sql: String,
    },
    /// Each row of a query says what an HTTP server must answer.
    Http {
        /// The query; its columns are `url`, and perhaps `status` and `location`.
        sql: String,
        /// Where it runs.
        on: Side,
    },
}

/// One of the plan's databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that data enters.
    Target,
    /// The source of that name.
    Source(String),
}

/// What mends the findings of a [`Check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fix {
    /// At least one; each an INSERT, UPDATE, DELETE, MERGE or SELECT, without a semicolon at its end.
    pub statements: Vec<String>,
    /// Whether `crossfade reconcile --fix` may run them.
    pub safe: bool,
}

/// What a finding of a [`Check`], or a [`Finding`], means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckSeverity {
    /// The migration is not right.
    Error,
    /// Somebody should look.
    Warning,
}

impl Plan {
    /// Reads a plan file, secrets from the environment.
    ///
    /// # Errors
    /// The file cannot be read, or whatever [`Plan::parse`] refuses.
    pub fn load(path: &Path) -> Result<Plan, Problem> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Problem::new(
                Code::PlanInvalid,
                path.display().to_string(),
                format!("the plan cannot be read ({error})"),
                "name the plan with --plan FILE, or let `crossfade init` write one",
            )
        })?;
        Plan::parse(&text, path, &|name| std::env::var(name).ok())
    }

    /// Checks the text of a plan. `env` looks up the environment variables that `url_env` names.
    ///
    /// # Errors
    /// [`Code::PlanInvalid`] for anything that has no meaning, with file, line and key; [`Code::SecretMissing`] for a
    /// variable that is not set. Of several errors the first of a section is told.
    pub fn parse(text: &str, path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Plan, Problem> {
        check::check(text, path, env)
    }

    /// The same for a rehearsal into that database: masks that are for rehearsals alone hold.
    pub fn rehearsal(&self, into: Secret) -> Plan {
        let mut plan = self.clone();
        plan.target.url = into;
        for derived in &mut plan.derived {
            if let Some(rehearsed) = derived.rehearsal() {
                *derived = rehearsed;
            }
        }
        plan
    }

    /// The source of that name.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name == name)
    }
}
