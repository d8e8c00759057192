//! Given a running migration: SIGTERM ends it within five seconds with exit code 0, wherever it is; a second one at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, Pgbench, Running, World, until};
use tokio_postgres::Client;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn while_it_follows_a_busy_source() -> Result<()> {
    let world = World::with_nats()?;
    let bench = Pgbench::new(&world.source, "app").clients(4).simple_update();
    bench.fill(1)?;
    let load = bench.start(120)?;
    let plan = world.plan().identity("public.pgbench_history", "insert_only");
    let crossfade = Crossfade::new(&plan)?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    run.stop().await?;
    // And goes on as if nothing had been.
    let mut run = crossfade.start(&["run"])?;
    load.stop()?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

/// A migration whose copy cannot end: somebody holds a lock on a table that it has not reached when the lock is taken.
async fn stuck() -> Result<(World, Crossfade, Running, Client)> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE before (id integer PRIMARY KEY, v text);
         INSERT INTO before SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 300000) AS i;
         CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)",
    )?;
    // One table at a time, the largest first.
    let crossfade = Crossfade::new(&world.plan().section("[limits]\ncopy_workers = 1"))?;
    let run = crossfade.start(&["run"])?;
    let target = world.target.client("app").await?;
    until("the first chunk", MINUTE, || async {
        Ok(target.query_opt("SELECT 1 FROM crossfade.copied LIMIT 1", &[]).await?)
    })
    .await?;
    let lock = world.source.client("app").await?;
    lock.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
    let observer = world.source.client("app").await?;
    until("somebody waiting for the lock", MINUTE, || async {
        let sql = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
        Ok(observer.query_opt(sql, &[]).await?)
    })
    .await?;
    Ok((world, crossfade, run, lock))
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_copy_waits_for_a_lock() -> Result<()> {
    let (world, crossfade, mut run, lock) = stuck().await?;
    run.stop().await?;
    drop(lock);
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_one_at_once() -> Result<()> {
    let (_world, _crossfade, mut run, _lock) = stuck().await?;
    let signalled = Instant::now();
    run.term()?;
    run.term()?;
    run.wait(Duration::from_secs(1)).await?;
    ensure!(signalled.elapsed() < Duration::from_secs(1));
    Ok(())
}
