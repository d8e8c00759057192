//! Given an application that does not wait for its commits to be flushed (`synchronous_commit = off`), and a source that crashes: commits that were visible
//! are gone afterwards. The copy must not have been called done with their rows, nor the tail begun behind them.

use std::time::Duration;

use anyhow::{Result, bail};
use crossfade_tests::{Cluster, Crossfade, Shutdown, World, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Nobody waits for a commit, the migration included, whose own would take the others along. Pages of WAL are written once they are full; what is in the
/// last one a crash takes.
fn forgetful() -> Result<Cluster> {
    Cluster::build().set("wal_writer_delay", "5s").set("synchronous_commit", "off").start()
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_the_copy_saw_and_the_disk_did_not() -> Result<()> {
    // Somebody else's flush may take the last commits along, right before the crash.
    for _ in 0..5 {
        if a_crash_in_the_copy_takes_commits_back().await? {
            return Ok(());
        }
    }
    bail!("every commit was flushed before every crash: nothing is tested")
}

/// Whether it did: the migration has to end equal in any case.
async fn a_crash_in_the_copy_takes_commits_back() -> Result<bool> {
    let mut world = World::of(forgetful()?, Cluster::start()?, None)?;
    // The large one is being copied all the time.
    world.at_source(
        "CREATE TABLE large (id integer PRIMARY KEY, v text); INSERT INTO large SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 400000) AS i;
         CREATE TABLE small (id integer PRIMARY KEY); INSERT INTO small SELECT generate_series(1, 100)",
    )?;
    let crossfade = Crossfade::new(&world.plan().section("[limits]\ncopy_workers = 2"))?;
    let client = world.source.client("app").await?;
    let writer = tokio::spawn(async move {
        let mut id = 1000;
        // Until the server crashes.
        while client.execute("INSERT INTO small VALUES ($1)", &[&id]).await.is_ok() {
            id += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        id
    });
    let mut run = crossfade.start(&["run"])?;
    until("the copy of the small table", MINUTE, || async {
        Ok(run.log_tail().contains("copied table=public.small").then_some(()))
    })
    .await?;
    world.source.restart(Shutdown::Immediate)?;
    let written: i32 = writer.await?;
    let left: i32 = world.at_source("SELECT max(id) FROM small")?.parse()?;
    world.source.set("synchronous_commit", "on")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await?;
    Ok(left < written - 1)
}

/// The tail begins where WAL ends. If that were not on disk yet, a crash would take the source back before it, to be refused as one
/// that was put back.
#[tokio::test(flavor = "multi_thread")]
async fn a_tail_does_not_begin_behind_them() -> Result<()> {
    let mut world = World::of(forgetful()?, Cluster::start()?, None)?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY)")?;
    let crossfade = world.crossfade()?;
    let client = world.source.client("app").await?;
    let writer = tokio::spawn(async move {
        let mut id = 0;
        // Until the server crashes.
        while client.execute("INSERT INTO t VALUES ($1)", &[&id]).await.is_ok() {
            id += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    crossfade.start_armed(&["run"], "tail_begun", 0)?.died_at("tail_begun", MINUTE).await?;
    world.source.restart(Shutdown::Immediate)?;
    writer.await?;
    let mut run = crossfade.start(&["run"])?;
    world.source.set("synchronous_commit", "on")?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    world.at_source("INSERT INTO t SELECT generate_series(1000001, 1000100)")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

/// The log names the markers. One that was gone would be waited for in vain.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_is_on_disk_before_the_log_names_it() -> Result<()> {
    let mut world = World::of(forgetful()?, Cluster::start()?, None)?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    let crossfade = world.crossfade()?;
    crossfade.start_armed(&["run"], "copy_ended", 0)?.died_at("copy_ended", MINUTE).await?;
    world.source.restart(Shutdown::Immediate)?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    run.stop().await
}
