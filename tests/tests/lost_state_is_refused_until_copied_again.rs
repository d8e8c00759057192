//! Given something that is lost and cannot be had again, while the application writes: it is named and refused, nothing is applied across the gap, and
//! `crossfade recopy` leads out of it, into the same log and target.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Cluster, Crossfade, Nats, PlanFile, Shutdown, World, compare, until};
use model::Lsn;
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

/// A migration that has followed for a while under load, and is stopped; the slot knows what the log has. The load goes on.
struct Followed {
    world: World,
    crossfade: Crossfade,
    writers: Writers,
}

fn plan(world: &World) -> PlanFile {
    let plan = mixed::plan(world.plan());
    if world.nats.is_some() { plan.log_lines("sync = \"0s\"") } else { plan }
}

impl Followed {
    async fn start(world: World) -> Result<Followed> {
        mixed::create(&world.source, "app")?;
        let crossfade = Crossfade::new(&plan(&world))?;
        let mut run = crossfade.start(&["run"])?;
        crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
        let writers = Writers::start(&world.source, "app", 2, 41).await?;
        let followed = Followed { world, crossfade, writers };
        followed.some(200).await?;
        let here = followed.world.at_source("SELECT pg_current_wal_lsn()")?;
        followed.confirmed(&here).await?;
        run.stop().await?;
        followed.some(50).await?;
        Ok(followed)
    }

    async fn over_nats() -> Result<Followed> {
        Followed::start(World::with_nats()?).await
    }

    async fn some(&self, count: u64) -> Result<()> {
        let before = self.writers.transactions();
        until("some transactions", MINUTE, || async {
            Ok((self.writers.transactions() > before + count).then_some(()))
        })
        .await
    }

    /// Waits until the slot has been told that everything up to `lsn` is safe.
    async fn confirmed(&self, lsn: &str) -> Result<()> {
        let source = self.world.source.client("app").await?;
        let sql = format!("SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn >= '{lsn}'");
        until("the slot confirmed", MINUTE, || async { Ok(source.query_opt(&sql, &[]).await?) }).await.map(drop)
    }

    fn nats(&self) -> Result<&Nats> {
        self.world.nats.as_ref().context("a world with NATS")
    }

    /// Everything of the application in the target.
    fn content(&self) -> Result<String> {
        let rows = "SELECT string_agg(md5(o::text), '' ORDER BY o.*) FROM orders AS o";
        let rest = "SELECT count(*), sum(balance) FROM customers; SELECT count(*) FROM audit; SELECT lsn FROM crossfade.checkpoint";
        Ok(self.world.at_target(rows)? + &self.world.at_target(rest)?)
    }

    /// It ends with that code, says how to go on, and has applied nothing.
    async fn is_refused(&self, command: &str, code: &str) -> Result<()> {
        let before = self.content()?;
        // What the log had when it all was stopped may still be applied.
        let logged: Lsn =
            self.crossfade.status().await?["sources"][0]["logged_lsn"].as_str().unwrap_or("0/0").parse()?;
        for _ in 0..2 {
            let ended = self.crossfade.start(&[command, "--json"])?.finish(MINUTE).await?;
            ensure!(ended.status.code() == Some(1), "{ended:?}");
            ensure!(ended.error_code()? == code, "{code} expected: {ended:?}");
            ensure!(ended.stdout.contains("crossfade recopy"), "no way out is told: {}", ended.stdout);
        }
        let applied: Lsn = self.world.at_target("SELECT max(lsn) FROM crossfade.checkpoint")?.parse()?;
        ensure!(
            self.content()? == before || command == "run" && applied <= logged,
            "something was applied across the gap"
        );
        Ok(())
    }

    /// Asks for another copy of everything.
    async fn recopy(&self, recopy: &[&str]) -> Result<()> {
        let asked = self.crossfade.run(&[recopy, ["--json"].as_slice()].concat()).await?;
        ensure!(asked.status.success(), "{asked:?}");
        ensure!(asked.json()?["sources"][0]["everything"] == true, "{asked:?}");
        Ok(())
    }

    async fn goes_on_after(self, recopy: &[&str]) -> Result<()> {
        self.recopy(recopy).await?;
        self.goes_on().await
    }

    /// Everything is copied again, and the target is equal in rows and definitions.
    async fn goes_on(self) -> Result<()> {
        let mut run = self.crossfade.start(&["run"])?;
        let target = self.world.target.client("app").await?;
        let begun = "SELECT 1 FROM crossfade.checkpoint WHERE recopy IS NOT NULL";
        until("the tail to start anew", MINUTE, || async { Ok(target.query_opt(begun, &[]).await?) }).await?;
        self.crossfade.wait_for_phase(&mut run, "following", 2 * MINUTE).await?;
        self.some(100).await?;
        self.writers.stop().await?;
        self.crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
        self.world.expect_equal().await?;
        let differences =
            compare::schemas(&self.world.source.socket_dsn("app"), &self.world.target.socket_dsn("app")).await?;
        ensure!(differences.is_empty(), "{differences:#?}");
        run.stop().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped() -> Result<()> {
    let followed = Followed::over_nats().await?;
    followed.world.at_source("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")?;
    followed.is_refused("run", "slot_lost").await?;
    let slots = followed.world.at_source("SELECT count(*) FROM pg_replication_slots")?;
    ensure!(slots == "0", "a slot was made anew, and the gap is hidden");
    let warnings = followed.crossfade.status().await?["warnings"].to_string();
    ensure!(warnings.contains("slot_lost"), "{warnings}");
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_with_the_embedded_log() -> Result<()> {
    let followed = Followed::start(World::embedded()?).await?;
    followed.world.at_source("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")?;
    followed.is_refused("run", "slot_lost").await?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_max_slot_wal_keep_size_has_invalidated() -> Result<()> {
    let source = Cluster::build()
        .set("max_slot_wal_keep_size", "1MB")
        .set("max_wal_size", "32MB")
        .set("min_wal_size", "32MB")
        .start()?;
    let followed = Followed::start(World::of(source, Cluster::start()?, Some(Nats::start()?))?).await?;
    let lost = "SELECT bool_and(wal_status = 'lost') FROM pg_replication_slots";
    until("the slot lost", MINUTE, || async {
        followed.world.at_source("SELECT pg_switch_wal() FROM pg_logical_emit_message(true, 'filler', 'x')")?;
        followed.world.at_source("CHECKPOINT")?;
        Ok((followed.world.at_source(lost)? == "t").then_some(()))
    })
    .await?;
    followed.is_refused("run", "slot_lost").await?;
    followed.world.source.set("max_slot_wal_keep_size", "-1")?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_stream_that_was_deleted() -> Result<()> {
    let followed = Followed::over_nats().await?;
    followed.nats()?.delete("_TAIL")?;
    followed.is_refused("run", "gap").await?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_stream_that_was_purged() -> Result<()> {
    let followed = Followed::over_nats().await?;
    let tail = followed.nats()?.stream("_TAIL")?;
    // Capture logs what the target lacks, and that goes, but for the last message: only apply can notice.
    let mut capture = followed.crossfade.start(&["capture"])?;
    followed.some(100).await?;
    let here = followed.world.at_source("SELECT pg_current_wal_lsn()")?;
    followed.confirmed(&here).await?;
    capture.stop().await?;
    followed.nats()?.jetstream(&format!("STREAM.PURGE.{tail}"), &json!({ "keep": 1 }))?;
    followed.is_refused("apply", "gap").await?;
    followed.nats()?.jetstream(&format!("STREAM.PURGE.{tail}"), &json!({}))?;
    followed.is_refused("capture", "gap").await?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_stream_that_was_truncated() -> Result<()> {
    let followed = Followed::over_nats().await?;
    let tail = followed.nats()?.stream("_TAIL")?;
    let last = followed.nats()?.last(&tail)?;
    for seq in last - 3..=last {
        followed.nats()?.jetstream(&format!("STREAM.MSG.DELETE.{tail}"), &json!({ "seq": seq }))?;
    }
    followed.is_refused("capture", "gap").await?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stream_that_was_deleted() -> Result<()> {
    let followed = Followed::over_nats().await?;
    followed.nats()?.delete("_COPY")?;
    followed.is_refused("capture", "gap").await?;
    followed.is_refused("apply", "gap").await?;
    followed.goes_on_after(&["recopy"]).await
}

/// When apply sees the new one it has as many messages as the old one had: others, under the same numbers.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stream_that_was_deleted_and_has_grown_again() -> Result<()> {
    let followed = Followed::over_nats().await?;
    let copy = followed.nats()?.stream("_COPY")?;
    let taken = followed.nats()?.last(&copy)?;
    followed.nats()?.delete("_COPY")?;
    followed.recopy(&["recopy"]).await?;
    let mut capture = followed.crossfade.start(&["capture"])?;
    until("as many messages again", MINUTE, || async { Ok((followed.nats()?.last(&copy)? > taken).then_some(())) })
        .await?;
    capture.stop().await?;
    followed.goes_on().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stream_that_was_purged() -> Result<()> {
    let followed = Followed::over_nats().await?;
    let copy = followed.nats()?.stream("_COPY")?;
    followed.nats()?.jetstream(&format!("STREAM.PURGE.{copy}"), &json!({ "keep": 1 }))?;
    followed.is_refused("run", "gap").await?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stream_that_was_truncated() -> Result<()> {
    let followed = Followed::over_nats().await?;
    let copy = followed.nats()?.stream("_COPY")?;
    let last = followed.nats()?.last(&copy)?;
    for seq in last - 2..=last {
        followed.nats()?.jetstream(&format!("STREAM.MSG.DELETE.{copy}"), &json!({ "seq": seq }))?;
    }
    followed.is_refused("apply", "gap").await?;
    followed.is_refused("run", "gap").await?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_gone() -> Result<()> {
    let followed = Followed::over_nats().await?;
    for stream in ["_COPY", "_CHUNKS", "_TAIL"] {
        followed.nats()?.delete(stream)?;
    }
    followed.is_refused("apply", "gap").await?;
    // Capture alone would take it for a plan that begins; who has the target notices.
    followed.is_refused("run", "gap").await?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_put_back_further_than_the_slot_reaches() -> Result<()> {
    let mut followed = Followed::over_nats().await?;
    followed.world.nats.as_mut().context("NATS")?.stop()?;
    followed.nats()?.keep("before")?;
    followed.world.nats.as_mut().context("NATS")?.boot()?;
    // Running: it is found out by whoever goes on from there.
    let mut run = followed.crossfade.start(&["run", "--json"])?;
    followed.crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    followed.some(200).await?;
    let here = followed.world.at_source("SELECT pg_current_wal_lsn()")?;
    followed.confirmed(&here).await?;
    let nats = followed.world.nats.as_mut().context("NATS")?;
    nats.stop()?;
    nats.put_back("before")?;
    nats.boot()?;
    let ended = run.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1) && ended.error_code()? == "gap", "{ended:?}");
    followed.is_refused("run", "gap").await?;
    followed.goes_on_after(&["recopy"]).await
}

/// It lacks the last transactions, which the target has: the positions of what comes now lie below the checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_failed_over_to_a_standby_without_the_slot() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&plan(&world))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let standby = world.source.standby()?;
    let writers = Writers::start(&world.source, "app", 2, 42).await?;
    let mut followed = Followed { world, crossfade, writers };
    followed.some(100).await?;
    // Cut off from its primary, which goes on for a while.
    standby.psql("postgres", "ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()")?;
    until("the standby alone", MINUTE, || async {
        Ok((standby.psql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver")? == "0").then_some(()))
    })
    .await?;
    followed.some(300).await?;
    let here = followed.world.at_source("SELECT pg_current_wal_lsn()")?;
    let applied = format!("SELECT 1 FROM crossfade.checkpoint WHERE lsn >= '{here}'");
    let target = followed.world.target.client("app").await?;
    until("the target has it", MINUTE, || async { Ok(target.query_opt(&applied, &[]).await?) }).await?;
    run.stop().await?;
    followed.writers.stop().await?;
    followed.world.source.stop(Shutdown::Immediate)?;
    standby.promote()?;
    followed.world.source = standby;
    followed.writers = Writers::start(&followed.world.source, "app", 2, 43).await?;
    followed.crossfade.replan(&plan(&followed.world))?;
    followed.is_refused("run", "slot_lost").await?;
    followed.goes_on_after(&["recopy"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_behind_the_same_address() -> Result<()> {
    let mut followed = Followed::over_nats().await?;
    followed.writers.stop().await?;
    let other = Cluster::start()?;
    other.create_db("app")?;
    mixed::create(&other, "app")?;
    followed.world.source = other;
    followed.writers = Writers::start(&followed.world.source, "app", 2, 44).await?;
    followed.crossfade.replan(&plan(&followed.world))?;
    followed.is_refused("run", "source_changed").await?;
    // By mistake, most likely: a recopy alone does not take it for the right one.
    let ended = followed.crossfade.run(&["recopy", "--json"]).await?;
    ensure!(ended.status.code() == Some(1) && ended.error_code()? == "source_changed", "{ended:?}");
    followed.goes_on_after(&["recopy", "--new-source"]).await
}

/// With its slot, which has gone back as well: what is committed now has positions that the log has already.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_put_back() -> Result<()> {
    let mut followed = Followed::over_nats().await?;
    followed.writers.stop().await?;
    followed.world.source.stop(Shutdown::Fast)?;
    followed.world.source.keep("before")?;
    followed.world.source.boot()?;
    followed.writers = Writers::start(&followed.world.source, "app", 2, 45).await?;
    let mut run = followed.crossfade.start(&["run"])?;
    followed.some(300).await?;
    followed.writers.stop().await?;
    followed.crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    followed.world.source.stop(Shutdown::Fast)?;
    followed.world.source.put_back("before")?;
    followed.world.source.boot()?;
    followed.writers = Writers::start(&followed.world.source, "app", 0, 46).await?;
    followed.is_refused("run", "gap").await?;
    followed.writers = Writers::start(&followed.world.source, "app", 2, 47).await?;
    followed.goes_on_after(&["recopy"]).await
}
