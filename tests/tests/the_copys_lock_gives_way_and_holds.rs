//! Given an application that wants to TRUNCATE or ALTER a table while it is copied: it waits, but not for long, and nothing is lost. And given one whose own locks
//! are in a deadlock while its tables are published.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Cluster, Crossfade, Nats, Running, World, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;

const MINUTE: Duration = Duration::from_secs(60);

/// More than the copy can hold in memory and on its way; for several readers, 16 MiB each.
const TABLE: &str = "CREATE TABLE t (id integer PRIMARY KEY, v text);
    INSERT INTO t SELECT i, repeat(md5(i::text), 60) FROM generate_series(1, 40000) AS i;";

/// A migration whose copy of `t` is under way and stands still, for the log takes nothing.
struct Halted {
    world: World,
    crossfade: Crossfade,
    run: Running,
}

fn signal(nats: Option<&Nats>, signal: Signal) -> Result<()> {
    let pid = nats.and_then(Nats::pid).context("a nats-server")?;
    Ok(kill(Pid::from_raw(pid.try_into()?), signal)?)
}

impl Halted {
    async fn start(limits: &str) -> Result<Halted> {
        let world = World::with_nats()?;
        world.at_source(TABLE)?;
        let crossfade = Crossfade::new(&world.plan().section(&format!("[limits]\ncopy_workers = 2\n{limits}")))?;
        let run = crossfade.start(&["run"])?;
        until("the copy under way", MINUTE, || async { Ok(copying(&world).await?.then_some(())) }).await?;
        signal(world.nats.as_ref(), Signal::SIGSTOP)?;
        ensure!(copying(&world).await?, "the copy was over before it could be halted: nothing is tested");
        Ok(Halted { world, crossfade, run })
    }

    fn go_on(&self) -> Result<()> {
        signal(self.world.nats.as_ref(), Signal::SIGCONT)
    }

    /// Starts a statement of the application that has to wait.
    async fn waits(&self, sql: &'static str) -> Result<JoinHandle<Result<(), tokio_postgres::Error>>> {
        let client = self.world.source.client("app").await?;
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let task = tokio::spawn(async move { client.batch_execute(sql).await });
        let observer = self.world.source.client("app").await?;
        let waits = "SELECT 1 FROM pg_locks WHERE pid = $1 AND NOT granted";
        until("it waits", MINUTE, || async { Ok(observer.query_opt(waits, &[&pid]).await?) }).await?;
        ensure!(!task.is_finished());
        Ok(task)
    }

    async fn ends_equal(mut self, rows: &str, epochs: &[&str]) -> Result<()> {
        self.crossfade.wait_for_lag_zero(&mut self.run, MINUTE).await?;
        self.world.expect_equal().await?;
        let found = self.world.at_target("SELECT count(*) FROM t")?;
        ensure!(found == rows, "{found} rows, not {rows}");
        let epoch = self.world.at_target("SELECT epoch FROM crossfade.tables")?;
        ensure!(epochs.contains(&epoch.as_str()), "it was copied as epoch {epoch}, not {epochs:?}");
        self.run.stop().await
    }
}

async fn copying(world: &World) -> Result<bool> {
    let source = world.source.client("app").await?;
    let sql = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'crossfade copy shop' AND state = 'active' AND query LIKE 'COPY%'";
    Ok(!source.query(sql, &[]).await?.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_waits_for_the_copy_and_is_applied_from_the_tail() -> Result<()> {
    let halted = Halted::start("lock_timeout = \"60s\"").await?;
    // These are in the tail only, and would find no row had the copy read an empty table.
    halted.world.at_source("UPDATE t SET v = 'new' WHERE id % 10 = 0; DELETE FROM t WHERE id % 10 = 1")?;
    let truncate = halted.waits("BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'again'), (2, 'again'); COMMIT").await?;
    halted.go_on()?;
    truncate.await??;
    halted.ends_equal("2", &["1"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gives_way_after_the_limit_and_starts_the_table_again() -> Result<()> {
    let halted = Halted::start("lock_timeout = \"1s\"").await?;
    let truncate = halted
        .waits("BEGIN; TRUNCATE t; INSERT INTO t SELECT i, 'again' FROM generate_series(1, 1000) AS i; COMMIT")
        .await?;
    // Nothing but the copy's giving way lets it through.
    tokio::time::timeout(Duration::from_secs(10), truncate).await.context("the copy does not give way")???;
    ensure!(
        halted.run.log_tail().contains("gave way"),
        "the lock was let go for another reason: {}",
        halted.run.log_tail()
    );
    halted.go_on()?;
    halted.ends_equal("1000", &["2", "3"]).await
}

/// Its readers outlive it, and could read an emptied table under its snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_loses_its_leader_before_a_truncate_starts_again() -> Result<()> {
    let halted = Halted::start("lock_timeout = \"60s\"").await?;
    let leader = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'crossfade copy shop' ORDER BY backend_start LIMIT 1";
    ensure!(halted.world.at_source(leader)? == "t");
    let client = halted.world.source.client("app").await?;
    let truncate = tokio::spawn(async move {
        client
            .batch_execute(
                "BEGIN; TRUNCATE t; INSERT INTO t SELECT i, 'again' FROM generate_series(1, 1000) AS i; COMMIT",
            )
            .await
    });
    halted.go_on()?;
    truncate.await??;
    halted.ends_equal("1000", &["2", "3"]).await
}

/// pg_dump locks one table after the other. A TRUNCATE that has some of them and wants another must not end in a deadlock, of which either could be the victim.
#[tokio::test(flavor = "multi_thread")]
async fn and_so_does_pg_dump() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE root (id integer PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (10); INSERT INTO leaf VALUES (1)",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = crossfade.start(&["run"])?;
    // Slot and barrier wait for whoever holds such a lock, and go on between two of them; pg_dump meets the next one.
    let application = world.source.client("app").await?;
    until("pg_dump has given way", MINUTE, || async {
        application
            .batch_execute("BEGIN; LOCK TABLE ONLY root IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(1); COMMIT")
            .await?;
        Ok(run.log_tail().contains("pg_dump gave way to a lock of the application").then_some(()))
    })
    .await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

/// The server may end a deadlock at the cost of whoever waits beside it, if that one looks first.
#[tokio::test(flavor = "multi_thread")]
async fn the_victim_of_the_applications_deadlock_publishes_all_the_same() -> Result<()> {
    let source = Cluster::build().set("deadlock_timeout", "5s").start()?;
    let world = World::of(source, Cluster::start()?, None)?;
    world.at_source(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY); INSERT INTO b VALUES (1)",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = crossfade.start_standing(&["run"], "publication_altered", Duration::from_secs(2))?;
    let published = async |count: &str| {
        until("tables to be published", MINUTE, || async {
            Ok((world.at_source("SELECT count(*) FROM pg_publication_rel")? == count).then_some(()))
        })
        .await
    };
    published("1").await?;
    let (first, second) = (world.source.client("app").await?, world.source.client("app").await?);
    let pid: i32 = first.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    // Neither of the two looks for it, so that it is the third that does.
    first.batch_execute("SET deadlock_timeout = '1h'; BEGIN; LOCK TABLE b").await?;
    second.batch_execute("SET deadlock_timeout = '1h'; BEGIN; LOCK TABLE c").await?;
    let waiting = async |count: &str| {
        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        until("sessions to wait", MINUTE, || async { Ok((world.at_source(sql)? == count).then_some(())) }).await
    };
    waiting("1").await?;
    let second = tokio::spawn(async move { second.batch_execute("LOCK TABLE b; COMMIT").await });
    waiting("2").await?;
    let first = tokio::spawn(async move { first.batch_execute("LOCK TABLE c").await });
    until("the deadlock to be seen", MINUTE, || async {
        Ok(run.log_tail().contains("with us as the victim").then_some(()))
    })
    .await?;
    world.at_source(&format!("SELECT pg_terminate_backend({pid})"))?;
    ensure!(first.await?.is_err(), "the application's first session got what it waited for");
    second.await??;
    published("3").await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    world.expect_equal().await
}
