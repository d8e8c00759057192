//! Chained appends: each names the sequence that it follows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::PublishMessage;
use async_trait::async_trait;
use bytes::Bytes;
use model::Seq;

use super::Shared;
use crate::window::{Ack, Link};
use crate::{LogError, StreamName};

/// An append that is refused unless `after` is the stream's last message.
pub(super) fn following(stream: &StreamName, payload: Bytes, after: Seq) -> PublishMessage {
    let message =
        PublishMessage::build().payload(payload).expected_stream(stream.to_string()).expected_last_sequence(after.0);
    match after {
        // Servers before 2.10 take a last sequence of 0 for none given; a subject's last sequence of 0 they do check,
        // and the stream has one subject only.
        Seq::ZERO => message.expected_last_subject_sequence(0),
        Seq(_) => message,
    }
}

pub(super) struct NatsLink {
    shared: Arc<Shared>,
    stream: StreamName,
    /// Unique; with the sequence it makes each message's id.
    id: String,
    synced: Synced,
}

impl NatsLink {
    pub(super) fn new(shared: Arc<Shared>, stream: StreamName, after: Seq) -> Self {
        // Who wrote `after` may have been acknowledged just now.
        let mut synced = Synced::new(shared.sync);
        synced.acked(after, Instant::now());
        let id = shared.context.client().new_inbox();
        NatsLink { shared, stream, id, synced }
    }
}

#[async_trait]
impl Link for NatsLink {
    async fn send(&mut self, payload: Bytes, after: Seq, unanswered: bool) -> Result<Ack, LogError> {
        let message = following(&self.stream, payload, after).message_id(format!("{}-{}", self.id, after.next()));
        // Only while it is unanswered: a server that was restarted knows no older id than its duplicate window.
        let message = match unanswered {
            true => message.expected_last_message_id(format!("{}-{after}", self.id)),
            false => message,
        };
        self.shared.publish(&self.stream, message).await
    }

    fn max_message(&self) -> usize {
        self.shared.max_message()
    }

    fn acked(&mut self, seq: Seq) {
        self.synced.acked(seq, Instant::now());
    }

    fn durable(&mut self) -> Result<Seq, LogError> {
        Ok(self.synced.up_to(Instant::now()))
    }
}

/// What was acknowledged so long ago that the server has synced its files since.
struct Synced {
    interval: Duration,
    up_to: Seq,
    waiting: VecDeque<Mark>,
}

/// Acknowledgements of a short while, counted as if all had come with the last of them.
struct Mark {
    since: Instant,
    until: Instant,
    seq: Seq,
}

/// Marks that are kept at most: the answer lags by a 64th of the interval for it.
const MARKS: u32 = 64;

impl Synced {
    fn new(interval: Duration) -> Self {
        Synced { interval, up_to: Seq::ZERO, waiting: VecDeque::new() }
    }

    fn acked(&mut self, seq: Seq, now: Instant) {
        match self.waiting.back_mut() {
            Some(mark) if now.duration_since(mark.since) < self.interval / MARKS => {
                mark.until = now;
                mark.seq = seq;
            }
            Some(_) | None => self.waiting.push_back(Mark { since: now, until: now, seq }),
        }
    }

    fn up_to(&mut self, now: Instant) -> Seq {
        while let Some(mark) = self.waiting.front()
            && now.duration_since(mark.until) >= self.interval
        {
            self.up_to = mark.seq;
            self.waiting.pop_front();
        }
        self.up_to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_is_what_was_acknowledged_an_interval_ago() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut synced = Synced::new(64 * second);
        synced.acked(Seq(1), start);
        synced.acked(Seq(2), start + second / 2);
        synced.acked(Seq(3), start + 10 * second);
        assert_eq!(synced.up_to(start + 64 * second), Seq::ZERO, "the first mark ends half a second later");
        assert_eq!(synced.up_to(start + 65 * second), Seq(2));
        assert_eq!(synced.up_to(start + 73 * second), Seq(2));
        assert_eq!(synced.up_to(start + 74 * second), Seq(3));
        let mut always = Synced::new(Duration::ZERO);
        always.acked(Seq(7), start);
        assert_eq!(always.up_to(start), Seq(7));
    }
}
