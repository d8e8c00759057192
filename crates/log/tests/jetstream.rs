//! What only JetStream can show: purges, limits, other people's settings, servers that die.
#![allow(clippy::unwrap_used, clippy::panic)]

mod server;
mod stream;

use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use crossfade_log::{Log, LogError, Nats, NatsOptions, StreamKind, StreamName};
use model::Seq;
use server::Server;
use stream::{read, tail, text, written};
use tokio::time::timeout;

/// JetStream as an operator has it in hand.
async fn operator(server: &Server) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

#[tokio::test]
async fn purged_messages_are_missing_and_not_skipped() {
    let server = Server::start();
    let log = Nats::connect(&NatsOptions::new(server.url())).await.unwrap();
    written(&log, 20).await;
    let stream = operator(&server).await.get_stream(tail().to_string()).await.unwrap();
    stream.purge().sequence(10).await.unwrap();
    assert_eq!(log.state(&tail()).await.unwrap().unwrap().first, Seq(10));
    assert!(matches!(log.read(&tail(), Seq(9)).await, Err(LogError::Missing { seq: Seq(9), first: Seq(10) })));
    assert!(matches!(log.get(&tail(), Seq(9)).await, Err(LogError::Missing { seq: Seq(9), first: Seq(10) })));
    read(&log, 10, 20).await;
    // In the middle, under a reader that is before it.
    stream.delete_message(15).await.unwrap();
    let mut reader = log.read(&tail(), Seq(10)).await.unwrap();
    for n in 10..15 {
        assert_eq!(reader.next().await.unwrap().seq, Seq(n));
    }
    for _ in 0..2 {
        let missing = timeout(Duration::from_secs(5), reader.next()).await.unwrap();
        assert!(matches!(missing, Err(LogError::Missing { seq: Seq(15), .. })), "{missing:?}");
    }
    // Everything, under a reader that waits at the end: the next append goes through all the same.
    let mut reader = log.read(&tail(), Seq(21)).await.unwrap();
    assert!(timeout(Duration::from_millis(50), reader.next()).await.is_err());
    let mut behind = log.read(&tail(), Seq(20)).await.unwrap();
    stream.purge().await.unwrap();
    let mut chain = log.chain(&tail(), Seq(20)).await.unwrap();
    chain.push(text(21)).await.unwrap();
    assert_eq!(chain.settle().await.unwrap(), Seq(21));
    assert_eq!(reader.next().await.unwrap().seq, Seq(21));
    let missing = timeout(Duration::from_secs(5), behind.next()).await.unwrap();
    assert!(matches!(missing, Err(LogError::Missing { seq: Seq(20), first: Seq(21) })), "{missing:?}");
}

#[tokio::test]
async fn a_full_stream_refuses_loses_nothing_and_accepts_again_after_room() {
    let server = Server::start();
    let options = NatsOptions { max_bytes: Some(1 << 20), ..NatsOptions::new(server.url()) };
    let log = Nats::connect(&options).await.unwrap();
    log.create(&tail()).await.unwrap();
    let payload = Bytes::from(vec![1; 100 << 10]);
    let mut chain = log.chain(&tail(), Seq::ZERO).await.unwrap();
    for _ in 0..20 {
        if chain.push(payload.clone()).await.is_err() {
            break;
        }
    }
    let refused = chain.settle().await.unwrap_err();
    assert!(matches!(refused, LogError::Full) && refused.retry(), "{refused:?}");
    let state = log.state(&tail()).await.unwrap().unwrap();
    assert_eq!((state.first, state.last, state.messages), (Seq(1), Seq(10), 10));
    assert!(matches!(log.append(&tail(), payload.clone()).await, Err(LogError::Full)));
    // More room in the plan reaches the stream; less does not.
    for max_bytes in [2 << 20, 1 << 20] {
        let options = NatsOptions { max_bytes: Some(max_bytes), ..options.clone() };
        Nats::connect(&options).await.unwrap().create(&tail()).await.unwrap();
    }
    let mut chain = log.chain(&tail(), state.last).await.unwrap();
    chain.push(payload.clone()).await.unwrap();
    assert_eq!(chain.settle().await.unwrap(), Seq(11));
    assert_eq!(log.state(&tail()).await.unwrap().unwrap().first, Seq(1));
}

/// Appends what is missing up to message `end`.
async fn written_up_to(log: &Nats, end: u64) -> Result<(), LogError> {
    let last = log.last(&tail()).await?.unwrap().seq;
    let mut chain = log.chain(&tail(), last).await?;
    for n in last.0 + 1..=end {
        chain.push(text(n)).await?;
    }
    chain.settle().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_and_writer_survive_a_restart_of_the_server() {
    let mut server = Server::start();
    let log = Nats::connect(&NatsOptions::new(server.url())).await.unwrap();
    let mut chain = written(&log, 50).await;
    let mut reader = log.read(&tail(), Seq(1)).await.unwrap();
    for n in 1..=20 {
        assert_eq!(reader.next().await.unwrap().seq, Seq(n));
    }
    server.kill();
    chain.push(text(51)).await.unwrap();
    assert!(timeout(Duration::from_secs(20), chain.settle()).await.unwrap().unwrap_err().retry());
    let reading = tokio::spawn(async move {
        for n in 21..=60 {
            let message = reader.next().await.unwrap();
            assert_eq!((message.seq, message.payload), (Seq(n), text(n)));
        }
        Instant::now()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.up();
    // Message 51 may or may not have been on its way, and may arrive as late as now: as a conflict, behind which one looks again.
    while let Err(error) = written_up_to(&log, 60).await {
        assert!(error.retry() || matches!(error, LogError::Conflict { .. }), "{error:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let written = Instant::now();
    let read = timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
    assert!(read.saturating_duration_since(written) < Duration::from_secs(5));
}

#[tokio::test]
async fn an_ack_is_not_durable_before_log_sync_has_passed() {
    let server = Server::start();
    let options = NatsOptions { sync: Duration::from_secs(2), ..NatsOptions::new(server.url()) };
    let log = Nats::connect(&options).await.unwrap();
    let start = Instant::now();
    let mut chain = written(&log, 3).await;
    assert_eq!(chain.acked().unwrap(), Seq(3));
    while chain.durable().unwrap() < Seq(3) {
        assert!(start.elapsed() < Duration::from_secs(5), "never durable");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(2), "durable after {:?}", start.elapsed());
    let always = NatsOptions { sync: Duration::ZERO, ..options };
    let mut chain = Nats::connect(&always).await.unwrap().chain(&tail(), Seq(3)).await.unwrap();
    chain.push(text(4)).await.unwrap();
    chain.settle().await.unwrap();
    assert_eq!(chain.durable().unwrap(), Seq(4));
}

#[tokio::test]
async fn a_stream_that_would_discard_is_refused_by_name() {
    let server = Server::start();
    let log = Nats::connect(&NatsOptions::new(server.url())).await.unwrap();
    let config = jetstream::stream::Config {
        name: tail().to_string(),
        subjects: vec![tail().subject()],
        max_age: Duration::from_secs(3600),
        ..jetstream::stream::Config::default()
    };
    operator(&server).await.create_stream(config).await.unwrap();
    let Err(LogError::Settings { stream, differs }) = log.create(&tail()).await else { panic!("taken") };
    assert_eq!(stream, "CROSSFADE_shop_main_TAIL");
    for setting in ["max_age", "discard", "allow_direct"] {
        assert!(differs.contains(setting), "{differs}");
    }
    // Names that come out the same do not share a stream.
    log.create(&StreamName::new("a_b", "c", StreamKind::Copy)).await.unwrap();
    let Err(LogError::Settings { differs, .. }) = log.create(&StreamName::new("a", "b_c", StreamKind::Copy)).await
    else {
        panic!("shared");
    };
    assert!(differs.contains("crossfade.a_b.c.copy"), "{differs}");
}

#[tokio::test]
async fn no_consumer_is_left_behind() {
    let server = Server::start();
    let log = Nats::connect(&NatsOptions::new(server.url())).await.unwrap();
    written(&log, 10).await;
    for _ in 0..5 {
        read(&log, 1, 10).await;
    }
    let mut stream = operator(&server).await.get_stream(tail().to_string()).await.unwrap();
    let start = Instant::now();
    while stream.info().await.unwrap().state.consumer_count > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "consumers stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
