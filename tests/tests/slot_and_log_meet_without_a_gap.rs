//! Given a log or a slot that has lost something, however it looks from outside: the migration is refused, and nothing is skipped.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Cluster, Crossfade, Nats, Running, World, follow, until};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

/// A migration over NATS that has followed for a while and is stopped; the slot knows what the log has.
async fn stopped() -> Result<(World, Crossfade)> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 10) AS i",
    )?;
    let crossfade = Crossfade::new(&world.plan().log_lines("sync = \"0s\""))?;
    let mut run = follow::following(&crossfade).await?;
    for id in 11..15 {
        world.at_source(&format!("INSERT INTO t VALUES ({id}, 'followed')"))?;
    }
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    confirmed(&world, &here(&world)?).await?;
    run.stop().await?;
    Ok((world, crossfade))
}

fn here(world: &World) -> Result<String> {
    world.at_source("SELECT pg_current_wal_lsn()")
}

fn nats(world: &World) -> Result<&Nats> {
    world.nats.as_ref().context("a world with NATS")
}

/// Waits until the slot has been told that everything up to `lsn` is safe.
async fn confirmed(world: &World, lsn: &str) -> Result<()> {
    until("the slot confirmed", MINUTE, || async {
        let sql = format!("SELECT bool_and(confirmed_flush_lsn >= '{lsn}') FROM pg_replication_slots");
        Ok((world.at_source(&sql)? == "t").then_some(()))
    })
    .await
}

async fn refused(world: &World, crossfade: &Crossfade, command: &str, code: &str) -> Result<()> {
    let content = "SELECT string_agg(t::text, ',' ORDER BY id) FROM t";
    world.at_source("INSERT INTO t SELECT 1 + max(id), 'later' FROM t")?;
    let before = world.at_target(content)?;
    let ended = crossfade.start(&[command, "--json"])?.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1), "{ended:?}");
    ensure!(ended.error_code()? == code, "{code} expected: {ended:?}");
    ensure!(ended.stdout.contains("crossfade recopy"), "no way out is told: {}", ended.stdout);
    ensure!(world.at_target(content)? == before, "something was applied across the gap");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_end_is_refused() -> Result<()> {
    let (world, crossfade) = stopped().await?;
    let tail = nats(&world)?.stream("_TAIL")?;
    let last = nats(&world)?.last(&tail)?;
    for seq in [last, last - 1] {
        nats(&world)?.jetstream(&format!("STREAM.MSG.DELETE.{tail}"), &json!({ "seq": seq }))?;
        refused(&world, &crossfade, "capture", "gap").await?;
        // A loss at the end takes the offset store's word away as well.
        std::fs::remove_dir_all(crossfade.state_dir())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_log_is_refused() -> Result<()> {
    let (world, crossfade) = stopped().await?;
    let tail = nats(&world)?.stream("_TAIL")?;
    // Messages that the target lacks: capture has all it needs, apply has not.
    let mut capture = crossfade.start(&["capture"])?;
    world.at_source("INSERT INTO t VALUES (100, 'not applied')")?;
    confirmed(&world, &here(&world)?).await?;
    capture.stop().await?;
    nats(&world)?.jetstream(&format!("STREAM.PURGE.{tail}"), &json!({ "keep": 1 }))?;
    refused(&world, &crossfade, "apply", "gap").await?;
    // An empty one would take the next append.
    nats(&world)?.jetstream(&format!("STREAM.PURGE.{tail}"), &json!({}))?;
    refused(&world, &crossfade, "capture", "gap").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_is_refused() -> Result<()> {
    let (world, crossfade) = stopped().await?;
    world.at_source("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")?;
    refused(&world, &crossfade, "run", "slot_lost").await?;
    ensure!(
        world.at_source("SELECT count(*) FROM pg_replication_slots")? == "0",
        "a slot was made anew, and the gap is hidden"
    );
    Ok(())
}

/// An acknowledgement is no promise before the server has synced its files.
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_confirmed_only_once_the_log_has_had_time_to_sync() -> Result<()> {
    let world = World::with_nats()?;
    world.source.create_db("other")?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    let crossfade = Crossfade::new(&world.plan().log_lines("sync = \"4s\""))?;
    let mut run = follow::following(&crossfade).await?;
    // From before the row is there: the log may have it before the next statement.
    let since = std::time::Instant::now();
    world.at_source("INSERT INTO t VALUES (2)")?;
    let lsn = here(&world)?;
    let of_the_tail = |what: &str| {
        format!("SELECT {what} >= '{lsn}' FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid")
    };
    until("the log has it", MINUTE, || async {
        Ok((world.at_source(&of_the_tail("write_lsn"))? == "t").then_some(()))
    })
    .await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let (early, waited) = (world.at_source(&of_the_tail("confirmed_flush_lsn"))?, since.elapsed());
    ensure!(early == "f" || waited > Duration::from_secs(4), "confirmed after {waited:?}, the server syncs within 4 s");
    confirmed(&world, &lsn).await?;
    ensure!(since.elapsed() >= Duration::from_secs(4), "confirmed after {:?}", since.elapsed());
    // WAL that is not ours may go as well, while nothing of ours is written.
    world.source.psql("other", "CREATE TABLE x AS SELECT generate_series(1, 1000)")?;
    confirmed(&world, &here(&world)?).await?;
    run.stop().await
}

/// Its parts are in the log without an end, and come again under another writer.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_cut_off_in_the_log_is_discarded_and_comes_again() -> Result<()> {
    let world = World::of(Cluster::start()?, Cluster::start()?, Some(Nats::start()?))?;
    world.at_source(
        "CREATE TABLE t (a integer, v text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (0, 'first')",
    )?;
    // Little memory, so that apply has pieces of it in its open transaction.
    let plan = world.plan().identity("public.t", "full").section("[limits]\nmemory = \"64MiB\"");
    let crossfade = Crossfade::new(&plan)?;
    let elsewhere = crossfade.elsewhere()?;
    let mut apply = elsewhere.start(&["apply"])?;
    let mut capture = crossfade.start(&["capture"])?;
    crossfade.wait_for_lag_zero(&mut capture, MINUTE).await?;
    let tail = nats(&world)?.stream("_TAIL")?;
    let before = nats(&world)?.last(&tail)?;
    let client = world.source.client("app").await?;
    let large = tokio::spawn(async move {
        client
            .batch_execute("INSERT INTO t SELECT i % 10, repeat(md5(i::text), 30) FROM generate_series(1, 60000) AS i")
            .await
    });
    until("some parts of it in the log", MINUTE, || async {
        Ok((nats(&world)?.last(&tail)? > before + 20).then_some(()))
    })
    .await?;
    capture.kill9()?;
    large.await??;
    cut_off(&world, &tail, before).await?;
    let mut capture: Running = crossfade.start(&["capture"])?;
    world.at_source("UPDATE t SET v = 'last' WHERE v = 'first'")?;
    crossfade.wait_for_lag_zero(&mut capture, MINUTE).await?;
    world.expect_equal().await?;
    capture.stop().await?;
    apply.stop().await
}

/// The transaction was not complete when its writer died, or nothing is tested: its parts take more than this.
async fn cut_off(world: &World, tail: &str, before: u64) -> Result<()> {
    let logged = nats(world)?.last(tail)? - before;
    ensure!(logged < 200, "{logged} messages: all of the transaction was in the log");
    ensure!(world.at_target("SELECT count(*) FROM t")? == "1", "the target has some of it");
    Ok(())
}
