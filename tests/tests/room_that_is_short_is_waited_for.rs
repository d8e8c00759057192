//! Given a target, a log or a local disk that has no room, or a server that refuses for a while: crossfade says so, loses nothing, and goes on by
//! itself. What does not pass by itself stops it. The table is in docs/errors.md.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, Running, World, follow, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Lets the target refuse rows of `t`, as a server does that lacks something.
fn refuses(world: &World, sqlstate: &str) -> Result<()> {
    world
        .at_target(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'nothing goes' USING ERRCODE = '{sqlstate}'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON t EXECUTE FUNCTION refuse(); ALTER TABLE t ENABLE ALWAYS TRIGGER refuse"
        ))
        .map(drop)
}

async fn says(run: &Running, text: &str) -> Result<()> {
    until(&format!("it says {text:?}"), MINUTE, || async { Ok(run.log_tail().contains(text).then_some(())) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_target() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('first')")?;
    let crossfade = world.crossfade()?;
    let mut run = follow::following(&crossfade).await?;
    // Disk full, out of memory, too many connections, a failing disk, a cancelled statement, a deadlock, a shutdown.
    for sqlstate in ["53100", "53200", "53300", "58030", "57014", "40P01", "57P01"] {
        refuses(&world, sqlstate)?;
        world.at_source(&format!("INSERT INTO t (v) VALUES ('{sqlstate}')"))?;
        says(&run, &format!("SQLSTATE {sqlstate}")).await?;
        ensure!(run.is_running()?, "{sqlstate} has ended it");
        ensure!(world.at_target(&format!("SELECT count(*) FROM t WHERE v = '{sqlstate}'"))? == "0");
        world.at_target("DROP FUNCTION refuse() CASCADE")?;
        crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
        world.expect_equal().await?;
    }
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_tables_are_copied() -> Result<()> {
    let world = World::embedded()?;
    let table = "CREATE TABLE t (id serial PRIMARY KEY, v text);";
    world.at_source(&format!("{table} INSERT INTO t (v) SELECT repeat('v', i) FROM generate_series(1, 1000) AS i"))?;
    world.at_target(&format!(
        "CREATE FUNCTION goes() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'nothing goes' USING ERRCODE = '53100'; END $$;
         {table} ALTER TABLE t ADD CHECK (public.goes())"
    ))?;
    let crossfade = Crossfade::new(&world.plan().target_exists())?;
    let mut run = crossfade.start(&["run"])?;
    says(&run, "SQLSTATE 53100").await?;
    ensure!(run.is_running()? && world.at_target("SELECT count(*) FROM t")? == "0");
    world.at_target("DROP FUNCTION goes() CASCADE")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn but_not_where_a_function_of_the_target_refuses_a_row() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('first')")?;
    let crossfade = world.crossfade()?;
    let run = follow::following(&crossfade).await?;
    refuses(&world, "P0001")?;
    world.at_source("INSERT INTO t (v) VALUES ('second')")?;
    let finished = run.finish(MINUTE).await?;
    ensure!(finished.status.code() == Some(1), "{finished:?}");
    ensure!(finished.stderr.contains("public.t") && finished.stderr.contains("id = 2"), "{}", finished.stderr);
    ensure!(world.at_target("SELECT count(*) FROM t")? == "1");
    Ok(())
}

/// 1,000 rows of a kilobyte.
const MEGABYTE: &str = "INSERT INTO t (v) SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1000) AS i, generate_series(1, 32) GROUP BY i";

#[tokio::test(flavor = "multi_thread")]
async fn on_the_disk_of_the_embedded_log() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('first')")?;
    // 256 MiB of it stay free.
    let crossfade = world.crossfade()?.on_a_disk_of(300);
    let mut run = crossfade.start(&["run"])?;
    world.joined().await?;
    for _ in 0..80 {
        world.at_source(MEGABYTE)?;
    }
    says(&run, "the log is full").await?;
    ensure!(run.is_running()?, "it ended");
    ensure!(world.at_target("SELECT count(*) FROM t")? != "80001", "all of it fitted in: nothing is tested");
    crossfade.enlarge(&run, 2000)?;
    until("the rest", MINUTE, || async { Ok(Some(world.expect_equal().await?)) }).await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_disk_of_the_offset_store() -> Result<()> {
    let source = crossfade_tests::Cluster::build().set("logical_decoding_work_mem", "64kB").start()?;
    let nats = crossfade_tests::Nats::start()?;
    let world = World::of(source, crossfade_tests::Cluster::start()?, Some(nats))?;
    world.at_source("CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('first')")?;
    // 64 MiB of it stay free, 16 MiB of transactions in progress stay in memory.
    let crossfade = Crossfade::new(&world.plan().section("[limits]\nmemory = \"64MiB\""))?.on_a_disk_of(100);
    let mut run = crossfade.start(&["run"])?;
    world.joined().await?;
    let large = format!("BEGIN; {} COMMIT", format!("{MEGABYTE}; ").repeat(80));
    world.at_source(&large)?;
    says(&run, "the disk of the offset store").await?;
    ensure!(run.is_running()?, "it ended");
    ensure!(world.at_target("SELECT count(*) FROM t")? == "1");
    crossfade.enlarge(&run, 2000)?;
    until("the rest", MINUTE, || async { Ok(Some(world.expect_equal().await?)) }).await?;
    run.stop().await
}
