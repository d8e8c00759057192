//! Given source transactions that are too large to be held in memory, and are written piece by piece: nobody sees a part of one at the target, whatever
//! happens in its middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Cluster, Crossfade, World, follow, until};

const MINUTE: Duration = Duration::from_secs(60);

/// 60 MB, of which a piece is 2 MiB.
const ROWS: u32 = 60_000;
const SMALL: &str = "[limits]\nmemory = \"64MiB\"";

/// Looks at `t` again and again, as readers of the target would; an error if its rows are ever not all of one transaction.
struct Watch {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<u32>>,
}

impl Watch {
    async fn start(world: &World) -> Result<Watch> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client) = (stop.clone(), world.target.client("app").await?);
        let task = tokio::spawn(async move {
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                let row =
                    client.query_one("SELECT count(*), count(DISTINCT n), coalesce(max(n), 0) FROM t", &[]).await?;
                let (count, versions, n): (i64, i64, i32) = (row.get(0), row.get(1), row.get(2));
                ensure!(
                    count == 0 || count == i64::from(ROWS) && versions == 1,
                    "{count} rows of {versions} versions up to {n}"
                );
                looks += 1;
            }
            Ok(looks)
        });
        Ok(Watch { stop, task })
    }

    async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let looks = self.task.await??;
        ensure!(looks > 5, "looked {looks} times only");
        Ok(())
    }
}

fn large(table: &str) -> [String; 2] {
    [
        format!("INSERT INTO {table} SELECT i, repeat(md5(i::text), 32), 0 FROM generate_series(1, {ROWS}) AS i"),
        format!("UPDATE {table} SET n = n + 1, v = v || 'x'"),
    ]
}

/// Ends once some of `t` has been written by a transaction that is still open.
async fn is_in_the_middle(observer: &tokio_postgres::Client, more_than: i64) -> Result<()> {
    until("a piece of it", MINUTE, || async {
        let pages: i64 = observer.query_one("SELECT pg_relation_size('t')", &[]).await?.get(0);
        Ok((pages > more_than).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_apply_is_killed_in_the_middle_of_one() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY, v text, n integer)")?;
    let plan = world.plan().section(SMALL);
    let (here, there) = (Crossfade::new(&plan)?, Crossfade::new(&plan)?);
    let mut capture = here.start(&["capture"])?;
    let mut apply = there.start(&["apply"])?;
    here.wait_for_phase(&mut capture, "following", MINUTE).await?;
    let watch = Watch::start(&world).await?;
    let observer = world.target.client("app").await?;
    let [insert, update] = large("t");
    let mut in_the_middle = 0;
    // A fast machine may be through with one before it is killed.
    for change in [&insert, &update, &update, &update] {
        let before: i64 = observer.query_one("SELECT pg_relation_size('t')", &[]).await?.get(0);
        let seen = world.at_target("SELECT count(*), max(n) FROM t")?;
        world.at_source(change)?;
        is_in_the_middle(&observer, before + (8 << 20)).await?;
        apply.kill9()?;
        in_the_middle += u32::from(world.at_target("SELECT count(*), max(n) FROM t")? == seen);
        apply = there.start(&["apply"])?;
        here.wait_for_lag_zero(&mut capture, MINUTE).await?;
    }
    ensure!(in_the_middle > 0, "it was through each time: nothing is tested");
    watch.stop().await?;
    world.expect_equal().await?;
    capture.stop().await?;
    apply.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_another_source_goes_on_meanwhile() -> Result<()> {
    let world = World::with_nats()?;
    world.source.create_db("other")?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY, v text, n integer)")?;
    world.source.psql("other", "CREATE TABLE beside (id serial PRIMARY KEY, v text)")?;
    let plan = world.plan().section(SMALL).source("other", &world.source.url("other"), &["public.*"]);
    let (here, there) = (Crossfade::new(&plan)?, Crossfade::new(&plan)?);
    let mut capture = here.start(&["capture"])?;
    let mut apply = there.start(&["apply"])?;
    here.wait_for_phase(&mut capture, "following", MINUTE).await?;
    apply.stop().await?;
    // Both wait in the log, and come side by side.
    let [insert, update] = large("t");
    world.at_source(&insert)?;
    world.at_source(&update)?;
    // Rows so small that they fill a group sooner than a large one's fill a piece: a group would end in the middle of that one.
    let beside = "INSERT INTO beside (v) SELECT repeat('v', 80) FROM generate_series(1, 480);\n";
    world.source.psql("other", &beside.repeat(200))?;
    here.wait_for(&mut capture, "both in the log", MINUTE, |status| {
        crossfade_tests::lag(status).is_some_and(|(_, _, transactions)| transactions >= 200)
    })
    .await?;
    let watch = Watch::start(&world).await?;
    let mut apply = there.start(&["apply"])?;
    here.wait_for_lag_zero(&mut capture, MINUTE).await?;
    watch.stop().await?;
    let content = |table: &str| format!("SELECT md5(string_agg(x::text, ',' ORDER BY id)) FROM {table} x");
    ensure!(world.at_source(&content("t"))? == world.at_target(&content("t"))?);
    ensure!(world.source.psql("other", &content("beside"))? == world.at_target(&content("beside"))?);
    capture.stop().await?;
    apply.stop().await
}

/// Postgres does not tell of a subtransaction that rolled back if it had put more than 4,096 of its rows on its own disk before it began to stream them, as it does with what lies before the
/// place where a new connection begins.
#[tokio::test(flavor = "multi_thread")]
async fn when_a_part_was_rolled_back_that_the_server_does_not_tell_of() -> Result<()> {
    let source = Cluster::build().set("logical_decoding_work_mem", "64kB").start()?;
    let world = World::of(source, Cluster::start()?, None)?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY, v text); CREATE TABLE beside (id integer PRIMARY KEY)")?;
    let crossfade = world.crossfade()?;
    let mut run = follow::following(&crossfade).await?;
    let client = world.source.client("app").await?;
    client
        .batch_execute("BEGIN; SAVEPOINT s; INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1, 5000) AS i")
        .await?;
    // From here on the next connection is sent what commits.
    world.at_source("INSERT INTO beside VALUES (1)")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    let streamed = "SELECT coalesce(sum(stream_count), 0) FROM pg_stat_replication_slots";
    let before = world.at_source(streamed)?;
    let mut run = follow::following(&crossfade).await?;
    client
        .batch_execute("SAVEPOINT t; INSERT INTO t SELECT i, repeat('y', 50) FROM generate_series(10001, 13000) AS i")
        .await?;
    // Only what is flushed is sent.
    world.at_source("INSERT INTO beside VALUES (2)")?;
    until("the open transaction to be streamed", MINUTE, || async {
        Ok((world.at_source(streamed)? != before).then_some(()))
    })
    .await?;
    client.batch_execute("ROLLBACK TO s; INSERT INTO t VALUES (20000, 'z'); COMMIT").await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    ensure!(world.at_target("SELECT count(*) FROM t")? == "1", "nothing is tested");
    run.stop().await
}
