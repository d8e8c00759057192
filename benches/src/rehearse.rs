//! A rehearsal: the same migration from the log alone, and how much quicker it is than the live run was.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{Cluster, Nats, Pgbench, Running, Shutdown, World, until};

use crate::rivals::Ours;
use crate::{SCALE, say};

/// Of the tail; `BENCH_TRANSACTIONS` says otherwise.
const TRANSACTIONS: u32 = 500_000;

/// Sessions that write.
const CLIENTS: u32 = 8;

/// Longer than the live run may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Times in seconds.
#[derive(Default)]
pub struct Times {
    /// `crossfade rehearse`: while the servers are there, and once source and target are shut down.
    pub ours: Vec<f64>,
    /// `crossfade run`, from its start until all transactions are at the target; the same for both.
    pub live: Vec<f64>,
    /// Peak of the rehearsal's memory, in MiB.
    pub rss: u64,
}

/// Measures on servers of its own.
pub async fn measure() -> Result<Times> {
    let transactions = match std::env::var("BENCH_TRANSACTIONS") {
        Ok(text) => text.parse()?,
        Err(_) => TRANSACTIONS,
    };
    let cluster = || Cluster::build().durable().set("shared_buffers", "256MB").start();
    let (mut world, third) = (World::of(cluster()?, cluster()?, Some(Nats::start()?))?, cluster()?);
    say(&format!("rehearse: pgbench, scale {SCALE}, {transactions} transactions"));
    let load = Pgbench::new(&world.source, "app").clients(CLIENTS).simple_update();
    load.fill(SCALE)?;
    let ours = Ours::prepare(&world)?;
    let started = Instant::now();
    let mut running = ours.start()?;
    ours.joined(&world, &mut running).await?;
    say(&format!("live: copied and joined after {:.1} s", started.elapsed().as_secs_f64()));
    load.transactions(transactions / CLIENTS).start(PATIENCE.as_secs() as u32)?.wait().await?;
    say(&format!("live: all is written after {:.1} s", started.elapsed().as_secs_f64()));
    arrived(&world).await?;
    let live = started.elapsed().as_secs_f64();
    let mut verify = ours.verify()?;
    ensure!(verify.wait(PATIENCE).await?.success(), "verify: {}", verify.log_tail());
    running.stop().await?;
    let mut times = Times { live: vec![live; 2], ..Times::default() };
    for name in ["beside", "alone"] {
        if name == "alone" {
            world.source.stop(Shutdown::Fast)?;
            world.target.stop(Shutdown::Fast)?;
        }
        third.create_db(name)?;
        let started = Instant::now();
        let mut rehearsal = ours.rehearse(&third.url(name))?;
        finished(&mut rehearsal, &mut times.rss).await?;
        let took = started.elapsed().as_secs_f64();
        say(&format!("rehearsal, {name}: {took:.1} s; the live run: {live:.1} s"));
        times.ours.push(took);
    }
    Ok(times)
}

/// Waits until the target has every transaction: the last one says so.
async fn arrived(world: &World) -> Result<()> {
    world.at_source("UPDATE pgbench_branches SET filler = 'the end' WHERE bid = 1")?;
    let target = world.target.client("ours").await?;
    let end = "SELECT 1 FROM pgbench_branches WHERE bid = 1 AND filler LIKE 'the end%'";
    until("all transactions at the target", PATIENCE, || async { Ok(target.query_opt(end, &[]).await?) })
        .await
        .map(drop)
}

async fn finished(running: &mut Running, rss: &mut u64) -> Result<()> {
    while running.is_running()? {
        *rss = (*rss).max(running.peak_rss_mib().unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = running.wait(Duration::from_secs(1)).await?;
    ensure!(status.success(), "rehearse: {status}\n{}", running.log_tail());
    Ok(())
}
