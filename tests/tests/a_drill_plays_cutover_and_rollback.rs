//! Given a log, and nothing but the log: a drill cuts over and rolls back between two copies while rows are written, and says how that went. Nothing of it is left, and nothing of the
//! live migration is touched.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::{captured_back, following};
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Cluster, Crossfade, Finished, Shutdown, World, compare, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

const ARGUMENTS: [&str; 4] = ["rehearse", "--drill", "--json", "--into"];

/// Drills with an empty database `name` of `cluster` as the target.
async fn drill(crossfade: &Crossfade, cluster: &Cluster, name: &str, more: &[&str]) -> Result<Finished> {
    cluster.create_db(name)?;
    attempt(crossfade, &cluster.url(name), more).await
}

async fn attempt(crossfade: &Crossfade, into: &str, more: &[&str]) -> Result<Finished> {
    crossfade.start(&[&ARGUMENTS[..], &[into], more].concat())?.finish(3 * MINUTE).await
}

/// What one that passed says.
fn passed(finished: &Finished) -> Result<Value> {
    let report = finished.json()?;
    let drill = &report["drill"];
    ensure!(finished.status.success() && drill["outcome"] == "passed", "{}\n{report:#}", finished.stderr);
    for name in ["cutover", "rollback"] {
        let switch = &drill[name];
        ensure!(switch["outcome"] == "committed" && switch["lost"] == 0, "{report:#}");
        ensure!(switch["acknowledged"].as_u64() > Some(90), "hardly anything was written: {report:#}");
        println!("{name}: {} ms, writers waited {} ms", switch["write_gap_ms"], switch["waited_ms"]);
        ensure!(switch["waited_ms"].as_i64() >= switch["write_gap_ms"].as_i64(), "{report:#}");
    }
    let phases: Vec<&str> =
        drill["phases"].as_array().context("phases")?.iter().filter_map(|phase| phase["phase"].as_str()).collect();
    ensure!(phases == ["follow", "verify", "cutover", "verify_reversing", "rollback", "verify_again"], "{phases:?}");
    ensure!(drill["left"].as_array().is_some_and(Vec::is_empty), "{report:#}");
    Ok(report)
}

async fn verified(crossfade: &Crossfade) -> Result<()> {
    let finished = crossfade.start(&["verify", "--json"])?.finish(2 * MINUTE).await?;
    ensure!(finished.status.success(), "{finished:?}");
    Ok(())
}

/// What crossfade has made on a server: across its databases, and in one of them.
fn made(cluster: &Cluster, database: &str) -> Result<String> {
    cluster.psql(
        database,
        "SELECT 'slot ' || slot_name FROM pg_replication_slots UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
         UNION ALL SELECT 'publication ' || pubname FROM pg_publication UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE 'crossfade%'
         UNION ALL SELECT 'trigger ' || tgname || ' ' || tgenabled::text FROM pg_trigger WHERE tgname LIKE 'crossfade%'
         UNION ALL SELECT 'database ' || datname FROM pg_database WHERE datname LIKE '%\\_source' ORDER BY 1",
    )
}

fn nothing_is_left(crossfade: &Crossfade, cluster: &Cluster, database: &str) -> Result<()> {
    let made = made(cluster, database)?;
    ensure!(made.is_empty(), "left on the server: {made}");
    let mut files = std::fs::read_dir(crossfade.state_dir())?.flatten();
    let folder = files.find(|file| file.file_name().to_string_lossy().starts_with("drill_"));
    ensure!(folder.is_none(), "left on disk: {folder:?}");
    Ok(())
}

/// Something of everything, from a log whose source and target are gone.
#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_on_copies() -> Result<()> {
    let mut world = World::with_nats()?;
    let third = Cluster::start()?;
    mixed::create(&world.source, "app")?;
    let writers = Writers::start(&world.source, "app", 2, 3).await?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = following(&crossfade).await?;
    until("changes", MINUTE, || async { Ok((writers.transactions() > 300).then_some(())) }).await?;
    writers.stop().await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    verified(&crossfade).await?;
    run.stop().await?;
    let before = (made(&world.source, "app")?, made(&world.target, "app")?, crossfade.status().await?["log"].clone());
    world.source.stop(Shutdown::Fast)?;
    world.target.stop(Shutdown::Fast)?;
    let report = passed(&drill(&crossfade, &third, "first", &[]).await?)?;
    ensure!(report["verdict"] == "equal" && report["into"].as_str().is_some_and(|into| into.ends_with("/first")));
    let drill = &report["drill"];
    ensure!(drill["source"].as_str().is_some_and(|source| source.ends_with("/first_source")), "{report:#}");
    ensure!(drill["load"]["tables"].as_u64() > Some(5) && drill["load"]["writers"] == 4, "{report:#}");
    // Nothing went wrong with any of the tables that it wrote to.
    let left_out = drill["load"]["left_out"].as_array().context("left out")?;
    let known = ["it has no key", "the plan says", "it has no rows"];
    let known =
        |table: &Value| table["why"].as_str().is_some_and(|why| known.iter().any(|known| why.starts_with(known)));
    ensure!(left_out.iter().all(known), "{left_out:#?}");
    nothing_is_left(&crossfade, &third, "first")?;
    world.source.boot()?;
    world.target.boot()?;
    compare::databases(&world.source.url("app"), &third.url("first")).await?.expect_equal()?;
    let after = (made(&world.source, "app")?, made(&world.target, "app")?, crossfade.status().await?["log"].clone());
    ensure!(before == after, "the live migration was touched: {before:?} {after:?}");
    Ok(())
}

/// Tables that somebody else makes, a source's copy on a server of its own, hooks that must not run, and a second time.
#[tokio::test(flavor = "multi_thread")]
async fn between_two_servers_with_tables_that_are_there() -> Result<()> {
    let world = World::embedded()?;
    let third = Cluster::start()?;
    let schema = "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n integer, twice integer GENERATED ALWAYS AS (n * 2) STORED);
        CREATE TABLE u (a text, b date, t bigint REFERENCES t ON DELETE CASCADE, PRIMARY KEY (a, b))";
    world.at_source(&format!(
        "{schema}; INSERT INTO t (n) SELECT i FROM generate_series(1, 60) i; INSERT INTO u SELECT 'it''s \\' || i, '2026-01-31', i FROM generate_series(1, 60) i"
    ))?;
    world.target.psql("app", schema)?;
    let crossfade = Crossfade::new(&world.plan().target_exists().section("[cutover.hooks]\nroute = \"touch hooked\""))?;
    let mut run = following(&crossfade).await?;
    world.at_source("UPDATE t SET n = -n WHERE id = 7")?;
    verified(&crossfade).await?;
    captured_back(&world).await?;
    let live = made(&world.target, "app")?;
    for (number, last) in [(1, false), (2, true)] {
        let (into, source) = (format!("into_{number}"), format!("played_{number}"));
        third.create_db(&source)?;
        third.psql(&source, schema)?;
        world.target.create_db(&into)?;
        world.target.psql(&into, schema)?;
        let finished = attempt(&crossfade, &world.target.url(&into), &["--drill-source", &third.url(&source)]).await?;
        let drill = passed(&finished)?["drill"].clone();
        ensure!(drill["source"].as_str().is_some_and(|name| name.ends_with(&format!("/{source}"))), "{drill:#}");
        ensure!(drill["load"]["tables"] == 2 && drill["load"]["left_out"].as_array().is_some_and(Vec::is_empty));
        ensure!(drill["cutover"]["last_write_gap_ms"].is_number() == last, "{drill:#}");
        ensure!(drill["phases"][0]["last_seconds"].is_number() == last, "{drill:#}");
        nothing_is_left(&crossfade, &third, &source)?;
        for (cluster, name) in [(&third, &source), (&world.target, &into)] {
            ensure!(cluster.psql(name, "SELECT count(*), sum(n), sum(twice) FROM t")? == "60|1816|3632", "{name}");
            ensure!(cluster.psql(name, "SELECT count(*) FROM u JOIN t ON t.id = u.t")? == "60", "{name}");
        }
    }
    ensure!(!std::fs::exists("hooked")? && !crossfade.folder().join("hooked").exists(), "a hook was run");
    ensure!(made(&world.target, "app")? == live, "the live target was touched");
    run.stop().await
}

/// A target that takes a row as another one, a source that takes no fence, one that refuses a table's writes, and one of whose writes a table's are lost; in between somebody loses
/// patience.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_and_taken_away() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, n integer); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    world.at_source("UPDATE t SET n = 0 WHERE id = 1")?;
    verified(&crossfade).await?;
    run.stop().await?;
    let third = Cluster::start()?;
    let failed = async |name: &str, more: &[&str]| -> Result<Value> {
        let finished = attempt(&crossfade, &third.url(name), more).await?;
        let report = finished.json()?;
        let outcome = &report["drill"]["outcome"];
        ensure!(finished.status.code() == Some(1) && outcome == "failed", "{}\n{report:#}", finished.stderr);
        ensure!(report["verdict"] == "equal", "{report:#}");
        nothing_is_left(&crossfade, &third, name)?;
        Ok(report["drill"].clone())
    };
    third.create_db("bent")?;
    third.psql(
        "bent",
        "CREATE FUNCTION public.bend() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN IF NEW.id = 42 THEN NEW.n := NEW.n + 1; END IF; RETURN NEW; END $$;
         CREATE FUNCTION public.bends() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
           IF to_regclass('public.t') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'bend') THEN
             CREATE TRIGGER bend BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.bend();
             ALTER TABLE public.t ENABLE ALWAYS TRIGGER bend;
           END IF; END $$;
         CREATE EVENT TRIGGER bends ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.bends();
         ALTER EVENT TRIGGER bends ENABLE ALWAYS",
    )?;
    let bent = failed("bent", &[]).await?;
    ensure!(bent["cutover"].is_null() && bent["why"].as_str().is_some_and(|why| why.contains("public.t")), "{bent:#}");
    third.create_db("open")?;
    third.create_db("planted")?;
    third.psql(
        "planted",
        "CREATE FUNCTION public.refuses() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
           IF to_regnamespace('crossfade_drill') IS NOT NULL AND current_database() = 'planted' THEN RAISE 'no trigger here'; END IF; END $$;
         CREATE EVENT TRIGGER refuses ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION public.refuses();
         ALTER EVENT TRIGGER refuses ENABLE ALWAYS",
    )?;
    let open = failed("open", &["--drill-source", &third.url("planted")]).await?;
    nothing_is_left(&crossfade, &third, "planted")?;
    ensure!(open["why"].as_str().is_some_and(|why| why.contains("no trigger here")), "{open:#}");
    ensure!(open["rollback"].is_null(), "{open:#}");
    third.create_db("refused")?;
    third.create_db("stubborn")?;
    third.psql(
        "stubborn",
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF to_regnamespace('crossfade_drill') IS NOT NULL AND current_database() = 'stubborn' THEN RAISE 'not this row'; END IF; RETURN NEW; END $$;
         CREATE FUNCTION public.refuses() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
           IF to_regclass('public.t') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'refuse') THEN
             CREATE TRIGGER refuse BEFORE UPDATE ON public.t FOR EACH ROW EXECUTE FUNCTION public.refuse();
             ALTER TABLE public.t ENABLE ALWAYS TRIGGER refuse;
           END IF; END $$;
         CREATE EVENT TRIGGER refuses ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.refuses();
         ALTER EVENT TRIGGER refuses ENABLE ALWAYS",
    )?;
    let refused = failed("refused", &["--drill-source", &third.url("stubborn")]).await?;
    let why = refused["why"].as_str().context("why")?;
    ensure!(why.contains("a write to table public.t") && why.contains("not this row"), "{refused:#}");
    third.create_db("deaf")?;
    third.create_db("mute")?;
    // The rows look the same on both sides, whether they get there or not.
    third.psql(
        "mute",
        "CREATE FUNCTION public.loses() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE name text; BEGIN
           SELECT p.pubname INTO name FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
            WHERE r.prrelid = to_regclass('public.t') AND r.prqual IS NULL AND current_database() = 'mute';
           IF name IS NOT NULL THEN
             EXECUTE format('ALTER PUBLICATION %I DROP TABLE ONLY public.t', name);
             EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY public.t WHERE (id < 0)', name);
           END IF; END $$;
         CREATE EVENT TRIGGER loses ON ddl_command_end WHEN TAG IN ('ALTER PUBLICATION') EXECUTE FUNCTION public.loses()",
    )?;
    let deaf = failed("deaf", &["--drill-source", &third.url("mute")]).await?;
    ensure!(deaf["cutover"]["outcome"] == "committed" && deaf["cutover"]["lost"] == 0, "{deaf:#}");
    ensure!(deaf["why"].as_str().is_some_and(|why| why.contains("a row of table public.t")), "{deaf:#}");
    third.create_db("late")?;
    let mut late = crossfade.start(&[&ARGUMENTS[..], &[&third.url("late")]].concat())?;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE active";
    until("both sides captured", MINUTE, || async { Ok((third.psql("late", slots)? == "2").then_some(())) }).await?;
    late.term()?;
    let finished = late.finish(MINUTE).await?;
    ensure!(finished.status.code() == Some(143), "{finished:?}");
    nothing_is_left(&crossfade, &third, "late")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_drilled_is_refused_before_anything_is_made() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    let code = async |crossfade: &Crossfade, into: &str, more: &[&str]| -> Result<String> {
        let finished = attempt(crossfade, into, more).await?;
        ensure!(finished.status.code() == Some(2), "{finished:?}");
        finished.error_code()
    };
    ensure!(code(&crossfade, &world.target_url(), &[]).await? == "target_not_empty", "into the target");
    let unlogical = Cluster::build().set("wal_level", "replica").start()?;
    unlogical.create_db("empty")?;
    ensure!(code(&crossfade, &unlogical.url("empty"), &[]).await? == "wal_level", "without logical decoding");
    world.target.create_db("empty")?;
    let empty = world.target.url("empty");
    ensure!(code(&crossfade, &empty, &["--drill-source", &empty]).await? == "plan_invalid", "one for both");
    ensure!(
        code(&crossfade, &empty, &["--drill-source", &world.source_url()]).await? == "target_not_empty",
        "the source"
    );
    world.target.create_db("empty_source")?;
    ensure!(code(&crossfade, &empty, &[]).await? == "target_not_empty", "where somebody has such a database");
    ensure!(world.target.psql("empty_source", "SELECT 1")? == "1", "somebody's database is gone");
    world.source.create_db("other")?;
    let several = Crossfade::new(&world.plan().source("other", &world.source.url("other"), &["public.*"]))?;
    ensure!(code(&several, &empty, &[]).await? == "plan_invalid", "of several sources");
    let made = world.target.psql("empty", "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'crossfade%'")?;
    ensure!(made == "0", "something was made in a database that is refused");
    run.stop().await
}
