//! A stream for one test, whose message n says "message n".
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use crossfade_log::{Chain, Log, StreamKind, StreamName};
use model::Seq;
use tokio::time::timeout;

pub fn tail() -> StreamName {
    StreamName::new("shop", "main", StreamKind::Tail)
}

pub fn text(n: u64) -> Bytes {
    Bytes::from(format!("message {n}"))
}

/// A chain that has written messages 1 to `n`.
pub async fn written(log: &dyn Log, n: u64) -> Box<dyn Chain> {
    log.create(&tail()).await.unwrap();
    let mut chain = log.chain(&tail(), Seq::ZERO).await.unwrap();
    for i in 1..=n {
        assert_eq!(chain.push(text(i)).await.unwrap(), Seq(i));
    }
    assert_eq!(chain.settle().await.unwrap(), Seq(n));
    chain
}

pub async fn read(log: &dyn Log, from: u64, to: u64) {
    let mut reader = log.read(&tail(), Seq(from)).await.unwrap();
    for n in from..=to {
        let message = timeout(Duration::from_secs(10), reader.next()).await.unwrap().unwrap();
        assert_eq!((message.seq, message.payload), (Seq(n), text(n)));
    }
}
