//! Given a log, and nothing but the log: a rehearsal fills an empty database from it, stands where verifies have compared the tables, and says whether that database holds the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Cluster, Crossfade, Finished, Shutdown, World, compare, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

/// Rehearses into an empty database `name` of `cluster`.
async fn rehearse(crossfade: &Crossfade, cluster: &Cluster, name: &str, arguments: &[&str]) -> Result<Value> {
    cluster.create_db(name)?;
    let finished = attempt(crossfade, &cluster.url(name), arguments).await?;
    let report = finished.json()?;
    let expected = i32::from(report["verdict"] != "equal");
    ensure!(
        report["verdict"].is_string() && finished.status.code() == Some(expected),
        "a verdict and exit code {expected} expected: {finished:?}"
    );
    Ok(report)
}

async fn attempt(crossfade: &Crossfade, into: &str, arguments: &[&str]) -> Result<Finished> {
    crossfade.start(&[&["rehearse", "--json", "--into", into], arguments].concat())?.finish(2 * MINUTE).await
}

async fn verified(crossfade: &Crossfade, arguments: &[&str]) -> Result<()> {
    let finished = crossfade.start(&[&["verify", "--json"], arguments].concat())?.finish(2 * MINUTE).await?;
    ensure!(finished.status.success(), "{finished:?}");
    Ok(())
}

/// The tables with a verdict.
fn with<'a>(report: &'a Value, verdict: &str) -> Vec<&'a str> {
    let tables = report["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
    tables.iter().filter(|table| table["verdict"] == verdict).filter_map(|table| table["table"].as_str()).collect()
}

/// Under load, with something of everything; then from a log whose source and target are gone.
async fn once_more(mut world: World) -> Result<()> {
    let third = Cluster::start()?;
    mixed::create(&world.source, "app")?;
    let writers = Writers::start(&world.source, "app", 3, 11).await?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = following(&crossfade).await?;
    let more = async |writers: &Writers| {
        let now = writers.transactions();
        until("more changes", MINUTE, || async { Ok((writers.transactions() > now + 500).then_some(())) }).await
    };
    more(&writers).await?;
    verified(&crossfade, &[]).await?;
    more(&writers).await?;
    let report = rehearse(&crossfade, &third, "first", &[]).await?;
    ensure!(report["verdict"] == "equal" && report["last"].is_null(), "{report:#}");
    ensure!(report["sources"][0]["transactions"].as_u64() > Some(0), "{report:#}");
    let names: Vec<&str> = report["phases"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter_map(|phase| phase["phase"].as_str())
        .collect();
    ensure!(names == ["log", "schema", "copy", "indexes", "tail", "foreign_keys", "compare"], "{names:?}");
    writers.stop().await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    verified(&crossfade, &[]).await?;
    run.stop().await?;
    drop(run);
    world.source.stop(Shutdown::Immediate)?;
    world.target.stop(Shutdown::Immediate)?;
    let report = rehearse(&crossfade, &third, "second", &[]).await?;
    ensure!(report["verdict"] == "equal" && report["last"]["seconds"].as_f64() > Some(0.0), "{report:#}");
    ensure!(report["phases"][2]["last_seconds"].is_number(), "{report:#}");
    let origins = third.psql("second", "SELECT count(*) FROM pg_replication_origin")?;
    ensure!(origins == "0", "{origins} origins are left");
    world.source.boot()?;
    compare::databases(&world.source.url("app"), &third.url("second")).await?.expect_equal()?;
    let differences = compare::schemas(&world.source.url("app"), &third.url("second")).await?;
    ensure!(differences.is_empty(), "definitions differ: {differences:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_over_nats() -> Result<()> {
    once_more(World::with_nats()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_with_the_embedded_log() -> Result<()> {
    once_more(World::embedded()?).await
}

/// More tables than one fence takes, while somebody writes: what they were is recorded as of several commits, and each is looked at where it was so.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_were_compared_at_different_commits() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "DO $$ BEGIN FOR i IN 1..150 LOOP
           EXECUTE format('CREATE TABLE t%s (id integer PRIMARY KEY, n integer)', i);
           EXECUTE format('INSERT INTO t%s SELECT g, 0 FROM generate_series(1, 20) g', i);
         END LOOP; END $$",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (client, told) = (world.source.client("app").await?, Arc::clone(&stop));
    let writer = tokio::spawn(async move {
        let mut number = 0;
        while !told.load(Ordering::Relaxed) {
            number += 1;
            let sql = format!(
                "UPDATE t{} SET n = {number} WHERE id = {}; UPDATE t150 SET n = n + 1",
                1 + number % 150,
                1 + number % 20
            );
            client.batch_execute(&sql).await?;
        }
        Ok::<_, anyhow::Error>(number)
    });
    verified(&crossfade, &[]).await?;
    stop.store(true, Ordering::Relaxed);
    ensure!(writer.await?? > 100, "nobody wrote");
    let report = rehearse(&crossfade, &world.target, "rehearsal", &[]).await?;
    ensure!(with(&report, "equal").len() == 150, "{report:#}");
    let tables = report["tables"].as_array().context("tables")?;
    let commits: std::collections::BTreeSet<&str> = tables.iter().filter_map(|table| table["lsn"].as_str()).collect();
    ensure!(commits.len() > 1, "all at one commit: {commits:?}");
    run.stop().await
}

/// A database that does not take a row as it comes: that table, and of its parts the one with the row.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_came_out_different_is_found() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, n integer, fill text); CREATE TABLE u (id integer PRIMARY KEY);
         INSERT INTO t SELECT i, i, repeat(md5(i::text), 5) FROM generate_series(1, 300000) i; INSERT INTO u VALUES (1)",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    world.at_source("UPDATE t SET n = 0 WHERE id = 7; INSERT INTO u VALUES (2)")?;
    verified(&crossfade, &[]).await?;
    world.target.create_db("bent")?;
    world.target.psql(
        "bent",
        "CREATE FUNCTION public.bend() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN IF NEW.id = 242424 THEN NEW.n := NEW.n + 1; END IF; RETURN NEW; END $$;
         CREATE FUNCTION public.bends() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
           IF to_regclass('public.t') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'bend') THEN
             CREATE TRIGGER bend BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.bend();
             ALTER TABLE public.t ENABLE ALWAYS TRIGGER bend;
           END IF; END $$;
         CREATE EVENT TRIGGER bends ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.bends();
         ALTER EVENT TRIGGER bends ENABLE ALWAYS",
    )?;
    let finished = attempt(&crossfade, &world.target.url("bent"), &[]).await?;
    let report = finished.json()?;
    ensure!(finished.status.code() == Some(1) && report["verdict"] == "different", "{finished:?}");
    ensure!(with(&report, "different") == ["public.t"] && with(&report, "equal") == ["public.u"], "{report:#}");
    let table = &report["tables"][0];
    let different = table["different"].as_array().context("parts")?;
    ensure!(table["parts"].as_u64() > Some(1) && different.len() == 1, "{report:#}");
    let bound = |name: &str| different[0][name].as_str().map(|text| text.parse::<i64>()).transpose();
    ensure!(
        bound("low")?.is_none_or(|low| low <= 242_424) && bound("high")?.is_none_or(|high| high > 242_424),
        "{report:#}"
    );
    ensure!(different[0]["rows"] == different[0]["recorded_rows"], "{report:#}");
    // What is left is the application's, and nobody is kept from writing.
    let left = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade') + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%')";
    ensure!(world.target.psql("bent", left)? == "0" && world.target.psql("bent", "DELETE FROM u").is_ok());
    // The same log into a database that takes it as it is.
    ensure!(rehearse(&crossfade, &world.target, "plain", &[]).await?["verdict"] == "equal");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_database_is_filled_and_only_by_what_was_recorded() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    let crossfade = world.crossfade()?;
    let code = async |into: &str| -> Result<String> {
        let finished = attempt(&crossfade, into, &[]).await?;
        ensure!(finished.status.code() == Some(2), "{finished:?}");
        finished.error_code()
    };
    world.target.create_db("empty")?;
    let empty = world.target.url("empty");
    ensure!(code(&empty).await? == "nothing_recorded", "without a log");
    let mut run = following(&crossfade).await?;
    ensure!(code(&empty).await? == "nothing_recorded", "without a verify");
    world.at_target("UPDATE t SET id = 2")?;
    let finished = crossfade.run(&["verify"]).await?;
    ensure!(finished.status.code() == Some(1), "{finished:?}");
    ensure!(code(&empty).await? == "nothing_recorded", "after a verify that found a difference");
    world.at_target("UPDATE t SET id = 1")?;
    verified(&crossfade, &[]).await?;
    ensure!(code(&world.target_url()).await? == "target_not_empty", "into the target");
    ensure!(code(&world.source_url()).await? == "target_not_empty", "into the source");
    world.target.create_db("used")?;
    world.target.psql("used", "CREATE TABLE t (id integer)")?;
    ensure!(code(&world.target.url("used")).await? == "target_not_empty", "where a table is");
    let untouched = world.target.psql("used", "SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade'")?;
    ensure!(untouched == "0", "something was made in a database that is refused");
    let finished = attempt(&crossfade, &empty, &[]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    ensure!(code(&empty).await? == "target_not_empty", "where a rehearsal has been");
    // The target still follows, and the log takes what comes.
    world.at_source("INSERT INTO t VALUES (3)")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await?;
    let before = crossfade.status().await?["log"].clone();
    ensure!(before["messages"].as_u64() > Some(0), "{before}");
    ensure!(rehearse(&crossfade, &world.target, "again", &[]).await?["verdict"] == "equal");
    let after = crossfade.status().await?["log"].clone();
    ensure!(before == after, "a rehearsal has changed the log: {before} {after}");
    Ok(())
}

/// Many commits in one message of the log, and a value that takes several: the end lies in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn until_a_commit_or_a_time_it_is_what_the_source_was() -> Result<()> {
    let world = World::with_nats()?;
    world
        .at_source("CREATE TABLE t (id integer PRIMARY KEY, n integer, body text); INSERT INTO t VALUES (0, 0, '')")?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    // All of it waits for capture, and comes at once.
    run.stop().await?;
    let print = "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM t";
    let client = world.source.client("app").await?;
    let mut points = Vec::new();
    for number in 1..=300 {
        client
            .batch_execute(&format!(
                "UPDATE t SET n = {number} WHERE id % 7 = 0; INSERT INTO t VALUES ({number}, 0, 'x')"
            ))
            .await?;
        if number == 200 {
            // Does not compress.
            client.batch_execute("UPDATE t SET body = (SELECT string_agg(md5(i::text || random()), '') FROM generate_series(1, 100000) i) WHERE id = 100").await?;
        }
        if [1, 137, 200, 201, 299].contains(&number) {
            let lsn = world.at_source("SELECT pg_current_wal_insert_lsn()")?;
            let time = world.at_source(
                "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
            )?;
            points.push((number, lsn, time, world.at_source(print)?));
        }
    }
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    for (number, lsn, time, was) in &points {
        for (name, end) in [("lsn", lsn), ("time", time)] {
            let database = format!("{name}_{number}");
            let report = rehearse(&crossfade, &world.target, &database, &["--until", end]).await?;
            ensure!(report["verdict"] == "inconclusive" && report["tables"][0]["lsn"].is_null(), "{report:#}");
            let is = world.target.psql(&database, print)?;
            ensure!(is == *was, "until {name} {end}, after {number}: {is} and not {was}");
        }
    }
    // A verify beside the end is found, one behind it is not.
    verified(&crossfade, &[]).await?;
    let behind = world.at_source("SELECT pg_current_wal_insert_lsn()")?;
    let report = rehearse(&crossfade, &world.target, "behind", &["--until", &behind]).await?;
    ensure!(report["verdict"] == "equal", "{report:#}");
    let report = rehearse(&crossfade, &world.target, "before", &["--until", &points[0].1]).await?;
    ensure!(report["verdict"] == "inconclusive", "{report:#}");
    // Before copy and tail are joined there is nothing that would be consistent.
    world.target.create_db("early")?;
    let finished = attempt(&crossfade, &world.target.url("early"), &["--until", "0/1"]).await?;
    ensure!(finished.error_code()? == "nothing_recorded", "{finished:?}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_copied_again_has_to_be_compared_again() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1); CREATE TABLE u (id integer PRIMARY KEY); INSERT INTO u VALUES (1)",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    world.at_source("INSERT INTO t VALUES (2)")?;
    verified(&crossfade, &[]).await?;
    world.at_source("INSERT INTO t VALUES (3); INSERT INTO u VALUES (2)")?;
    let finished = crossfade.run(&["recopy", "public.t"]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    until("the second copy", MINUTE, || async {
        let epoch = world
            .at_target("SELECT epoch = 2 AND joined FROM crossfade.tables, crossfade.checkpoint WHERE name = 't'")?;
        Ok((epoch == "t").then_some(()))
    })
    .await?;
    let report = rehearse(&crossfade, &world.target, "first", &[]).await?;
    ensure!(with(&report, "inconclusive") == ["public.t"] && with(&report, "equal") == ["public.u"], "{report:#}");
    verified(&crossfade, &["--table", "public.t"]).await?;
    let report = rehearse(&crossfade, &world.target, "second", &[]).await?;
    ensure!(with(&report, "equal") == ["public.t", "public.u"], "{report:#}");
    // Everything, over a tail that starts anew.
    run.stop().await?;
    let finished = crossfade.run(&["recopy"]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    world.at_source("DELETE FROM t WHERE id = 1")?;
    let mut run = crossfade.start(&["run"])?;
    until("another copy of everything", MINUTE, || async {
        let anew = "SELECT tail_begin > 0 AND joined AND (SELECT count(*) FROM public.t) = 2 FROM crossfade.checkpoint";
        Ok((world.at_target(anew)? == "t").then_some(()))
    })
    .await?;
    world.at_source("INSERT INTO t VALUES (4)")?;
    verified(&crossfade, &[]).await?;
    let report = rehearse(&crossfade, &world.target, "third", &[]).await?;
    ensure!(with(&report, "equal") == ["public.t", "public.u"], "{report:#}");
    ensure!(world.target.psql("third", "SELECT string_agg(id::text, ' ' ORDER BY id) FROM t")? == "2 3 4");
    run.stop().await
}

/// A schema that somebody else makes, and rows that were put right since the copy.
#[tokio::test(flavor = "multi_thread")]
async fn into_tables_that_are_there() -> Result<()> {
    let world = World::with_nats()?;
    let schema = "CREATE TABLE t (id integer PRIMARY KEY, n integer)";
    world.at_source(&format!("{schema}; INSERT INTO t SELECT i, i FROM generate_series(1, 100) i"))?;
    world.target.psql("app", schema)?;
    let crossfade = Crossfade::new(&world.plan().target_exists())?;
    let mut run = following(&crossfade).await?;
    world.at_target("UPDATE t SET n = 0 WHERE id = 7")?;
    let finished = crossfade.run(&["verify", "--json"]).await?;
    let file = finished.json()?["rows_file"].as_str().context("a file of rows")?.to_owned();
    let finished = crossfade.run(&["recopy", "--rows", &file]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    world.at_source("UPDATE t SET n = -n WHERE id = 7")?;
    verified(&crossfade, &[]).await?;
    world.at_source("DELETE FROM t")?;
    let into = async |name: &str, sql: &str| -> Result<Finished> {
        world.target.create_db(name)?;
        world.target.psql(name, sql)?;
        attempt(&crossfade, &world.target.url(name), &[]).await
    };
    let finished = into("there", schema).await?;
    ensure!(finished.status.success() && finished.json()?["verdict"] == "equal", "{finished:?}");
    ensure!(world.target.psql("there", "SELECT sum(n) FROM t")? == "5036");
    let finished = into("filled", &format!("{schema}; INSERT INTO t VALUES (1, 1)")).await?;
    ensure!(finished.error_code()? == "target_not_empty", "{finished:?}");
    let finished = into("lacking", "SELECT 1").await?;
    ensure!(finished.error_code()? == "target_missing", "{finished:?}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn against_the_target_as_it_is_while_it_follows() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let writers = Writers::start(&world.source, "app", 2, 5).await?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = following(&crossfade).await?;
    let report = rehearse(&crossfade, &world.target, "first", &["--against", "target"]).await?;
    ensure!(report["verdict"] == "equal" && report["against"] == "target", "{report:#}");
    writers.stop().await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.at_target("DELETE FROM customers WHERE ctid = (SELECT min(ctid) FROM customers)")?;
    let report = rehearse(&crossfade, &world.target, "second", &["--against", "target"]).await?;
    ensure!(with(&report, "different") == ["public.customers"], "{report:#}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_each_where_it_was_compared() -> Result<()> {
    let world = World::with_nats()?;
    world.source.create_db("other")?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    world.source.psql("other", "CREATE TABLE u (id integer PRIMARY KEY); INSERT INTO u VALUES (1)")?;
    let plan = world.plan().source("other", &world.source.url("other"), &["public.*"]);
    let crossfade = Crossfade::new(&plan)?;
    let mut run = following(&crossfade).await?;
    world.at_source("INSERT INTO t VALUES (2)")?;
    verified(&crossfade, &[]).await?;
    world.source.psql("other", "INSERT INTO u VALUES (2)")?;
    verified(&crossfade, &["--table", "public.u"]).await?;
    world.at_source("INSERT INTO t VALUES (3)")?;
    world.source.psql("other", "INSERT INTO u VALUES (3)")?;
    let report = rehearse(&crossfade, &world.target, "rehearsal", &[]).await?;
    ensure!(with(&report, "equal") == ["public.u", "public.t"], "{report:#}");
    let rows = world.target.psql("rehearsal", "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)")?;
    ensure!(rows == "2|2", "{rows}");
    run.stop().await
}
