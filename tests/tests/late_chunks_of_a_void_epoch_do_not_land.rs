//! Given a copy that starts over while chunks of its first try are on their way: the table has no key, so that a chunk that landed
//! nevertheless would double its rows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Crossfade, World, until};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

fn keyless(world: &World, rows: u32) -> Result<()> {
    let sql = format!(
        "CREATE TABLE t (a integer, v text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, {rows}) AS i"
    );
    world.at_source(&sql).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_new_epoch_begins_under_a_worker_that_has_claimed_one() -> Result<()> {
    let world = World::embedded()?;
    keyless(&world, 50_000)?;
    world.at_target(
        "CREATE FUNCTION waits() RETURNS bool LANGUAGE sql VOLATILE AS 'SELECT pg_advisory_xact_lock_shared(1) IS NOT NULL';
         CREATE TABLE t (a integer, v text, CHECK (public.waits()))",
    )?;
    let plan = world.plan().target_exists().identity("public.t", "full").section("[limits]\ncopy_workers = 1");
    let crossfade = Crossfade::new(&plan)?;
    // The one worker claims its first chunks, and waits.
    let lock = world.target.client("app").await?;
    lock.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(1)").await?;
    let mut run = crossfade.start(&["run"])?;
    let observer = world.target.client("app").await?;
    let waits = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%apply copy' AND wait_event_type = 'Lock'";
    until("a worker with chunks in its hands", MINUTE, || async { Ok(observer.query_opt(waits, &[]).await?) }).await?;
    // What it has not claimed yet; the rest of the table is still coming.
    let more = "SELECT 1 FROM crossfade.copied HAVING count(*) >= 6";
    until("more chunks", MINUTE, || async { Ok(observer.query_opt(more, &[]).await?) }).await?;
    // The next epoch is announced and begins, as by the one who follows the control records, when these are in; it is not visible yet
    // when the worker claims the next ones.
    let next = world.target.client("app").await?;
    let pid: i32 = next.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let beginning = tokio::spawn(async move {
        next.batch_execute(
            "SET session_replication_role = replica; BEGIN; UPDATE crossfade.tables SET next_epoch = 2; SELECT FROM crossfade.tables FOR UPDATE;
             UPDATE crossfade.tables SET epoch = 2, next_epoch = NULL; TRUNCATE t",
        )
        .await?;
        anyhow::Ok(next)
    });
    let queued = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = $1 LIMIT 1";
    until("the next epoch waits for the claimed chunks", MINUTE, || async {
        Ok(observer.query_opt(queued, &[&pid]).await?)
    })
    .await?;
    lock.batch_execute("COMMIT").await?;
    let next = beginning.await??;
    until("a worker that waits with the next chunks", MINUTE, || async { Ok(observer.query_opt(waits, &[]).await?) })
        .await?;
    next.batch_execute("COMMIT").await?;
    let idle = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%apply copy' AND state = 'idle' AND query NOT LIKE 'BEGIN%'";
    until("the worker is done with them", MINUTE, || async { Ok(observer.query_opt(idle, &[]).await?) }).await?;
    let landed = world.at_target("SELECT count(*) FROM t")?;
    ensure!(landed == "0", "{landed} rows of the void epoch landed");
    run.kill9()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_capture_is_killed_in_the_middle_of_the_copy() -> Result<()> {
    let world = World::with_nats()?;
    keyless(&world, 60_000)?;
    let nats = world.nats.as_ref().context("a world with NATS")?;
    // The copy does not fit into the log, so it is killed in its middle on any machine.
    let plan = world.plan().identity("public.t", "full").log_lines("max_bytes = \"16MiB\"");
    let crossfade = Crossfade::new(&plan)?;
    let elsewhere = crossfade.elsewhere()?;
    let mut apply = elsewhere.start(&["apply"])?;
    let target = world.target.client("app").await?;
    let mut capture = crossfade.start(&["capture"])?;
    let some = "SELECT 1 FROM crossfade.copied WHERE worker IS NOT NULL LIMIT 1";
    until("the first chunks", MINUTE, || async { Ok(target.query_opt(some, &[]).await?) }).await?;
    until("the log to be full", MINUTE, || async { Ok(capture.log_tail().contains("full").then_some(())) }).await?;
    capture.kill9()?;
    nats.reconfigure(&nats.stream("_CHUNKS")?, "max_bytes", json!(1 << 30))?;
    ensure!(
        world.at_target("SELECT chunks IS NULL FROM crossfade.tables")? == "t",
        "the copy was complete: nothing is tested"
    );
    world.at_source("INSERT INTO t VALUES (0, 'in between')")?;
    let mut capture = crossfade.start(&["capture"])?;
    crossfade.wait_for_lag_zero(&mut capture, MINUTE).await?;
    ensure!(world.at_target("SELECT epoch FROM crossfade.tables")? == "2");
    world.expect_equal().await?;
    capture.stop().await?;
    apply.stop().await
}
