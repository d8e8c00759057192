//! The log as it was at some commit: what comes later is not there, nor is any stream but those of the sources. Its headers lead into another database. It cannot be written.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use log::{Chain, Log, LogError, Message, Reader, StreamName, StreamState};
use model::Seq;

/// Where a stream ends.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// Its last message.
    pub last: Seq,
    /// What that one holds, if not what it holds in the log.
    pub payload: Option<Bytes>,
}

/// A log that ends.
pub(crate) struct View {
    log: Arc<dyn Log>,
    ends: HashMap<StreamName, End>,
    /// What the first message of a copy stream says in place of what it says in the log.
    headers: HashMap<StreamName, Bytes>,
}

impl View {
    /// Of `log`, with these `ends` and `headers`.
    pub fn new(log: &Arc<dyn Log>, ends: HashMap<StreamName, End>, headers: HashMap<StreamName, Bytes>) -> View {
        View { log: Arc::clone(log), ends, headers }
    }

    /// It is of one of the sources. The way back, which has streams of its own, is none of this database's.
    fn knows(&self, stream: &StreamName) -> bool {
        self.headers.keys().any(|known| known.plan == stream.plan && known.source == stream.source)
    }

    fn shown(&self, stream: &StreamName) -> Shown {
        Shown { end: self.ends.get(stream).cloned(), header: self.headers.get(stream).cloned() }
    }

    fn refused<T>(&self) -> Result<T, LogError> {
        let why = "a rehearsal only reads the log".to_owned();
        Err(LogError::StateNotWritable { path: self.log.describe().into(), why })
    }
}

/// What is shown of a stream.
struct Shown {
    end: Option<End>,
    header: Option<Bytes>,
}

impl Shown {
    fn has(&self, seq: Seq) -> bool {
        self.end.as_ref().is_none_or(|end| seq <= end.last)
    }

    fn message(&self, message: Message) -> Message {
        let end = self.end.as_ref().filter(|end| end.last == message.seq).and_then(|end| end.payload.as_ref());
        let other = end.or(self.header.as_ref().filter(|_| message.seq == Seq(1)));
        Message { payload: other.cloned().unwrap_or(message.payload), ..message }
    }
}

#[async_trait]
impl Log for View {
    async fn create(&self, _: &StreamName) -> Result<(), LogError> {
        self.refused()
    }

    async fn state(&self, stream: &StreamName) -> Result<Option<StreamState>, LogError> {
        if !self.knows(stream) {
            return Ok(None);
        }
        let state = self.log.state(stream).await?;
        let last = self.ends.get(stream).map(|end| end.last);
        Ok(state.map(|state| StreamState { last: last.map_or(state.last, |last| last.min(state.last)), ..state }))
    }

    async fn get(&self, stream: &StreamName, seq: Seq) -> Result<Message, LogError> {
        if !self.knows(stream) {
            return Err(LogError::NoStream);
        }
        let shown = self.shown(stream);
        if !shown.has(seq) {
            let first = self.log.state(stream).await?.map_or(Seq(1), |state| state.first);
            return Err(LogError::Missing { seq, first });
        }
        Ok(shown.message(self.log.get(stream, seq).await?))
    }

    async fn last(&self, stream: &StreamName) -> Result<Option<Message>, LogError> {
        match self.state(stream).await? {
            Some(state) if state.last >= state.first => self.get(stream, state.last).await.map(Some),
            Some(_) | None => Ok(None),
        }
    }

    async fn append(&self, _: &StreamName, _: Bytes) -> Result<Seq, LogError> {
        self.refused()
    }

    async fn append_first(&self, _: &StreamName, _: Bytes) -> Result<Seq, LogError> {
        self.refused()
    }

    async fn chain(&self, _: &StreamName, _: Seq) -> Result<Box<dyn Chain>, LogError> {
        self.refused()
    }

    async fn read(&self, stream: &StreamName, from: Seq) -> Result<Box<dyn Reader>, LogError> {
        if !self.knows(stream) {
            return Err(LogError::NoStream);
        }
        let reader = self.log.read(stream, from).await?;
        Ok(Box::new(Ending { reader, next: from.max(Seq(1)), shown: self.shown(stream) }))
    }

    async fn remove(&self, _: &StreamName) -> Result<(), LogError> {
        self.refused()
    }

    fn max_message(&self) -> usize {
        self.log.max_message()
    }

    fn describe(&self) -> String {
        self.log.describe()
    }
}

/// Waits at the end as any reader does, only that nothing comes.
struct Ending {
    reader: Box<dyn Reader>,
    next: Seq,
    shown: Shown,
}

#[async_trait]
impl Reader for Ending {
    async fn next(&mut self) -> Result<Message, LogError> {
        if !self.shown.has(self.next) {
            return std::future::pending().await;
        }
        let message = self.reader.next().await?;
        self.next = message.seq.next();
        Ok(self.shown.message(message))
    }
}
