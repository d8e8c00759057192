//! Given a slot on the target that leaves out what came from elsewhere: nothing that was copied or followed shows there, so that a way back
//! could leave it out, too.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, World, follow};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn copied_and_followed() -> Result<()> {
    let world = World::embedded()?;
    let table = "CREATE TABLE t (id integer PRIMARY KEY, v text)";
    world
        .at_source(&format!("{table}; INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 20000) AS i"))?;
    world.at_target(table)?;
    world.at_target("SELECT pg_create_logical_replication_slot('back', 'test_decoding')")?;
    let crossfade = Crossfade::new(&world.plan().target_exists())?;
    let mut run = follow::following(&crossfade).await?;
    world.at_source("INSERT INTO t VALUES (0, 'new'); UPDATE t SET v = 'changed' WHERE id < 100; UPDATE t SET id = -id WHERE id = 5; DELETE FROM t WHERE id > 19990; UPDATE t SET v = 'more'")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await?;
    world.at_target("INSERT INTO t VALUES (99999, 'our own')")?;
    let changes = |only_local: i32| {
        world.at_target(&format!(
            "SELECT count(*) FILTER (WHERE data LIKE 'table public.t:%'), count(*) FILTER (WHERE data LIKE '%our own%')
               FROM pg_logical_slot_peek_changes('back', NULL, NULL, 'only-local', '{only_local}')"
        ))
    };
    let local = changes(1)?;
    ensure!(local == "1|1", "rows without origin: {local}");
    let all = changes(0)?;
    ensure!(
        all.split('|').next().and_then(|n| n.parse().ok()).is_some_and(|n: u32| n > 39_000),
        "the slot sees them all otherwise: {all}"
    );
    Ok(())
}
