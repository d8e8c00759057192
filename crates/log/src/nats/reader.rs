//! Follows a stream through a pull consumer of its own, unacknowledged, in the server's memory.
//!
//! One pull request is open at a time and takes up to [`BYTES`], so that is what a reader holds in memory. At the end of
//! the stream it stays open and each message is delivered as it comes. The consumer is disposable: after a reconnect, a
//! missed heartbeat or a gap in the sequences another one is made where the last message was.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::{BatchConfig, Config};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::{self, Context};
use async_nats::{StatusCode, Subject, Subscriber};
use async_trait::async_trait;
use futures::StreamExt;
use model::Seq;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Shared, refusal};
use crate::{LogError, Message, Reader, StreamName};

/// What a pull request takes in bytes; about a tenth of a second's reading at the rate that is wanted.
const BYTES: usize = 8 << 20;

/// And in messages, for small ones.
const MESSAGES: usize = 1024;

/// A pull request's life. Also how often, at the end of the stream, it is checked that the stream is still there.
const EXPIRES: Duration = Duration::from_secs(30);

/// How often the server says that an idle request is still open; at most half of [`EXPIRES`] is allowed.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Two heartbeats missed, and a half for the way.
const SILENCE: Duration = Duration::from_millis(12_500);

/// The server forgets a consumer that nobody has pulled from for so long. Longer than [`EXPIRES`], or a reader at the end
/// of the stream would lose its own.
const INACTIVE: Duration = Duration::from_secs(60);

/// Between two tries to make a consumer. A server that has just started takes this long for its streams.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a server is waited for before whoever reads is told.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct NatsReader {
    shared: Arc<Shared>,
    stream: StreamName,
    /// The message that is to come.
    next: Seq,
    connected: watch::Receiver<u64>,
    pull: Option<Pull>,
    /// Since when nothing was delivered, nor the server said that there is nothing.
    lost: Option<Instant>,
}

struct Pull {
    context: Context,
    consumer: Consumer<Config>,
    inbox: Subject,
    messages: Subscriber,
    request: Option<Request>,
    /// When the server must have said something.
    deadline: Instant,
}

/// What is left of an open pull request, counted as the server counts.
struct Request {
    messages: usize,
    bytes: usize,
}

/// What a delivery means.
enum Delivery {
    Message(Message),
    Heartbeat,
    /// The request is through; the consumer is fine.
    Ended,
    /// The request asks for fewer bytes than the next message has.
    TooSmall,
    /// There is no such consumer any more, or it does not do this; as the server says it.
    Gone(String),
}

impl NatsReader {
    pub(super) async fn open(shared: Arc<Shared>, stream: StreamName, from: Seq) -> Result<Self, LogError> {
        let connected = shared.connected.clone();
        let next = from.max(Seq(1));
        let mut reader = NatsReader { shared, stream, next, connected, pull: None, lost: None };
        reader.pull = Some(reader.start().await?);
        Ok(reader)
    }

    /// Checks that the next message is not lost.
    async fn check(&self) -> Result<(), LogError> {
        let state = self.shared.state(&self.stream).await?.ok_or(LogError::NoStream)?;
        if self.next < state.first || self.next > state.last.next() {
            return Err(LogError::Missing { seq: self.next, first: state.first });
        }
        Ok(())
    }

    /// Makes a consumer at the next message.
    async fn start(&mut self) -> Result<Pull, LogError> {
        self.connected.mark_unchanged();
        self.check().await?;
        let config = Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next.0 },
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            inactive_threshold: INACTIVE,
            num_replicas: 1,
            memory_storage: true,
            ..Config::default()
        };
        let consumer = self.shared.handle(&self.stream).await?.create_consumer(config).await;
        let consumer = consumer.map_err(|error| refusal::consumer(&error))?;
        let client = self.shared.context.client();
        let inbox = Subject::from(client.new_inbox());
        let messages =
            client.subscribe(inbox.clone()).await.map_err(|error| LogError::Unavailable(error.to_string()))?;
        let context = self.shared.context.clone();
        Ok(Pull { context, consumer, inbox, messages, request: None, deadline: Instant::now() + SILENCE })
    }

    /// Makes a consumer again after one was lost.
    async fn restart(&mut self) -> Result<(), LogError> {
        match self.start().await {
            Ok(pull) => {
                self.pull = Some(pull);
                Ok(())
            }
            Err(LogError::Unavailable(why)) => self.lose(why).await,
            Err(error) => Err(error),
        }
    }

    /// Gives the consumer up, for as long as there is patience. The first time another one is made at once.
    async fn lose(&mut self, why: String) -> Result<(), LogError> {
        self.pull = None;
        let Some(since) = self.lost else {
            self.lost = Some(Instant::now());
            return Ok(());
        };
        if since.elapsed() >= PATIENCE {
            self.lost = None;
            return Err(LogError::Unavailable(why));
        }
        tracing::debug!(stream = %self.stream, why, "the log is unavailable; trying again");
        // Sooner if the connection comes back.
        tokio::time::timeout(PAUSE, self.connected.changed()).await.ok();
        Ok(())
    }

    /// The consumer passed over the next message: purged, or lost on the way.
    async fn gap(&mut self) -> Result<(), LogError> {
        self.pull = None;
        match self.shared.get_from_leader(&self.stream, self.next).await {
            Ok(_) | Err(LogError::Unavailable(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Pull {
    async fn request(&mut self, bytes: usize) -> Result<(), LogError> {
        let batch = BatchConfig {
            batch: if bytes == 0 { 1 } else { MESSAGES },
            max_bytes: bytes,
            expires: Some(EXPIRES),
            idle_heartbeat: HEARTBEAT,
            ..BatchConfig::default()
        };
        let (messages, bytes) = (batch.batch, if bytes == 0 { usize::MAX } else { bytes });
        let sent = self.consumer.request_batch(batch, self.inbox.clone()).await;
        sent.map_err(|error| LogError::Unavailable(error.to_string()))?;
        self.request = Some(Request { messages, bytes });
        self.deadline = Instant::now() + SILENCE;
        Ok(())
    }

    /// Tells what was delivered, and keeps account of the request.
    fn take(&mut self, message: async_nats::Message) -> Delivery {
        self.deadline = Instant::now() + SILENCE;
        match message.status {
            Some(StatusCode::IDLE_HEARTBEAT) => return Delivery::Heartbeat,
            Some(StatusCode::TIMEOUT) => return Delivery::Ended,
            Some(StatusCode::REQUEST_TERMINATED) => {
                let too_large = message.description.as_deref().is_some_and(|text| text.contains("MaxBytes"));
                let fresh = self.request.as_ref().is_some_and(|request| request.bytes == BYTES);
                return match (too_large, fresh) {
                    (true, true) => Delivery::TooSmall,
                    (true, false) => Delivery::Ended,
                    (false, _) => Delivery::Gone(message.description.unwrap_or_default()),
                };
            }
            Some(StatusCode::OK) | None => {}
            Some(status) => return Delivery::Gone(format!("status {status}")),
        }
        if let Some(request) = &mut self.request {
            request.messages = request.messages.saturating_sub(1);
            // At exactly zero the server ends the request without a word.
            request.bytes = request.bytes.saturating_sub(message.length);
            if request.messages == 0 || request.bytes == 0 {
                self.request = None;
            }
        }
        let message = jetstream::Message { message, context: self.context.clone() };
        match message.info().map(|info| Seq(info.stream_sequence)) {
            Ok(seq) => Delivery::Message(Message { seq, payload: message.message.payload }),
            Err(error) => Delivery::Gone(format!("a message without a number: {error}")),
        }
    }
}

#[async_trait]
impl Reader for NatsReader {
    async fn next(&mut self) -> Result<Message, LogError> {
        loop {
            let Some(pull) = &mut self.pull else {
                self.restart().await?;
                continue;
            };
            if pull.request.is_none() {
                if let Err(error) = pull.request(BYTES).await {
                    self.lose(error.to_string()).await?;
                }
                continue;
            }
            let message = tokio::select! {
                biased;
                message = pull.messages.next() => message,
                _ = self.connected.changed() => {
                    self.pull = None;
                    continue;
                }
                () = tokio::time::sleep_until(pull.deadline) => None,
            };
            let Some(message) = message else {
                self.lose("the server is silent".to_owned()).await?;
                continue;
            };
            match pull.take(message) {
                Delivery::Message(message) if message.seq == self.next => {
                    self.lost = None;
                    self.next = self.next.next();
                    return Ok(message);
                }
                // A start beyond the end is moved to the end by the server.
                Delivery::Message(message) if message.seq < self.next => {}
                Delivery::Message(_) => self.gap().await?,
                Delivery::Heartbeat => self.lost = None,
                Delivery::Ended => {
                    pull.request = None;
                    match self.check().await {
                        Ok(()) | Err(LogError::Unavailable(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Delivery::TooSmall => {
                    if let Err(error) = pull.request(0).await {
                        self.lose(error.to_string()).await?;
                    }
                }
                Delivery::Gone(why) => self.lose(why).await?,
            }
        }
    }
}

impl Drop for Pull {
    /// Lets the server forget the consumer now rather than after [`INACTIVE`].
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (context, info) = (self.context.clone(), self.consumer.cached_info());
        let (consumer, stream) = (info.name.clone(), info.stream_name.clone());
        runtime.spawn(async move { context.delete_consumer_from_stream(consumer, stream).await.ok() });
    }
}
