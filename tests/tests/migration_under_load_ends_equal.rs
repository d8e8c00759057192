//! Given a source with something of everything, and sessions that change all of it: when copy and tail are joined and
//! the writers stop, then source and target are equal, rows and definitions.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Crossfade, World, compare, until};

const MINUTE: Duration = Duration::from_secs(60);

async fn migrates(world: World) -> Result<()> {
    mixed::create(&world.source, "app")?;
    let writers = Writers::start(&world.source, "app", 3, 7).await?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let joined_at = writers.transactions();
    until("changes after joining", MINUTE, || async { Ok((writers.transactions() > joined_at + 2000).then_some(())) })
        .await?;
    writers.stop().await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    let differences = compare::schemas(&world.source_url(), &world.target_url()).await?;
    ensure!(differences.is_empty(), "definitions differ: {differences:#?}");
    let triggers = world.at_target(
        "SELECT DISTINCT tgenabled FROM pg_trigger WHERE NOT tgisinternal AND tgname NOT LIKE 'crossfade_fence_%'",
    )?;
    ensure!(triggers == "D", "triggers are disabled until a cutover, not {triggers:?}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn over_nats() -> Result<()> {
    migrates(World::with_nats()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_embedded_log() -> Result<()> {
    migrates(World::embedded()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_source_has_no_lag() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    let crossfade = world.crossfade()?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    // WAL that is nobody's business: other databases, tables outside the plan.
    world.source.psql("postgres", "CREATE TABLE elsewhere AS SELECT i FROM generate_series(1, 200000) AS i")?;
    let status = crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    ensure!(status["writable_side"] == "source" && status["schema_version"] == 1, "{status}");
    run.stop().await
}
