//! Given a migration that follows: when a table is added to its plan, then it is copied and joined, and no change of it is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, World, follow, until};

const MINUTE: Duration = Duration::from_secs(60);
/// Long enough for a migration that does not wait to have copied a few rows.
const WITHOUT_BARRIER: Duration = Duration::from_secs(2);

const SCHEMA: &str = "CREATE TABLE a (id integer PRIMARY KEY, n integer DEFAULT 0);
    CREATE TABLE b (id integer PRIMARY KEY, a integer REFERENCES a, n integer DEFAULT 0);";
const ROWS: &str =
    "INSERT INTO a SELECT generate_series(1, 100); INSERT INTO b SELECT i, i FROM generate_series(1, 100) AS i;";

/// Follows table `a` for a while, then stops, and plans for `b` as well.
async fn followed(world: &World, exists: bool) -> Result<Crossfade> {
    world.at_source(&format!("{SCHEMA}{ROWS}"))?;
    let plan = if exists { world.plan().target_exists() } else { world.plan() };
    let mut crossfade = Crossfade::new(&plan.clone().tables(&["public.a"]))?;
    let mut run = follow::following(&crossfade).await?;
    world.at_source("UPDATE a SET n = 1")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    ensure!(exists || world.at_target("SELECT to_regclass('b') IS NULL")? == "t", "table b is there already");
    crossfade.replan(&plan)?;
    Ok(crossfade)
}

/// What it writes before ALTER PUBLICATION is not published, and no snapshot taken before its commit has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_open_across_the_change_of_the_publication_is_waited_for() -> Result<()> {
    let world = World::embedded()?;
    let crossfade = followed(&world, false).await?;
    let writer = world.source.client("app").await?;
    writer
        .batch_execute(
            "BEGIN; INSERT INTO b VALUES (200, 1); UPDATE b SET n = 5 WHERE id = 7; DELETE FROM b WHERE id = 8",
        )
        .await?;
    let mut run = crossfade.start(&["run"])?;
    let source = world.source.client("app").await?;
    let published = "SELECT 1 FROM pg_publication_tables WHERE tablename = 'b'";
    until("b is published", MINUTE, || async { Ok(source.query_opt(published, &[]).await?) }).await?;
    world.at_source("UPDATE a SET n = n + 1; INSERT INTO a VALUES (300); INSERT INTO b VALUES (300, 300)")?;
    let target = world.target.client("app").await?;
    let begun = "SELECT 1 FROM crossfade.tables WHERE name = 'b'";
    let early = tokio::time::timeout(
        WITHOUT_BARRIER,
        until("the copy of b", MINUTE, || async { Ok(target.query_opt(begun, &[]).await?) }),
    );
    ensure!(early.await.is_err(), "the copy of b has begun while a transaction older than its publication was open");
    writer.batch_execute("UPDATE b SET n = 6 WHERE id = 9; COMMIT").await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let keys = "SELECT count(*) FROM pg_constraint WHERE conrelid = to_regclass('b') AND convalidated";
    until("its keys", MINUTE, || async { Ok((world.at_target(keys)? == world.at_source(keys)?).then_some(())) })
        .await?;
    world.expect_equal().await?;
    ensure!(world.at_target("SELECT n FROM b WHERE id = 7")? == "5");
    run.stop().await
}

/// From the marker before its snapshot on: written to the old rows, or to none, they would be lost or divergence.
#[tokio::test(flavor = "multi_thread")]
async fn its_changes_are_held_until_its_copy_is_in() -> Result<()> {
    let world = World::embedded()?;
    world.at_target(SCHEMA)?;
    world.at_target("ALTER TABLE b DROP CONSTRAINT b_a_fkey")?;
    let crossfade = followed(&world, true).await?;
    // No row of b enters the target.
    let lock = world.target.client("app").await?;
    world.at_target(
        "CREATE FUNCTION waits() RETURNS bool LANGUAGE sql VOLATILE AS 'SELECT pg_advisory_xact_lock_shared(1) IS NOT NULL';
         ALTER TABLE b ADD CONSTRAINT waits CHECK (public.waits())",
    )?;
    lock.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(1)").await?;
    let mut run = crossfade.start(&["run"])?;
    let observer = world.target.client("app").await?;
    let waits = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%apply copy' AND wait_event_type = 'Lock'";
    until("the copy of b at the target", MINUTE, || async { Ok(observer.query_opt(waits, &[]).await?) }).await?;
    world.at_source(
        "UPDATE b SET n = n + 1; DELETE FROM b WHERE id = 1; INSERT INTO b VALUES (201, 1); UPDATE b SET id = 202 WHERE id = 2; UPDATE a SET n = n + 1",
    )?;
    let logged = "SELECT 1 FROM pg_stat_replication WHERE application_name LIKE '%tail%' AND write_lsn >= pg_current_wal_insert_lsn()";
    let source = world.source.client("app").await?;
    until("all of it in the log", MINUTE, || async { Ok(source.query_opt(logged, &[]).await?) }).await?;
    let status = crossfade.status().await?;
    ensure!(status["phase"] != "following", "it says to follow while b is not in: {status}");
    lock.batch_execute("COMMIT").await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let content = "SELECT (SELECT string_agg(a::text, ',' ORDER BY id) FROM a), (SELECT string_agg(b::text, ',' ORDER BY id) FROM b)";
    ensure!(world.at_source(content)? == world.at_target(content)?, "{}", world.at_target(content)?);
    ensure!(world.at_target("SELECT epoch FROM crossfade.tables WHERE name = 'b'")? == "1", "b was copied twice");
    run.stop().await
}
