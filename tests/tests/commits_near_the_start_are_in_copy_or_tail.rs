//! Given transactions that are under way while slot and snapshots are made: each is either in the copy or in the tail.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::standby::{self, HeldCommit};
use crossfade_tests::startup::AtSlot;
use crossfade_tests::{Cluster, Crossfade, Running, World, until};

const MINUTE: Duration = Duration::from_secs(60);
/// Long enough for a migration that does not wait to have copied a table of ten rows.
const WITHOUT_BARRIER: Duration = Duration::from_secs(2);

fn world() -> Result<World> {
    // Every transaction above 64 KiB is streamed.
    let source = Cluster::build().set("logical_decoding_work_mem", "64kB").start()?;
    let world = World::of(source, Cluster::start()?, None)?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT generate_series(1, 10)")?;
    Ok(world)
}

/// A migration that copies a large table, behind all barriers, and has not taken the snapshot of `t` yet.
async fn before_the_snapshot_of_t(world: &World) -> Result<(Crossfade, Running)> {
    world.at_source(
        "CREATE TABLE before (id integer PRIMARY KEY, v text);
         INSERT INTO before SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 300000) AS i",
    )?;
    // One table at a time, the largest first.
    let crossfade = Crossfade::new(&world.plan().section("[limits]\ncopy_workers = 1"))?;
    let running = crossfade.start(&["run"])?;
    let target = world.target.client("app").await?;
    until("the first chunk", MINUTE, || async {
        Ok(target.query_opt("SELECT 1 FROM crossfade.copied WHERE name = 'before' LIMIT 1", &[]).await?)
    })
    .await?;
    Ok((crossfade, running))
}

/// Waits until the copy of `t` is at the target, and says how many rows it had.
async fn copied(world: &World) -> Result<i64> {
    let target = world.target.client("app").await?;
    until("the copy", MINUTE, || async {
        let sql = "SELECT sum(rows)::bigint FROM crossfade.copied WHERE name = 't' AND worker IS NOT NULL";
        Ok(target.query_one(sql, &[]).await?.get::<_, Option<i64>>(0))
    })
    .await
}

async fn ends_equal(world: &World, crossfade: &Crossfade, mut run: Running, rows: &str) -> Result<()> {
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    let found = world.at_target("SELECT count(*) FROM t")?;
    ensure!(found == rows, "{found} rows, not {rows}");
    run.stop().await
}

/// Its commit record lies before the slot's start, so the tail does not have it; it is not visible, so no snapshot
/// taken now has it. Lost without the barrier, and with one that looks at pg_snapshot_xmax.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_held_before_the_slot_starts_is_waited_for() -> Result<()> {
    let world = world()?;
    let crossfade = world.crossfade()?;
    standby::require_absent(&world.source, "app").await?;
    let at_slot = AtSlot::start(&world.source, "app", &crossfade).await?;
    let held = HeldCommit::start(&world.source, "app", "INSERT INTO t VALUES (100)").await?;
    let run = at_slot.pass(&world.source, "app").await?;
    let early = tokio::time::timeout(WITHOUT_BARRIER, copied(&world)).await;
    ensure!(early.is_err(), "the copy has begun while transaction {} was still in doubt", held.xid);
    standby::release(&world.source).await?;
    held.done().await?;
    ends_equal(&world, &crossfade, run, "11").await
}

/// Its commit record is older than the table's snapshot, which does not see it. Lost if LSNs are compared.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_held_around_a_tables_snapshot_is_applied_from_the_tail() -> Result<()> {
    let world = world()?;
    standby::require_absent(&world.source, "app").await?;
    let (crossfade, running) = before_the_snapshot_of_t(&world).await?;
    let held =
        HeldCommit::start(&world.source, "app", "INSERT INTO t VALUES (100); DELETE FROM t WHERE id = 1").await?;
    // Seen by the snapshot, and in the tail as well: applied twice if nothing is dropped.
    world.at_source("INSERT INTO t VALUES (200); UPDATE t SET id = 300 WHERE id = 2")?;
    ensure!(copied(&world).await? == 11, "the snapshot has other rows than thought");
    standby::release(&world.source).await?;
    held.done().await?;
    ends_equal(&world, &crossfade, running, "11").await
}

/// In streamed transactions the rows carry subtransaction ids, which a snapshot does not list.
#[tokio::test(flavor = "multi_thread")]
async fn streamed_transactions_with_subtransactions_around_a_tables_snapshot() -> Result<()> {
    let world = world()?;
    let (crossfade, running) = before_the_snapshot_of_t(&world).await?;
    let work = |from: i32| {
        let rows = |from: i32| {
            format!("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({from}, {from} + 1999) AS i;")
        };
        format!(
            "BEGIN; {} SAVEPOINT a; {} RELEASE a; SAVEPOINT b; {} ROLLBACK TO b; SAVEPOINT c; {} SAVEPOINT d; {} UPDATE t SET v = 'd' WHERE id = {from};",
            rows(from),
            rows(from + 2000),
            rows(from + 4000),
            rows(from + 6000),
            rows(from + 8000),
        )
    };
    let client = || world.source.client("app");
    let (seen, unseen, undone) = (client().await?, client().await?, client().await?);
    seen.batch_execute(&(work(1_000_000) + "COMMIT")).await?;
    unseen.batch_execute(&work(2_000_000)).await?;
    undone.batch_execute(&work(3_000_000)).await?;
    ensure!(copied(&world).await? == 8010, "the snapshot has other rows than thought");
    unseen
        .batch_execute("SAVEPOINT e; DELETE FROM t WHERE id = 10; ROLLBACK TO e; DELETE FROM t WHERE id = 9; COMMIT")
        .await?;
    undone.batch_execute("ROLLBACK").await?;
    ends_equal(&world, &crossfade, running, "16009").await
}

/// The tail does not tell of it, and it is not a table written anew either.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_before_the_slot_starts_is_nothing_to_stop_for() -> Result<()> {
    let world = world()?;
    let crossfade = world.crossfade()?;
    let at_slot = AtSlot::start(&world.source, "app", &crossfade).await?;
    world.at_source("TRUNCATE t; INSERT INTO t SELECT generate_series(1, 3)")?;
    let run = at_slot.pass(&world.source, "app").await?;
    ends_equal(&world, &crossfade, run, "3").await
}

/// Until the next change of a catalog, a new slot decodes with a catalog that lacks what was changed while it was made, if an older transaction was
/// still open: rows of a table that was emptied then belong to no table that it knows, and a column that was added is left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_changed_while_the_slot_is_made_is_known_to_it() -> Result<()> {
    let world = world()?;
    let crossfade = world.crossfade()?;
    let at_slot = AtSlot::start_across(&world.source, "app", &crossfade, "TRUNCATE t").await?;
    // The slot keeps for later transactions what it knows of the catalogs at this one's first change.
    let writer = world.source.client("app").await?;
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (100)").await?;
    let mut run = at_slot.pass(&world.source, "app").await?;
    writer.batch_execute("COMMIT").await?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    world.at_source("INSERT INTO t VALUES (200)")?;
    ends_equal(&world, &crossfade, run, "2").await
}
