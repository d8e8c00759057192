//! Given DDL at the source while a migration follows: it stops before the first affected row, also where the tail does not tell.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, Finished, Running, World, follow, until};

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "CREATE TABLE t (id integer PRIMARY KEY, v text, n integer); INSERT INTO t SELECT i, i, i FROM generate_series(1, 10) AS i;
    CREATE TABLE parted (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (100);
    INSERT INTO parted VALUES (1, 'one'); CREATE SCHEMA side; CREATE TABLE side.high (id integer PRIMARY KEY, v text); INSERT INTO side.high VALUES (150, 'high');";

async fn followed() -> Result<(World, Crossfade)> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    let crossfade = Crossfade::new(&world.plan().tables(&["public.*"]))?;
    let mut run = follow::following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    Ok((world, crossfade))
}

/// It ends by itself, and says which table has changed.
async fn stops(run: Running, table: &str) -> Result<Finished> {
    let ended = run.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1), "{ended:?}");
    ensure!(ended.error_code()? == "schema_changed", "{ended:?}");
    ensure!(ended.stdout.contains(table), "{table} is not in {}", ended.stdout);
    Ok(ended)
}

/// A migration that follows, and what is done from now on is found by a look that comes later.
async fn looked(world: &World, crossfade: &Crossfade) -> Result<Running> {
    let run = crossfade.start(&["run", "--json"])?;
    looks(world).await?;
    Ok(run)
}

/// Waits for a look at the catalogs that begins after this call.
async fn looks(world: &World) -> Result<()> {
    let source = world.source.client("app").await?;
    let now: std::time::SystemTime = source.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
    let looked = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%catalog watch' AND state = 'idle' AND query LIKE '%pg_snapshot_xmax%' AND query_start > $1";
    until("a look at the catalogs", MINUTE, || async { Ok(source.query_opt(looked, &[&now]).await?) }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_column_before_its_first_row() -> Result<()> {
    let (world, crossfade) = followed().await?;
    let run = looked(&world, &crossfade).await?;
    world.at_source("BEGIN; INSERT INTO t VALUES (11, 'before', 11); ALTER TABLE t ADD COLUMN more text DEFAULT 'd'; INSERT INTO t VALUES (12, 'after', 12, 'x'); COMMIT")?;
    stops(run, "public.t").await?;
    ensure!(
        world.at_target("SELECT count(*) FROM t WHERE id = 12")? == "0",
        "a row of the new form was applied in the old one"
    );
    // And again, however often it is started.
    stops(crossfade.start(&["run", "--json"])?, "public.t").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_row_comes_behind() -> Result<()> {
    let (world, crossfade) = followed().await?;
    let form = "its columns, constraints";
    for (change, why, undo) in [
        ("ALTER TABLE t ADD COLUMN more text", form, "ALTER TABLE t DROP COLUMN more"),
        ("ALTER TABLE t ADD UNIQUE (v)", form, "ALTER TABLE t DROP CONSTRAINT t_v_key"),
        ("ALTER TABLE t RENAME TO renamed", "it was dropped, renamed", "ALTER TABLE renamed RENAME TO t"),
        (
            "BEGIN; DROP TABLE t; CREATE TABLE t (id integer PRIMARY KEY, v text, n integer); COMMIT",
            "created again",
            "",
        ),
    ] {
        let run = looked(&world, &crossfade).await?;
        world.at_source(change)?;
        let ended = stops(run, "public.t").await?;
        ensure!(ended.stdout.contains(why), "{change}: {}", ended.stdout);
        world.at_source(undo)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_partition_that_the_tail_does_not_tell_is_joined_by_the_next_start() -> Result<()> {
    let (world, crossfade) = followed().await?;
    let run = looked(&world, &crossfade).await?;
    world.at_source("ALTER TABLE parted ATTACH PARTITION side.high FOR VALUES FROM (100) TO (200); INSERT INTO parted VALUES (160, 'new')")?;
    stops(run, "side.high").await?;
    let mut run = crossfade.start(&["run"])?;
    let target = world.target.client("app").await?;
    until("the partition", MINUTE, || async {
        Ok(target.query_opt("SELECT 1 FROM crossfade.tables WHERE name = 'high'", &[]).await?)
    })
    .await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let content = "SELECT string_agg(tableoid::regclass || parted::text, ',' ORDER BY id) FROM parted";
    ensure!(world.at_source(content)? == world.at_target(content)?, "{}", world.at_target(content)?);
    run.stop().await
}

/// The same where a query reads the partitioned table, and was filled before.
#[tokio::test(flavor = "multi_thread")]
async fn an_attached_partition_reaches_a_derived_table() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    world.at_target("CREATE TABLE parts (id integer PRIMARY KEY, v text)")?;
    let derived = "[[table]]\ninto = \"public.parts\"\nkey = [\"id\"]\nsql = \"SELECT id, v FROM shop.public.parted\"";
    let plan = world.plan().target_exists().tables(&["public.*"]).top("ignore = [\"public.t\"]").section(derived);
    let crossfade = Crossfade::new(&plan)?;
    let mut run = follow::following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let target = world.target.client("app").await?;
    let rows = |count: i64| {
        let target = &target;
        move || async move { Ok(target.query_opt("SELECT 1 FROM parts HAVING count(*) = $1", &[&count]).await?) }
    };
    until("the first partition's row", MINUTE, rows(1)).await?;
    run.stop().await?;
    world.at_source("ALTER TABLE parted ATTACH PARTITION side.high FOR VALUES FROM (100) TO (200); INSERT INTO parted VALUES (160, 'new')")?;
    let mut run = crossfade.start(&["run"])?;
    until("the attached partition's rows", MINUTE, rows(3)).await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_written_anew_and_a_new_one_and_no_truncate() -> Result<()> {
    let (world, crossfade) = followed().await?;
    let mut run = looked(&world, &crossfade).await?;
    // The heap is another one each time, and the tail says so.
    world.at_source("TRUNCATE t; INSERT INTO t VALUES (1, 'x', 1); BEGIN; TRUNCATE t, low; TRUNCATE t; INSERT INTO t VALUES (2, 'x', 2); COMMIT")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    ensure!(world.at_target("SELECT t FROM t")? == "(2,x,2)" && world.at_target("SELECT count(*) FROM low")? == "0");
    looks(&world).await?;
    world.at_source("ALTER TABLE t ALTER n TYPE integer USING n + 1")?;
    let ended = stops(run, "public.t").await?;
    ensure!(ended.stdout.contains("written anew"), "a TRUNCATE was taken for DDL: {}", ended.stdout);

    let run = looked(&world, &crossfade).await?;
    world.at_source("CREATE TABLE late (id integer PRIMARY KEY)")?;
    stops(run, "public.late").await.map(drop)
}
