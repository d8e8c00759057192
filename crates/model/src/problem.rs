use std::fmt;

/// Something that stops crossfade or that it refuses, told so that a person can act on it. The program prints it as
/// one line, or with `--json` as an object of the same fields. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}; {next}")]
pub struct Problem {
    /// What scripts go by.
    pub code: Code,
    /// The thing: a table, a slot, a file and line of the plan.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// The next step: a statement, a setting, a command.
    pub next: String,
}

impl Problem {
    /// Puts one together.
    pub fn new(code: Code, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Problem { code, what: what.into(), why: why.into(), next: next.into() }
    }

    /// One that only another copy of everything leads out of: something was lost that neither source nor log has any more.
    pub fn lost(code: Code, what: impl Into<String>, why: impl Into<String>) -> Self {
        let next = "what is missing cannot be had again: `crossfade recopy` copies everything anew, into the same log and target; then start again";
        Problem::new(code, what, why, next)
    }
}

/// What a look at sources, log and target before the start found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it keeps crossfade from starting.
    pub severity: Severity,
    /// What it is; `next` is the statement or setting that mends it.
    pub problem: Problem,
}

impl Finding {
    /// One that keeps crossfade from starting.
    pub fn blocker(code: Code, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Problem::new(code, what, why, next).into()
    }

    /// One that will hurt later.
    pub fn warning(code: Code, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, problem: Problem::new(code, what, why, next) }
    }
}

impl From<Problem> for Finding {
    /// A blocker.
    fn from(problem: Problem) -> Self {
        Finding { severity: Severity::Blocker, problem }
    }
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing starts before it is mended.
    Blocker,
    /// It will hurt later.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Blocker => "blocker",
            Severity::Warning => "warning",
        })
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, exit $exit:literal;)+) => {
        /// The codes of all [`Problem`]s; docs/errors.md lists them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Code] = &[$(Code::$name),+];

            /// As scripts see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text),+ }
            }

            /// The exit code of a command that ends with it: 1 the answer is no, 2 it could not run.
            pub fn exit(self) -> u8 {
                match self { $(Code::$name => $exit),+ }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$name => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

codes! {
    /// The plan file cannot be read, or says something that has no meaning.
    PlanInvalid = "plan_invalid", exit 2;
    /// The query of a `[[table]]` cannot be kept current, or does not fit its target.
    SqlRefused = "sql_refused", exit 2;
    /// A secret that the plan takes from the environment is not there.
    SecretMissing = "secret_missing", exit 2;
    /// A server cannot be reached.
    ConnectionFailed = "connection_failed", exit 2;
    /// A server refused user or password.
    AuthenticationFailed = "authentication_failed", exit 2;
    /// TLS could not be agreed upon: a certificate that is not trusted, or TLS that is not there.
    TlsFailed = "tls_failed", exit 2;
    /// The server is too old for what crossfade needs.
    ServerTooOld = "server_too_old", exit 2;
    /// `wal_level` is not `logical`.
    WalLevel = "wal_level", exit 2;
    /// No free replication slot, sender or worker.
    SlotsExhausted = "slots_exhausted", exit 2;
    /// The role lacks a privilege.
    PrivilegeMissing = "privilege_missing", exit 2;
    /// A table has no replica identity, so its updates and deletes could not be followed.
    IdentityMissing = "identity_missing", exit 2;
    /// The plan selects no table, or a command was given one that it has not copied.
    NoTables = "no_tables", exit 2;
    /// The log has nothing that a rehearsal could go by: no whole copy, no verify, or not the commit that was asked for.
    NothingRecorded = "nothing_recorded", exit 2;
    /// No comparison was cut off that could go on.
    NothingToResume = "nothing_to_resume", exit 2;
    /// Capture or apply is not running, and the command needs it.
    NotRunning = "not_running", exit 2;
    /// The target already has tables that `clone` would create, or is another plan's.
    TargetNotEmpty = "target_not_empty", exit 2;
    /// A table or column that the source has is missing in a target that is said to exist.
    TargetMissing = "target_missing", exit 2;
    /// Another plan of the same name uses the log.
    PlanNameTaken = "plan_name_taken", exit 2;
    /// The event log takes nothing more.
    LogFull = "log_full", exit 1;
    /// The nats-server's limits or settings do not allow what is asked of it.
    LogRefuses = "log_refuses", exit 2;
    /// The nats-server runs without JetStream.
    NoJetstream = "no_jetstream", exit 2;
    /// A local folder cannot be written.
    StateNotWritable = "state_not_writable", exit 2;
    /// A role or an extension that the schema needs is missing on the target.
    TargetLacks = "target_lacks", exit 2;
    /// The schema could not be created on the target.
    SchemaFailed = "schema_failed", exit 2;
    /// A needed program (pg_dump) is missing or failed.
    ProgramFailed = "program_failed", exit 2;
    /// The command does not work with the embedded log.
    EmbeddedLog = "embedded_log", exit 2;
    /// The barrier waits for transactions that do not end.
    BarrierTimeout = "barrier_timeout", exit 2;
    /// Unlogged or temporary tables, large objects and the like that replication does not carry.
    NotCarried = "not_carried", exit 2;
    /// An index of the source is invalid.
    IndexInvalid = "index_invalid", exit 2;
    /// A transaction is open, or prepared, for long.
    LongTransaction = "long_transaction", exit 2;
    /// Room on disk is short.
    DiskShort = "disk_short", exit 2;
    /// The slot is gone or can no longer serve what is needed.
    SlotLost = "slot_lost", exit 1;
    /// The slot was dropped, as the plan says, because the source kept back too much WAL for it.
    SlotGivenUp = "slot_given_up", exit 1;
    /// Somebody else writes this plan's tail.
    WriterRefused = "writer_refused", exit 1;
    /// Log, slot and checkpoint do not meet: something in between is missing.
    Gap = "gap", exit 1;
    /// The target is not what the tail says it was.
    Divergence = "divergence", exit 1;
    /// A table at the source changed its definition.
    SchemaChanged = "schema_changed", exit 1;
    /// A row cannot be written to the target.
    RowRefused = "row_refused", exit 1;
    /// A table published for inserts only was updated or deleted from.
    InsertOnlyViolated = "insert_only_violated", exit 1;
    /// The source is another database cluster than before.
    SourceChanged = "source_changed", exit 1;
    /// The log holds something that this version cannot read.
    LogDamaged = "log_damaged", exit 1;
    /// Something is in the way of a cutover.
    CutoverRefused = "cutover_refused", exit 1;
    /// A cutover was given up before its decision; the source takes writes again.
    CutoverCancelled = "cutover_cancelled", exit 1;
    /// Another process has taken over the cutover.
    Overtaken = "overtaken", exit 1;
    /// Whether a cutover was decided cannot be known while the target cannot be reached.
    OutcomeUnknown = "outcome_unknown", exit 2;
    /// A command of the plan failed.
    HookFailed = "hook_failed", exit 1;
    /// A PgBouncer of the plan could not be paused, led over or resumed.
    PgBouncerFailed = "pgbouncer_failed", exit 1;
    /// A check of the plan could not be run.
    CheckFailed = "check_failed", exit 2;
    /// The plan has no stages, or not the one that was named, or none is set yet.
    NoStage = "no_stage", exit 2;
    /// The address of the HTTP server cannot be listened on.
    ListenFailed = "listen_failed", exit 2;
    /// A defect of crossfade, or a case that nobody has thought of.
    Internal = "internal", exit 2;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
