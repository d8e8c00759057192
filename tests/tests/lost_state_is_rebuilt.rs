//! Given state that is lost and can be had again from log, source and target: it is rebuilt, under load, and the migration ends equal.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Crossfade, Nats, Running, Shutdown, World, lag, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Waits until so many more transactions were made.
async fn some(writers: &Writers, count: u64) -> Result<()> {
    let before = writers.transactions();
    until("some transactions", MINUTE, || async { Ok((writers.transactions() > before + count).then_some(())) }).await
}

async fn ends_equal(world: &World, crossfade: &Crossfade, run: &mut Running, writers: Writers) -> Result<()> {
    writers.stop().await?;
    crossfade.wait_for_lag_zero(run, MINUTE).await?;
    world.expect_equal().await
}

/// Every file of a folder, those in its subfolders included, becomes something else.
fn damage(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => damage(&path)?,
            false => std::fs::write(&path, [0xA5; 100])?,
        }
    }
    Ok(())
}

/// That it is deleted is in `killed_in_the_middle_goes_on.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn an_offset_store_whose_files_are_damaged() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let writers = Writers::start(&world.source, "app", 2, 31).await?;
    let offsets = crossfade.state_dir().join("offsets");
    for way in 0..3 {
        some(&writers, 200).await?;
        run.kill9()?;
        match way {
            0 => damage(&offsets)?,
            1 => std::fs::remove_file(offsets.join("CURRENT"))?,
            _ => std::fs::write(offsets.join("CURRENT"), "MANIFEST-000777\n")?,
        }
        run = crossfade.start(&["run"])?;
        until("a store made anew", MINUTE, || async {
            let log = run.log_tail();
            Ok((log.contains("is damaged and is made anew") && log.contains("tail starts")).then_some(()))
        })
        .await?;
    }
    some(&writers, 200).await?;
    ends_equal(&world, &crossfade, &mut run, writers).await?;
    run.stop().await
}

fn nats(world: &mut World) -> Result<&mut Nats> {
    world.nats.as_mut().context("a world with NATS")
}

/// What a power loss does to it: an acknowledgement is no sync. The slot was not told yet, so it still has what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_put_back_to_its_state_of_a_moment_ago() -> Result<()> {
    let mut world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan().log_lines("sync = \"120s\"")))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let writers = Writers::start(&world.source, "app", 2, 32).await?;
    some(&writers, 200).await?;
    nats(&mut world)?.stop()?;
    nats(&mut world)?.keep("before")?;
    nats(&mut world)?.boot()?;
    for stopped in [false, true] {
        // The target gets ahead of what the log will have.
        let tail = nats(&mut world)?.stream("_TAIL")?;
        let kept = nats(&mut world)?.last(&tail)?;
        let target = world.target.client("app").await?;
        let ahead = format!("SELECT 1 FROM crossfade.checkpoint WHERE seq > {kept} + 50");
        until("the target ahead", MINUTE, || async { Ok(target.query_opt(&ahead, &[]).await?) }).await?;
        if stopped {
            run.kill9()?;
        }
        nats(&mut world)?.stop()?;
        nats(&mut world)?.put_back("before")?;
        nats(&mut world)?.boot()?;
        let back = nats(&mut world)?.last(&tail)?;
        ensure!(back < kept + 50, "the log has {back} messages, and had {kept} before: nothing is lost");
        if stopped {
            run = crossfade.start(&["run"])?;
        }
        some(&writers, 200).await?;
    }
    ends_equal(&world, &crossfade, &mut run, writers).await?;
    ensure!(world.at_target("SELECT max(epoch) FROM crossfade.tables")? == "1", "it was copied again");
    run.stop().await
}

/// Filled again, the log has fewer messages: the number that the target stands at is not there, or is another one's. That is no lag of zero.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_told_of_a_log_that_was_filled_again() -> Result<()> {
    let mut world = World::with_nats()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY)")?;
    let crossfade = Crossfade::new(&world.plan().log_lines("sync = \"120s\""))?;
    let mut capture = crossfade.start(&["capture"])?;
    let mut apply = crossfade.start(&["apply"])?;
    crossfade.wait_for_phase(&mut apply, "following", MINUTE).await?;
    nats(&mut world)?.stop()?;
    nats(&mut world)?.keep("before")?;
    nats(&mut world)?.boot()?;
    for id in 0..100 {
        world.at_source(&format!("INSERT INTO t VALUES ({id})"))?;
    }
    crossfade.wait_for_lag_zero(&mut apply, MINUTE).await?;
    capture.kill9()?;
    apply.kill9()?;
    nats(&mut world)?.stop()?;
    nats(&mut world)?.put_back("before")?;
    nats(&mut world)?.boot()?;
    let shorter = crossfade.status().await?;
    ensure!(lag(&shorter).is_none(), "the log lacks what the target has: {shorter:#}");
    world.at_source("INSERT INTO t VALUES (100); INSERT INTO t VALUES (101)")?;
    world.at_source("INSERT INTO t VALUES (102)")?;
    let mut capture = crossfade.start(&["capture"])?;
    let filled = |status: &serde_json::Value| {
        let warned = |code| status["warnings"].as_array().is_some_and(|all| all.iter().any(|one| one["code"] == code));
        !warned("capture_down") && !warned("capture_behind")
    };
    let told = crossfade.wait_for(&mut capture, "a log filled again", MINUTE, filled).await?;
    let tail = nats(&mut world)?.stream("_TAIL")?;
    let last = nats(&mut world)?.last(&tail)?;
    let stood: u64 = world.at_target("SELECT seq FROM crossfade.checkpoint")?.parse()?;
    ensure!(last < stood, "the log has {last} messages, the target stood at {stood}: nothing was shown");
    ensure!(lag(&told).is_some_and(|(bytes, _, transactions)| bytes > 0 && transactions >= 2), "{told:#}");
    let mut apply = crossfade.start(&["apply"])?;
    crossfade.wait_for_lag_zero(&mut apply, MINUTE).await?;
    world.expect_equal().await?;
    apply.stop().await?;
    capture.stop().await
}

/// Its rows are in the target, and another target would need them.
#[tokio::test(flavor = "multi_thread")]
async fn the_streams_of_copied_rows_deleted() -> Result<()> {
    let mut world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let writers = Writers::start(&world.source, "app", 2, 33).await?;
    some(&writers, 200).await?;
    run.stop().await?;
    nats(&mut world)?.delete("_CHUNKS")?;
    some(&writers, 200).await?;
    let mut run = crossfade.start(&["run"])?;
    let target = world.target.client("app").await?;
    let again = "SELECT 1 FROM crossfade.tables WHERE chunks > 0 HAVING min(epoch) = 2";
    until("the tables with rows copied again", MINUTE, || async { Ok(target.query_opt(again, &[]).await?) }).await?;
    ends_equal(&world, &crossfade, &mut run, writers).await?;
    run.stop().await
}

/// Its checkpoint goes back with its rows, and the log has everything since.
#[tokio::test(flavor = "multi_thread")]
async fn the_target_restored_from_an_older_backup() -> Result<()> {
    let mut world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = crossfade.start(&["run"])?;
    // In the middle of the copy, or near it; and later, following.
    let control = "SELECT 1 FROM crossfade.copied WHERE worker IS NOT NULL LIMIT 1";
    until("something copied", MINUTE, || async {
        Ok(world.target.client("app").await?.query_opt(control, &[]).await?)
    })
    .await?;
    world.target.stop(Shutdown::Fast)?;
    world.target.keep("early")?;
    world.target.boot()?;
    let writers = Writers::start(&world.source, "app", 2, 34).await?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    world.target.stop(Shutdown::Fast)?;
    world.target.keep("late")?;
    world.target.boot()?;
    for backup in ["late", "early"] {
        some(&writers, 300).await?;
        crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
        world.target.stop(Shutdown::Fast)?;
        world.target.put_back(backup)?;
        world.target.boot()?;
    }
    some(&writers, 200).await?;
    ends_equal(&world, &crossfade, &mut run, writers).await?;
    run.stop().await
}
