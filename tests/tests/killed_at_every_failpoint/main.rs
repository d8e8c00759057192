//! Given a migration under load that dies at a failpoint (model::failpoint): when it is started again, then it ends equal, and what was finished is
//! not done again. All failpoints, over NATS and with the embedded log. A failpoint that is never reached fails.
//!
//! `FAILPOINT=name` walks that one alone.

mod load;
mod migration;
mod walk;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;

use migration::Servers;

/// Migrations side by side, per log: they wait a lot, and two processors are busy with that many.
const LANES: usize = 4;

async fn walk_all(with_nats: bool) -> Result<()> {
    let servers = Servers::start(with_nats)?;
    let only = std::env::var("FAILPOINT").ok();
    let walks = walk::all(&servers, only.as_deref());
    ensure!(!walks.is_empty(), "there is no failpoint {only:?}");
    let begun = Instant::now();
    let outcomes: Vec<_> = futures::stream::iter(&walks)
        .map(async |walk| {
            let begun = Instant::now();
            let outcome = walk.go(&servers).await.with_context(|| format!("{walk} ({})", servers.log()));
            eprintln!("{:>5.1} s {walk} ({})", begun.elapsed().as_secs_f64(), servers.log());
            outcome
        })
        .buffer_unordered(LANES)
        .collect()
        .await;
    let deaths: usize = walks.iter().map(walk::Walk::deaths).sum();
    eprintln!("{deaths} deaths in {:.0} s ({})", begun.elapsed().as_secs_f64(), servers.log());
    let failed: Vec<String> = outcomes.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{} walks failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn over_nats() -> Result<()> {
    walk_all(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn with_the_embedded_log() -> Result<()> {
    walk_all(false).await
}
