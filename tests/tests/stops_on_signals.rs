//! Given a running migration: SIGTERM ends it within five seconds with exit code 0, wherever it is; a second one at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossfade_tests::{Pgbench, World, until};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn while_it_follows_a_busy_source() -> Result<()> {
    let world = World::with_nats()?;
    let bench = Pgbench::new(&world.source, "app").clients(4).simple_update();
    bench.fill(1)?;
    let load = bench.start(120)?;
    let plan = world.plan().identity("public.pgbench_history", "insert_only");
    let crossfade = crossfade_tests::Crossfade::new(&plan)?;
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

/// A world whose copy cannot end: the target's table is locked as soon as it is there.
async fn stuck() -> Result<(World, tokio_postgres::Client)> {
    let world = World::embedded()?;
    let sql = "CREATE TABLE t (id integer PRIMARY KEY, v text);
               INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 200000) AS i";
    world.at_source(sql)?;
    let lock = world.source.client("app").await?;
    lock.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
    Ok((world, lock))
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_copy_waits_for_a_lock() -> Result<()> {
    let (world, lock) = stuck().await?;
    let crossfade = world.crossfade()?;
    let mut run = crossfade.start(&["run"])?;
    until("somebody waiting for the lock", MINUTE, || async {
        Ok(world.source.client("app").await?.query_opt("SELECT 1 FROM pg_locks WHERE NOT granted", &[]).await?)
    })
    .await?;
    run.stop().await?;
    drop(lock);
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_one_at_once() -> Result<()> {
    let (world, _lock) = stuck().await?;
    let crossfade = world.crossfade()?;
    let mut run = crossfade.start(&["run"])?;
    until("somebody waiting for the lock", MINUTE, || async {
        Ok(world.source.client("app").await?.query_opt("SELECT 1 FROM pg_locks WHERE NOT granted", &[]).await?)
    })
    .await?;
    let signalled = Instant::now();
    run.term()?;
    run.term()?;
    run.wait(Duration::from_secs(1)).await?;
    ensure!(signalled.elapsed() < Duration::from_secs(1));
    Ok(())
}
