use std::error::Error as _;
use std::{fmt, io};

use model::{Code, Problem, TableName};

use crate::sqlstate::{self, Rule};

/// Why something asked of a server was not done.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// No connection came about: name not found, refused, no answer in time.
    #[error("{reason}")]
    Unreachable {
        /// `host:port/database`.
        place: String,
        /// What happened.
        reason: String,
    },
    /// TLS was not agreed upon, or a certificate was not accepted by either side.
    #[error("{reason}")]
    Tls {
        /// `host:port/database`.
        place: String,
        /// What happened.
        reason: String,
    },
    /// Logging in failed on our side: no password to give, a method that is not known, a server that does not know
    /// the password either.
    #[error("{reason}")]
    Credentials {
        /// `host:port/database`.
        place: String,
        /// What happened.
        reason: String,
    },
    /// A connection that was there broke.
    #[error("{reason}")]
    Closed {
        /// `host:port/database`; empty where it is not known.
        place: String,
        /// What happened.
        reason: String,
    },
    /// The server refused, and said why.
    #[error(transparent)]
    Server(Box<ServerError>),
    /// The server, or something in between, said what the protocol does not have there.
    #[error("{reason}")]
    Protocol {
        /// `host:port/database`; empty where it is not known.
        place: String,
        /// What was said.
        reason: String,
    },
    /// The server is older than what crossfade needs.
    #[error("Postgres {found} is older than {needed}")]
    TooOld {
        /// `host:port/database`.
        place: String,
        /// What it calls itself.
        found: String,
        /// The oldest that would do.
        needed: u32,
    },
    /// The slot is not there, or can no longer serve what is asked of it.
    #[error("{reason}")]
    SlotLost {
        /// `host:port/database`.
        place: String,
        /// Its name.
        slot: String,
        /// What the server said.
        reason: String,
    },
    /// A slot could not be created: the server does no logical decoding.
    #[error("{reason}")]
    NotLogical {
        /// `host:port/database`.
        place: String,
        /// What the server said.
        reason: String,
    },
    /// A result was not what our own code expects of it (type, column, number of rows).
    #[error("{reason}")]
    Unexpected {
        /// `host:port/database`; empty where it is not known.
        place: String,
        /// What was found.
        reason: String,
    },
}

/// An ERROR or FATAL of the server (Postgres manual, "Error and Notice Message Fields").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `host:port/database`; empty where it is not known.
    pub place: String,
    /// Five characters (Postgres manual, "PostgreSQL Error Codes").
    pub sqlstate: String,
    /// One line.
    pub message: String,
    /// More lines. May hold values of rows.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
    /// Where in a COPY or a function it happened.
    pub context: Option<String>,
    /// The table that it is about.
    pub table: Option<TableName>,
    /// Its column.
    pub column: Option<String>,
    /// Its constraint.
    pub constraint: Option<String>,
}

impl std::error::Error for ServerError {}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerError { place: _, sqlstate, message, detail, hint, context, table, column, constraint } = self;
        write!(f, "{message} (SQLSTATE {sqlstate}")?;
        if let Some(table) = table {
            write!(f, ", table {table}")?;
        }
        if let Some(column) = column {
            write!(f, ", column {column}")?;
        }
        if let Some(constraint) = constraint {
            write!(f, ", constraint {constraint}")?;
        }
        f.write_str(")")?;
        for (title, text) in [("", detail), ("hint: ", hint), ("at ", context)] {
            if let Some(text) = text {
                write!(f, "; {title}{}", text.replace('\n', ", "))?;
            }
        }
        Ok(())
    }
}

/// What to do about a [`PgError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The same again, after a pause and on a new connection, may work.
    Retry,
    /// It would fail again, and nobody has thought of what would help.
    GiveUp,
    /// A row met a constraint: whoever wrote it decides.
    Constraint,
    /// A person must do something first.
    Tell(Code),
}

/// What to do about `error`. For what the server said, [`crate::sqlstate`] has the table.
pub fn policy(error: &PgError) -> Policy {
    rule(error).policy
}

fn rule(error: &PgError) -> Rule {
    let on = |policy, code, next| Rule { class: "", policy, code, next };
    let tell = |code, next| on(Policy::Tell(code), code, next);
    match error {
        PgError::Unreachable { .. } => {
            on(Policy::Retry, Code::ConnectionFailed, "check host, port and listen_addresses, and that the server runs")
        }
        PgError::Closed { .. } => on(
            Policy::Retry,
            Code::ConnectionFailed,
            "see the server's log; the next attempt starts where this one ended",
        ),
        PgError::Tls { .. } => tell(
            Code::TlsFailed,
            "check sslmode, sslrootcert, sslcert and sslkey of the URL against the server's certificate",
        ),
        PgError::Credentials { .. } => {
            tell(Code::AuthenticationFailed, "check user and password of the URL, and the server's pg_hba.conf")
        }
        PgError::Server(error) => sqlstate::rule(&error.sqlstate),
        PgError::Protocol { .. } => on(
            Policy::GiveUp,
            Code::Internal,
            "connect to Postgres itself, without a pooler in between; if it is, report this as a defect",
        ),
        PgError::TooOld { .. } => tell(Code::ServerTooOld, "upgrade the server, or use another one"),
        PgError::SlotLost { .. } => tell(
            Code::SlotLost,
            "look at pg_replication_slots; what the slot kept is gone, so the plan must be copied again",
        ),
        PgError::NotLogical { .. } => {
            tell(Code::WalLevel, "ALTER SYSTEM SET wal_level = 'logical', then restart the server")
        }
        PgError::Unexpected { .. } => on(Policy::GiveUp, Code::Internal, "report this as a defect"),
    }
}

impl PgError {
    /// The server's five-character code, if it was the server that refused.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            PgError::Server(error) => Some(&error.sqlstate),
            PgError::Unreachable { .. }
            | PgError::Tls { .. }
            | PgError::Credentials { .. }
            | PgError::Closed { .. }
            | PgError::Protocol { .. }
            | PgError::TooOld { .. }
            | PgError::SlotLost { .. }
            | PgError::NotLogical { .. }
            | PgError::Unexpected { .. } => None,
        }
    }

    /// Says where it happened (an endpoint's `describe()`), unless that is known already.
    #[must_use]
    pub fn at(mut self, here: &str) -> PgError {
        let place = match &mut self {
            PgError::Unreachable { place, .. }
            | PgError::Tls { place, .. }
            | PgError::Credentials { place, .. }
            | PgError::Closed { place, .. }
            | PgError::Protocol { place, .. }
            | PgError::TooOld { place, .. }
            | PgError::SlotLost { place, .. }
            | PgError::NotLogical { place, .. }
            | PgError::Unexpected { place, .. } => place,
            PgError::Server(error) => &mut error.place,
        };
        if place.is_empty() {
            here.clone_into(place);
        }
        self
    }

    fn place(&self) -> &str {
        match self {
            PgError::Unreachable { place, .. }
            | PgError::Tls { place, .. }
            | PgError::Credentials { place, .. }
            | PgError::Closed { place, .. }
            | PgError::Protocol { place, .. }
            | PgError::TooOld { place, .. }
            | PgError::SlotLost { place, .. }
            | PgError::NotLogical { place, .. }
            | PgError::Unexpected { place, .. } => place,
            PgError::Server(error) => &error.place,
        }
    }

    pub(crate) fn closed(reason: impl Into<String>) -> PgError {
        PgError::Closed { place: String::new(), reason: reason.into() }
    }

    pub(crate) fn protocol(reason: impl Into<String>) -> PgError {
        PgError::Protocol { place: String::new(), reason: reason.into() }
    }

    pub(crate) fn credentials(reason: impl Into<String>) -> PgError {
        PgError::Credentials { place: String::new(), reason: reason.into() }
    }

    pub(crate) fn tls(reason: impl Into<String>) -> PgError {
        PgError::Tls { place: String::new(), reason: reason.into() }
    }
}

/// A broken socket. TLS alerts come this way too: in TLS 1.3 the server refuses our certificate after the handshake.
impl From<io::Error> for PgError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => PgError::tls(crate::tls::explain(tls)),
            None => PgError::closed(format!("the connection broke: {error}")),
        }
    }
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return PgError::Server(Box::new(ServerError::from(db)));
        }
        if error.is_closed() {
            return PgError::closed("the connection is closed");
        }
        if let Some(io) = error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
            return match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(tls) => PgError::tls(crate::tls::explain(tls)),
                None => PgError::closed(format!("the connection broke: {io}")),
            };
        }
        let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        PgError::Unexpected { place: String::new(), reason: format!("{error}{cause}") }
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(db: &tokio_postgres::error::DbError) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        ServerError {
            place: String::new(),
            sqlstate: db.code().code().to_owned(),
            message: db.message().to_owned(),
            detail: owned(db.detail()),
            hint: owned(db.hint()),
            context: owned(db.where_()),
            table: db.table().map(|table| TableName::new(db.schema().unwrap_or_default(), table)),
            column: owned(db.column()),
            constraint: owned(db.constraint()),
        }
    }
}

impl From<PgError> for Problem {
    fn from(error: PgError) -> Self {
        let Rule { code, next, .. } = rule(&error);
        let place = match error.place() {
            "" => "the database",
            place => place,
        };
        let what = match &error {
            PgError::SlotLost { slot, .. } => format!("slot {slot} at {place}"),
            PgError::Unreachable { .. }
            | PgError::Tls { .. }
            | PgError::Credentials { .. }
            | PgError::Closed { .. }
            | PgError::Server(_)
            | PgError::Protocol { .. }
            | PgError::TooOld { .. }
            | PgError::NotLogical { .. }
            | PgError::Unexpected { .. } => place.to_owned(),
        };
        Problem::new(code, what, error.to_string(), next)
    }
}
