//! Given a migration in any phase: `complete` says what it would remove, and with `--yes` removes it.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{World, until};

const MINUTE: Duration = Duration::from_secs(60);
const AT_SOURCE: &str = "SELECT 'slot ' || slot_name FROM pg_replication_slots
    UNION ALL SELECT 'publication ' || pubname FROM pg_publication
    UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'crossfade'
    UNION ALL SELECT 'trigger ' || evtname FROM pg_event_trigger";
const AT_TARGET: &str = "SELECT nspname FROM pg_namespace WHERE nspname = 'crossfade'
    UNION ALL SELECT roname FROM pg_replication_origin";

#[tokio::test(flavor = "multi_thread")]
async fn when_it_follows() -> Result<()> {
    let world = World::with_nats()?;
    world
        .at_source("CREATE TABLE t (id integer PRIMARY KEY); CREATE TABLE log (what text); INSERT INTO t VALUES (1)")?;
    let crossfade = crossfade_tests::Crossfade::new(&world.plan().identity("public.log", "insert_only"))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    let before = world.at_source(AT_SOURCE)?;
    ensure!(before.contains("slot") && before.contains("publication"), "{before}");

    let listed = crossfade.run(&["complete"]).await?;
    ensure!(listed.status.code() != Some(2), "{listed:?}");
    for line in before.lines() {
        let name = line.split(' ').nth(1).unwrap_or_default();
        ensure!(listed.stdout.contains(name), "{name} is not listed: {listed:?}");
    }
    ensure!(world.at_source(AT_SOURCE)? == before, "it removed something without --yes");

    let done = crossfade.run(&["complete", "--yes"]).await?;
    ensure!(done.status.success(), "{done:?}");
    ensure!(world.at_source(AT_SOURCE)?.is_empty() && world.at_target(AT_TARGET)?.is_empty());
    // The migrated data stays.
    ensure!(world.at_target("SELECT count(*) FROM t")? == "1");
    // Once more is no error.
    let again = crossfade.run(&["complete", "--yes"]).await?;
    ensure!(again.status.success(), "{again:?}");
    Ok(())
}

/// What the application has left is told how to be put away, and stays where it is.
#[tokio::test(flavor = "multi_thread")]
async fn when_it_was_cut_over() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE SCHEMA other; CREATE TABLE other.t (id integer PRIMARY KEY); CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t DEFAULT VALUES;
         CREATE TABLE parts (id integer PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (9); INSERT INTO parts VALUES (1)",
    )?;
    let plan = world.plan().tables(&["public.*", "other.*"]);
    let crossfade = crossfade_tests::Crossfade::new(&plan)?;
    let mut run = following(&crossfade).await?;
    crossfade.verified().await?;
    let (before, _) = crossfade.says(&["complete"]).await?;
    ensure!(before["archive"] == serde_json::json!([]), "the application writes to the source: {before:#}");
    let (cutover, code) = crossfade.says(&["cutover", "--no-way-back"]).await?;
    ensure!(code == Some(0), "{cutover:#}");
    run.stop().await?;
    let (listed, _) = crossfade.says(&["complete"]).await?;
    let (done, code) = crossfade.says(&["complete", "--yes"]).await?;
    ensure!(code == Some(0) && done["archive"] == listed["archive"], "{done:#}");
    let there = "SELECT string_agg(c.oid::regclass::text, ' ' ORDER BY c.oid::regclass::text) FROM pg_class c WHERE relnamespace::regnamespace::text LIKE 'legacy%' AND relkind IN ('r', 'p')";
    ensure!(world.at_source(there)?.is_empty(), "it ran what is for a person");
    for statement in done["archive"].as_array().into_iter().flatten() {
        world.at_source(statement.as_str().unwrap_or_default())?;
    }
    let names = world.at_source(there)?;
    ensure!(
        names == "legacy_other.t_legacy legacy_public.parts_1_legacy legacy_public.parts_legacy legacy_public.t_legacy",
        "{names}"
    );
    ensure!(world.at_source("SELECT count(*) FROM legacy_public.parts_legacy")? == "1");
    let again = crossfade.run(&["complete", "--yes"]).await?;
    ensure!(again.status.success() && again.stdout.contains("nothing"), "{again:?}");
    Ok(())
}

/// Before a cutover that is how one gives up.
#[tokio::test(flavor = "multi_thread")]
async fn when_it_was_killed_in_the_copy() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, v text);
         INSERT INTO t SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 300000) AS i",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = crossfade.start(&["run"])?;
    let target = world.target.client("app").await?;
    until("the first chunk", MINUTE, || async {
        Ok(target.query_opt("SELECT 1 FROM crossfade.copied LIMIT 1", &[]).await?)
    })
    .await?;
    run.kill9()?;
    let done = crossfade.run(&["complete", "--yes"]).await?;
    ensure!(done.status.success(), "{done:?}");
    ensure!(world.at_source(AT_SOURCE)?.is_empty() && world.at_target(AT_TARGET)?.is_empty());
    Ok(())
}
