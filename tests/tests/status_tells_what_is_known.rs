//! Given a migration: `status` tells of it from any machine with the plan file alone, and says what it does not know.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::World;
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

fn world(world: Result<World>) -> Result<World> {
    let world = world?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)")?;
    Ok(world)
}

/// The keys that scripts rely on, with their types.
fn expect_contract(status: &Value) -> Result<()> {
    let source = &status["sources"][0];
    let table = &status["tables"][0];
    for (name, right) in [
        ("schema_version", status["schema_version"] == 1),
        ("plan", status["plan"] == "shop"),
        ("epoch", status["epoch"] == 0),
        ("writable_side", status["writable_side"] == "source"),
        ("sources.name", source["name"] == "shop"),
        ("sources.slot", source["slot"].is_string()),
        ("sources.wal_kept_bytes", source["wal_kept_bytes"].is_u64()),
        ("tables.table", table["table"] == "public.t" && table["into"] == "public.t" && table["source"] == "shop"),
        ("tables.state", table["state"] == "joined"),
        ("tables.rows_copied", table["rows_copied"] == 1000),
        ("tables.rows_estimated", table["rows_estimated"].is_u64()),
        ("tables.bytes_copied", table["bytes_copied"].is_u64()),
        ("apply.worker", status["apply"]["worker"].as_str().is_some_and(|worker| worker.contains(':'))),
        ("apply.transactions", status["apply"]["transactions"].is_u64()),
        ("apply.rows", status["apply"]["rows"].is_u64()),
        ("log.url", status["log"]["url"].is_string()),
        ("log.bytes", status["log"]["bytes"].is_u64()),
        ("log.messages", status["log"]["messages"].is_u64()),
        ("warnings", status["warnings"].is_array()),
    ] {
        ensure!(right, "{name} is not as promised: {status:#}");
    }
    for lsn in ["source_lsn", "confirmed_lsn", "logged_lsn", "applied_lsn"] {
        let text = source[lsn].as_str().unwrap_or_default();
        ensure!(text.parse::<model::Lsn>().is_ok(), "{lsn} is {text:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_another_machine_over_nats() -> Result<()> {
    let world = world(World::with_nats())?;
    let (here, elsewhere) = (world.crossfade()?, world.crossfade()?);
    let mut run = here.start(&["run"])?;
    elsewhere.wait_for_lag_zero(&mut run, MINUTE).await?;
    expect_contract(&elsewhere.status().await?)?;
    run.stop().await?;

    // What happens at the source now is nobody's knowledge.
    world.at_source("INSERT INTO t VALUES (5000)")?;
    let status = elsewhere.status().await?;
    let lag = &status["sources"][0]["lag"];
    ensure!(lag["seconds"].is_null() && lag["transactions"].is_null(), "{status:#}");
    let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
    ensure!(warnings.iter().any(|warning| warning["code"] == "capture_down"), "{status:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_another_process_with_the_embedded_log() -> Result<()> {
    let world = world(World::embedded())?;
    let crossfade = world.crossfade()?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    expect_contract(&crossfade.status().await?)?;
    let shown = crossfade.run(&["status"]).await?;
    ensure!(shown.status.success() && shown.stdout.contains("public.t"), "{shown:?}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_log_is_refused_by_what_needs_another_machine() -> Result<()> {
    let world = world(World::embedded())?;
    let crossfade = world.crossfade()?;
    for command in ["capture", "apply"] {
        let finished = crossfade.run(&[command, "--json"]).await?;
        ensure!(finished.status.code() == Some(2), "{finished:?}");
        ensure!(finished.error_code()? == "embedded_log", "{finished:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn and_of_what_was_compared() -> Result<()> {
    let world = world(World::with_nats())?;
    world.at_source("CREATE TABLE u (id integer PRIMARY KEY); CREATE TABLE v (id integer PRIMARY KEY)")?;
    let crossfade = world.crossfade()?;
    ensure!(crossfade.status().await?["verify"]["unverified"] == 0);
    let mut run = crossfade_tests::follow::following(&crossfade).await?;
    let counts = |verify: &Value| ["equal", "different", "inconclusive", "unverified"].map(|key| verify[key].as_u64());
    let before = crossfade.status().await?["verify"].clone();
    ensure!(counts(&before) == [Some(0), Some(0), Some(0), Some(3)] && before["oldest"].is_null(), "{before:#}");
    world.at_target("DELETE FROM t WHERE id = 5; ALTER TABLE u RENAME id TO other")?;
    let report = crossfade.run(&["verify", "--json"]).await?.json()?;
    let after = crossfade.status().await?["verify"].clone();
    ensure!(counts(&after) == [Some(1), Some(1), Some(1), Some(0)], "{after:#}");
    let not_equal = |at: usize| (after["not_equal"][at]["table"].clone(), after["not_equal"][at]["verdict"].clone());
    ensure!(not_equal(0) == ("public.t".into(), "different".into()), "{after:#}");
    ensure!(not_equal(1) == ("public.u".into(), "inconclusive".into()), "{after:#}");
    let lsns: Vec<&Value> = report["tables"].as_array().into_iter().flatten().map(|table| &table["lsn"]).collect();
    ensure!(lsns.contains(&&after["oldest"]["lsn"]) && after["oldest"]["age"].as_f64().is_some(), "{after:#}");
    ensure!(after["unfinished"].is_null(), "{after:#}");
    let shown = crossfade.run(&["status"]).await?.stdout;
    ensure!(shown.contains("verify: 1 equal, 1 different, 1 inconclusive; the oldest verdict is of "), "{shown}");
    ensure!(shown.contains("  public.t is different\n") && shown.contains("  public.u is inconclusive: "), "{shown}");

    // What was said of one copy is not said of the next one.
    world.at_target("ALTER TABLE u RENAME other TO id")?;
    ensure!(crossfade.run(&["recopy", "public.v"]).await?.status.success());
    let recopied = "SELECT epoch = 2 FROM crossfade.tables WHERE name = 'v'";
    crossfade_tests::until("the next copy", MINUTE, || async { Ok((world.at_target(recopied)? == "t").then_some(())) })
        .await?;
    let status = crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    ensure!(counts(&status["verify"]) == [Some(0), Some(1), Some(1), Some(1)], "{status:#}");
    run.stop().await
}
