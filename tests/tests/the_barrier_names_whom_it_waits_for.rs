//! Given transactions at the source that do not end: the start waits for them as long as the plan says, names them, and ends none.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Cluster, Crossfade, World, follow, until};

const MINUTE: Duration = Duration::from_secs(60);

/// An open transaction of another database, and a prepared one.
struct Older {
    client: tokio_postgres::Client,
    pid: i32,
}

impl Older {
    async fn begin(world: &World) -> Result<Older> {
        let client = world.source.client("other").await?;
        client.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        world.at_source("BEGIN; INSERT INTO t SELECT 1 + count(*) FROM t; PREPARE TRANSACTION 'two phases'")?;
        Ok(Older { client, pid })
    }

    /// A run ends with all of that named, and all of that still there.
    async fn named_by(&self, crossfade: &Crossfade, world: &World) -> Result<()> {
        let ended = crossfade.start(&["run", "--json"])?.finish(MINUTE).await?;
        ensure!(ended.status.code() == Some(2), "{ended:?}");
        ensure!(ended.error_code()? == "barrier_timeout", "{ended:?}");
        for word in [&format!("pid {}", self.pid), "other", "two phases", "database app", "barrier_timeout"] {
            ensure!(ended.stdout.contains(word), "{word:?} is not in {}", ended.stdout);
        }
        self.client.query_one("SELECT 1", &[]).await.context("the open transaction was terminated")?;
        ensure!(world.at_source("SELECT count(*) FROM pg_prepared_xacts")? == "1", "the prepared transaction is gone");
        Ok(())
    }

    async fn end(self, world: &World) -> Result<()> {
        self.client.batch_execute("COMMIT").await?;
        world.at_source("COMMIT PREPARED 'two phases'").map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn and_gives_up_in_time() -> Result<()> {
    let world = World::of(Cluster::build().set("max_prepared_transactions", "5").start()?, Cluster::start()?, None)?;
    world.source.create_db("other")?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1); CREATE TABLE u (id integer PRIMARY KEY)",
    )?;
    let plan = world.plan().section("[limits]\nbarrier_timeout = \"1s\"");
    let mut crossfade = Crossfade::new(&plan.clone().tables(&["public.t"]))?;

    // Postgres itself waits while it makes the slot; none is left behind.
    let older = Older::begin(&world).await?;
    older.named_by(&crossfade, &world).await?;
    ensure!(world.at_source("SELECT count(*) FROM pg_replication_slots")? == "0", "a slot was left behind");
    older.end(&world).await?;
    let mut run = follow::following(&crossfade).await?;
    run.stop().await?;

    // The barrier behind a change of the publication.
    crossfade.replan(&plan)?;
    let older = Older::begin(&world).await?;
    older.named_by(&crossfade, &world).await?;
    older.end(&world).await?;
    let mut run = follow::following(&crossfade).await?;
    let target = world.target.client("app").await?;
    until("table u", MINUTE, || async {
        Ok(target.query_opt("SELECT 1 FROM crossfade.tables WHERE name = 'u'", &[]).await?)
    })
    .await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}
