//! Given a migration that is killed with `kill -9`, in the middle of the copy or of the tail: when it is started again,
//! then it ends equal, and what was finished is not done again.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Crossfade, Pgbench, World, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Changes while it runs; the others do not.
const LIVE: &str = "CREATE TABLE live (id integer PRIMARY KEY, n integer DEFAULT 0);
    INSERT INTO live SELECT generate_series(1, 1000);";
const LOAD: &str = "\\set id random(1, 1000)\nUPDATE live SET n = n + 1 WHERE id = :id;\n";

/// The rows' own transaction ids at the target: others, if they were written again.
const WRITTEN_BY: &str = "SELECT string_agg(DISTINCT xmin::text, ',' ORDER BY xmin::text) FROM";

async fn is_killed_in_the_copy(world: World) -> Result<()> {
    world.at_source(LIVE)?;
    // Copied one after the other, the largest first.
    for (table, rows) in [("first", 220_000), ("second", 210_000), ("third", 200_000)] {
        world.at_source(&format!(
            "CREATE TABLE {table} (id integer PRIMARY KEY, v text);
             INSERT INTO {table} SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, {rows}) AS i"
        ))?;
    }
    let mut load = Pgbench::new(&world.source, "app").clients(2).rate(200).script(LOAD).start(120)?;
    let crossfade = Crossfade::new(&world.plan().section("[limits]\ncopy_workers = 1"))?;
    let mut run = crossfade.start(&["run"])?;
    let target = world.target.client("app").await?;
    until("two tables that are done and one under way", 2 * MINUTE, || async {
        let sql = "SELECT count(*) FILTER (WHERE name = 'third' AND worker IS NOT NULL) > 3
                       AND bool_and(worker IS NOT NULL) FILTER (WHERE name IN ('first', 'second')) FROM crossfade.copied";
        Ok(target.query_one(sql, &[]).await?.get::<_, bool>(0).then_some(()))
    })
    .await?;
    run.kill9()?;
    let copied: i64 = target.query_one("SELECT count(*) FROM third", &[]).await?.get(0);
    ensure!(copied < 200_000, "all was copied when it was killed: nothing is tested");
    ensure!(world.at_target("SELECT (SELECT count(*) FROM first), (SELECT count(*) FROM second)")? == "220000|210000");
    let first = world.at_target(&format!("{WRITTEN_BY} first"))?;
    let second = world.at_target(&format!("{WRITTEN_BY} second"))?;

    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", 2 * MINUTE).await?;
    ensure!(load.is_running()?, "the load ended early");
    load.stop()?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    ensure!(world.at_target(&format!("{WRITTEN_BY} first"))? == first, "table first was copied again");
    ensure!(world.at_target(&format!("{WRITTEN_BY} second"))? == second, "table second was copied again");
    run.stop().await
}

async fn is_killed_in_the_tail(world: World) -> Result<()> {
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let target = world.target.client("app").await?;
    let applied = || async {
        let row = target.query_one("SELECT sum(transactions)::bigint FROM crossfade.checkpoint", &[]).await?;
        anyhow::Ok(row.get::<_, Option<i64>>(0).unwrap_or_default())
    };
    let writers = Writers::start(&world.source, "app", 3, 11).await?;
    for _ in 0..3 {
        let before = applied().await?;
        until("some transactions applied", MINUTE, || async { Ok((applied().await? > before + 300).then_some(())) })
            .await?;
        run.kill9()?;
        run = crossfade.start(&["run"])?;
    }
    let before = applied().await?;
    until("more transactions applied", MINUTE, || async { Ok((applied().await? > before + 300).then_some(())) })
        .await?;
    writers.stop().await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_copy_over_nats() -> Result<()> {
    is_killed_in_the_copy(World::with_nats()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_copy_with_the_embedded_log() -> Result<()> {
    is_killed_in_the_copy(World::embedded()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_tail_over_nats() -> Result<()> {
    is_killed_in_the_tail(World::with_nats()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_tail_with_the_embedded_log() -> Result<()> {
    is_killed_in_the_tail(World::embedded()?).await
}

/// Law 5: the offset store is a cache.
#[tokio::test(flavor = "multi_thread")]
async fn and_without_its_offset_store() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let writers = Writers::start(&world.source, "app", 2, 5).await?;
    until("some transactions", MINUTE, || async { Ok((writers.transactions() > 500).then_some(())) }).await?;
    run.kill9()?;
    std::fs::remove_dir_all(crossfade.state_dir())?;
    let mut run = crossfade.start(&["run"])?;
    let before = writers.transactions();
    until("more transactions", MINUTE, || async { Ok((writers.transactions() > before + 500).then_some(())) }).await?;
    writers.stop().await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}
