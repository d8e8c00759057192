//! Given a log that takes nothing more: capture waits and says so, nothing is thrown away, and it goes on once there is room.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Crossfade, World, follow, until};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn and_go_on_when_there_is_room() -> Result<()> {
    let world = World::with_nats()?;
    let nats = world.nats.as_ref().context("a world with NATS")?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t VALUES (0)")?;
    let crossfade = Crossfade::new(&world.plan().log_lines("max_bytes = \"16MiB\"\nsync = \"0s\""))?;
    let mut run = follow::following(&crossfade).await?;
    let tail = nats.stream("_TAIL")?;
    let before = nats.last(&tail)?;
    for part in 0..30 {
        world.at_source(&format!(
            "INSERT INTO t SELECT {part} * 1000 + i, repeat(md5(i::text), 30) FROM generate_series(1, 1000) AS i"
        ))?;
    }
    until("it says that the log is full", MINUTE, || async { Ok(run.log_tail().contains("full").then_some(())) })
        .await?;
    ensure!(run.is_running()?, "it ended");
    ensure!(nats.last(&tail)? > before, "nothing fitted in: nothing is tested");
    ensure!(world.at_target("SELECT count(*) FROM t")? != "30001", "all of it fitted in: nothing is tested");
    let behind = "SELECT bool_and(confirmed_flush_lsn < pg_current_wal_lsn()) FROM pg_replication_slots";
    ensure!(world.at_source(behind)? == "t", "the slot was told that everything is safe");
    nats.reconfigure(&tail, "max_bytes", json!(1 << 30))?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}
