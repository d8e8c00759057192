//! The initial copy: from the start until rows and keys are there and changes are followed.

use std::time::Instant;

use anyhow::Result;
use harness::World;

use crate::rivals::{Ours, Theirs, copy_schema, pipe, psql};

/// crossfade: `run` until joined, in seconds. It is stopped afterwards.
pub async fn ours(world: &World, ours: &Ours, rss: &mut u64) -> Result<f64> {
    settle(world)?;
    let started = Instant::now();
    let mut running = ours.start()?;
    ours.joined(world, &mut running).await?;
    let took = started.elapsed().as_secs_f64();
    *rss = (*rss).max(running.peak_rss_mib().unwrap_or_default());
    running.stop().await?;
    Ok(took)
}

/// The subscription: CREATE SUBSCRIPTION until all tables are ready, in seconds. It is disabled afterwards.
pub async fn theirs(world: &World, theirs: &Theirs) -> Result<f64> {
    settle(world)?;
    let started = Instant::now();
    theirs.subscribe(world)?;
    theirs.joined(world).await?;
    let took = started.elapsed().as_secs_f64();
    theirs.disable(world).await?;
    Ok(took)
}

/// A pipe of binary COPY, one table after the other, without keys: what the disk and two backends can do.
pub fn raw(world: &World) -> Result<f64> {
    world.target.create_db("raw")?;
    copy_schema(world, "raw", &["--section=pre-data"])?;
    settle(world)?;
    let started = Instant::now();
    for table in ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"] {
        let (mut from, mut to) = (psql(&world.source.socket_dsn("app"))?, psql(&world.target.socket_dsn("raw"))?);
        from.args(["-c", &format!("COPY {table} TO STDOUT (FORMAT binary)")]);
        to.args(["-c", &format!("COPY {table} FROM STDIN (FORMAT binary)")]);
        pipe(from, to)?;
    }
    let took = started.elapsed().as_secs_f64();
    world.target.psql("postgres", "DROP DATABASE raw WITH (FORCE)")?;
    Ok(took)
}

/// What the work before left to be written must not be paid by the next one.
pub fn settle(world: &World) -> Result<()> {
    world.source.psql("postgres", "CHECKPOINT")?;
    world.target.psql("postgres", "CHECKPOINT").map(drop)
}
