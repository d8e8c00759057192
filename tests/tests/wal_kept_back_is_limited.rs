//! Given a log that is down while the source writes: the WAL kept back is shown, with warnings; at the critical limit the plan decides whether capture
//! goes on, or gives up the slot to save the source.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Crossfade, Running, World, follow, until};

const MINUTE: Duration = Duration::from_secs(60);

async fn followed(policy: &str) -> Result<(World, Crossfade, Running)> {
    let world = World::with_nats()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT generate_series(1, 100)")?;
    let limits = format!("[limits]\nwal_warn = \"4MiB\"\nwal_critical = \"24MiB\"\non_wal_critical = \"{policy}\"");
    let crossfade = Crossfade::new(&world.plan().log_lines("sync = \"0s\"").section(&limits))?;
    let run = follow::following(&crossfade).await?;
    Ok((world, crossfade, run))
}

/// Writes at the source until it keeps back that much.
async fn keeps_back(world: &World, mebibytes: u32) -> Result<()> {
    let kept = format!(
        "SELECT bool_and(pg_current_wal_lsn() - restart_lsn > {mebibytes} * 1048576) FROM pg_replication_slots"
    );
    until("enough WAL", MINUTE, || async {
        if world.at_source(&kept)? != "f" {
            return Ok(Some(()));
        }
        world.at_source(
            "INSERT INTO t SELECT (SELECT max(id) FROM t) + i, repeat(md5(i::text), 30) FROM generate_series(1, 1000) AS i",
        )?;
        Ok(None)
    })
    .await
}

async fn warns(crossfade: &Crossfade, code: &str) -> Result<()> {
    let status = crossfade.status().await?;
    let kept = status["sources"][0]["wal_kept_bytes"].as_i64().unwrap_or_default();
    let warned = status["warnings"].as_array().is_some_and(|all| all.iter().any(|warning| warning["code"] == code));
    ensure!(warned && kept > 4 << 20, "no {code}, {kept} bytes: {status:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_goes_on_and_says_so() -> Result<()> {
    let (mut world, crossfade, mut run) = followed("keep").await?;
    world.nats.as_mut().context("NATS")?.stop()?;
    keeps_back(&world, 5).await?;
    warns(&crossfade, "wal_warn").await?;
    keeps_back(&world, 25).await?;
    warns(&crossfade, "wal_critical").await?;
    until("it says so", MINUTE, || async { Ok(run.log_tail().contains("limits.wal_critical").then_some(())) }).await?;
    ensure!(run.is_running()?, "it ended");
    world.nats.as_mut().context("NATS")?.boot()?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_slot_saves_the_source_and_only_a_recopy_goes_on() -> Result<()> {
    let (mut world, crossfade, run) = followed("drop_slot").await?;
    drop(run);
    let run = crossfade.start(&["run", "--json"])?;
    world.at_source("INSERT INTO t VALUES (-1, 'followed')")?;
    let target = world.target.client("app").await?;
    let followed = "SELECT 1 FROM t WHERE id = -1";
    until("it follows", MINUTE, || async { Ok(target.query_opt(followed, &[]).await?) }).await?;
    world.nats.as_mut().context("NATS")?.stop()?;
    keeps_back(&world, 25).await?;
    let ended = run.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1) && ended.error_code()? == "slot_given_up", "{ended:?}");
    ensure!(ended.stdout.contains("crossfade recopy"), "no way out is told: {}", ended.stdout);
    ensure!(world.at_source("SELECT count(*) FROM pg_replication_slots")? == "0", "the slot is still there");
    world.nats.as_mut().context("NATS")?.boot()?;
    let again = crossfade.start(&["run", "--json"])?.finish(MINUTE).await?;
    ensure!(again.status.code() == Some(1) && again.error_code()? == "slot_lost", "{again:?}");
    let asked = crossfade.run(&["recopy"]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    let mut run = crossfade.start(&["run"])?;
    let begun = "SELECT 1 FROM crossfade.tables WHERE epoch = 2";
    until("the next epoch", MINUTE, || async { Ok(target.query_opt(begun, &[]).await?) }).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}
