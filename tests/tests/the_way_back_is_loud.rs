//! Given a plan with a way back: where that cannot go on, somebody is told, and what it does not concern goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::follow::{captured_back, following};
use crossfade_tests::{World, until};

const MINUTE: Duration = Duration::from_secs(60);

async fn prepared() -> Result<World> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i",
    )?;
    Ok(world)
}

/// The plan knows nothing of the new column, and the source has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_change_at_the_target_stops_it() -> Result<()> {
    let world = prepared().await?;
    let crossfade = world.crossfade()?;
    let run = following(&crossfade).await?;
    captured_back(&world).await?;
    crossfade.verified().await?;
    let cutover = crossfade.run(&["cutover"]).await?;
    ensure!(cutover.status.success(), "{cutover:?}");
    world.target.psql("app", "ALTER TABLE t ADD COLUMN later text; INSERT INTO t VALUES (1000, 'y', 'z')")?;
    let ended = run.finish(MINUTE).await?;
    let why = ended.stderr.lines().last().unwrap_or_default();
    ensure!(ended.status.code() == Some(1) && why.contains("public.t"), "{ended:?}");
    ensure!(
        why.contains("keep the target as it is") && !why.contains("empty"),
        "the target has what is nowhere else: {why}"
    );
    Ok(())
}

/// Before a cutover nothing depends on it: the target follows, and the way back is begun anew. What others wrote meanwhile nobody knows, until both sides were compared.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_slot_it_is_begun_anew_and_both_sides_are_compared_again() -> Result<()> {
    let world = prepared().await?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    captured_back(&world).await?;
    crossfade.verified().await?;
    run.stop().await?;
    world.at_target("SELECT pg_drop_replication_slot('crossfade_shop_shop_back')")?;
    let mut run = following(&crossfade).await?;
    world.at_source("INSERT INTO t VALUES (1000, 'y')")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    captured_back(&world).await?;
    let refused = crossfade.run(&["cutover", "--json"]).await?;
    ensure!(refused.json()?["refused"].to_string().contains("\"rogue_writes\""), "{refused:?}");
    crossfade.verified().await?;
    let cutover = crossfade.run(&["cutover"]).await?;
    ensure!(cutover.status.success(), "{cutover:?}");
    let back = crossfade.run(&["rollback"]).await?;
    ensure!(back.status.success(), "{back:?}");
    run.stop().await
}

/// Cut over without a way back, the target keeps back no WAL for one, and capture and apply go on.
#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_wants_one_it_is_taken_away() -> Result<()> {
    let world = prepared().await?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    captured_back(&world).await?;
    crossfade.verified().await?;
    let cutover = crossfade.run(&["cutover", "--no-way-back"]).await?;
    ensure!(cutover.status.success(), "{cutover:?}");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    until("the slot gone", MINUTE, || async { Ok((world.at_target(slots)? == "0").then_some(())) }).await?;
    let back = crossfade.run(&["rollback", "--json"]).await?;
    ensure!(back.json()?["refused"][0]["code"] == "no_way_back", "{back:?}");
    ensure!(run.is_running()?, "it has ended");
    run.stop().await?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "routed", MINUTE).await?;
    ensure!(world.at_target(slots)? == "0", "it is there again");
    run.stop().await
}
