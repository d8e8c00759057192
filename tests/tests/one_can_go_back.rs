//! Given a cutover, and an application that goes on writing at the target: a rollback leads it back with everything that was acknowledged, and one can cut over again.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::{captured_back, following};
use crossfade_tests::{Crossfade, Nats, Pgbench, World, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE TABLE a (id bigserial PRIMARY KEY, v text);
    CREATE TABLE b (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a bigint REFERENCES a, n integer);
    CREATE TABLE parts (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
    CREATE TABLE touched (id bigint, at timestamptz DEFAULT now(), PRIMARY KEY (id));
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.touched VALUES (NEW.id) ON CONFLICT DO NOTHING; RETURN NEW; END $$;
    CREATE TRIGGER touches AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION touch();
    ALTER TABLE a ENABLE ALWAYS TRIGGER touches;
    INSERT INTO a (v) SELECT i::text FROM generate_series(1, 500) i;
    INSERT INTO b (a, n) SELECT i, i FROM generate_series(1, 500) i;
    INSERT INTO parts SELECT i, 'p' FROM generate_series(1, 199) i;";

const SCRIPT: &str = "INSERT INTO a (v) VALUES ('x') RETURNING id \\gset\nINSERT INTO b (a, n) VALUES (:id, 1);\nUPDATE parts SET v = v || 'y' WHERE id = 1 + :id % 199;\nDELETE FROM b WHERE id = :id - 400;\n";

async fn committed(crossfade: &Crossfade, command: &str) -> Result<Value> {
    let (report, code) = crossfade.says(&[command]).await?;
    ensure!(code == Some(0) && report["outcome"] == "committed" && report["unfinished"].is_null(), "{report:#}");
    println!("{command}: {} ms", report["write_gap_ms"]);
    Ok(report)
}

#[tokio::test(flavor = "multi_thread")]
async fn and_forth_under_load() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    captured_back(&world).await?;
    crossfade.verified().await?;
    for round in 0..3 {
        let load = Pgbench::new(&world.source, "app").clients(4).rate(400).script(SCRIPT).start(300)?;
        let report = committed(&crossfade, "cutover").await.with_context(|| run.log_tail())?;
        ensure!(report["direction"] == "forward" && report["epoch"] == 2 * round + 1, "{report:#}");
        load.stop()?;
        let load = Pgbench::new(&world.target, "app").clients(4).rate(400).script(SCRIPT).start(300)?;
        let before = world.target.psql("app", "SELECT count(*) FROM a")?.parse::<i64>()?;
        until("rows at the target", MINUTE, || async {
            let now = world.target.psql("app", "SELECT count(*) FROM a")?.parse::<i64>()?;
            Ok((now > before + 200).then_some(()))
        })
        .await?;
        let report = committed(&crossfade, "rollback").await.with_context(|| run.log_tail())?;
        ensure!(report["direction"] == "back" && report["epoch"] == 2 * round + 2, "{report:#}");
        load.stop()?;
        world.expect_equal().await?;
    }
    world.at_source("INSERT INTO a (v) VALUES ('home')")?;
    until("the row at the target", MINUTE, || async {
        Ok((world.at_target("SELECT count(*) FROM a WHERE v = 'home'")? == "1").then_some(()))
    })
    .await?;
    world.expect_equal().await?;
    crossfade.verified().await?;
    // What was written at the target in between is in no log of the source's: the last verify before counts.
    world.target.create_db("throwaway")?;
    let into = world.target.url("throwaway");
    let rehearsal = crossfade.start(&["rehearse", "--json", "--into", &into])?.finish(2 * MINUTE).await?;
    let report = rehearsal.json()?;
    ensure!(rehearsal.status.success() && report["verdict"] == "equal", "{rehearsal:?}");
    let rows: i64 = world.target.psql("throwaway", "SELECT count(*) FROM a")?.parse()?;
    ensure!(rows == 500, "{rows} rows of 500 as of the verify");
    run.stop().await
}

/// One side refuses a write with SQLSTATE 25006.
async fn closed(world: &World, at_source: bool) -> Result<()> {
    let cluster = if at_source { &world.source } else { &world.target };
    let error = cluster.client("app").await?.batch_execute("UPDATE a SET v = v WHERE id = 1").await;
    let error = error.err().context("it was let through")?;
    ensure!(error.code().is_some_and(|code| code.code() == "25006"), "{error:?}");
    Ok(())
}

async fn open(world: &World, at_source: bool) -> Result<()> {
    let cluster = if at_source { &world.source } else { &world.target };
    let side = if at_source { "the source open" } else { "the target open" };
    until(side, MINUTE, || async { Ok(cluster.psql("app", "UPDATE a SET v = v || '.' WHERE id = 1").ok()) })
        .await
        .map(drop)
}

/// A small cluster whose walsenders stream what is larger than some kilobytes while it is in progress.
fn streaming() -> Result<crossfade_tests::Cluster> {
    crossfade_tests::Cluster::build().set("logical_decoding_work_mem", "64kB").start()
}

/// What apply writes to one side is not carried back to the other, be it sent whole or streamed; nor is it counted as somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_round_in_circles() -> Result<()> {
    let world = World::of(streaming()?, streaming()?, Some(Nats::start()?))?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    captured_back(&world).await?;
    let many = "INSERT INTO parts SELECT i % 199 + 1, 'q' FROM generate_series(1, 199) i ON CONFLICT (id) DO UPDATE SET v = parts.v || repeat('x', 2000);
                UPDATE b SET n = n + 1; TRUNCATE touched; INSERT INTO touched SELECT generate_series(1, 20000)";
    world.at_source(&format!("BEGIN; {many}; COMMIT"))?;
    // What a TRUNCATE writes first has no origin.
    let emptied = "TRUNCATE touched; INSERT INTO touched SELECT generate_series(1, 20000)";
    world.at_source(&format!("BEGIN; {emptied}; COMMIT"))?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    crossfade.verified().await?;
    committed(&crossfade, "cutover").await?;
    let rows = "SELECT rows FROM crossfade.checkpoint";
    let back: i64 = world.at_source(rows)?.parse()?;
    ensure!(back == 0, "{back} rows came back that apply had written");
    let forth: i64 = world.at_target(rows)?.parse()?;
    world.target.psql("app", &format!("BEGIN; {many}; COMMIT"))?;
    world.target.psql("app", &format!("BEGIN; {emptied}; COMMIT"))?;
    world.target.psql("app", &format!("BEGIN; SAVEPOINT s; {many}; ROLLBACK TO s; UPDATE a SET v = 'kept'; COMMIT"))?;
    let refused = crossfade.run(&["recopy", "public.a", "--json"]).await?;
    ensure!(refused.error_code().is_ok_and(|code| code == "cutover_refused"), "{refused:?}");
    let last = "SELECT count(*) FROM a WHERE v = 'kept'";
    let all = world.target.psql("app", last)?;
    until("the source has it", MINUTE, || async { Ok((world.at_source(last)? == all).then_some(())) }).await?;
    world.expect_equal().await?;
    committed(&crossfade, "rollback").await?;
    world.at_source("UPDATE a SET v = 'again'")?;
    let last = "SELECT count(*) FROM a WHERE v = 'again'";
    until("the target has it", MINUTE, || async { Ok((world.at_target(last)? == all).then_some(())) }).await?;
    world.expect_equal().await?;
    let now: i64 = world.at_target(rows)?.parse()?;
    ensure!(now - forth == all.parse::<i64>()?, "{} rows were applied, of which {all} are new", now - forth);
    let none = "SELECT count(*) FROM crossfade.rogue";
    ensure!(world.at_target(none)? == "0" && world.at_source(none)? == "0", "taken for somebody else's");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_others_write_to_the_target_are_told_and_refuse_a_cutover() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    captured_back(&world).await?;
    crossfade.verified().await?;
    world.at_target("UPDATE a SET v = 'strange' WHERE id IN (7, 8); DELETE FROM b WHERE id = 9; TRUNCATE touched")?;
    let told = |status: &Value| status["rogue"].as_array().is_some_and(|rogue| rogue.len() == 3);
    let status = crossfade.wait_for(&mut run, "it is told", MINUTE, told).await?;
    let rogue = &status["rogue"];
    ensure!(rogue[0]["table"] == "public.a" && rogue[0]["rows"] == 2 && rogue[0]["key"] == "id = 8", "{rogue:#}");
    ensure!(rogue[1]["key"] == "id = 9" && rogue[2]["key"] == "TRUNCATE", "{rogue:#}");
    let warned = |status: &Value| {
        status["warnings"].as_array().is_some_and(|all| all.iter().any(|w| w["code"] == "rogue_writes"))
    };
    ensure!(warned(&status), "{status:#}");
    let (refused, code) = crossfade.says(&["cutover"]).await?;
    let codes = refused["refused"].as_array().context("a list")?;
    ensure!(
        code == Some(1) && codes.iter().filter(|refused| refused["code"] == "rogue_writes").count() == 3,
        "{refused:#}"
    );
    // What differs is found; what is the same again is forgiven.
    let (report, code) = crossfade.says(&["verify"]).await?;
    ensure!(code == Some(1) && report["verdict"] == "different", "{report:#}");
    world.at_target(
        "UPDATE a SET v = id::text WHERE id IN (7, 8); INSERT INTO b OVERRIDING SYSTEM VALUE VALUES (9, 9, 9)",
    )?;
    let (refused, _) = crossfade.says(&["cutover"]).await?;
    ensure!(refused["outcome"] == "refused", "{refused:#}");
    let finished = crossfade.run(&["recopy", "public.touched"]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    crossfade.verified().await?;
    let status = crossfade.status().await?;
    ensure!(status["rogue"].as_array().is_some_and(Vec::is_empty), "{status:#}");
    committed(&crossfade, "cutover").await?;
    world.expect_equal().await?;
    run.stop().await
}

/// Where a rollback may die: up to its decision, and behind it.
const BEFORE: [&str; 8] = [
    "cutover_begun",
    "fence_prepared",
    "cutover_fencing",
    "fence_closed",
    "cutover_fenced",
    "cutover_drained",
    "cutover_prepared",
    "decision_written",
];
const BEHIND: [&str; 4] = ["decision_committed", "application_routed", "forward_again", "cutover_routed"];

/// Of the way back, what a cutover passes.
const OF_A_CUTOVER: [&str; 2] = ["way_back_prepared", "way_back_begun"];

/// What the process that applies passes.
const OF_APPLY: &str = "rogue_noted";

#[test]
fn every_failpoint_of_the_way_back_is_walked() {
    let walked: BTreeSet<&str> = BEHIND.into_iter().chain(OF_A_CUTOVER).chain([OF_APPLY]).collect();
    let listed: BTreeSet<&str> = model::failpoint::WAY_BACK.iter().map(|(name, _)| *name).collect();
    assert!(listed.is_subset(&walked), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_step() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    captured_back(&world).await?;
    crossfade.verified().await?;
    let [prepared, begun] = OF_A_CUTOVER;
    crossfade.start_armed(&["cutover"], prepared, 0)?.died_at(prepared, MINUTE).await?;
    open(&world, true).await?;
    closed(&world, false).await?;
    let nobody = "SELECT count(*) FROM crossfade.fence WHERE pid IS NOT NULL";
    until("nobody leads", MINUTE, || async { Ok((world.at_source(nobody)? == "0").then_some(())) }).await?;
    crossfade.start_armed(&["cutover"], begun, 0)?.died_at(begun, MINUTE).await?;
    closed(&world, true).await?;
    open(&world, false).await?;
    let report = committed(&crossfade, "cutover").await?;
    ensure!(report["phases"].as_array().is_some_and(|all| all.iter().any(|phase| phase["phase"] == "reversing")));
    for point in BEFORE {
        let died = crossfade.start_armed(&["rollback"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        open(&world, false).await.with_context(|| point.to_owned())?;
        closed(&world, true).await.with_context(|| point.to_owned())?;
        until("nobody leads", MINUTE, || async { Ok((world.at_target(nobody)? == "0").then_some(())) }).await?;
    }
    for point in BEHIND {
        let died = crossfade.start_armed(&["rollback"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        closed(&world, false).await.with_context(|| point.to_owned())?;
        open(&world, true).await.with_context(|| point.to_owned())?;
        if point != "cutover_routed" {
            committed(&crossfade, "rollback").await.with_context(|| point.to_owned())?;
        }
        crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
        world.expect_equal().await.with_context(|| point.to_owned())?;
        committed(&crossfade, "cutover").await.with_context(|| point.to_owned())?;
    }
    run.stop().await?;
    // Apply dies where it notes the marker, and the cutover waits for its next start.
    committed_while_away(&world, &crossfade).await
}

async fn committed_while_away(world: &World, crossfade: &Crossfade) -> Result<()> {
    let mut run = crossfade.start(&["run"])?;
    let follows = |status: &Value| status["way_back"]["lag"]["bytes"] == 0 && !status["way_back"]["worker"].is_null();
    crossfade.wait_for(&mut run, "the way back followed", MINUTE, follows).await?;
    committed(crossfade, "rollback").await?;
    run.stop().await?;
    let mut dies = crossfade.start_armed(&["run"], OF_APPLY, 0)?;
    // Refused as long as not everything runs, it puts no marker there.
    let mut cutover = crossfade.start(&["cutover", "--json"])?;
    while dies.is_running()? {
        if cutover.ended()?.is_some() {
            cutover.hush();
            cutover = crossfade.start(&["cutover", "--json"])?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    dies.died_at(OF_APPLY, MINUTE).await?;
    let mut run = crossfade.start(&["run"])?;
    let finished = cutover.finish(2 * MINUTE).await?;
    let report = finished.json()?;
    if report["outcome"] != "committed" {
        crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
        committed(crossfade, "cutover").await?;
    }
    world.expect_equal().await?;
    run.stop().await?;
    let ended = crossfade.run(&["complete", "--yes"]).await?;
    ensure!(ended.status.success(), "{ended:?}");
    let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%' UNION ALL SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade'
                UNION ALL SELECT count(*) FROM pg_replication_slots UNION ALL SELECT count(*) FROM pg_publication UNION ALL SELECT count(*) FROM pg_replication_origin";
    ensure!(world.at_source(left)? == "0\n0\n0\n0\n0", "at the source: {}", world.at_source(left)?);
    ensure!(world.at_target(left)? == "0\n0\n0\n0\n0", "at the target: {}", world.at_target(left)?);
    let trigger = "SELECT tgenabled FROM pg_trigger WHERE tgname = 'touches'";
    ensure!(world.at_source(trigger)? == "A" && world.at_target(trigger)? == "A", "a trigger is not what it was");
    Ok(())
}
