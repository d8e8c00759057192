//! A backlog: 20 s of writes while nobody follows, and how long it takes until all of it is at the target.

use std::time::Instant;

use anyhow::Result;
use harness::{Pgbench, World, until};

use crate::PATIENCE;
use crate::copy::settle;
use crate::rivals::{Ours, Theirs};

/// Writes for so long.
const SECONDS: u32 = 20;

/// Makes the backlog, for both; returns its transactions. Its last transaction is a sentinel: changes are applied in
/// commit order, so where it is, everything is.
pub async fn backlog(world: &World, load: &Pgbench) -> Result<u64> {
    let report = load.start(SECONDS)?.wait().await?;
    sentinel(world)?;
    settle(world)?;
    Ok(report.transactions)
}

fn sentinel(world: &World) -> Result<()> {
    world.at_source("INSERT INTO probe SELECT coalesce(max(id), 0) + 1 FROM probe").map(drop)
}

async fn arrival(world: &World, database: &str) -> Result<()> {
    let last: i64 = world.at_source("SELECT max(id) FROM probe")?.parse()?;
    let target = world.target.client(database).await?;
    until("the backlog's end at the target", PATIENCE, || async {
        Ok(target.query_opt("SELECT 1 FROM probe WHERE id = $1", &[&last]).await?)
    })
    .await
    .map(drop)
}

/// crossfade, from its start, in seconds. It is stopped afterwards.
pub async fn ours(world: &World, ours: &Ours, rss: &mut u64) -> Result<f64> {
    let started = Instant::now();
    let mut running = ours.start()?;
    arrival(world, "ours").await.map_err(|error| error.context(running.log_tail()))?;
    let took = started.elapsed().as_secs_f64();
    *rss = (*rss).max(running.peak_rss_mib().unwrap_or_default());
    running.stop().await?;
    Ok(took)
}

/// The subscription, from ALTER SUBSCRIPTION ENABLE, in seconds. It is disabled afterwards.
pub async fn theirs(world: &World, theirs: &Theirs) -> Result<f64> {
    let started = Instant::now();
    theirs.enable(world)?;
    arrival(world, "theirs").await?;
    let took = started.elapsed().as_secs_f64();
    theirs.disable(world).await?;
    Ok(took)
}

/// Brings our target up to the source once more, so that the two can be compared.
pub async fn catch_up(world: &World, rival: &Ours) -> Result<()> {
    sentinel(world)?;
    ours(world, rival, &mut 0).await.map(drop)
}
