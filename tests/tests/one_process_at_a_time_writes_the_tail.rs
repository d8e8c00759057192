//! Given a holder of the lease that stalls, or loses the lease in the middle of a batch: it writes nothing more, and no batch is applied twice. The
//! table has no key, so that a row that came twice shows.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossfade_tests::{Cluster, Crossfade, Running, World, follow, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::Client;

const MINUTE: Duration = Duration::from_secs(60);
const TAKEOVER: Duration = Duration::from_secs(10);

/// Ends when the application's session named so does something for which it waits.
async fn waits_for_a_lock(observer: &Client, session: &str) -> Result<()> {
    let sql = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%' || $1::text AND wait_event_type = 'Lock'";
    until("a session that waits for a lock", MINUTE, || async {
        Ok(observer.query_opt(sql, &[&session]).await?.map(drop))
    })
    .await
}

fn journal(world: &World) -> Result<()> {
    world
        .at_source("CREATE TABLE journal (what text); INSERT INTO journal SELECT i FROM generate_series(1, 100) AS i")
        .map(drop)
}

fn plan(world: &World) -> crossfade_tests::PlanFile {
    world.plan().identity("public.journal", "insert_only")
}

async fn locked(cluster: &Cluster) -> Result<Client> {
    let lock = cluster.client("app").await?;
    lock.batch_execute("BEGIN; LOCK TABLE journal IN SHARE MODE").await?;
    Ok(lock)
}

fn signal(process: &Running, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(process.pid() as i32), signal)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_holder_is_taken_over_and_writes_nothing_when_it_wakes() -> Result<()> {
    let world = World::with_nats()?;
    journal(&world)?;
    let (here, there, elsewhere) =
        (Crossfade::new(&plan(&world))?, Crossfade::new(&plan(&world))?, Crossfade::new(&plan(&world))?);
    let mut capture = here.start(&["capture"])?;
    let mut first = there.start(&["apply"])?;
    here.wait_for_phase(&mut capture, "following", MINUTE).await?;
    let mut second = elsewhere.start(&["apply"])?;
    let observer = world.target.client("app").await?;
    let workers = "SELECT 1 FROM crossfade.worker HAVING count(*) = 2";
    until("the second one's first sign", MINUTE, || async { Ok(observer.query_opt(workers, &[]).await?.map(drop)) })
        .await?;

    // The holder stands still in the middle of a batch: it has read it, and holds a transaction with its first rows.
    let lock = locked(&world.target).await?;
    world.at_source("INSERT INTO journal SELECT 'batch ' || i FROM generate_series(1, 100) AS i")?;
    waits_for_a_lock(&observer, "apply tail").await?;
    // Another session of the holder's that holds the lease in a transaction goes with it.
    let other = world.target.client("app").await?;
    other
        .batch_execute("SET application_name = 'crossfade apply control'; BEGIN; SELECT FROM crossfade.lease FOR SHARE")
        .await?;
    signal(&first, Signal::SIGSTOP)?;
    let stopped = Instant::now();
    lock.batch_execute("COMMIT").await?;
    world.at_source("INSERT INTO journal SELECT 'later ' || i FROM generate_series(1, 100) AS i")?;
    let second_pid = second.pid();
    until("the takeover", TAKEOVER, || async {
        let row = observer
            .query_one(
                "SELECT worker LIKE '%:' || $1::text, (SELECT count(*) FROM journal) FROM crossfade.lease",
                &[&second_pid.to_string()],
            )
            .await?;
        Ok((row.get::<_, Option<bool>>(0) == Some(true) && row.get::<_, i64>(1) >= 300).then_some(()))
    })
    .await?;
    eprintln!("taken over after {:?}", stopped.elapsed());
    signal(&first, Signal::SIGCONT)?;
    world.at_source("INSERT INTO journal SELECT 'awake ' || i FROM generate_series(1, 100) AS i")?;
    here.wait_for_lag_zero(&mut capture, MINUTE).await?;
    world.expect_equal().await?;
    ensure!(first.is_running()? && second.is_running()?, "both go on");
    capture.stop().await?;
    first.stop().await?;
    second.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_cannot_be_taken_from_under_an_open_batch_and_nothing_is_written_without_it() -> Result<()> {
    let world = World::embedded()?;
    journal(&world)?;
    let crossfade = Crossfade::new(&plan(&world))?;
    let mut run = follow::following(&crossfade).await?;
    let other = world.target.client("app").await?;
    let lock = locked(&world.target).await?;
    world.at_source("INSERT INTO journal VALUES ('batch')")?;
    waits_for_a_lock(&other, "apply tail").await?;
    // Somebody who lives takes it: this session, in another process's name.
    let take = "UPDATE crossfade.lease SET token = token + 1, worker = 'other:1', pid = pg_backend_pid(),
                       backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())";
    other
        .batch_execute(
            "INSERT INTO crossfade.worker VALUES ('other:1', now() + interval '1 hour'); SET lock_timeout = '300ms'",
        )
        .await?;
    ensure!(other.batch_execute(take).await.is_err(), "the lease was taken while a batch was open");
    lock.batch_execute("COMMIT").await?;
    let lsn = "SELECT lsn::text FROM crossfade.checkpoint";
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    other.batch_execute(take).await?;
    let before: String = other.query_one(lsn, &[]).await?.get(0);
    world.at_source("INSERT INTO journal VALUES ('without the lease')")?;
    until("the loss is noticed", MINUTE, || async { Ok(run.log_tail().contains("holds the lease now").then_some(())) })
        .await?;
    ensure!(
        world.at_target("SELECT count(*) FROM journal")? == "101"
            && other.query_one(lsn, &[]).await?.get::<_, String>(0) == before
    );
    drop(other);
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_somebody_else_has_applied_is_not_applied_again() -> Result<()> {
    let world = World::embedded()?;
    journal(&world)?;
    let crossfade = Crossfade::new(&plan(&world))?;
    let mut run = follow::following(&crossfade).await?;
    let lock = locked(&world.target).await?;
    let observer = world.target.client("app").await?;
    world.at_source("INSERT INTO journal VALUES ('batch')")?;
    waits_for_a_lock(&observer, "apply tail").await?;
    // Meanwhile the same batch is applied here, with its checkpoint.
    let end = world.at_source("SELECT pg_current_wal_lsn()")?;
    lock.batch_execute(&format!(
        "INSERT INTO journal VALUES ('batch'); UPDATE crossfade.checkpoint SET lsn = '{end}'; COMMIT"
    ))
    .await?;
    world.at_source("INSERT INTO journal VALUES ('next')")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}
