//! Follows given changes and compares: for what a simple replay gets wrong.

use std::time::Duration;

use anyhow::Result;

use crate::{Crossfade, PlanFile, Running, World, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Copies `schema`, follows `changes` (each line is a transaction), and compares. The changes are made twice, and must bear that: one by
/// one, so that each is a batch of its own, and then all at once, folded.
pub async fn changes_in(world: &World, plan: &PlanFile, schema: &str, changes: &str) -> Result<()> {
    world.at_source(schema)?;
    let crossfade = Crossfade::new(plan)?;
    let mut run = following(&crossfade).await?;
    let client = world.source.client("app").await?;
    let lines = || changes.lines().map(str::trim).filter(|line| !line.is_empty());
    for line in lines() {
        client.batch_execute(line).await?;
        crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    }
    world.expect_equal().await?;
    run.stop().await?;
    let mut run = crossfade.start(&["run"])?;
    for line in lines() {
        client.batch_execute(line).await?;
    }
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

/// The same with the embedded log and nothing special in the plan.
pub async fn changes(schema: &str, changes: &str) -> Result<()> {
    let world = World::embedded()?;
    changes_in(&world, &world.plan(), schema, changes).await
}

/// Waits until the target is captured for the way back.
pub async fn captured_back(world: &World) -> Result<()> {
    let query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_back' AND active";
    until("the way back captured", MINUTE, || async { Ok((world.at_target(query)? == "1").then_some(())) }).await
}

/// `crossfade run`, once it follows.
pub async fn following(crossfade: &Crossfade) -> Result<Running> {
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    Ok(run)
}
