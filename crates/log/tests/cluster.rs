//! Three nats-servers that die in turn. Elections take up to a minute, so this runs by `make soak` only.

#![allow(clippy::unwrap_used, clippy::panic)]

mod server;
mod stream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossfade_log::{Log, Nats, NatsOptions};
use model::Seq;
use server::Server;
use stream::{tail, text, written};
use tokio::time::timeout;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_stream_keeps_its_promises_when_a_server_dies() {
    let mut servers = Server::cluster();
    let url = servers.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let options = NatsOptions { replicas: 3, sync: Duration::ZERO, ..NatsOptions::new(url) };
    let start = Instant::now();
    let log: Arc<dyn Log> = loop {
        // Until the cluster has a leader.
        match Nats::connect(&options).await {
            Ok(log) if log.create(&tail()).await.is_ok() => break Arc::new(log),
            _ => assert!(start.elapsed() < Duration::from_secs(60), "the cluster does not come up"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    written(&*log, 100).await;
    let mut reader = log.read(&tail(), Seq(1)).await.unwrap();
    for (dies, server) in servers.iter_mut().enumerate() {
        server.kill();
        let start = Instant::now();
        // Until there is a leader again. Servers before 2.10 may apply appends that they refused once more after a
        // restart, so none is to be refused here.
        let last = loop {
            match log.last(&tail()).await {
                Ok(last) => break last.unwrap().seq,
                Err(error) => assert!(error.retry() && start.elapsed() < Duration::from_secs(60), "{error:?}"),
            }
        };
        assert_eq!(last, Seq(100 * (dies as u64 + 1)), "acknowledged, and lost with one server");
        let mut chain = log.chain(&tail(), last).await.unwrap();
        for n in last.0 + 1..=last.0 + 100 {
            chain.push(text(n)).await.unwrap();
        }
        chain.settle().await.unwrap();
        server.up();
        for n in last.0 - 99..=last.0 {
            let message = timeout(Duration::from_secs(60), reader.next()).await.unwrap().unwrap();
            assert_eq!((message.seq, message.payload), (Seq(n), text(n)));
        }
    }
}
