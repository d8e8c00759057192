//! Given a table that the plan says is only inserted into: an update or delete, which is not published, stops the migration loudly.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, World, follow, until};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn an_update_and_a_delete_stop_it_and_inserts_do_not() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE journal (what text); INSERT INTO journal SELECT 'entry' FROM generate_series(1, 10)",
    )?;
    let crossfade = Crossfade::new(&world.plan().identity("public.journal", "insert_only"))?;
    let mut run = follow::following(&crossfade).await?;
    world.at_source(
        "INSERT INTO journal VALUES ('more'); TRUNCATE journal; INSERT INTO journal VALUES ('again'), ('again')",
    )?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await?;
    for statement in ["UPDATE journal SET what = 'other' WHERE what = 'again'", "DELETE FROM journal"] {
        // One that ends for another reason than the rule would have another code.
        let run = crossfade.start(&["run", "--json"])?;
        let observer = world.source.client("app").await?;
        let watches = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%catalog watch' AND state = 'idle' AND query LIKE '%pg_snapshot_xmax%'";
        until("the first look", MINUTE, || async { Ok(observer.query_opt(watches, &[]).await?) }).await?;
        world.at_source("SELECT pg_stat_reset()")?;
        world.at_source(statement)?;
        let ended = run.finish(MINUTE).await?;
        ensure!(ended.status.code() == Some(1), "{statement}: {ended:?}");
        ensure!(ended.error_code()? == "insert_only_violated", "{statement}: {ended:?}");
        ensure!(ended.stdout.contains("public.journal"), "{statement}: {}", ended.stdout);
    }
    Ok(())
}
