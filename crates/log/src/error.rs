//! What goes wrong with a log, and what a person does about it.

use std::path::PathBuf;

use model::{Code, DecodeError, Problem, Seq};

/// Why the log did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// No room: nothing was stored, and nothing stored before is lost.
    #[error("the log is full")]
    Full,
    /// The stream's last message is another one than the append was to follow.
    #[error("the stream's last message is {last}, not the one that was to be followed")]
    Conflict {
        /// The one it is.
        last: Seq,
    },
    /// The payload is larger than [`Log::max_message`](crate::Log::max_message).
    #[error("the message is larger than the log takes")]
    TooLarge,
    /// A message is not in the stream.
    #[error("message {seq} is not in the stream, whose first one is {first}")]
    Missing {
        /// The one that was asked for.
        seq: Seq,
        /// The oldest one that is there.
        first: Seq,
    },
    /// There is no such stream.
    #[error("there is no such stream")]
    NoStream,
    /// A stream of that name is there and is not as it must be.
    #[error("stream {stream} has {differs}")]
    Settings {
        /// Its name.
        stream: String,
        /// `setting = value (must be value)`, several with commas between.
        differs: String,
    },
    /// JetStream's limits or settings do not allow what is asked.
    #[error("JetStream refuses it: {0}")]
    Refused(String),
    /// The server runs without JetStream.
    #[error("the nats-server runs without JetStream")]
    NoJetStream,
    /// The server has JetStream, the account has not.
    #[error("JetStream is not enabled for this account of the nats-server")]
    NoJetStreamForAccount,
    /// Not reachable or not answering now; worth a retry.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// User, password, token or credentials were refused, or lack a permission.
    #[error("the log refuses these credentials: {0}")]
    Auth(String),
    /// TLS could not be agreed upon.
    #[error("no TLS with the log: {0}")]
    Tls(String),
    /// A message is no record.
    #[error(transparent)]
    Damaged(#[from] DecodeError),
    /// The embedded log's folder cannot be used.
    #[error("{} cannot be used: {why}", path.display())]
    StateNotWritable {
        /// The folder.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl LogError {
    /// Whether the same may be tried again after a while, without anything being done about it here.
    pub fn retry(&self) -> bool {
        match self {
            LogError::Full | LogError::Unavailable(_) => true,
            // A server that had it may turn it off: its disk is full, or it was restarted with another configuration.
            LogError::NoJetStream => true,
            LogError::Conflict { .. }
            | LogError::TooLarge
            | LogError::Missing { .. }
            | LogError::NoStream
            | LogError::Settings { .. }
            | LogError::Refused(_)
            | LogError::NoJetStreamForAccount
            | LogError::Auth(_)
            | LogError::Tls(_)
            | LogError::Damaged(_)
            | LogError::StateNotWritable { .. }
            | LogError::Other(_) => false,
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Problem {
        let (code, next) = match &error {
            LogError::Full => (
                Code::LogFull,
                "give the stream more max_bytes, or its disk more room; crossfade waits and loses nothing meanwhile, \
                 while the source keeps its WAL",
            ),
            LogError::Conflict { .. } => {
                (Code::WriterRefused, "see which other crossfade captures this plan, and stop one of the two")
            }
            LogError::TooLarge => (Code::Internal, "report it: larger records are split before they are logged"),
            LogError::Missing { .. } => (
                Code::Gap,
                "what was purged cannot be applied any more: `crossfade recopy` copies everything anew, into the same log and \
                 target; then start again, and do not purge the plan's streams before it is completed",
            ),
            LogError::NoStream => (
                Code::Gap,
                "if nobody deleted it, check the plan's name and [log] url; else `crossfade recopy` copies everything anew, into \
                 the same log and target; then start again",
            ),
            LogError::Settings { .. } => {
                (Code::PlanNameTaken, "give the plan another name, or mend the stream with `nats stream edit`")
            }
            LogError::Refused(_) => (
                Code::LogRefuses,
                "change the account's limits or the stream's settings so that they allow it (`nats account info`, `nats stream info`)",
            ),
            LogError::NoJetStream => (
                Code::NoJetstream,
                "start it with `--jetstream`, or with a `jetstream { store_dir: … }` block in its configuration",
            ),
            LogError::NoJetStreamForAccount => (
                Code::NoJetstream,
                "put `jetstream: enabled` into the account in the server's configuration, or use another account",
            ),
            LogError::Unavailable(_) => (Code::ConnectionFailed, "start the nats-server, or correct [log] url"),
            LogError::Auth(_) => {
                (Code::AuthenticationFailed, "correct user and password (or token, or credentials file) in [log]")
            }
            LogError::Tls(_) => (
                Code::TlsFailed,
                "let ca_file in [log] name the authority that signed the server's certificate, and give cert_file and \
                 key_file if the server asks for a client's",
            ),
            LogError::Damaged(DecodeError::Format { .. }) => {
                (Code::LogDamaged, "use the version of crossfade that wrote the log, or a newer one")
            }
            LogError::Damaged(DecodeError::Wire(_) | DecodeError::Tuple(_) | DecodeError::Field(_)) => {
                (Code::LogDamaged, "see who else writes to the plan's streams; a damaged log means to start over")
            }
            LogError::StateNotWritable { .. } => (
                Code::StateNotWritable,
                "make [state] dir a folder that this user may write and that no other crossfade process uses",
            ),
            LogError::Other(_) => (Code::Internal, "see the server's log; report it if it does not explain this"),
        };
        let what = match &error {
            LogError::Settings { stream, .. } => format!("log stream {stream}"),
            LogError::StateNotWritable { path, .. } => format!("embedded log {}", path.display()),
            LogError::Full
            | LogError::Conflict { .. }
            | LogError::TooLarge
            | LogError::Missing { .. }
            | LogError::NoStream
            | LogError::Refused(_)
            | LogError::NoJetStream
            | LogError::NoJetStreamForAccount
            | LogError::Unavailable(_)
            | LogError::Auth(_)
            | LogError::Tls(_)
            | LogError::Damaged(_)
            | LogError::Other(_) => "the log".to_owned(),
        };
        Problem::new(code, what, error.to_string(), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_reaches_people_under_its_own_code() {
        let cases = [
            (LogError::Full, Code::LogFull),
            (LogError::Conflict { last: Seq(1) }, Code::WriterRefused),
            (LogError::Missing { seq: Seq(1), first: Seq(2) }, Code::Gap),
            (LogError::Settings { stream: "S".into(), differs: "d".into() }, Code::PlanNameTaken),
            (LogError::Refused("maximum number of streams reached".into()), Code::LogRefuses),
            (LogError::NoJetStream, Code::NoJetstream),
            (LogError::Unavailable("u".into()), Code::ConnectionFailed),
            (LogError::Damaged(DecodeError::Field("f")), Code::LogDamaged),
            (LogError::StateNotWritable { path: "/p".into(), why: "w".into() }, Code::StateNotWritable),
        ];
        for (error, code) in cases {
            let why = error.to_string();
            let problem = Problem::from(error);
            assert_eq!((problem.code, problem.why), (code, why));
            assert!(!problem.next.is_empty());
        }
    }
}
