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

/// "Maximum bytes exceeded" and the like, on an append.
const STORE_FAILED: u64 = 10_077;

/// An error that JetStream answered with. Its codes are many and the server's; those that mean something here are listed,
/// what is not is told as the server told it.
pub(super) fn api(error: &jetstream::Error) -> LogError {
    let full = [
        ErrorCode(STORE_FAILED),
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
    ];
    let passing = [ErrorCode::CLUSTER_NOT_AVAILABLE, ErrorCode::CLUSTER_INCOMPLETE, ErrorCode::CLUSTER_NOT_LEADER];
    let code = error.error_code();
    if full.contains(&code) {
        LogError::Full
    } else if code == ErrorCode::STREAM_WRONG_LAST_SEQUENCE {
        LogError::Conflict { last: Seq::ZERO }
    } else if code == ErrorCode::STREAM_NOT_FOUND {
        LogError::NoStream
    } else if code == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM {
        LogError::TooLarge
    } else if code == ErrorCode::JETSTREAM_NOT_ENABLED {
        LogError::NoJetStream
    } else if code == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT {
        LogError::NoJetStreamForAccount
    } else if passing.contains(&code) || error.code() == 503 {
        LogError::Unavailable(error.to_string())
    } else {
        LogError::Other(format!("JetStream: {error}"))
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
