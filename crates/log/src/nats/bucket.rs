//! A value of a plan's that others watch: a key of a JetStream KV bucket (a stream of the server's, as the NATS clients agree on it: ADR-8).

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType};
use bytes::Bytes;
use futures::StreamExt;
use model::Seq;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{IDS, Nats, Shared, refusal};
use crate::LogError;

/// Values that are kept, the newest among them: the most that a bucket can.
const HISTORY: i64 = 64;

/// Room for all of them, for accounts in which every stream has to say how much it takes.
const BYTES: i64 = 1 << 20;

/// How often a watch asks for what is there: somebody may have deleted the bucket, and a server that was put back tells nobody.
const LOOK: Duration = Duration::from_secs(5);

/// How often it is looked whether there is a bucket at last.
const LOOK_FOR_BUCKET: Duration = Duration::from_secs(1);

/// One key of a plan's bucket. Writers follow each other: each names the revision that it replaces.
#[derive(Clone)]
pub struct Bucket {
    shared: Arc<Shared>,
    plan: String,
    key: &'static str,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Counts up with each write, whatever it writes.
    pub revision: Seq,
    /// Empty where the key was deleted, by people.
    pub value: Bytes,
}

impl Nats {
    /// A key of the plan's bucket; nothing is asked or made yet.
    pub fn bucket(&self, plan: &str, key: &'static str) -> Bucket {
        Bucket { shared: Arc::clone(&self.shared), plan: plan.to_owned(), key }
    }
}

impl Bucket {
    /// As KV clients call the bucket: `crossfade_<plan>`.
    pub fn name(&self) -> String {
        format!("crossfade_{}", self.plan)
    }

    /// JetStream's name of its stream.
    fn stream(&self) -> String {
        format!("KV_{}", self.name())
    }

    fn subject(&self) -> String {
        format!("$KV.{}.{}", self.name(), self.key)
    }

    /// Whether there is such a bucket.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] and whatever else the server says.
    pub async fn exists(&self) -> Result<bool, LogError> {
        match self.shared.context.get_stream(self.stream()).await {
            Ok(_) => Ok(true),
            Err(error) => match refusal::get_stream(&error) {
                LogError::NoStream => Ok(false),
                error => Err(error),
            },
        }
    }

    /// What the key holds, as the bucket's leader knows it; `None` if it was never written, or there is no bucket.
    ///
    /// # Errors
    /// As [`exists`](Bucket::exists).
    pub async fn get(&self) -> Result<Option<Entry>, LogError> {
        let handle = self.shared.context.get_stream_no_info(self.stream()).await;
        let handle = handle.map_err(|error| refusal::get_stream(&error))?;
        match handle.get_last_raw_message_by_subject(&self.subject()).await {
            Ok(message) => Ok(Some(Entry { revision: Seq(message.sequence), value: message.payload })),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => match refusal::raw_message(&error) {
                LogError::NoStream => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Writes the key behind revision `after`; zero if it was never written, and then the bucket is made, too. Returns the new revision.
    ///
    /// # Errors
    /// [`LogError::Conflict`] if the key's revision is another one. After [`LogError::Unavailable`] the value may be there nonetheless.
    pub async fn put(&self, after: Seq, value: Bytes) -> Result<Seq, LogError> {
        if after == Seq::ZERO && !self.exists().await? {
            self.create().await?;
        }
        let message = PublishMessage::build()
            .payload(value)
            .expected_stream(self.stream())
            .expected_last_subject_sequence(after.0);
        let sent = self.shared.context.send_publish(self.subject(), message).await;
        let acknowledged = async { sent?.await };
        match acknowledged.await {
            Ok(ack) => Ok(Seq(ack.sequence)),
            Err(error) => match refusal::publish(&error) {
                LogError::Conflict { .. } => {
                    Err(LogError::Conflict { last: self.get().await?.map_or(Seq::ZERO, |entry| entry.revision) })
                }
                error => Err(error),
            },
        }
    }

    async fn create(&self) -> Result<(), LogError> {
        let config = Config {
            name: self.stream(),
            description: Some("what applications that switch by flags are told: `crossfade stage`".to_owned()),
            subjects: vec![format!("$KV.{}.>", self.name())],
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            max_messages: -1,
            max_messages_per_subject: HISTORY,
            max_bytes: BYTES,
            num_replicas: self.shared.replicas,
            duplicate_window: IDS,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            ..Config::default()
        };
        self.shared.context.create_stream(config).await.map(drop).map_err(|error| refusal::create_stream(&error))
    }

    /// Deletes the bucket, all of its keys included. One that is not there is fine.
    ///
    /// # Errors
    /// As [`exists`](Bucket::exists).
    pub async fn remove(&self) -> Result<(), LogError> {
        match self.shared.context.delete_stream(self.stream()).await {
            Ok(_) => Ok(()),
            Err(error) => match refusal::get_stream(&error) {
                LogError::NoStream => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Follows the key, from what it holds now on.
    pub fn watch(&self) -> Watch {
        Watch { bucket: self.clone(), ear: Ear::Open, told: Seq::ZERO, connected: self.shared.connected.clone() }
    }

    /// What is written from now on; `None` if there is no bucket.
    async fn listen(&self) -> Result<Option<Ordered>, LogError> {
        let handle = self.shared.context.get_stream_no_info(self.stream()).await;
        let handle = handle.map_err(|error| refusal::get_stream(&error))?;
        let config = OrderedConfig {
            deliver_subject: self.shared.context.client().new_inbox(),
            filter_subject: self.subject(),
            deliver_policy: DeliverPolicy::New,
            ..OrderedConfig::default()
        };
        let consumer = match handle.create_consumer(config).await {
            Ok(consumer) => consumer,
            Err(error) => match refusal::consumer(&error) {
                LogError::NoStream => return Ok(None),
                error => return Err(error),
            },
        };
        let messages = consumer.messages().await.map_err(|error| LogError::Unavailable(error.to_string()))?;
        Ok(Some(messages))
    }
}

/// Follows a key. What is there at a look is told; of what was written and replaced between two looks nothing is promised.
pub struct Watch {
    bucket: Bucket,
    ear: Ear,
    /// The last revision that was told.
    told: Seq,
    connected: watch::Receiver<u64>,
}

enum Ear {
    /// Nobody listens yet, or not any more.
    Open,
    /// There is no bucket to listen to.
    Nothing,
    Listening(Box<Ordered>),
}

impl Watch {
    /// What the key holds: at once when called for the first time or after an error; then as soon as it is written, and otherwise after five seconds, changed or
    /// not. May be cancelled and called again.
    ///
    /// # Errors
    /// As [`Bucket::exists`]; may be called again.
    pub async fn next(&mut self) -> Result<Option<Entry>, LogError> {
        let ordered = match &mut self.ear {
            Ear::Listening(ordered) => ordered,
            Ear::Open => return self.open().await,
            Ear::Nothing => {
                tokio::time::sleep(LOOK_FOR_BUCKET).await;
                return self.open().await;
            }
        };
        let until = Instant::now() + LOOK;
        loop {
            let pushed = tokio::select! {
                biased;
                pushed = ordered.next() => pushed,
                // What was written while there was no connection is found by a look.
                Ok(()) = self.connected.changed() => None,
                () = tokio::time::sleep_until(until) => break,
            };
            // Or the server has forgotten who listens.
            let Some(Ok(message)) = pushed else { return self.open().await };
            let Ok(revision) = message.info().map(|info| Seq(info.stream_sequence)) else { return self.open().await };
            // What a look has told already may still be on its way.
            if revision > self.told {
                self.told = revision;
                return Ok(Some(Entry { revision, value: message.payload.clone() }));
            }
        }
        match self.bucket.get().await {
            Ok(Some(entry)) if entry.revision == self.told => Ok(Some(entry)),
            // Something was not pushed, or this is another bucket.
            Ok(_) | Err(_) => self.open().await,
        }
    }

    /// First the ear and then the look, so that nothing is written in between.
    async fn open(&mut self) -> Result<Option<Entry>, LogError> {
        self.ear = Ear::Open;
        self.connected.mark_unchanged();
        let ear = match self.bucket.listen().await? {
            Some(ordered) => Ear::Listening(Box::new(ordered)),
            None => Ear::Nothing,
        };
        let now = self.bucket.get().await?;
        self.ear = ear;
        self.told = now.as_ref().map_or(Seq::ZERO, |entry| entry.revision);
        Ok(now)
    }
}
