//! Given a target that somebody else wrote to: apply stops with the table and the key, and skips nothing; once that is mended it goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Crossfade, World, follow};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "CREATE TABLE t (id integer PRIMARY KEY, v text, u integer UNIQUE); CREATE TABLE k (a integer, b text); ALTER TABLE k REPLICA IDENTITY FULL;
    INSERT INTO t SELECT i, 'v', i FROM generate_series(1, 20) AS i; INSERT INTO k SELECT i, 'k' FROM generate_series(1, 20) AS i;";

/// What somebody does at the target, what the source does, what the error names, and what mends the target.
const CASES: &[(&str, &str, &[&str], &str)] = &[
    (
        "DELETE FROM t WHERE id = 1",
        "UPDATE t SET v = 'w' WHERE id IN (1, 2)",
        &["public.t", "id = 1", "update"],
        "INSERT INTO t VALUES (1, 'v', 1)",
    ),
    (
        "DELETE FROM t WHERE id = 3",
        "DELETE FROM t WHERE id IN (3, 4)",
        &["public.t", "id = 3", "delete"],
        "INSERT INTO t VALUES (3, 'v', 3)",
    ),
    (
        "DELETE FROM t WHERE id = 5",
        "UPDATE t SET id = 55 WHERE id = 5",
        &["public.t", "id = 5", "update"],
        "INSERT INTO t VALUES (5, 'v', 5)",
    ),
    (
        "INSERT INTO t VALUES (100, 'ours', NULL)",
        "INSERT INTO t VALUES (100, 'theirs', NULL), (101, 'theirs', NULL)",
        &["public.t", "id = 100"],
        "DELETE FROM t WHERE id = 100",
    ),
    (
        "INSERT INTO t VALUES (200, 'ours', 200)",
        "UPDATE t SET u = 200 WHERE id = 6",
        &["public.t", "id = 6", "t_u_key"],
        "DELETE FROM t WHERE id = 200",
    ),
    (
        "DELETE FROM k WHERE a = 1",
        "DELETE FROM k WHERE a IN (1, 2)",
        &["public.k", "a = 1", "delete"],
        "INSERT INTO k VALUES (1, 'k')",
    ),
    (
        "DELETE FROM k WHERE a = 3",
        "UPDATE k SET b = 'x' WHERE a IN (3, 4)",
        &["public.k", "a = 3", "update"],
        "INSERT INTO k VALUES (3, 'k')",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn names_table_and_key_and_skips_nothing() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    let crossfade = Crossfade::new(&world.plan().identity("public.k", "full"))?;
    let mut run = follow::following(&crossfade).await?;
    let content = "SELECT (SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM t), (SELECT md5(string_agg(k::text, ',' ORDER BY k::text)) FROM k),
                          (SELECT (lsn, transactions) FROM crossfade.checkpoint)";
    for (planted, change, mentions, mended) in CASES {
        crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
        run.stop().await?;
        world.at_target(planted)?;
        let before = world.at_target(content)?;
        let run_json = crossfade.start(&["run", "--json"])?;
        world.at_source(change)?;
        let stopped = run_json.finish(MINUTE).await?;
        ensure!(stopped.status.code() == Some(1), "{change}: {}", stopped.status);
        ensure!(stopped.error_code()? == "divergence", "{change}: {}", stopped.stdout);
        for mention in *mentions {
            ensure!(stopped.stdout.contains(mention), "{change}: not {mention:?} in {}", stopped.stdout);
        }
        ensure!(world.at_target(content)? == before, "{change}: something was written, or skipped");
        let status = crossfade.status().await?;
        let why = warning(&status, "apply_stopped").with_context(|| format!("{change}: {status:#}"))?;
        ensure!(mentions.iter().all(|mention| why.contains(mention)) && why.contains("divergence"), "{change}: {why}");
        ensure!(warning(&status, "apply_down").is_none(), "{status:#}");
        world.at_target(mended)?;
        run = crossfade.start(&["run"])?;
    }
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await?;
    // Whoever was stopped by a person was not stopped by what had stopped another one before.
    let status = crossfade.status().await?;
    ensure!(warning(&status, "apply_down").is_some() && warning(&status, "apply_stopped").is_none(), "{status:#}");
    Ok(())
}

/// The text of the warning with this code.
fn warning(status: &Value, code: &str) -> Option<String> {
    let warnings = status["warnings"].as_array()?;
    let found = warnings.iter().find(|warning| warning["code"] == code)?;
    found["text"].as_str().map(str::to_owned)
}
