//! What a log is. A stream numbers its messages from 1 without gaps; only people (or limits that people set) take
//! messages out of it, and nobody changes one.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use model::Seq;

use crate::LogError;

/// A stream of a plan's source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamName {
    /// The plan's name.
    pub plan: String,
    /// The source's name in the plan.
    pub source: String,
    /// Which of the source's streams.
    pub kind: StreamKind,
}

/// Which of a source's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// How the tables' copies come along; small.
    Copy,
    /// The copies' rows, apart so that what is known of a copy can be read without them.
    Chunks,
    /// The transactions after them; one writer.
    Tail,
}

impl StreamName {
    /// Puts one together.
    pub fn new(plan: impl Into<String>, source: impl Into<String>, kind: StreamKind) -> Self {
        StreamName { plan: plan.into(), source: source.into(), kind }
    }

    /// The subject that its messages are published on: `crossfade.<plan>.<source>.<tail|copy|chunks>`.
    pub fn subject(&self) -> String {
        let kind = match self.kind {
            StreamKind::Copy => "copy",
            StreamKind::Chunks => "chunks",
            StreamKind::Tail => "tail",
        };
        format!("crossfade.{}.{}.{kind}", self.plan, self.source)
    }

    /// The subject, of a name that a log can carry: names become parts of subjects and of file names.
    pub(crate) fn checked_subject(&self) -> Result<String, LogError> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        match [&self.plan, &self.source].into_iter().find(|name| name.is_empty() || !name.chars().all(good)) {
            None => Ok(self.subject()),
            Some(name) => Err(LogError::Other(format!("{name:?} cannot name a stream: letters, digits, - and _ only"))),
        }
    }
}

impl fmt::Display for StreamName {
    /// JetStream's name of it: `CROSSFADE_<plan>_<source>_<TAIL|COPY|CHUNKS>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            StreamKind::Copy => "COPY",
            StreamKind::Chunks => "CHUNKS",
            StreamKind::Tail => "TAIL",
        };
        write!(f, "CROSSFADE_{}_{}_{kind}", self.plan, self.source)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number in the stream.
    pub seq: Seq,
    /// An encoded [`model::Record`].
    pub payload: Bytes,
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// The oldest message that is still there; of an empty stream, the number that the next one will have.
    pub first: Seq,
    /// The newest message ever written; zero if there was none. Purging does not take it back.
    pub last: Seq,
    /// How many are there.
    pub messages: u64,
    /// How much room they take, with the log's own overhead.
    pub bytes: u64,
}

/// An event log. What was acknowledged once is never given up for newer messages: a full log refuses.
///
/// Every method may return [`LogError::Unavailable`], after which the same call may be made again; for the appends this
/// means that the message may be in the stream nonetheless.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Creates the stream if it is not there: on disk, without limits of age or number, discarding nothing.
    ///
    /// # Errors
    /// [`LogError::Settings`] if it is there with settings under which it would lose messages or not be ours.
    async fn create(&self, stream: &StreamName) -> Result<(), LogError>;

    /// What the stream holds, as its leader knows it; `None` if there is no such stream.
    async fn state(&self, stream: &StreamName) -> Result<Option<StreamState>, LogError>;

    /// One message.
    ///
    /// # Errors
    /// [`LogError::Missing`] if it is not there (any more, or yet).
    async fn get(&self, stream: &StreamName, seq: Seq) -> Result<Message, LogError>;

    /// The newest message that is there, as the stream's leader knows it.
    async fn last(&self, stream: &StreamName) -> Result<Option<Message>, LogError>;

    /// Appends one message behind whatever is there and returns once it is stored. Many may run at once; their order is
    /// the log's choice.
    ///
    /// # Errors
    /// [`LogError::Full`], [`LogError::TooLarge`], [`LogError::NoStream`].
    async fn append(&self, stream: &StreamName, payload: Bytes) -> Result<Seq, LogError>;

    /// Appends one message as the first of the stream.
    ///
    /// # Errors
    /// [`LogError::Conflict`] if the stream is not empty, else as [`append`](Log::append).
    async fn append_first(&self, stream: &StreamName, payload: Bytes) -> Result<Seq, LogError>;

    /// A chain of appends behind message `after`, each of which is refused unless the one before it is the stream's
    /// last. Nothing is sent yet, so a wrong `after` shows at the first append.
    async fn chain(&self, stream: &StreamName, after: Seq) -> Result<Box<dyn Chain>, LogError>;

    /// The messages from `from` on (inclusive), and whatever comes after them, for ever.
    ///
    /// # Errors
    /// [`LogError::Missing`] if `from` was purged, or lies beyond the next message: then messages that were there are
    /// gone. [`LogError::NoStream`].
    async fn read(&self, stream: &StreamName, from: Seq) -> Result<Box<dyn Reader>, LogError>;

    /// Deletes the stream and what it holds. One that is not there is fine.
    async fn remove(&self, stream: &StreamName) -> Result<(), LogError>;

    /// The largest payload, in bytes, that one message takes.
    fn max_message(&self) -> usize;

    /// Where the log is, for people: its URL without secrets, or its folder.
    fn describe(&self) -> String;
}

/// Writes a stream alone. Appends are on their way at once, up to 64 messages or 8 MiB; each names the sequence that it
/// follows, so a message that is refused takes all behind it with it, and so does somebody else's.
///
/// After an error the chain is of no more use: every call returns that error. Read [`Log::last`] and make another.
#[async_trait]
pub trait Chain: Send {
    /// Sends a message and returns the sequence that it will have once it is acknowledged. Waits only while the window is
    /// full. Cancelled, it has sent nothing.
    ///
    /// # Errors
    /// [`LogError::TooLarge`] (the chain is still good), or whatever refused an earlier message.
    async fn push(&mut self, payload: Bytes) -> Result<Seq, LogError>;

    /// Waits until everything pushed so far is acknowledged and returns the highest acknowledged sequence. May be
    /// cancelled and called again.
    async fn settle(&mut self) -> Result<Seq, LogError>;

    /// The highest sequence acknowledged so far, without waiting.
    fn acked(&mut self) -> Result<Seq, LogError>;

    /// The highest sequence that would survive a power loss. An acknowledgement alone does not say so: JetStream's file
    /// storage syncs every two minutes. Zero until something is known; never goes back.
    fn durable(&mut self) -> Result<Seq, LogError>;
}

/// Follows a stream.
#[async_trait]
pub trait Reader: Send {
    /// The next message, in order and without gaps. Waits at the end of the stream. May be cancelled and called again.
    /// Lost connections and restarted servers are waited out for half a minute, then it is
    /// [`LogError::Unavailable`], and may still be called again.
    ///
    /// # Errors
    /// [`LogError::Missing`] if the next message was purged; [`LogError::NoStream`] if the stream was deleted.
    async fn next(&mut self) -> Result<Message, LogError>;
}
