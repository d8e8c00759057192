//! Given an application that writes: a cutover leads it over with everything that was acknowledged, or leaves it where it was.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::writers::{self, Fate, Route, Writers};
use crossfade_tests::{Cluster, Crossfade, Nats, Pgbench, Running, Shutdown, World, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

/// What `crossfade cutover --json` says, with its exit code.
async fn cutover(crossfade: &Crossfade, arguments: &[&str]) -> Result<(Value, Option<i32>)> {
    let finished = crossfade.run(&[&["cutover", "--json", "--no-way-back"], arguments].concat()).await?;
    let document = finished.json().with_context(|| format!("{finished:?}"))?;
    Ok((document, finished.status.code()))
}

/// Refused with SQLSTATE 25006, and a text that says why.
async fn expect_closed(world: &World, at_source: bool, sql: &str) -> Result<()> {
    let cluster = if at_source { &world.source } else { &world.target };
    let error = cluster.client("app").await?.batch_execute(sql).await.err().context("it was let through")?;
    let error = error.as_db_error().context("the server refuses it")?;
    ensure!(error.code().code() == "25006" && error.detail().is_some(), "{error:?}");
    Ok(())
}

const SCHEMA: &str = "
    CREATE TABLE a (id bigserial PRIMARY KEY, v text);
    CREATE TABLE b (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a bigint REFERENCES a, n integer);
    CREATE TABLE parts (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
    CREATE TABLE touched (id bigint, at timestamptz DEFAULT now(), PRIMARY KEY (id));
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.touched VALUES (NEW.id) ON CONFLICT DO NOTHING; RETURN NEW; END $$;
    CREATE TRIGGER touches AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION touch();
    INSERT INTO a (v) SELECT i::text FROM generate_series(1, 500) i;
    INSERT INTO b (a, n) SELECT i, i FROM generate_series(1, 500) i;
    INSERT INTO parts SELECT i, 'p' FROM generate_series(1, 199) i;";

async fn stop(mut run: Running) -> Result<()> {
    run.stop().await
}

/// Whoever has cancelled is through: another one would be refused before.
async fn nobody_at_it(world: &World) -> Result<()> {
    let leads = "SELECT count(*) FROM crossfade.fence WHERE pid IS NOT NULL";
    until("nobody at it", MINUTE, || async { Ok((world.at_source(leads)? == "0").then_some(())) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_nothing_is_lost_and_the_other_side_is_open() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let run = following(&crossfade).await?;
    let script = "INSERT INTO a (v) VALUES ('x') RETURNING id \\gset\nINSERT INTO b (a, n) VALUES (:id, 1);\nUPDATE parts SET v = v || 'y' WHERE id = 1 + :id % 199;\n";
    let load = Pgbench::new(&world.source, "app").clients(4).script(script).start(300)?;
    crossfade.verified().await?;
    expect_closed(&world, false, "INSERT INTO touched VALUES (-1)").await?;
    let (report, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(0) && report["outcome"] == "committed", "{report:#}\n{}", run.log_tail());
    println!("{report:#}");
    load.stop()?;
    for sql in [
        "INSERT INTO a (v) VALUES ('late')",
        "TRUNCATE touched",
        "COPY parts_1 FROM PROGRAM 'true'",
        "DELETE FROM parts_2",
        "SET session_replication_role = replica; UPDATE b SET n = 0",
    ] {
        expect_closed(&world, true, sql).await?;
    }
    world.expect_equal().await?;
    let next: i64 = world.target.psql("app", "INSERT INTO a (v) VALUES ('here') RETURNING id")?.parse()?;
    let last: i64 = world.at_source("SELECT last_value FROM a_id_seq")?.parse()?;
    ensure!(next > last, "the target gives out {next}, the source was at {last}");
    ensure!(
        world.at_target(&format!("SELECT count(*) FROM touched WHERE id = {next}"))? == "1",
        "its triggers do not fire"
    );
    let (again, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(1) && again["refused"][0]["code"] == "already", "{again:#}");
    stop(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_before_the_decision_leaves_the_source_open() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    let plan = world.plan().section("[cutover.hooks]\ndrained = \"echo no; exit 1\"");
    let mut crossfade = Crossfade::new(&plan)?;
    let run = following(&crossfade).await?;
    crossfade.verified().await?;
    let (report, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(1) && report["outcome"] == "cancelled", "{report:#}");
    world.at_source("INSERT INTO a (v) VALUES ('goes on'); UPDATE parts SET v = 'q'")?;
    expect_closed(&world, false, "INSERT INTO touched VALUES (-1)").await?;
    crossfade.replan(&world.plan())?;
    let (report, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(0) && report["epoch"] == 2, "{report:#}");
    world.expect_equal().await?;
    stop(run).await
}

/// The failpoints of a cutover: up to the decision, behind it, while it is cancelled, and of its end.
const BEFORE: [&str; 11] = [
    "cutover_begun",
    "fence_prepared",
    "cutover_fencing",
    "fence_written",
    "fence_closed",
    "cutover_fenced",
    "drain_marker_emitted",
    "cutover_drained",
    "cutover_prepared",
    "sequences_set",
    "decision_written",
];
const BEHIND: [&str; 3] = ["decision_committed", "application_routed", "cutover_routed"];
const CANCELLING: [&str; 4] = ["cancel_leads", "cancel_leads_journal", "cancel_decided", "source_reopened"];
/// Walked in pgbouncer_leads_it_over.rs.
const POOLED: [&str; 4] = ["pgbouncer_paused", "pgbouncer_switched", "pgbouncer_reloaded", "pgbouncer_resumed"];
/// Walked in fences_on_top_of_the_triggers.rs.
const ON_TOP: [&str; 5] =
    ["read_only_set", "fence_command_noted", "fence_command_run", "read_only_lifted", "fence_command_undone"];
const COMPLETING: [&str; 2] = ["source_fence_removed", "source_schema_dropped"];

#[test]
fn every_failpoint_of_a_cutover_is_walked() {
    let walked = BEFORE.into_iter().chain(BEHIND).chain(CANCELLING).chain(COMPLETING).chain(POOLED).chain(ON_TOP);
    assert_eq!(walked.collect::<BTreeSet<&str>>(), model::failpoint::CUTOVER.iter().map(|(name, _)| *name).collect());
}

/// A cutover that dies while it undoes itself is undone by others, and one whose remains are half removed is removed.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_is_cancelled_or_completed() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = Crossfade::new(&world.plan().section("[cutover.hooks]\ndrained = \"exit 1\""))?;
    let run = following(&crossfade).await?;
    crossfade.verified().await?;
    for point in CANCELLING {
        let died = crossfade.start_armed(&["cutover", "--no-way-back"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        until("the source open again", MINUTE, || async {
            Ok(world.at_source("UPDATE a SET v = v WHERE id = 1").ok())
        })
        .await
        .with_context(|| point.to_owned())?;
        ensure!(world.at_target("SELECT state FROM crossfade.journal ORDER BY epoch DESC LIMIT 1")? == "cancelled");
        expect_closed(&world, false, "INSERT INTO touched VALUES (-1)").await?;
        nobody_at_it(&world).await?;
    }
    stop(run).await?;
    for point in COMPLETING {
        let died = crossfade.start_armed(&["complete", "--yes"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
    }
    let ended = crossfade.run(&["complete", "--yes"]).await?;
    ensure!(ended.status.success(), "{ended:?}");
    let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%' UNION ALL SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade'";
    ensure!(world.at_source(left)? == "0\n0" && world.at_target(left)? == "0\n0", "something stays behind");
    Ok(())
}

/// Whoever is there opens the source again, and the outcome is the same wherever it died.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_step() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let run = following(&crossfade).await?;
    crossfade.verified().await?;
    let open = "UPDATE a SET v = v WHERE id = 1";
    for point in BEFORE {
        let died = crossfade.start_armed(&["cutover", "--no-way-back"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        until("the source open again", MINUTE, || async { Ok(world.at_source(open).ok()) })
            .await
            .with_context(|| point.to_owned())?;
        expect_closed(&world, false, "INSERT INTO touched VALUES (-1)").await?;
        until("the journal", MINUTE, || async {
            Ok((world.at_target("SELECT state FROM crossfade.journal ORDER BY epoch DESC LIMIT 1")? == "cancelled")
                .then_some(()))
        })
        .await?;
        nobody_at_it(&world).await?;
    }
    for (number, point) in BEHIND.into_iter().enumerate() {
        let died = crossfade.start_armed(&["cutover", "--no-way-back"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        expect_closed(&world, true, open).await?;
        ensure!(
            world.target.psql("app", &format!("INSERT INTO touched VALUES (-{number}); SELECT 1"))? == "1",
            "{point}: the target is closed"
        );
    }
    stop(run).await
}

/// What refuses it, one by one, and nothing is changed by any of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_refuses_it() -> Result<()> {
    let source = Cluster::build().set("max_prepared_transactions", "5").start()?;
    let world = World::of(source, Cluster::start()?, Some(Nats::start()?))?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let refused = async |arguments: &[&str], code: &str| -> Result<()> {
        let (report, exit) = cutover(&crossfade, arguments).await?;
        let found = report["refused"].as_array().is_some_and(|all| all.iter().any(|one| one["code"] == code));
        ensure!(exit == Some(1) && report["outcome"] == "refused" && found, "{code} expected: {report:#}");
        Ok(())
    };
    let mut capture = crossfade.start(&["capture"])?;
    let mut apply = crossfade.start(&["apply"])?;
    crossfade.wait_for_phase(&mut apply, "following", MINUTE).await?;
    refused(&[], "verify_missing").await?;
    let sampled = crossfade.run(&["verify", "--sample", "50"]).await?;
    ensure!(sampled.status.success(), "{sampled:?}");
    refused(&[], "verify_sample").await?;
    world.at_target("UPDATE a SET v = 'other' WHERE id = 7")?;
    ensure!(crossfade.run(&["verify"]).await?.status.code() == Some(1), "it is different");
    refused(&[], "verify_different").await?;
    world.at_target("UPDATE a SET v = '7' WHERE id = 7")?;
    crossfade.verified().await?;
    refused(&["--max-verify-age", "1ms"], "verify_old").await?;
    world.at_source("BEGIN; INSERT INTO a (v) VALUES ('prepared'); PREPARE TRANSACTION 'two'")?;
    refused(&[], "prepared_transaction").await?;
    world.at_source("ROLLBACK PREPARED 'two'")?;
    let long = world.source.client("app").await?;
    long.batch_execute("BEGIN; INSERT INTO a (v) VALUES ('long')").await?;
    let old = "SELECT 1 FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - interval '5 seconds'";
    let observer = world.source.client("app").await?;
    until("a transaction that is old", MINUTE, || async { Ok(observer.query_opt(old, &[]).await?) }).await?;
    refused(&[], "long_transaction").await?;
    long.batch_execute("ROLLBACK").await?;
    let cancelled = crossfade.run(&["cutover", "--cancel", "--json"]).await?;
    ensure!(cancelled.json()?["refused"][0]["code"] == "nothing_to_cancel", "{cancelled:?}");
    capture.stop().await?;
    refused(&[], "capture_down").await?;
    let without = crossfade.run(&["cutover", "--json"]).await?.json()?;
    let codes = without["refused"].as_array().context("a list")?;
    ensure!(codes.iter().any(|refused| refused["code"] == "way_back"), "{without:#}");
    let back = crossfade.run(&["rollback", "--json"]).await?;
    ensure!(back.status.code() == Some(1) && back.json()?["refused"][0]["code"] == "already", "{back:?}");
    let mut capture = crossfade.start(&["capture"])?;
    crossfade.wait_for_lag_zero(&mut capture, MINUTE).await?;
    apply.stop().await?;
    refused(&[], "apply_down").await?;
    ensure!(world.at_target("SELECT to_regclass('crossfade.journal') IS NULL")? == "t", "an epoch was begun");
    let mut apply = crossfade.start(&["apply"])?;
    let leads =
        |status: &Value| !status["warnings"].to_string().contains("apply_down") && status["phase"] == "following";
    crossfade.wait_for(&mut apply, "the lease", MINUTE, leads).await?;
    let (report, code) = cutover(&crossfade, &["--dry-run"]).await?;
    ensure!(code == Some(0) && report["outcome"] == "possible" && report["epoch"] == 0, "{report:#}");
    ensure!(world.at_source("SELECT to_regclass('crossfade.fence') IS NULL")? == "t", "a look has changed the source");
    capture.stop().await?;
    apply.stop().await
}

/// Stopped in the middle, overtaken, and continued: it changes nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_overtaken_changes_nothing() -> Result<()> {
    for hook in ["before_fence", "drained"] {
        let world = World::with_nats()?;
        world.at_source(SCHEMA)?;
        // The hook's parent is the cutover.
        let plan = world.plan().section(&format!("[cutover.hooks]\n{hook} = \"kill -STOP $PPID\""));
        let sleepy = Crossfade::new(&plan)?;
        let awake = Crossfade::new(&world.plan())?;
        let run = following(&awake).await?;
        awake.verified().await?;
        let mut stopped = sleepy.start(&["cutover", "--no-way-back", "--json"])?;
        until("the hook", MINUTE, || async { Ok(stopped.is_frozen()?.then_some(())) }).await?;
        let running = cutover(&awake, &[]).await?;
        ensure!(running.0["refused"][0]["code"] == "running", "{running:?}");
        let cancelled = awake.run(&["cutover", "--cancel", "--json"]).await?;
        ensure!(cancelled.status.code() == Some(0) && cancelled.json()?["outcome"] == "cancelled", "{cancelled:?}");
        world.at_source("INSERT INTO a (v) VALUES ('open again')")?;
        let (report, code) = cutover(&awake, &[]).await?;
        ensure!(code == Some(0) && report["outcome"] == "committed" && report["epoch"] == 2, "{report:#}");
        stopped.thaw()?;
        let late = stopped.finish(MINUTE).await?;
        ensure!(late.status.code() == Some(1), "{late:?}");
        expect_closed(&world, true, "INSERT INTO a (v) VALUES ('never')").await?;
        world.target.psql("app", "INSERT INTO a (v) VALUES ('here')")?;
        ensure!(
            world.at_target("SELECT string_agg(epoch || state, ',' ORDER BY epoch) FROM crossfade.journal")?
                == "1cancelled,2routed"
        );
        stop(run).await?;
    }
    Ok(())
}

/// It is in its hook when somebody opens the source behind it: that is no fence that somebody has tampered with.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cancelled_from_elsewhere_says_so() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let hook = "[cutover]\nhook_timeout = \"60s\"\n[cutover.hooks]\ndrained = \"touch there; until test -e go; do sleep 0.02; done\"";
    let crossfade = Crossfade::new(&world.plan().section(hook))?;
    let run = following(&crossfade).await?;
    crossfade.verified().await?;
    let file = |name: &str| crossfade.folder().join(name);
    let cutover = crossfade.start(&["cutover", "--no-way-back", "--json"])?;
    until("its hook", MINUTE, || async { Ok(file("there").exists().then_some(())) }).await?;
    let (report, code) = crossfade.says(&["cutover", "--cancel"]).await?;
    ensure!(code == Some(0) && report["outcome"] == "cancelled", "{report:#}");
    std::fs::write(file("go"), "")?;
    let late = cutover.finish(MINUTE).await?;
    ensure!(late.status.code() == Some(1) && late.error_code()? == "overtaken", "{late:?}");
    ensure!(late.stderr.contains("has cancelled it"), "{late:?}");
    world.at_source("INSERT INTO a (v) VALUES ('open')")?;
    stop(run).await
}

/// Nobody knows then whether it was decided.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_target_is_away_the_source_stays_closed() -> Result<()> {
    let mut world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let plan = world.plan().section(
        "[cutover]\nhook_timeout = \"60s\"\n[cutover.hooks]\ndrained = \"until test -e go; do sleep 0.02; done\"",
    );
    let crossfade = Crossfade::new(&plan)?;
    let run = following(&crossfade).await?;
    crossfade.verified().await?;
    let closed = crossfade.start(&["cutover", "--no-way-back", "--json", "--timeout", "60s"])?;
    until("the hook", MINUTE, || async {
        let there = world.at_target("SELECT to_regclass('crossfade.journal') IS NOT NULL")? == "t";
        Ok((there && world.at_target("SELECT state FROM crossfade.journal")? == "drained").then_some(()))
    })
    .await?;
    world.target.stop(Shutdown::Immediate)?;
    std::fs::write(crossfade.folder().join("go"), "")?;
    let ended = closed.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(2) && ended.json()?["outcome"] == "unknown", "{ended:?}");
    expect_closed(&world, true, "INSERT INTO a (v) VALUES ('not yet')").await?;
    world.target.boot()?;
    until("the source open again", MINUTE, || async { Ok(world.at_source("INSERT INTO a (v) VALUES ('again')").ok()) })
        .await?;
    ensure!(world.at_target("SELECT state FROM crossfade.journal")? == "cancelled");
    stop(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_once() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(writers::TABLE)?;
    let plan = world.plan().section("[cutover.hooks]\nroute = \"cp target.dsn now.tmp && mv now.tmp now.dsn\"");
    let crossfade = Crossfade::new(&plan)?;
    let file = |name: &str| crossfade.folder().join(name);
    std::fs::write(file("target.dsn"), world.target.socket_dsn("app"))?;
    std::fs::write(file("now.dsn"), world.source.socket_dsn("app"))?;
    let run = following(&crossfade).await?;
    let begun = Instant::now();
    let mut writers = Writers::default();
    for writer in 0..16 {
        writers.add(writer, Route::File(file("now.dsn")), Duration::from_millis(5));
    }
    let (source, target) = (world.source.port(), world.target.port());
    until("rows at the source", MINUTE, || async { Ok((writers.count(source, begun) > 1000).then_some(())) }).await?;
    crossfade.verified().await?;
    let (report, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(0), "{report:#}");
    println!("{report}");
    until("rows at the target", MINUTE, || async { Ok((writers.count(target, begun) > 1000).then_some(())) }).await?;
    let rows = writers.stop().await?;
    let change = writers::change(&rows, source, target)?;
    ensure!(!change.both, "both sides took writes at once");
    println!(
        "{} rows; between the last at the source and the first at the target {} ms, by its own word {} ms",
        rows.len(),
        change.gap.as_millis(),
        report["write_gap_ms"]
    );
    let fate = writers::fate(&world.target, &rows).await?;
    ensure!(fate == Fate::default(), "of the acknowledged rows at the target: {fate:?}");
    stop(run).await
}
