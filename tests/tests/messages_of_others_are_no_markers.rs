//! Given logical messages that look like crossfade's: only a transactional one with the plan's nonce, whose transaction commits, counts.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, World, follow};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn wrong_nonce_garbage_not_transactional_or_rolled_back() -> Result<()> {
    let world = World::embedded()?;
    // Nothing is in the publication of whole tables.
    world.at_source("CREATE TABLE journal (what text); INSERT INTO journal VALUES ('entry')")?;
    let crossfade = Crossfade::new(&world.plan().identity("public.journal", "insert_only"))?;
    let mut run = follow::following(&crossfade).await?;
    ensure!(
        world.at_source("SELECT count(*) FROM pg_publication_tables WHERE pubname NOT LIKE '%insert_only'")? == "0"
    );
    let nonce = world.at_target("SELECT nonce FROM crossfade.plan")?;
    let message = |transactional: bool, prefix: &str, nonce: &str, id: &str| {
        format!("SELECT pg_logical_emit_message({transactional}, '{prefix}', E'{nonce}\\nfence\\n{id}');")
    };
    let sql = [
        message(true, "crossfade", "another", "wrong nonce"),
        message(true, "Crossfade", &nonce, "wrong prefix"),
        message(false, "crossfade", &nonce, "not transactional"),
        format!("BEGIN; {} ROLLBACK;", message(true, "crossfade", &nonce, "rolled back")),
        format!("BEGIN; SAVEPOINT a; {} ROLLBACK TO a; COMMIT;", message(true, "crossfade", &nonce, "rolled back in part")),
        format!("SELECT pg_logical_emit_message(true, 'crossfade', E'{nonce}\\nnonsense\\nx');"),
        "SELECT pg_logical_emit_message(true, 'crossfade', ''); SELECT pg_logical_emit_message(true, 'crossfade', '\\xff00fe0a0a'::bytea);".to_owned(),
        // The next one waits for all of that.
        format!("BEGIN READ ONLY; {} COMMIT;", message(true, "crossfade", &nonce, "ours")),
    ];
    for line in &sql {
        world.at_source(line)?;
    }
    world.at_source("INSERT INTO journal VALUES ('later')")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let reached = world
        .at_target("SELECT string_agg(id, ',') FROM crossfade.marker WHERE id !~ '^[0-9]+ public|^[0-9a-f-]{36}'")?;
    ensure!(reached == "ours", "markers that the target has reached: {reached}");
    world.expect_equal().await?;
    run.stop().await
}
