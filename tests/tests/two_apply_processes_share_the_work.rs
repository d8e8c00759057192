//! Given one capture and two apply processes: both copy, one holds the tail; when that one is killed, then the other goes
//! on within ten seconds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossfade_tests::{Pgbench, Running, World, until};

const MINUTE: Duration = Duration::from_secs(60);
const TAKEOVER: Duration = Duration::from_secs(10);

/// Workers are named `host:pid`.
fn is(worker: &str, process: &Running) -> bool {
    worker.ends_with(&format!(":{}", process.pid()))
}

#[tokio::test(flavor = "multi_thread")]
async fn and_the_one_that_is_left_goes_on() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE big (id integer PRIMARY KEY, v text);
         INSERT INTO big SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 400000) AS i;
         CREATE TABLE live (id integer PRIMARY KEY, n integer DEFAULT 0);
         INSERT INTO live SELECT generate_series(1, 1000)",
    )?;
    let load = Pgbench::new(&world.source, "app").clients(2).rate(200).script(
        "\\set id random(1, 1000)\nUPDATE live SET n = n + 1 WHERE id = :id;\nUPDATE big SET v = v || 'x' WHERE id = :id;\n",
    );
    let mut load = load.start(180)?;

    // Three machines. Both apply processes are there before there is anything to do.
    let (here, there, elsewhere) = (world.crossfade()?, world.crossfade()?, world.crossfade()?);
    let (one, two) = (there.start(&["apply"])?, elsewhere.start(&["apply"])?);
    let mut capture = here.start(&["capture"])?;
    here.wait_for_phase(&mut capture, "following", 2 * MINUTE).await?;

    let shares: BTreeMap<String, i64> = world
        .at_target("SELECT worker, count(*) FROM crossfade.copied GROUP BY worker")?
        .lines()
        .filter_map(|line| line.split_once('|').map(|(worker, n)| (worker.to_owned(), n.parse().unwrap_or_default())))
        .collect();
    ensure!(shares.values().sum::<i64>() >= 50, "fewer than 50 chunks: {shares:?}");
    ensure!(shares.len() == 2 && shares.values().all(|&n| n >= 5), "not shared: {shares:?}");
    ensure!(shares.keys().any(|worker| is(worker, &one)) && shares.keys().any(|worker| is(worker, &two)), "{shares:?}");

    let holder = world.at_target("SELECT worker FROM crossfade.lease")?;
    let (mut killed, mut left) = if is(&holder, &one) { (one, two) } else { (two, one) };
    ensure!(is(&holder, &killed), "{holder} is none of the two");
    killed.kill9()?;
    let killed_at = Instant::now();
    world.at_source("INSERT INTO live VALUES (0, 0)")?;
    let target = world.target.client("app").await?;
    until("the other one's first transaction", TAKEOVER, || async {
        Ok(target.query_opt("SELECT 1 FROM live WHERE id = 0", &[]).await?)
    })
    .await?;
    eprintln!("the other one went on after {:?}", killed_at.elapsed());
    let holder = world.at_target("SELECT worker FROM crossfade.lease")?;
    ensure!(is(&holder, &left), "{holder} holds the lease");

    ensure!(load.is_running()?, "the load ended early");
    load.stop()?;
    here.wait_for_lag_zero(&mut capture, MINUTE).await?;
    world.expect_equal().await?;
    capture.stop().await?;
    left.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn but_a_second_capture_is_refused() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    let (here, there) = (world.crossfade()?, world.crossfade()?);
    let mut first = here.start(&["run"])?;
    here.wait_for_phase(&mut first, "following", MINUTE).await?;
    // The slot is in use: the second one either waits for it or is told so; it never gets to write.
    let mut second = there.start(&["capture"])?;
    world.at_source("INSERT INTO t SELECT generate_series(2, 1000)")?;
    here.wait_for_lag_zero(&mut first, MINUTE).await?;
    world.expect_equal().await?;
    second.kill9()?;
    first.stop().await
}
