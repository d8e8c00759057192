//! The log in NATS JetStream: a stream of the server's per [`StreamName`], one connection a process.
//!
//! [`connect`] opens that connection and says what is wrong if it cannot be; afterwards it comes back by itself.
//! [`refusal`] is the one table from the client's and server's errors to [`LogError`]. [`chain`] and [`reader`] live as
//! long as who asked for them. [`bucket`] is no part of the log: a value beside it that applications watch.

mod bucket;
mod chain;
mod connect;
mod reader;
mod refusal;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{
    Config, DirectGetErrorKind, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{self, Context};
use async_trait::async_trait;
use bytes::Bytes;
use model::Seq;
use tokio::sync::watch;

use crate::window::{Ack, Window};
use crate::{Chain, Log, LogError, Message, Reader, StreamName, StreamState};
pub use bucket::{Bucket, Entry, Watch};
pub use connect::NatsOptions;

/// Room that the headers of an append take out of the server's `max_payload`: a version line and two header lines of at most
/// 60 bytes each, and some to spare.
const HEADERS: usize = 1024;

/// Larger messages than this would not fit the windows in which chains and readers bound their memory.
const LARGEST: usize = 8 << 20;

/// How long the server remembers messages' ids: longer than an append can be unanswered, and not much, since they take
/// its memory.
const IDS: Duration = Duration::from_secs(30);

/// A connection to a nats-server, 2.9 or newer, with JetStream. Clones share it.
#[derive(Clone)]
pub struct Nats {
    shared: Arc<Shared>,
}

struct Shared {
    context: Context,
    /// Counts connections made, so that readers see at once that theirs was lost in between.
    connected: watch::Receiver<u64>,
    replicas: usize,
    sync: Duration,
    max_bytes: Option<u64>,
    describe: String,
}

impl Nats {
    /// Connects, within about five seconds or not at all.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], [`LogError::Auth`], [`LogError::Tls`], [`LogError::NoJetStream`],
    /// [`LogError::NoJetStreamForAccount`].
    pub async fn connect(options: &NatsOptions) -> Result<Nats, LogError> {
        Ok(Nats { shared: Arc::new(connect::connect(options).await?) })
    }

    /// The server's version, `2.9.10`. With replicas, one before 2.10 may, after a restart, apply appends once more that
    /// it had refused.
    pub fn server_version(&self) -> String {
        self.shared.context.client().server_info().version
    }
}

impl Shared {
    /// JetStream's handle of a stream, which may or may not be there.
    async fn handle(&self, stream: &StreamName) -> Result<jetstream::stream::Stream<()>, LogError> {
        stream.checked_subject()?;
        self.context.get_stream_no_info(stream.to_string()).await.map_err(|error| refusal::get_stream(&error))
    }

    async fn config_and_state(&self, stream: &StreamName) -> Result<Option<(Config, StreamState)>, LogError> {
        stream.checked_subject()?;
        match self.context.get_stream(stream.to_string()).await {
            Ok(handle) => {
                let info = handle.cached_info();
                Ok(Some((info.config.clone(), state(&info.state))))
            }
            Err(error) => match refusal::get_stream(&error) {
                LogError::NoStream => Ok(None),
                error => Err(error),
            },
        }
    }

    async fn state(&self, stream: &StreamName) -> Result<Option<StreamState>, LogError> {
        Ok(self.config_and_state(stream).await?.map(|(_, state)| state))
    }

    /// Sends one append; the future it returns resolves with the answer.
    async fn publish(self: &Arc<Self>, stream: &StreamName, message: PublishMessage) -> Result<Ack, LogError> {
        let sent = self.context.send_publish(stream.checked_subject()?, message).await;
        let ack = sent.map_err(|error| refusal::publish(&error))?;
        let (shared, stream) = (self.clone(), stream.clone());
        Ok(Box::pin(async move {
            match ack.await {
                Ok(ack) => Ok(Seq(ack.sequence)),
                Err(error) => match refusal::publish(&error) {
                    // Nobody listens on the subject: deleted, or just not there again after a restart.
                    LogError::NoStream => match shared.state(&stream).await? {
                        None => Err(LogError::NoStream),
                        Some(_) => Err(LogError::Unavailable("the stream does not take messages now".into())),
                    },
                    LogError::Conflict { .. } => {
                        let last = shared.state(&stream).await?.ok_or(LogError::NoStream)?.last;
                        Err(LogError::Conflict { last })
                    }
                    error => Err(error),
                },
            }
        }))
    }

    fn max_message(&self) -> usize {
        self.context.client().max_payload().saturating_sub(HEADERS).min(LARGEST)
    }

    /// A message that direct get did not find. Any replica answers those, also one that lags, so the leader is asked.
    async fn get_from_leader(&self, stream: &StreamName, seq: Seq) -> Result<Message, LogError> {
        match self.handle(stream).await?.get_raw_message(seq.0).await {
            Ok(message) => Ok(Message { seq, payload: message.payload }),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                let state = self.state(stream).await?.ok_or(LogError::NoStream)?;
                Err(LogError::Missing { seq, first: state.first })
            }
            Err(error) => Err(refusal::raw_message(&error)),
        }
    }
}

/// The fields that decide whether a stream keeps what it was given.
fn differences(config: &Config, stream: &StreamName, replicas: usize) -> Vec<String> {
    let subject = stream.subject();
    [
        (config.subjects != [subject.clone()], format!("subjects = {:?} (must be {subject:?})", config.subjects)),
        (config.storage != StorageType::File, format!("storage = {:?} (must be File)", config.storage)),
        (config.retention != RetentionPolicy::Limits, format!("retention = {:?} (must be Limits)", config.retention)),
        (config.discard != DiscardPolicy::New, format!("discard = {:?} (must be New)", config.discard)),
        (config.max_messages > 0, format!("max_msgs = {} (must be unlimited)", config.max_messages)),
        (
            config.max_messages_per_subject > 0,
            format!("max_msgs_per_subject = {} (must be unlimited)", config.max_messages_per_subject),
        ),
        (!config.max_age.is_zero(), format!("max_age = {:?} (must be none)", config.max_age)),
        (config.num_replicas != replicas, format!("num_replicas = {} (the plan says {replicas})", config.num_replicas)),
        (!config.allow_direct, "allow_direct = false (must be true)".to_owned()),
        (config.no_ack, "no_ack = true (must be false)".to_owned()),
        (config.sealed, "sealed = true (must be false)".to_owned()),
    ]
    .into_iter()
    .filter_map(|(differs, text)| differs.then_some(text))
    .collect()
}

fn state(state: &jetstream::stream::State) -> StreamState {
    let last = Seq(state.last_sequence);
    StreamState {
        first: if state.messages == 0 { last.next() } else { Seq(state.first_sequence) },
        last,
        messages: state.messages,
        bytes: state.bytes,
    }
}

#[async_trait]
impl Log for Nats {
    async fn create(&self, stream: &StreamName) -> Result<(), LogError> {
        let limit = self.shared.max_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        let Some((mut config, _)) = self.shared.config_and_state(stream).await? else {
            let config = Config {
                name: stream.to_string(),
                subjects: vec![stream.subject()],
                storage: StorageType::File,
                retention: RetentionPolicy::Limits,
                discard: DiscardPolicy::New,
                max_bytes: limit.unwrap_or(-1),
                max_messages: -1,
                max_messages_per_subject: -1,
                num_replicas: self.shared.replicas,
                duplicate_window: IDS,
                allow_direct: true,
                ..Config::default()
            };
            return match self.shared.context.create_stream(config).await {
                Ok(_) => Ok(()),
                Err(error) => Err(refusal::create_stream(&error)),
            };
        };
        let differs = differences(&config, stream, self.shared.replicas);
        if !differs.is_empty() {
            return Err(LogError::Settings { stream: stream.to_string(), differs: differs.join(", ") });
        }
        // Only ever upwards: somebody may have given a full stream more room by hand.
        if let Some(limit) = limit
            && (1..limit).contains(&config.max_bytes)
        {
            config.max_bytes = limit;
            self.shared.context.update_stream(config).await.map_err(|error| refusal::create_stream(&error))?;
        }
        Ok(())
    }

    async fn state(&self, stream: &StreamName) -> Result<Option<StreamState>, LogError> {
        self.shared.state(stream).await
    }

    async fn get(&self, stream: &StreamName, seq: Seq) -> Result<Message, LogError> {
        match self.shared.handle(stream).await?.direct_get(seq.0).await {
            Ok(message) => Ok(Message { seq, payload: message.payload }),
            Err(error) => match error.kind() {
                DirectGetErrorKind::NotFound | DirectGetErrorKind::ErrorResponse(..) => {
                    self.shared.get_from_leader(stream, seq).await
                }
                // Nobody answers for a stream that is not there.
                DirectGetErrorKind::TimedOut => match self.shared.state(stream).await? {
                    Some(_) => Err(refusal::direct_get(&error)),
                    None => Err(LogError::NoStream),
                },
                DirectGetErrorKind::InvalidSubject | DirectGetErrorKind::Request | DirectGetErrorKind::Other => {
                    Err(refusal::direct_get(&error))
                }
            },
        }
    }

    async fn last(&self, stream: &StreamName) -> Result<Option<Message>, LogError> {
        // From the leader: a replica that lags would make a chain start at the wrong message.
        match self.shared.handle(stream).await?.get_last_raw_message_by_subject(&stream.subject()).await {
            Ok(message) => Ok(Some(Message { seq: Seq(message.sequence), payload: message.payload })),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(refusal::raw_message(&error)),
        }
    }

    async fn append(&self, stream: &StreamName, payload: Bytes) -> Result<Seq, LogError> {
        if payload.len() > self.max_message() {
            return Err(LogError::TooLarge);
        }
        self.shared.publish(stream, PublishMessage::build().payload(payload)).await?.await
    }

    async fn append_first(&self, stream: &StreamName, payload: Bytes) -> Result<Seq, LogError> {
        if payload.len() > self.max_message() {
            return Err(LogError::TooLarge);
        }
        self.shared.publish(stream, chain::following(stream, payload, Seq::ZERO)).await?.await
    }

    async fn chain(&self, stream: &StreamName, after: Seq) -> Result<Box<dyn Chain>, LogError> {
        stream.checked_subject()?;
        Ok(Box::new(Window::new(chain::NatsLink::new(self.shared.clone(), stream.clone(), after), after)))
    }

    async fn read(&self, stream: &StreamName, from: Seq) -> Result<Box<dyn Reader>, LogError> {
        stream.checked_subject()?;
        Ok(Box::new(reader::NatsReader::open(self.shared.clone(), stream.clone(), from).await?))
    }

    async fn remove(&self, stream: &StreamName) -> Result<(), LogError> {
        stream.checked_subject()?;
        match self.shared.context.delete_stream(stream.to_string()).await {
            Ok(_) => Ok(()),
            Err(error) => match refusal::get_stream(&error) {
                LogError::NoStream => Ok(()),
                error => Err(error),
            },
        }
    }

    fn max_message(&self) -> usize {
        self.shared.max_message()
    }

    fn describe(&self) -> String {
        self.shared.describe.clone()
    }
}
