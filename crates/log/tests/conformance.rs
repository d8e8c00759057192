//! What every log promises, held against each of them. What only JetStream can show is in jetstream.rs.
#![allow(clippy::unwrap_used, clippy::panic)]

mod server;
mod stream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossfade_log::{
    Embedded, Log, LogError, Nats, NatsOptions, RecordReader, StreamKind, StreamName, append_record, get_record,
    push_record,
};
use model::{Chunk, Record, Seq, TableName, Writer};
use server::Server;
use stream::{read, tail, text, written};
use tempfile::TempDir;
use tokio::time::timeout;

/// A log, and what it stands on.
struct Ground {
    log: Arc<dyn Log>,
    _server: Option<Server>,
    _folder: Option<TempDir>,
}

impl Ground {
    async fn nats() -> Ground {
        let server = Server::start();
        let options = NatsOptions { sync: Duration::from_millis(500), ..NatsOptions::new(server.url()) };
        let log = Arc::new(Nats::connect(&options).await.unwrap());
        Ground { log, _server: Some(server), _folder: None }
    }

    async fn embedded() -> Ground {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(Embedded::open(folder.path()).unwrap());
        Ground { log, _server: None, _folder: Some(folder) }
    }
}

macro_rules! over_both {
    ($($rule:ident)+) => {
        mod nats { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() { let ground = super::Ground::nats().await; super::$rule(ground.log.clone()).await; })+ }
        mod embedded { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() { let ground = super::Ground::embedded().await; super::$rule(ground.log.clone()).await; })+ }
    };
}

over_both! {
    what_was_appended_is_read_got_and_last
    a_tail_append_is_refused_unless_it_follows_the_last_message
    behind_a_refused_append_everything_is_refused
    an_append_whose_ack_was_lost_is_the_last_message
    a_first_append_goes_only_into_an_empty_stream
    the_window_is_bounded_in_messages_and_bytes
    a_record_larger_than_a_message_is_rejoined_byte_for_byte
    a_message_that_is_too_large_is_known_beforehand
    a_reader_follows_the_end_and_may_be_cancelled
    a_start_beyond_the_end_is_a_gap
    durable_follows_acked
    a_removed_stream_is_gone_and_starts_from_one_again
    a_stream_that_is_not_there_is_told_as_such
}

async fn what_was_appended_is_read_got_and_last(log: Arc<dyn Log>) {
    assert_eq!(log.state(&tail()).await.unwrap(), None);
    log.create(&tail()).await.unwrap();
    log.create(&tail()).await.unwrap();
    let empty = log.state(&tail()).await.unwrap().unwrap();
    assert_eq!((empty.first, empty.last, empty.messages), (Seq(1), Seq(0), 0));
    assert_eq!(log.last(&tail()).await.unwrap(), None);
    written(&*log, 3000).await;
    assert_eq!(log.append(&tail(), text(3001)).await.unwrap(), Seq(3001));
    let state = log.state(&tail()).await.unwrap().unwrap();
    assert_eq!((state.first, state.last, state.messages), (Seq(1), Seq(3001), 3001));
    assert!(state.bytes > 3001 * 9);
    assert_eq!(log.last(&tail()).await.unwrap().unwrap().payload, text(3001));
    assert_eq!(log.get(&tail(), Seq(1234)).await.unwrap().payload, text(1234));
    assert!(matches!(log.get(&tail(), Seq(4000)).await, Err(LogError::Missing { seq: Seq(4000), first: Seq(1) })));
    read(&*log, 1, 3001).await;
    read(&*log, 3000, 3001).await;
}

async fn a_tail_append_is_refused_unless_it_follows_the_last_message(log: Arc<dyn Log>) {
    let mut first = written(&*log, 3).await;
    let mut second = log.chain(&tail(), Seq(3)).await.unwrap();
    second.push(text(4)).await.unwrap();
    assert_eq!(second.settle().await.unwrap(), Seq(4));
    first.push(Bytes::from("half dead")).await.unwrap();
    let refused = first.settle().await.unwrap_err();
    assert!(matches!(refused, LogError::Conflict { last: Seq(4) }), "{refused:?}");
    // It stays refused.
    assert!(matches!(first.push(text(5)).await, Err(LogError::Conflict { .. })));
    assert!(matches!(first.acked(), Err(LogError::Conflict { .. })));
    for wrong in [Seq::ZERO, Seq(2), Seq(9)] {
        let mut chain = log.chain(&tail(), wrong).await.unwrap();
        chain.push(text(5)).await.unwrap();
        assert!(matches!(chain.settle().await, Err(LogError::Conflict { last: Seq(4) })), "after {wrong}");
    }
    assert_eq!(log.last(&tail()).await.unwrap().unwrap().payload, text(4));
}

async fn behind_a_refused_append_everything_is_refused(log: Arc<dyn Log>) {
    // Also the one whose predecessor's number somebody else's message has taken.
    for round in 0..20 {
        let last = 2 * round + 1;
        let mut chain = match round {
            0 => written(&*log, 1).await,
            _ => log.chain(&tail(), Seq(last)).await.unwrap(),
        };
        log.append(&tail(), text(last + 1)).await.unwrap();
        for n in 1..20 {
            if chain.push(Bytes::from(format!("refused {n}"))).await.is_err() {
                break;
            }
        }
        let refused = chain.settle().await.unwrap_err();
        assert!(matches!(refused, LogError::Conflict { .. }), "{refused:?}");
        assert_eq!(log.append(&tail(), text(last + 2)).await.unwrap(), Seq(last + 2));
    }
    read(&*log, 1, 41).await;
}

async fn an_append_whose_ack_was_lost_is_the_last_message(log: Arc<dyn Log>) {
    let mut chain = written(&*log, 1).await;
    chain.push(text(2)).await.unwrap();
    drop(chain);
    read(&*log, 1, 2).await;
    let last = log.last(&tail()).await.unwrap().unwrap();
    assert_eq!((last.seq, last.payload), (Seq(2), text(2)));
    let mut chain = log.chain(&tail(), last.seq).await.unwrap();
    chain.push(text(3)).await.unwrap();
    assert_eq!(chain.settle().await.unwrap(), Seq(3));
}

async fn a_first_append_goes_only_into_an_empty_stream(log: Arc<dyn Log>) {
    log.create(&tail()).await.unwrap();
    assert_eq!(log.append_first(&tail(), text(1)).await.unwrap(), Seq(1));
    let refused = log.append_first(&tail(), Bytes::from("another plan's")).await.unwrap_err();
    assert!(matches!(refused, LogError::Conflict { last: Seq(1) }), "{refused:?}");
    assert_eq!(log.state(&tail()).await.unwrap().unwrap().last, Seq(1));
}

async fn the_window_is_bounded_in_messages_and_bytes(log: Arc<dyn Log>) {
    let mut chain = written(&*log, 1).await;
    for n in 2..1000 {
        chain.push(text(n)).await.unwrap();
        assert!(chain.acked().unwrap() >= Seq(n.saturating_sub(64)));
    }
    chain.settle().await.unwrap();
    let half = Bytes::from(vec![7; 512 << 10]);
    for n in 1000..1064 {
        chain.push(half.clone()).await.unwrap();
        assert!(chain.acked().unwrap() >= Seq(n - 16), "more than 8 MiB under way");
    }
    assert_eq!(chain.settle().await.unwrap(), Seq(1063));
}

fn chunk(bytes: usize) -> Record {
    let data = (0..bytes).map(|i| (i * i % 251) as u8).collect::<Vec<_>>().into();
    Record::Chunk(Chunk { table: TableName::new("public", "t"), epoch: 1, index: 0, rows: 1, data })
}

async fn a_record_larger_than_a_message_is_rejoined_byte_for_byte(log: Arc<dyn Log>) {
    log.create(&tail()).await.unwrap();
    let max = log.max_message();
    let writer = Record::Writer(Writer { id: "w".into(), name: "host:1".into(), anew: false });
    let (large, larger) = (chunk(2 * max + 5), chunk(3 * max));
    let mut chain = log.chain(&tail(), Seq::ZERO).await.unwrap();
    let mut expected = Vec::new();
    for record in [writer.clone(), large.clone(), chunk(max - 64), chunk(max)] {
        expected.push((push_record(&mut *chain, max, record.clone()).await.unwrap(), record));
    }
    chain.settle().await.unwrap();
    // Two at once, so that their pieces come to stand among each other's.
    let stream = tail();
    let (one, other) =
        tokio::join!(append_record(&*log, &stream, larger.clone()), append_record(&*log, &stream, large.clone()));
    let mut both = [(one.unwrap(), larger), (other.unwrap(), large)];
    both.sort_by_key(|(seq, _)| *seq);
    expected.extend(both);
    let mut reader = RecordReader::open(log.clone(), tail(), Seq(1)).await.unwrap();
    for (seq, record) in expected {
        let (found, again) = timeout(Duration::from_secs(20), reader.next()).await.unwrap().unwrap();
        assert!(found == seq && again == record, "message {seq}");
        assert!(get_record(&*log, &tail(), seq).await.unwrap() == record, "message {seq}");
    }
}

async fn a_message_that_is_too_large_is_known_beforehand(log: Arc<dyn Log>) {
    let mut chain = written(&*log, 1).await;
    let max = log.max_message();
    let large = Bytes::from(vec![1; max + 1]);
    assert!(matches!(log.append(&tail(), large.clone()).await, Err(LogError::TooLarge)));
    assert!(matches!(chain.push(large.clone()).await, Err(LogError::TooLarge)));
    chain.push(large.slice(1..)).await.unwrap();
    assert_eq!(chain.settle().await.unwrap(), Seq(2));
    assert_eq!(log.append(&tail(), large.slice(1..)).await.unwrap(), Seq(3));
    let mut reader = log.read(&tail(), Seq(2)).await.unwrap();
    for _ in 2..=3 {
        assert_eq!(reader.next().await.unwrap().payload.len(), max);
    }
}

async fn a_reader_follows_the_end_and_may_be_cancelled(log: Arc<dyn Log>) {
    let mut chain = written(&*log, 1).await;
    let mut reader = log.read(&tail(), Seq(1)).await.unwrap();
    assert_eq!(reader.next().await.unwrap().seq, Seq(1));
    let mut slowest = Duration::ZERO;
    for n in 2..60 {
        assert!(timeout(Duration::from_millis(n % 4), reader.next()).await.is_err(), "nothing is there yet");
        let start = Instant::now();
        chain.push(text(n)).await.unwrap();
        let message = loop {
            // Cancelled every millisecond until it is there.
            if let Ok(message) = timeout(Duration::from_millis(1), reader.next()).await {
                break message.unwrap();
            }
            assert!(start.elapsed() < Duration::from_secs(5), "message {n} does not come");
        };
        slowest = slowest.max(start.elapsed());
        assert_eq!((message.seq, message.payload), (Seq(n), text(n)));
    }
    assert!(slowest < Duration::from_millis(500), "a message took {slowest:?}");
}

async fn a_start_beyond_the_end_is_a_gap(log: Arc<dyn Log>) {
    written(&*log, 3).await;
    assert!(log.read(&tail(), Seq(4)).await.is_ok());
    assert!(matches!(log.read(&tail(), Seq(5)).await, Err(LogError::Missing { seq: Seq(5), first: Seq(1) })));
}

async fn durable_follows_acked(log: Arc<dyn Log>) {
    let mut chain = written(&*log, 5).await;
    let start = Instant::now();
    while chain.durable().unwrap() < Seq(5) {
        assert!(start.elapsed() < Duration::from_secs(5), "durable stays behind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    chain.push(text(6)).await.unwrap();
    assert!(chain.durable().unwrap() <= chain.acked().unwrap());
}

async fn a_removed_stream_is_gone_and_starts_from_one_again(log: Arc<dyn Log>) {
    let copy = StreamName::new("shop", "main", StreamKind::Copy);
    log.create(&copy).await.unwrap();
    log.append(&copy, text(1)).await.unwrap();
    let mut chain = written(&*log, 100).await;
    log.remove(&tail()).await.unwrap();
    log.remove(&tail()).await.unwrap();
    assert_eq!(log.state(&tail()).await.unwrap(), None);
    chain.push(text(101)).await.unwrap();
    assert!(matches!(chain.settle().await, Err(LogError::NoStream)));
    written(&*log, 2).await;
    read(&*log, 1, 2).await;
    assert!(matches!(log.get(&tail(), Seq(50)).await, Err(LogError::Missing { .. })));
    assert_eq!(log.last(&copy).await.unwrap().unwrap().payload, text(1));
}

async fn a_stream_that_is_not_there_is_told_as_such(log: Arc<dyn Log>) {
    assert!(matches!(log.last(&tail()).await, Err(LogError::NoStream)));
    assert!(matches!(log.get(&tail(), Seq(1)).await, Err(LogError::NoStream)));
    assert!(matches!(log.append(&tail(), text(1)).await, Err(LogError::NoStream)));
    assert!(matches!(log.read(&tail(), Seq(1)).await, Err(LogError::NoStream)));
    assert!(log.create(&StreamName::new("a.b", "main", StreamKind::Tail)).await.is_err());
}

#[tokio::test]
async fn an_embedded_log_is_whole_when_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    {
        let log = Embedded::open(folder.path()).unwrap();
        let mut chain = written(&log, 10).await;
        chain.push(text(11)).await.unwrap();
    }
    let log = Embedded::open(folder.path()).unwrap();
    assert_eq!(log.last(&tail()).await.unwrap().unwrap().payload, text(11));
    assert_eq!(log.chain(&tail(), Seq(11)).await.unwrap().durable().unwrap(), Seq(11));
    read(&log, 1, 11).await;
}
