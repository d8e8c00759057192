//! Given an application that does not wait for its commits to be flushed (`synchronous_commit = off`), and a source that crashes: commits that were visible to
//! a table's copy are gone afterwards. The copy must not have been called done with their rows.

use std::time::Duration;

use anyhow::Result;
use crossfade_tests::{Cluster, Crossfade, Shutdown, World, until};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_the_copy_saw_and_the_disk_did_not() -> Result<()> {
    // Commits that nobody waits for are flushed after ten seconds, unless somebody waits for another one.
    let source = Cluster::build().set("wal_writer_delay", "10s").start()?;
    let mut world = World::of(source, Cluster::start()?, None)?;
    // The large one is being copied all the time.
    world.at_source(
        "CREATE TABLE large (id integer PRIMARY KEY, v text); INSERT INTO large SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 400000) AS i;
         CREATE TABLE small (id integer PRIMARY KEY); INSERT INTO small SELECT generate_series(1, 100)",
    )?;
    let crossfade = Crossfade::new(&world.plan().section("[limits]\ncopy_workers = 2"))?;
    let client = world.source.client("app").await?;
    client.batch_execute("SET synchronous_commit = off").await?;
    let writer = tokio::spawn(async move {
        let mut id = 1000;
        // Until the server crashes.
        while client.execute("INSERT INTO small VALUES ($1)", &[&id]).await.is_ok() {
            id += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        id
    });
    let mut run = crossfade.start(&["run"])?;
    until("the copy of the small table", MINUTE, || async {
        Ok(run.log_tail().contains("copied table=public.small").then_some(()))
    })
    .await?;
    world.source.restart(Shutdown::Immediate)?;
    let written: i32 = writer.await?;
    let left: i32 = world.at_source("SELECT max(id) FROM small")?.parse()?;
    anyhow::ensure!(left < written - 1, "every commit was flushed before the crash: nothing is tested");
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}
