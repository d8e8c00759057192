//! Given servers that restart and a network that breaks: the migration waits, goes on by itself, and ends equal.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Crossfade, Orphan, PlanFile, Proxy, Running, Shutdown, World, until};

const MINUTE: Duration = Duration::from_secs(60);

async fn write_some(world: &World, seed: u64) -> Result<()> {
    let writers = Writers::start(&world.source, "app", 2, seed).await?;
    until("some transactions", MINUTE, || async { Ok((writers.transactions() > 300).then_some(())) }).await?;
    writers.stop().await.map(drop)
}

/// Still the same process, and equal.
async fn expect_caught_up(world: &World, crossfade: &Crossfade, run: &mut Running) -> Result<()> {
    ensure!(run.is_running()?, "it has ended");
    crossfade.wait_for_lag_zero(run, MINUTE).await?;
    world.expect_equal().await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_nats_restart() -> Result<()> {
    let mut world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let crossfade = Crossfade::new(&mixed::plan(world.plan()))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;

    world.target.kill9()?;
    write_some(&world, 1).await?;
    world.target.boot()?;
    expect_caught_up(&world, &crossfade, &mut run).await?;

    world.nats.as_mut().context("it is there")?.kill9()?;
    write_some(&world, 2).await?;
    world.nats.as_mut().context("it is there")?.boot()?;
    expect_caught_up(&world, &crossfade, &mut run).await?;

    write_some(&world, 3).await?;
    world.source.restart(Shutdown::Immediate)?;
    write_some(&world, 4).await?;
    expect_caught_up(&world, &crossfade, &mut run).await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_is_cut_and_stalls() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let nats_port = world.nats.as_ref().map(|nats| nats.port()).context("it is there")?;
    let source = Proxy::start(world.source.port()).await?;
    let target = Proxy::start(world.target.port()).await?;
    let nats = Proxy::start(nats_port).await?;
    let url = |proxy: &Proxy| format!("postgres://postgres@127.0.0.1:{}/app", proxy.port());
    let plan = PlanFile::new("shop", &url(&source), &url(&target)).log(&format!("nats://127.0.0.1:{}", nats.port()));
    let crossfade = Crossfade::new(&mixed::plan(plan))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    for (seed, proxy) in [&source, &nats, &target].into_iter().enumerate() {
        proxy.cut();
        write_some(&world, seed as u64).await?;
        proxy.resume();
        expect_caught_up(&world, &crossfade, &mut run).await?;
        proxy.stall();
        write_some(&world, 10 + seed as u64).await?;
        proxy.resume();
        expect_caught_up(&world, &crossfade, &mut run).await?;
    }
    run.stop().await
}

/// The process knows that its connections to the target are gone, and the target does not: what they held there, the lease among it, must not
/// keep their own process waiting.
#[tokio::test(flavor = "multi_thread")]
async fn the_target_does_not_hear_that_its_connections_are_gone() -> Result<()> {
    let world = World::embedded()?;
    mixed::create(&world.source, "app")?;
    let target = Proxy::start(world.target.port()).await?;
    let url = format!("postgres://postgres@127.0.0.1:{}/app", target.port());
    let crossfade = Crossfade::new(&mixed::plan(PlanFile::new("shop", &world.source_url(), &url)))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    target.orphan(Orphan::Server);
    write_some(&world, 1).await?;
    expect_caught_up(&world, &crossfade, &mut run).await?;
    run.stop().await
}

/// The other way round, with NATS: it has closed the connections, and the process is left waiting for answers.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_does_not_hear_that_its_connections_to_nats_are_gone() -> Result<()> {
    let world = World::with_nats()?;
    mixed::create(&world.source, "app")?;
    let nats = Proxy::start(world.nats.as_ref().map(|nats| nats.port()).context("it is there")?).await?;
    let plan = mixed::plan(world.plan()).log(&format!("nats://127.0.0.1:{}", nats.port()));
    let crossfade = Crossfade::new(&plan)?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    nats.orphan(Orphan::Program);
    write_some(&world, 1).await?;
    expect_caught_up(&world, &crossfade, &mut run).await?;
    run.stop().await
}
