//! A value that others watch: what its writers and those who follow it may rely on.
#![allow(clippy::unwrap_used, clippy::panic)]

mod server;

use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use crossfade_log::{Bucket, Entry, LogError, Nats, NatsOptions, Watch};
use futures::StreamExt;
use model::Seq;
use server::Server;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

async fn bucket(server: &Server) -> Bucket {
    Nats::connect(&NatsOptions::new(server.url())).await.unwrap().bucket("shop", "stage")
}

fn text(n: u64) -> Bytes {
    Bytes::from(format!("value {n}"))
}

fn entry(revision: u64, value: u64) -> Option<Entry> {
    Some(Entry { revision: Seq(revision), value: text(value) })
}

/// What is told next that is not `known`.
async fn next(watch: &mut Watch, known: &Option<Entry>) -> Option<Entry> {
    let told = async {
        loop {
            match watch.next().await {
                Ok(entry) if entry != *known => return entry,
                Ok(_) => {}
                Err(error) => assert!(error.retry(), "{error:?}"),
            }
        }
    };
    timeout(LIMIT, told).await.unwrap()
}

#[tokio::test]
async fn of_two_who_replace_the_same_revision_one_is_refused() {
    let server = Server::start();
    let (one, other) = (bucket(&server).await, bucket(&server).await);
    assert_eq!((one.get().await.unwrap(), one.exists().await.unwrap()), (None, false));
    assert_eq!(one.put(Seq::ZERO, text(1)).await.unwrap(), Seq(1));
    assert_eq!(one.get().await.unwrap(), entry(1, 1));
    assert!(matches!(other.put(Seq::ZERO, text(2)).await, Err(LogError::Conflict { last: Seq(1) })));
    for n in 1..=20 {
        let (a, b) = tokio::join!(one.put(Seq(n), text(n + 1)), other.put(Seq(n), text(n + 1)));
        match (a, b) {
            (Ok(won), Err(LogError::Conflict { last })) | (Err(LogError::Conflict { last }), Ok(won)) => {
                assert_eq!((won, last), (Seq(n + 1), Seq(n + 1)));
            }
            both => panic!("{both:?}"),
        }
    }
}

#[tokio::test]
async fn it_is_a_bucket_as_kv_clients_know_them() {
    let server = Server::start();
    let bucket = bucket(&server).await;
    bucket.put(Seq::ZERO, text(1)).await.unwrap();
    let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let store = context.get_key_value(bucket.name()).await.unwrap();
    let mut watch = store.watch_with_history("stage").await.unwrap();
    for n in 1..=70 {
        let seen = timeout(LIMIT, watch.next()).await.unwrap().unwrap().unwrap();
        assert_eq!((seen.revision, seen.value), (n, text(n)));
        bucket.put(Seq(n), text(n + 1)).await.unwrap();
    }
    // What people delete is there as an empty value, behind which one can go on.
    store.delete("stage").await.unwrap();
    let deleted = bucket.get().await.unwrap().unwrap();
    assert!(deleted.value.is_empty() && deleted.revision == Seq(72), "{deleted:?}");
    assert_eq!(bucket.put(deleted.revision, text(73)).await.unwrap(), Seq(73));
    assert_eq!(store.get("stage").await.unwrap(), Some(text(73)));
    bucket.remove().await.unwrap();
    bucket.remove().await.unwrap();
    assert!(!bucket.exists().await.unwrap() && bucket.get().await.unwrap().is_none());
}

#[tokio::test]
async fn a_watch_tells_each_write_at_once_and_goes_on_behind_a_restart_and_another_bucket() {
    let mut server = Server::start();
    let bucket = bucket(&server).await;
    let mut watch = bucket.watch();
    assert_eq!(watch.next().await.unwrap(), None, "there is no bucket yet");
    bucket.put(Seq::ZERO, text(1)).await.unwrap();
    let mut known = next(&mut watch, &None).await;
    assert_eq!(known, entry(1, 1));
    for n in 2..=5 {
        let begun = Instant::now();
        bucket.put(Seq(n - 1), text(n)).await.unwrap();
        known = next(&mut watch, &known).await;
        assert_eq!(known, entry(n, n));
        assert!(begun.elapsed() < Duration::from_secs(2), "it was looked for, not told: {:?}", begun.elapsed());
    }
    server.kill();
    server.up();
    let written = timeout(LIMIT, async {
        loop {
            match bucket.put(Seq(5), text(6)).await {
                Ok(_) | Err(LogError::Conflict { .. }) => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    written.await.unwrap();
    known = next(&mut watch, &known).await;
    assert_eq!(known, entry(6, 6));
    bucket.remove().await.unwrap();
    assert_eq!(next(&mut watch, &known).await, None);
    bucket.put(Seq::ZERO, text(7)).await.unwrap();
    known = next(&mut watch, &None).await;
    assert_eq!(known, entry(1, 7));
    bucket.put(Seq(1), text(8)).await.unwrap();
    assert_eq!(next(&mut watch, &known).await, entry(2, 8));
}
