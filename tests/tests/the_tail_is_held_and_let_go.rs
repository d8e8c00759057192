//! Given somebody who holds the tail at a marker: it stands there, goes on as far as it is told, and whenever that one is gone or has had its time.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Crossfade, Running, World, until};
use tokio_postgres::Client;

const MINUTE: Duration = Duration::from_secs(60);

struct Held {
    world: World,
    crossfade: Crossfade,
    run: Running,
    holder: Client,
}

/// A tail that stands at its marker, and a row behind it.
async fn held(seconds: f64) -> Result<Held> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY)")?;
    let crossfade = world.crossfade()?;
    let run = following(&crossfade).await?;
    let holder = world.target.client("app").await?;
    holder
        .execute(
            "INSERT INTO crossfade.hold (source, id, pid, backend_start, seconds)
             SELECT 'shop', 'h', pid, backend_start, $1 FROM pg_stat_activity WHERE pid = pg_backend_pid()",
            &[&seconds],
        )
        .await?;
    let nonce = world.at_target("SELECT nonce FROM crossfade.plan")?;
    for sql in [
        "INSERT INTO t VALUES (1)".to_owned(),
        format!("SELECT pg_logical_emit_message(true, 'crossfade', E'{nonce}\\nhold\\nh')"),
        "INSERT INTO t VALUES (2)".to_owned(),
        "INSERT INTO t VALUES (3)".to_owned(),
    ] {
        world.at_source(&sql)?;
    }
    until("the marker", MINUTE, || async {
        Ok((world.at_target("SELECT count(*) FROM crossfade.marker WHERE id = 'h'")? == "1").then_some(()))
    })
    .await?;
    Ok(Held { world, crossfade, run, holder })
}

impl Held {
    fn rows(&self) -> Result<String> {
        self.world.at_target("SELECT string_agg(id::text, ' ' ORDER BY id) FROM t")
    }

    async fn until_all_is_there(mut self) -> Result<()> {
        self.crossfade.wait_for_lag_zero(&mut self.run, MINUTE).await?;
        ensure!(self.rows()? == "1 2 3", "{}", self.rows()?);
        ensure!(self.world.at_target("SELECT count(*) FROM crossfade.hold")? == "0", "its line is still there");
        self.run.stop().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stands_until_it_is_released() -> Result<()> {
    let held = held(60.0).await?;
    // The source's later transactions are in the log, and none of them at the target.
    held.crossfade
        .wait_for(&mut Crossfade::start(&held.crossfade, &["status", "--watch"])?, "a backlog", MINUTE, |status| {
            status["sources"][0]["lag"]["transactions"].as_u64() >= Some(2)
        })
        .await?;
    ensure!(held.rows()? == "1", "{}", held.rows()?);
    held.holder.batch_execute("DELETE FROM crossfade.hold; NOTIFY crossfade").await?;
    held.until_all_is_there().await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_as_far_as_it_is_told() -> Result<()> {
    let held = held(60.0).await?;
    let before = held.world.at_target("SELECT lsn FROM crossfade.checkpoint")?;
    // Any position behind the next commit's beginning: the next commit is the first that ends there or later.
    held.holder.batch_execute("UPDATE crossfade.hold SET through = (SELECT lsn + 1 FROM crossfade.checkpoint)").await?;
    until("the next transaction", MINUTE, || async { Ok((held.rows()? == "1 2").then_some(())) }).await?;
    let stands = held.world.at_target("SELECT lsn FROM crossfade.checkpoint")?;
    ensure!(stands != before, "it has not gone on");
    held.holder.batch_execute("DELETE FROM crossfade.hold").await?;
    held.until_all_is_there().await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_when_the_holder_is_gone() -> Result<()> {
    let held = held(3600.0).await?;
    let Held { world, crossfade, run, holder } = held;
    drop(holder);
    let holder = world.target.client("app").await?;
    Held { world, crossfade, run, holder }.until_all_is_there().await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_when_the_time_is_up() -> Result<()> {
    held(0.5).await?.until_all_is_there().await
}
