//! The one table from what the client and the server say to [`LogError`].

use std::error::Error;
use std::io;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind,
    RequestError, RequestErrorKind,
};
use async_nats::jetstream::stream::{
    ConsumerError, ConsumerErrorKind, DirectGetError, DirectGetErrorKind, LastRawMessageErrorKind, RawMessageError,
};
use async_nats::{ConnectError, ConnectErrorKind, jetstream};
use model::Seq;

use crate::LogError;

/// What an error code of JetStream means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// No room: waited for.
    Full,
    /// Passes by itself: tried again.
    Passing,
    /// Somebody else's message stands where ours was to stand.
    Conflict,
    NoStream,
    TooLarge,
    /// JetStream is off, on the server or for the account.
    NoJetStream,
    NoJetStreamForAccount,
    /// The stream's settings, or limits of the account, are not what they must be.
    Settings,
}

/// The codes that may answer what crossfade asks for (nats-server, `server/errors.json`). One that is not here is told as the server told
/// it, and not tried again.
const API: &[(ErrorCode, Means)] = &[
    // "Maximum bytes exceeded" and the like, on an append.
    (ErrorCode::STREAM_STORE_FAILED, Means::Full),
    (ErrorCode::ACCOUNT_RESOURCES_EXCEEDED, Means::Full),
    (ErrorCode::STORAGE_RESOURCES_EXCEEDED, Means::Full),
    (ErrorCode::MEMORY_RESOURCES_EXCEEDED, Means::Full),
    (ErrorCode::INSUFFICIENT_RESOURCES, Means::Full),
    // A cluster that is not whole, or not yet.
    (ErrorCode::CLUSTER_INCOMPLETE, Means::Passing),
    (ErrorCode::CLUSTER_NO_PEERS, Means::Passing),
    (ErrorCode::CLUSTER_NOT_ACTIVE, Means::Passing),
    (ErrorCode::CLUSTER_NOT_ASSIGNED, Means::Passing),
    (ErrorCode::CLUSTER_NOT_AVAILABLE, Means::Passing),
    (ErrorCode::CLUSTER_NOT_LEADER, Means::Passing),
    (ErrorCode::PEER_REMAP, Means::Passing),
    (ErrorCode::RAFT_GENERAL, Means::Passing),
    (ErrorCode::STREAM_MOVE_IN_PROGRESS, Means::Passing),
    (ErrorCode::STREAM_OFFLINE, Means::Passing),
    (ErrorCode::STREAM_TOO_MANY_REQUESTS, Means::Passing),
    // Readers' consumers live as long as the server remembers them.
    (ErrorCode::CONSUMER_NOT_FOUND, Means::Passing),
    (ErrorCode::CONSUMER_DOES_NOT_EXIST, Means::Passing),
    (ErrorCode::CONSUMER_OFFLINE, Means::Passing),
    (ErrorCode::CONSUMER_STORE_FAILED, Means::Passing),
    (ErrorCode::STREAM_WRONG_LAST_SEQUENCE, Means::Conflict),
    (ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT, Means::Conflict),
    (ErrorCode::STREAM_WRONG_LAST_MESSAGE_ID, Means::Conflict),
    (ErrorCode::STREAM_NOT_FOUND, Means::NoStream),
    (ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, Means::TooLarge),
    (ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM, Means::TooLarge),
    (ErrorCode::JETSTREAM_NOT_ENABLED, Means::NoJetStream),
    (ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT, Means::NoJetStreamForAccount),
    (ErrorCode::MAXIMUM_CONSUMERS_LIMIT, Means::Settings),
    (ErrorCode::MAXIMUM_STREAMS_LIMIT, Means::Settings),
    (ErrorCode::NO_LIMITS, Means::Settings),
    (ErrorCode::STREAM_INVALID_CONFIG, Means::Settings),
    (ErrorCode::STREAM_LIMITS, Means::Settings),
    (ErrorCode::STREAM_MAX_BYTES_REQUIRED, Means::Settings),
    (ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED, Means::Settings),
    (ErrorCode::STREAM_NAME_EXIST, Means::Settings),
    (ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED, Means::Settings),
    (ErrorCode::STREAM_SEALED, Means::Settings),
    (ErrorCode::STREAM_SUBJECT_OVERLAP, Means::Settings),
];

/// An error that JetStream answered with.
pub(super) fn api(error: &jetstream::Error) -> LogError {
    let code = error.error_code();
    let means = API.iter().find(|(listed, _)| *listed == code).map(|(_, means)| *means);
    // What a server calls "service unavailable" passes, whatever it is.
    let means = means.or((error.code() == 503).then_some(Means::Passing));
    match means {
        Some(Means::Full) => LogError::Full,
        Some(Means::Passing) => LogError::Unavailable(error.to_string()),
        Some(Means::Conflict) => LogError::Conflict { last: Seq::ZERO },
        Some(Means::NoStream) => LogError::NoStream,
        Some(Means::TooLarge) => LogError::TooLarge,
        Some(Means::NoJetStream) => LogError::NoJetStream,
        Some(Means::NoJetStreamForAccount) => LogError::NoJetStreamForAccount,
        Some(Means::Settings) => LogError::Refused(error.to_string()),
        None => LogError::Other(format!("JetStream: {error}")),
    }
}

fn request(error: &RequestError) -> LogError {
    match error.kind() {
        RequestErrorKind::NoResponders => LogError::Unavailable("JetStream does not answer".to_owned()),
        RequestErrorKind::TimedOut => LogError::Unavailable("JetStream does not answer in time".to_owned()),
        RequestErrorKind::InvalidSubject => LogError::Other(error.to_string()),
        RequestErrorKind::Other => LogError::Unavailable(error.to_string()),
    }
}

/// Finds an error of type `T` among the causes of `error`, those inside `io::Error`s included.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

pub(super) fn connect(error: &ConnectError, server: &str) -> LogError {
    if let Some(error) = cause::<rustls::Error>(error) {
        return LogError::Tls(format!("{server}: {error}"));
    }
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            LogError::Auth(format!("{server}: {error}"))
        }
        ConnectErrorKind::Tls => LogError::Tls(format!("{server}: {error}")),
        ConnectErrorKind::ServerParse => LogError::Other(format!("{server}: {error}")),
        ConnectErrorKind::Dns | ConnectErrorKind::TimedOut | ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            LogError::Unavailable(format!("{server}: {error}"))
        }
    }
}

/// What the first question to JetStream met. `jetstream`: the server said when connecting that it has it.
pub(super) fn first_answer(error: &GetStreamError, jetstream: bool) -> LogError {
    match cause::<RequestError>(error).map(RequestError::kind) {
        Some(RequestErrorKind::NoResponders) if jetstream => LogError::NoJetStreamForAccount,
        Some(RequestErrorKind::NoResponders) => LogError::NoJetStream,
        Some(RequestErrorKind::TimedOut | RequestErrorKind::InvalidSubject | RequestErrorKind::Other) | None => {
            get_stream(error)
        }
    }
}

pub(super) fn get_stream(error: &GetStreamError) -> LogError {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => api(&error),
        GetStreamErrorKind::Request => match cause::<RequestError>(error) {
            Some(error) => request(error),
            None => LogError::Unavailable(error.to_string()),
        },
        GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => LogError::Other(error.to_string()),
    }
}

pub(super) fn create_stream(error: &CreateStreamError) -> LogError {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => api(&error),
        CreateStreamErrorKind::NotFound => LogError::NoStream,
        CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::Response => LogError::Unavailable(error.to_string()),
        CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet
        | CreateStreamErrorKind::ResponseParse => LogError::Other(error.to_string()),
    }
}

pub(super) fn publish(error: &PublishError) -> LogError {
    match error.kind() {
        PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => {
            LogError::Conflict { last: Seq::ZERO }
        }
        PublishErrorKind::StreamNotFound => LogError::NoStream,
        PublishErrorKind::MaxPayloadExceeded => LogError::TooLarge,
        PublishErrorKind::TimedOut => LogError::Unavailable("an append was not acknowledged in time".to_owned()),
        PublishErrorKind::BrokenPipe => LogError::Unavailable("the connection broke during an append".to_owned()),
        PublishErrorKind::MaxAckPending => LogError::Unavailable("too many appends are under way".to_owned()),
        PublishErrorKind::Other => match cause::<jetstream::Error>(error) {
            Some(error) => api(error),
            None => LogError::Unavailable(error.to_string()),
        },
    }
}

pub(super) fn direct_get(error: &DirectGetError) -> LogError {
    match error.kind() {
        DirectGetErrorKind::InvalidSubject | DirectGetErrorKind::NotFound => LogError::Other(error.to_string()),
        DirectGetErrorKind::TimedOut
        | DirectGetErrorKind::Request
        | DirectGetErrorKind::ErrorResponse(..)
        | DirectGetErrorKind::Other => LogError::Unavailable(error.to_string()),
    }
}

pub(super) fn raw_message(error: &RawMessageError) -> LogError {
    match error.kind() {
        LastRawMessageErrorKind::JetStream(error) => api(&error),
        LastRawMessageErrorKind::NoMessageFound | LastRawMessageErrorKind::InvalidSubject => {
            LogError::Other(error.to_string())
        }
        LastRawMessageErrorKind::Other => match cause::<RequestError>(error) {
            Some(error) => request(error),
            None => LogError::Unavailable(error.to_string()),
        },
    }
}

pub(super) fn consumer(error: &ConsumerError) -> LogError {
    match error.kind() {
        ConsumerErrorKind::JetStream(error) => api(&error),
        ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request => LogError::Unavailable(error.to_string()),
        ConsumerErrorKind::InvalidConsumerType | ConsumerErrorKind::InvalidName | ConsumerErrorKind::Other => {
            LogError::Other(error.to_string())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answer(status: usize, code: u64) -> LogError {
        let json = format!("{{\"code\": {status}, \"err_code\": {code}, \"description\": \"as the server says it\"}}");
        api(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn every_listed_code_is_what_the_table_says() {
        for (code, means) in API {
            let error = answer(400, code.0);
            let right = match means {
                Means::Full => matches!(error, LogError::Full) && error.retry(),
                Means::Passing => matches!(error, LogError::Unavailable(_)) && error.retry(),
                Means::Conflict => matches!(error, LogError::Conflict { .. }) && !error.retry(),
                Means::NoStream => matches!(error, LogError::NoStream) && !error.retry(),
                Means::TooLarge => matches!(error, LogError::TooLarge) && !error.retry(),
                Means::NoJetStream => matches!(error, LogError::NoJetStream) && error.retry(),
                Means::NoJetStreamForAccount => matches!(error, LogError::NoJetStreamForAccount) && !error.retry(),
                Means::Settings => matches!(error, LogError::Refused(_)) && !error.retry(),
            };
            assert!(right, "{code:?}: {error:?}");
            assert_eq!(API.iter().filter(|(other, _)| other == code).count(), 1, "{code:?} stands there twice");
        }
    }

    #[test]
    fn what_is_not_listed_stops_in_the_servers_words_unless_it_says_to_be_unavailable() {
        let error = answer(400, 10_003);
        assert!(matches!(&error, LogError::Other(text) if text.contains("as the server says it")) && !error.retry());
        assert!(answer(503, 19_999).retry());
    }
}
