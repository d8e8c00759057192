//! Given writers that do not stop: verify compares both sides at one instant, and finds them equal.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::chaos::{self, Load};
use crossfade_tests::follow::following;
use crossfade_tests::standby::{self, HeldCommit};
use crossfade_tests::{Cluster, Crossfade, Nats, Pgbench, PlanFile, World, mixed, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

/// What `crossfade verify --json` says, of an exit code that fits.
async fn verify(crossfade: &Crossfade, arguments: &[&str]) -> Result<Value> {
    // Beside as much load as there is here it may take its time.
    let finished = crossfade.start(&[&["verify", "--json"], arguments].concat())?.finish(4 * MINUTE).await?;
    let document = finished.json()?;
    let expected = i32::from(document["verdict"] != "equal");
    ensure!(finished.status.code() == Some(expected), "exit code {expected} expected: {finished:?}");
    Ok(document)
}

fn expect_equal(report: &Value) -> Result<()> {
    let tables = report["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let other: Vec<&Value> = tables.iter().filter(|table| table["verdict"] != "equal").collect();
    ensure!(report["verdict"] == "equal" && other.is_empty() && !tables.is_empty(), "{other:#?} of {report}");
    Ok(())
}

fn plan(world: &World) -> PlanFile {
    chaos::identities(world.plan()).identity("public.pgbench_history", "insert_only")
}

/// As many as an impatient person would start. What the source shows is then, now and again, no prefix of what it committed: by chance, and in some of them
/// because a commit waits for its standby all the time.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_in_a_row() -> Result<()> {
    // Where commits wait for the disk, those that do not wait overtake them.
    let source =
        Cluster::build().durable().set("max_prepared_transactions", "20").set("deadlock_timeout", "200ms").start()?;
    let world = World::of(source, Cluster::start()?, Some(Nats::start()?))?;
    mixed::create(&world.source, "app")?;
    world.at_source(chaos::SCHEMA)?;
    // Not as fast as they can: what they take of the processors, the verifies lack.
    let bench = Pgbench::new(&world.source, "app").clients(8).rate(150);
    bench.fill(2)?;
    let crossfade = Crossfade::new(&plan(&world))?;
    let mut run = following(&crossfade).await?;
    let load = Load::start(&world.source.socket_dsn("app"), 11, 3);
    let mut pgbench = bench.start(600)?;
    let hasty = "SET synchronous_commit = off;\nINSERT INTO trace (what) VALUES ('hasty');\n";
    let hasty = Pgbench::new(&world.source, "app").clients(2).rate(100).script(hasty).start(600)?;
    standby::require_absent(&world.source, "app").await?;
    let (mut no_prefix, mut rechecked, mut held, mut waiting) = (0, 0, Vec::new(), None);
    for number in 1..=20 {
        match number {
            8 => {
                let sql = "INSERT INTO trace (what) VALUES ('waits')";
                waiting = Some(HeldCommit::start(&world.source, "app", sql).await?);
            }
            11 => {
                ensure!(no_prefix >= 3, "a commit waited during three verifies, {no_prefix} were no prefix");
                standby::release(&world.source).await?;
            }
            _ => {}
        }
        let report = verify(&crossfade, &[]).await?;
        expect_equal(&report)?;
        no_prefix += report["no_prefix"].as_u64().unwrap_or_default();
        let tables = report["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
        rechecked += tables.iter().filter_map(|table| table["rechecked"].as_u64()).sum::<u64>();
        held.push(report["held_ms"].as_u64().unwrap_or(u64::MAX));
        println!(
            "verify {number}: {:.1} s, held {} ms",
            report["seconds"].as_f64().unwrap_or_default(),
            held[number - 1]
        );
        load.expect_alive()?;
        ensure!(pgbench.is_running()? && run.is_running()?, "something has ended");
    }
    println!("no prefix: {no_prefix}, rows rechecked: {rechecked}, held: {held:?} ms");
    ensure!(rechecked > 0, "nothing lay between the two sides: nothing was shown");
    if let Some(waiting) = waiting {
        waiting.done().await?;
    }
    // The plan's bound; how long it is in fact depends on the machine.
    ensure!(held.iter().all(|ms| *ms <= 5000), "the tail was held for longer than the plan allows: {held:?}");
    pgbench.stop()?;
    hasty.stop()?;
    load.stop(&world.source.socket_dsn("app")).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

/// Committed in the WAL, applied at the target, and seen by nobody at the source: for as long as a standby does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn commits_between_wal_and_visibility() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, v text, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         INSERT INTO t SELECT i, 'v', repeat('x', 3000) FROM generate_series(1, 1000) i;
         CREATE TABLE keyless (a integer, b text); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES (1, 'a'), (1, 'a'), (2, NULL)",
    )?;
    let crossfade = Crossfade::new(&world.plan().identity("public.keyless", "full"))?;
    let mut run = following(&crossfade).await?;
    standby::require_absent(&world.source, "app").await?;
    // An insert, a delete, a change of a key that leaves a large value as it was, updates; in a table without key as well.
    let held = HeldCommit::start(
        &world.source,
        "app",
        "INSERT INTO t VALUES (5000, 'new', 'b'); DELETE FROM t WHERE id = 1; UPDATE t SET id = 6000 WHERE id = 2; UPDATE t SET v = 'w' WHERE id = 3;
         UPDATE t SET v = 'x' WHERE id = 6000; DELETE FROM keyless WHERE b IS NULL; INSERT INTO keyless VALUES (3, 'c'); UPDATE keyless SET b = 'z' WHERE ctid = '(0,1)'",
    )
    .await?;
    until("the held commit at the target", MINUTE, || async {
        Ok((world.at_target("SELECT v FROM t WHERE id = 5000")? == "new").then_some(()))
    })
    .await?;
    ensure!(world.at_source("SELECT count(*) FROM t WHERE id = 5000")? == "0", "it is visible at the source");
    // Later ones that are seen: the log's part that verify reads does not begin before the held one.
    for number in 0..50 {
        world.at_source(&format!(
            "UPDATE t SET v = 'later {number}' WHERE id = 10; INSERT INTO keyless VALUES (7, '{number}')"
        ))?;
    }
    for _ in 0..2 {
        let report = verify(&crossfade, &[]).await?;
        expect_equal(&report)?;
        ensure!(report["no_prefix"] == 1, "{report}");
        let t = report["tables"].as_array().and_then(|tables| tables.iter().find(|table| table["table"] == "public.t"));
        ensure!(t.is_some_and(|t| t["rechecked"].as_u64() >= Some(5)), "{report}");
    }
    // What is wrong in such a row is found all the same.
    world.at_target("UPDATE t SET big = 'y' WHERE id = 6000; DELETE FROM keyless WHERE a = 3")?;
    let report = verify(&crossfade, &[]).await?;
    let of = |name: &str, key: &str| -> Option<u64> {
        report["tables"].as_array()?.iter().find(|table| table["table"] == name)?[key].as_u64()
    };
    ensure!(of("public.t", "different") == Some(1) && of("public.keyless", "missing") == Some(1), "{report:#}");
    ensure!(of("public.t", "missing") == Some(0) && of("public.t", "extra") == Some(0), "{report:#}");
    standby::release(&world.source).await?;
    held.done().await?;
    run.stop().await
}

/// Its lock keeps out the TRUNCATE, or the TRUNCATE keeps it out; neither sees the table empty where it is not, and the application waits for no longer
/// than the plan says.
#[tokio::test(flavor = "multi_thread")]
async fn across_truncates() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, v text); CREATE TABLE u (id integer PRIMARY KEY REFERENCES t)",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    let script = "TRUNCATE t, u;\nINSERT INTO t SELECT i, md5(random()::text) FROM generate_series(1, 2000) i;\nINSERT INTO u SELECT id FROM t;\n";
    let mut pgbench = Pgbench::new(&world.source, "app").clients(1).script(script).start(300)?;
    for _ in 0..5 {
        expect_equal(&verify(&crossfade, &[]).await?)?;
        ensure!(pgbench.is_running()?, "the load has ended");
    }
    pgbench.stop()?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

/// It says what it waits for, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_the_application_keeps_is_told() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    let crossfade = Crossfade::new(&world.plan())?;
    let mut run = following(&crossfade).await?;
    let application = world.source.client("app").await?;
    application.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
    let verify = crossfade.start(&["verify", "--json"])?;
    until("its word", MINUTE, || async { Ok(verify.log_tail().contains("lock timeout").then_some(())) }).await?;
    application.batch_execute("COMMIT").await?;
    expect_equal(&verify.finish(MINUTE).await?.json()?)?;
    run.stop().await
}

/// Whatever its sessions are called.
#[tokio::test(flavor = "multi_thread")]
async fn it_gives_way_to_the_application() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE big (id bigint PRIMARY KEY, filler text); INSERT INTO big SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 100000) i;
         CREATE TABLE small (id integer PRIMARY KEY); INSERT INTO small VALUES (1)",
    )?;
    let plan = PlanFile::new("shop", &format!("{}?application_name=etl", world.source_url()), &world.target_url());
    let plan = plan.section("[limits]\nlock_timeout = \"500ms\"\n[verify]\nrows_per_second = 10000");
    let crossfade = Crossfade::new(&plan)?;
    let mut run = following(&crossfade).await?;
    let mut slow = crossfade.start(&["verify", "--json"])?;
    let locked = "SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid)
                   WHERE relation = 'small'::regclass AND granted AND application_name LIKE 'etl verify%'";
    until("its lock", MINUTE, || async { Ok((world.at_source(locked)? == "t").then_some(())) }).await?;
    world.at_source("TRUNCATE small")?;
    ensure!(slow.is_running()?, "it was through before the application got its lock");
    let finished = slow.finish(MINUTE).await?;
    expect_equal(&finished.json()?)?;
    run.stop().await
}
