//! Follows a stream: reads ahead off the runtime's threads, and waits at the end for the writer.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use model::Seq;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::store::Store;
use super::stream::Stream;
use crate::{LogError, Message, Reader, StreamState};

/// What is read at once, and held.
const AHEAD: usize = 4 << 20;

pub(super) struct EmbeddedReader {
    store: Arc<Store>,
    stream: Arc<Stream>,
    state: watch::Receiver<StreamState>,
    next: Seq,
    ahead: VecDeque<Message>,
    /// A read under way; kept here so that [`Reader::next`] may be cancelled.
    scan: Option<JoinHandle<Result<Vec<Message>, LogError>>>,
}

impl EmbeddedReader {
    pub(super) fn open(store: Arc<Store>, stream: Arc<Stream>, from: Seq) -> Result<Self, LogError> {
        let (state, next) = (stream.watch(), from.max(Seq(1)));
        let there = stream.state();
        if next < there.first || next > there.last.next() {
            return Err(LogError::Missing { seq: next, first: there.first });
        }
        Ok(EmbeddedReader { store, stream, state, next, ahead: VecDeque::new(), scan: None })
    }

    async fn scanned(&mut self) -> Result<(), LogError> {
        let Some(scan) = &mut self.scan else { return Ok(()) };
        let found = scan.await;
        self.scan = None;
        let found = found.map_err(|error| LogError::Other(format!("reading the embedded log: {error}")))??;
        let first = found.first().map_or(Seq::ZERO, |message| message.seq);
        if first != self.next {
            return Err(LogError::Missing { seq: self.next, first: first.max(self.stream.state().first) });
        }
        self.ahead = found.into();
        Ok(())
    }
}

#[async_trait]
impl Reader for EmbeddedReader {
    async fn next(&mut self) -> Result<Message, LogError> {
        loop {
            self.stream.there()?;
            if let Some(message) = self.ahead.pop_front() {
                if message.seq != self.next {
                    self.ahead.clear();
                    return Err(LogError::Missing { seq: self.next, first: message.seq });
                }
                self.next = self.next.next();
                return Ok(message);
            }
            if self.scan.is_some() {
                self.scanned().await?;
                continue;
            }
            let last = self.state.borrow_and_update().last;
            if last < self.next {
                // Its sender lives in `stream`, so this cannot end for ever.
                self.state.changed().await.map_err(|_| LogError::NoStream)?;
                continue;
            }
            let (store, id, from) = (self.store.clone(), self.stream.id, self.next);
            self.scan = Some(tokio::task::spawn_blocking(move || store.scan(id, from, last, AHEAD)));
        }
    }
}
