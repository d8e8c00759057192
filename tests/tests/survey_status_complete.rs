//! What people look at, and how they end it: survey, status and complete, from the plan alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::follow::captured_back;
use crossfade_tests::{Crossfade, Finished, Shutdown, World};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

const TABLES: &str =
    "CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i";

fn codes(list: &Value) -> Vec<String> {
    let code = |entry: &Value| entry["code"].as_str().unwrap_or_default().to_owned();
    list.as_array().map(|list| list.iter().map(code).collect()).unwrap_or_default()
}

fn ended_with(finished: &Finished, code: i32) -> Result<()> {
    ensure!(finished.status.code() == Some(code), "exit code {code} expected: {finished:?}");
    Ok(())
}

fn traces(world: &World) -> Result<String> {
    let sql = "SELECT 'slot ' || slot_name FROM pg_replication_slots UNION ALL SELECT 'publication ' || pubname FROM pg_publication
               UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'crossfade'
               UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin ORDER BY 1";
    Ok(world.at_source(sql)? + &world.at_target(sql)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn survey_names_everything_that_blocks_and_how_to_mend_it() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(TABLES)?;
    let crossfade = world.crossfade()?;
    let finished = crossfade.run(&["survey", "--json"]).await?;
    ended_with(&finished, 0)?;
    ensure!(finished.json()?["verdict"] == "ready", "{finished:?}");
    world.at_source(
        "CREATE TABLE keyless (a integer); CREATE UNLOGGED TABLE passing (id integer PRIMARY KEY); CREATE ROLE stranger;
         CREATE TABLE theirs (id integer PRIMARY KEY); ALTER TABLE theirs OWNER TO stranger; SELECT lo_create(0);
         INSERT INTO t VALUES (-1, 'x'), (-2, 'x')",
    )?;
    let _ = world.at_source("CREATE UNIQUE INDEX CONCURRENTLY broken ON t (v)");
    world.at_target("CREATE TABLE t (other text)")?;
    let finished = crossfade.run(&["survey", "--json"]).await?;
    ended_with(&finished, 1)?;
    let document = finished.json()?;
    let found = codes(&document["findings"]);
    for code in ["identity_missing", "not_carried", "target_lacks", "target_not_empty", "index_invalid"] {
        ensure!(found.iter().any(|one| one == code), "{code} expected: {document:#}");
    }
    let text = document.to_string();
    for statement in ["CREATE ROLE \\\"stranger\\\"", "SET LOGGED", "REINDEX INDEX CONCURRENTLY", "large objects"] {
        ensure!(text.contains(statement), "{statement} expected: {document:#}");
    }
    ensure!(document["verdict"] == "blocked");
    ensure!(traces(&world)?.is_empty(), "survey changed something");
    ended_with(&crossfade.run(&["survey"]).await?, 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_completed_once_it_is_stopped_and_again() -> Result<()> {
    let world = World::with_nats()?;
    completed(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_with_the_embedded_log_too() -> Result<()> {
    let world = World::embedded()?;
    completed(&world).await
}

async fn completed(world: &World) -> Result<()> {
    world.at_source(TABLES)?;
    let crossfade = world.crossfade()?;
    ensure!(crossfade.status().await?["phase"] == "starting");
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    world.at_source("INSERT INTO t SELECT i, 'y' FROM generate_series(1001, 1100) i")?;
    let status = crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    ensure!(codes(&status["warnings"]).is_empty(), "{status:#}");
    let table = &status["tables"][0];
    ensure!(table["state"] == "joined" && table["rows_copied"] == 1000, "{status:#}");
    ensure!(status["apply"]["rows"] == 100, "{status:#}");

    captured_back(world).await?;
    let before = traces(world)?;
    let listed = crossfade.run(&["complete"]).await?;
    ended_with(&listed, 0)?;
    ensure!(listed.stdout.contains("crossfade_shop_shop") && listed.stdout.contains("schema crossfade"), "{listed:?}");
    let refused = crossfade.run(&["complete", "--yes", "--json"]).await?;
    ended_with(&refused, 1)?;
    ensure!(refused.error_code()? == "writer_refused", "{refused:?}");
    ensure!(traces(world)? == before, "it removed something although it only listed or refused");

    run.stop().await?;
    world.at_source("INSERT INTO t VALUES (5000, 'late')")?;
    let status = crossfade.status().await?;
    ensure!(codes(&status["warnings"]).contains(&"capture_down".to_owned()), "{status:#}");
    let lag = &status["sources"][0]["lag"];
    ensure!(lag["seconds"].is_null() && lag["transactions"].is_null() && lag["bytes"].as_u64() > Some(0), "{status:#}");

    let done = crossfade.run(&["complete", "--yes"]).await?;
    ended_with(&done, 0)?;
    ensure!(traces(world)?.is_empty(), "left behind: {}", traces(world)?);
    ensure!(world.at_target("SELECT count(*) FROM t")?.trim() == "1100", "the application's table is gone");
    let again = crossfade.run(&["complete", "--yes", "--json"]).await?;
    ended_with(&again, 0)?;
    ensure!(again.json()?["found"] == Value::Array(Vec::new()), "{again:?}");
    ensure!(crossfade.status().await?["phase"] == "starting");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_it_knows_while_parts_are_down() -> Result<()> {
    let mut world = World::with_nats()?;
    world.at_source(TABLES)?;
    let crossfade = world.crossfade()?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    world.target.stop(Shutdown::Fast)?;
    ended_with(&crossfade.run(&["status"]).await?, 2)?;
    let status = crossfade.elsewhere()?.status().await?;
    ensure!(
        status["phase"].is_null() && codes(&status["warnings"]).contains(&"target_unreachable".to_owned()),
        "{status:#}"
    );
    ensure!(
        status["sources"][0]["source_lsn"].is_string() && status["sources"][0]["lag"]["bytes"].is_null(),
        "{status:#}"
    );
    world.target.boot()?;
    world.source.stop(Shutdown::Fast)?;
    world.nats = None;
    ended_with(&crossfade.run(&["status"]).await?, 0)?;
    let status = crossfade.status().await?;
    let warnings = codes(&status["warnings"]);
    ensure!(
        warnings.contains(&"source_unreachable".to_owned()) && warnings.contains(&"log_unreachable".to_owned()),
        "{status:#}"
    );
    ensure!(status["phase"] == "following" && status["tables"][0]["state"] == "joined", "{status:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_log_is_for_run_alone_and_no_secret_is_told() -> Result<()> {
    let world = World::embedded()?;
    for command in ["capture", "apply"] {
        let finished = world.crossfade()?.run(&[command, "--json"]).await?;
        ended_with(&finished, 2)?;
        ensure!(finished.error_code()? == "embedded_log", "{finished:?}");
    }
    let secret = world.source_url().replace("postgres@", "postgres:hush@");
    let nobody = crossfade_tests::Port::reserve()?;
    let target = format!("postgres://postgres:hush@127.0.0.1:{}/app", nobody.number());
    let crossfade = Crossfade::new(&crossfade_tests::PlanFile::new("shop", &secret, &target))?;
    for command in ["run", "survey", "status", "complete"] {
        for json in [&[][..], &["--json"][..]] {
            let finished = crossfade.run(&[&[command], json].concat()).await?;
            ensure!(!finished.stdout.contains("hush") && !finished.stderr.contains("hush"), "{finished:?}");
        }
    }
    Ok(())
}
