//! Given a migration: `crossfade recopy` copies tables again, or all of it, while the application writes and the tail goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Crossfade, World, compare, follow, until};

const MINUTE: Duration = Duration::from_secs(60);

const EPOCHS: &str =
    "SELECT string_agg(name || ' ' || epoch, ',' ORDER BY name) FROM crossfade.tables WHERE epoch <> 1";

async fn recopied(crossfade: &Crossfade, arguments: &[&str]) -> Result<()> {
    let asked = crossfade.run(&[["recopy", "--json"].as_slice(), arguments].concat()).await?;
    ensure!(asked.status.success(), "{asked:?}");
    Ok(())
}

async fn some(writers: &Writers) -> Result<()> {
    let before = writers.transactions();
    until("some transactions", MINUTE, || async { Ok((writers.transactions() > before + 200).then_some(())) }).await
}

/// Tables that others refer to, that have rows in partitions, and that have no key.
#[tokio::test(flavor = "multi_thread")]
async fn some_tables_of_a_running_migration() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let writers = Writers::start(&world.source, "app", 2, 51).await?;
    some(&writers).await?;
    let target = world.target.client("app").await?;
    for epoch in [2, 3] {
        recopied(&crossfade, &["public.customers", "public.keyless", "public.measures"]).await?;
        let begun = format!("SELECT 1 FROM crossfade.tables WHERE epoch = {epoch} HAVING count(*) = 6");
        until("their next epoch", MINUTE, || async { Ok(target.query_opt(&begun, &[]).await?) }).await?;
        some(&writers).await?;
    }
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    some(&writers).await?;
    writers.stop().await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    let (source, copied) = (world.source.socket_dsn("app"), world.target.socket_dsn("app"));
    ensure!(compare::schemas(&source, &copied).await?.is_empty(), "keys or indexes are others than before");
    let epochs = world.at_target(EPOCHS)?;
    let expected = "customers 3,keyless 3,measures_2023 3,measures_2024_0 3,measures_2024_1 3,measures_rest 3";
    ensure!(epochs == expected, "others were copied again, too: {epochs}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_running_migration() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let plan = mixed::plan(world.plan());
    let (here, there) = (Crossfade::new(&plan)?, Crossfade::new(&plan)?);
    let (mut capture, mut apply) = (here.start(&["capture"])?, there.start(&["apply"])?);
    here.wait_for_phase(&mut capture, "following", MINUTE).await?;
    let writers = Writers::start(&world.source, "app", 2, 52).await?;
    let target = world.target.client("app").await?;
    for epoch in [2, 3] {
        some(&writers).await?;
        recopied(&here, &[]).await?;
        let begun = format!("SELECT 1 FROM crossfade.tables HAVING min(epoch) = {epoch}");
        until("the next epoch of all", MINUTE, || async { Ok(target.query_opt(&begun, &[]).await?) }).await?;
    }
    some(&writers).await?;
    here.wait_for_phase(&mut capture, "following", MINUTE).await?;
    writers.stop().await?;
    here.wait_for_lag_zero(&mut capture, MINUTE).await?;
    world.expect_equal().await?;
    ensure!(world.at_source("SELECT count(*) FROM pg_replication_slots")? == "1");
    capture.stop().await?;
    apply.stop().await
}

/// Killed wherever it is: a recopy that was asked for is done in the end, once.
#[tokio::test(flavor = "multi_thread")]
async fn everything_while_processes_are_killed() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = follow::following(&crossfade).await?;
    let writers = Writers::start(&world.source, "app", 2, 53).await?;
    some(&writers).await?;
    recopied(&crossfade, &[]).await?;
    for milliseconds in [20, 120, 250, 400, 600, 900, 1300] {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        run.kill9()?;
        run = crossfade.start(&["run"])?;
    }
    let target = world.target.client("app").await?;
    let begun = "SELECT 1 FROM crossfade.tables HAVING min(epoch) >= 2";
    until("the next epoch of all", MINUTE, || async { Ok(target.query_opt(begun, &[]).await?) }).await?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    some(&writers).await?;
    writers.stop().await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

/// The tail stops at what somebody has changed in the target; a copy of that table goes past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_has_changed_in_the_target() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 100) AS i;
         CREATE TABLE other (id integer PRIMARY KEY, v text); INSERT INTO other VALUES (1, 'one')",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = follow::following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    world.at_target("DELETE FROM t WHERE id = 7")?;
    world.at_source("UPDATE t SET v = 'new' WHERE id = 7; UPDATE other SET v = 'two'")?;
    let ended = crossfade.start(&["run", "--json"])?.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1) && ended.error_code()? == "divergence", "{ended:?}");
    ensure!(ended.stdout.contains("crossfade recopy"), "no way out is told: {}", ended.stdout);
    recopied(&crossfade, &["public.t"]).await?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    ensure!(world.at_target(EPOCHS)? == "t 2");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_no_copy_of_cannot_be_copied_again() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY)")?;
    let crossfade = world.crossfade()?;
    for arguments in [["recopy", "--json"].as_slice(), &["recopy", "--json", "public.t"]] {
        let ended = crossfade.run(arguments).await?;
        ensure!(ended.status.code() == Some(2) && ended.error_code()? == "no_tables", "{ended:?}");
    }
    let mut run = follow::following(&crossfade).await?;
    for (table, code) in [("public.u", "no_tables"), ("t", "plan_invalid")] {
        let ended = crossfade.run(&["recopy", "--json", table]).await?;
        ensure!(ended.status.code() == Some(2) && ended.error_code()? == code, "{ended:?}");
    }
    let status = crossfade.status().await?;
    ensure!(status["phase"] == "following", "{status}");
    run.stop().await
}

/// One process has the embedded log to itself.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_embedded_log_while_nothing_runs() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")?;
    let crossfade = world.crossfade()?;
    let mut run = follow::following(&crossfade).await?;
    let ended = crossfade.run(&["recopy", "--json", "public.t"]).await?;
    ensure!(ended.status.code() == Some(2) && ended.error_code()? == "state_not_writable", "{ended:?}");
    run.stop().await?;
    recopied(&crossfade, &["public.t"]).await?;
    world.at_source("INSERT INTO t VALUES (101)")?;
    let mut run = crossfade.start(&["run"])?;
    let target = world.target.client("app").await?;
    let begun = "SELECT 1 FROM crossfade.tables WHERE epoch = 2";
    until("the next epoch", MINUTE, || async { Ok(target.query_opt(begun, &[]).await?) }).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}
