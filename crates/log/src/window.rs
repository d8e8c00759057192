//! The bounded window of a [`Chain`], the same over every log.

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use model::Seq;

use crate::{Chain, LogError};

/// Enough to fill the way to a server 10 ms away with messages of the usual 256 KiB, and as many as are lost from sight
/// if the connection breaks.
const MESSAGES: usize = 64;

/// Bounds memory where messages are large: a chain's share of a process's budget.
const BYTES: usize = 8 << 20;

/// Resolves when the message is stored, or refused.
pub(crate) type Ack = BoxFuture<'static, Result<Seq, LogError>>;

/// How a log sends the messages of a chain.
#[async_trait]
pub(crate) trait Link: Send {
    /// Sends one message to follow `after`, without waiting for its acknowledgement. Cancelled, it has sent nothing.
    ///
    /// Where `after` is a message of this chain whose own answer is not there yet (`unanswered`), its number is not
    /// enough: were it refused because somebody else's message took that number, this one would follow theirs.
    async fn send(&mut self, payload: Bytes, after: Seq, unanswered: bool) -> Result<Ack, LogError>;

    /// The largest payload.
    fn max_message(&self) -> usize;

    /// Takes note of an acknowledgement.
    fn acked(&mut self, seq: Seq);

    /// See [`Chain::durable`].
    fn durable(&mut self) -> Result<Seq, LogError>;
}

pub(crate) struct Window<L> {
    link: L,
    pushed: Seq,
    acked: Seq,
    pending: VecDeque<Pending>,
    bytes: usize,
    broken: Option<LogError>,
}

struct Pending {
    seq: Seq,
    bytes: usize,
    ack: Ack,
}

impl<L: Link> Window<L> {
    pub(crate) fn new(link: L, after: Seq) -> Self {
        Window { link, pushed: after, acked: after, pending: VecDeque::new(), bytes: 0, broken: None }
    }

    fn good(&self) -> Result<(), LogError> {
        match &self.broken {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Everything behind a message that was refused is refused too, so nothing more is waited for.
    fn breaks<T>(&mut self, error: LogError) -> Result<T, LogError> {
        self.pending.clear();
        self.bytes = 0;
        self.broken = Some(error.clone());
        Err(error)
    }

    /// Takes the oldest message out of the window, its answer being there.
    fn answered(&mut self, answer: Result<Seq, LogError>) -> Result<(), LogError> {
        let Some(oldest) = self.pending.pop_front() else { return Ok(()) };
        self.bytes -= oldest.bytes;
        match answer {
            Ok(seq) if seq == oldest.seq => {
                self.acked = seq;
                self.link.acked(seq);
                Ok(())
            }
            Ok(seq) => self.breaks(LogError::Conflict { last: seq }),
            Err(error) => self.breaks(error),
        }
    }

    /// Waits for the oldest message's answer. The future stays in the window, so this may be cancelled.
    async fn oldest(&mut self) -> Result<(), LogError> {
        let Some(oldest) = self.pending.front_mut() else { return Ok(()) };
        let answer = (&mut oldest.ack).await;
        self.answered(answer)
    }

    /// Takes in the answers that are there.
    fn collect(&mut self) -> Result<(), LogError> {
        while let Some(answer) = self.pending.front_mut().and_then(|oldest| (&mut oldest.ack).now_or_never()) {
            self.answered(answer)?;
        }
        Ok(())
    }
}

#[async_trait]
impl<L: Link> Chain for Window<L> {
    async fn push(&mut self, payload: Bytes) -> Result<Seq, LogError> {
        self.good()?;
        let bytes = payload.len();
        if bytes > self.link.max_message() {
            return Err(LogError::TooLarge);
        }
        self.collect()?;
        while !self.pending.is_empty() && (self.pending.len() >= MESSAGES || self.bytes + bytes > BYTES) {
            self.oldest().await?;
        }
        let ack = match self.link.send(payload, self.pushed, !self.pending.is_empty()).await {
            Ok(ack) => ack,
            Err(error) => return self.breaks(error),
        };
        self.pushed = self.pushed.next();
        self.bytes += bytes;
        self.pending.push_back(Pending { seq: self.pushed, bytes, ack });
        Ok(self.pushed)
    }

    async fn settle(&mut self) -> Result<Seq, LogError> {
        self.good()?;
        while !self.pending.is_empty() {
            self.oldest().await?;
        }
        Ok(self.acked)
    }

    fn acked(&mut self) -> Result<Seq, LogError> {
        self.good()?;
        self.collect()?;
        Ok(self.acked)
    }

    fn durable(&mut self) -> Result<Seq, LogError> {
        self.acked()?;
        self.link.durable()
    }
}
