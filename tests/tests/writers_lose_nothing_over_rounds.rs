//! Given an application that writes all the time, more than a thousand rows a second: round after round, whichever way it is led over, each acknowledged row is on both sides once, and one side at a time takes writes.

use anyhow::{Result, ensure};
use crossfade_tests::rounds::{Via, rounds};

async fn two_rounds(via: Via) -> Result<()> {
    let summary = rounds(2, via, |line| println!("{line}")).await?;
    println!("{summary}");
    ensure!(summary.good() && summary.cutovers.len() == 2 && summary.rollbacks.len() == 2, "{summary:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn through_pgbouncer() -> Result<()> {
    two_rounds(Via::PgBouncer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_hook_route() -> Result<()> {
    two_rounds(Via::Route).await
}
