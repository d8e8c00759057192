//! Verify: against what somebody would type, and beside a load.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use harness::{Cluster, Nats, Pgbench, World};

use crate::copy::settle;
use crate::rivals::Ours;
use crate::{SCALE_OF_VERIFY, say};

/// The plan's default.
const CONNECTIONS: i64 = 1;

/// For how long the load runs, with and without a verify beside it.
const SECONDS: u32 = 20;

/// Times in seconds, run by run.
#[derive(Default)]
pub struct Times {
    /// `crossfade verify`.
    pub ours: Vec<f64>,
    /// `SELECT count(*), sum(hashtext(t::text))`, on both sides at once, over as many connections.
    pub theirs: Vec<f64>,
    /// Of 1,000 transactions while verify runs.
    pub beside: Vec<f64>,
    /// Of 1,000 transactions while it does not.
    pub alone: Vec<f64>,
    /// Peak of verify's memory, in MiB.
    pub rss: u64,
}

/// Measures `runs` times, on servers of its own.
pub async fn measure(runs: usize) -> Result<Times> {
    let cluster = || Cluster::build().durable().set("shared_buffers", "256MB").start();
    let world = World::of(cluster()?, cluster()?, Some(Nats::start()?))?;
    say(&format!("verify: pgbench, scale {SCALE_OF_VERIFY}"));
    let load = Pgbench::new(&world.source, "app").clients(8);
    load.fill(SCALE_OF_VERIFY)?;
    let ours = Ours::prepare(&world)?;
    let mut running = ours.start()?;
    ours.joined(&world, &mut running).await?;
    settle(&world)?;
    let mut times = Times::default();
    for run in 1..=runs {
        if run % 2 == 1 {
            times.ours.push(verified(&ours, &mut times.rss).await?);
            times.theirs.push(typed(&world).await?);
        } else {
            times.theirs.push(typed(&world).await?);
            times.ours.push(verified(&ours, &mut times.rss).await?);
        }
        let last = |of: &Vec<f64>| of.last().copied().unwrap_or_default();
        say(&format!("run {run}: verify {:.2} s, count and hashtext {:.2} s", last(&times.ours), last(&times.theirs)));
    }
    for run in 1..=runs {
        if run % 2 == 1 {
            times.alone.push(load_alone(&load).await?);
            times.beside.push(load_beside(&load, &ours, &mut times.rss).await?);
        } else {
            times.beside.push(load_beside(&load, &ours, &mut times.rss).await?);
            times.alone.push(load_alone(&load).await?);
        }
        let tps = |of: &Vec<f64>| of.last().map_or(0.0, |seconds| 1000.0 / seconds);
        say(&format!("run {run}: {:.0} tps, beside verify {:.0}", tps(&times.alone), tps(&times.beside)));
    }
    running.stop().await?;
    Ok(times)
}

async fn verified(ours: &Ours, rss: &mut u64) -> Result<f64> {
    let started = Instant::now();
    let mut running = ours.verify()?;
    while running.is_running()? {
        *rss = (*rss).max(running.peak_rss_mib().unwrap_or_default());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let status = running.ended()?.context("it has ended")?;
    ensure!(status.success(), "verify: {status}\n{}", running.log_tail());
    Ok(started.elapsed().as_secs_f64())
}

/// Over as many connections as verify has, each of which takes a part of each table.
async fn typed(world: &World) -> Result<f64> {
    let started = Instant::now();
    let mut parts = Vec::new();
    for (cluster, database) in [(&world.source, "app"), (&world.target, "ours")] {
        for number in 0..CONNECTIONS {
            parts.push(part(cluster, database, number));
        }
    }
    try_join_all(parts).await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn part(cluster: &Cluster, database: &str, number: i64) -> Result<()> {
    let client = cluster.client(database).await?;
    for table in ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"] {
        let blocks: i64 = client
            .query_one(&format!("SELECT pg_relation_size('{table}') / current_setting('block_size')::int8"), &[])
            .await?
            .get(0);
        let bound = |number: i64| blocks * number / CONNECTIONS;
        let last =
            if number + 1 == CONNECTIONS { String::new() } else { format!("AND ctid < '({},0)'", bound(number + 1)) };
        let sql = format!(
            "SELECT count(*), sum(hashtext(t::text)) FROM {table} t WHERE ctid >= '({},0)' {last}",
            bound(number)
        );
        client.query_one(&sql, &[]).await?;
    }
    Ok(())
}

async fn load_alone(load: &Pgbench) -> Result<f64> {
    Ok(1000.0 / load.start(SECONDS)?.wait().await?.tps)
}

/// Verify runs all the time.
async fn load_beside(load: &Pgbench, ours: &Ours, rss: &mut u64) -> Result<f64> {
    let mut running = load.start(SECONDS)?;
    let mut whole = 0;
    while running.is_running()? {
        let mut verify = ours.verify()?;
        while running.is_running()? && verify.is_running()? {
            *rss = (*rss).max(verify.peak_rss_mib().unwrap_or_default());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        if let Some(status) = verify.ended()? {
            ensure!(status.success(), "verify: {status}\n{}", verify.log_tail());
            whole += 1;
        }
    }
    say(&format!("{whole} whole verifies beside the load"));
    Ok(1000.0 / running.wait().await?.tps)
}
