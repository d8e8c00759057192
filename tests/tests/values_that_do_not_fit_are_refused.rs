//! Given a target of somebody's own whose columns are narrower than the source's: a value that does not fit is refused with its table, and
//! never cut.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, World, follow};

const MINUTE: Duration = Duration::from_secs(60);

/// A column of the source, the target's, a value that fits and one that does not.
const COLUMNS: &[(&str, &str, &str, &str)] = &[
    ("text", "varchar(3)", "'abc'", "'abcd'"),
    ("varbit", "bit(3)", "'101'", "'10111'"),
    ("varbit", "varbit(3)", "'101'", "'10111'"),
    ("text", "char(3)", "'abc'", "'abcd'"),
    ("numeric", "numeric(4,1)", "123.4", "12345.6"),
    ("text", "short", "'abc'", "'abcd'"),
    ("text[]", "varchar(3)[]", "'{abc}'", "'{abcd}'"),
    ("bigint", "integer", "7", "5000000000"),
];

fn world() -> Result<World> {
    let world = World::embedded()?;
    world.at_target("CREATE DOMAIN short AS varchar(3)")?;
    Ok(world)
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_tail() -> Result<()> {
    let world = world()?;
    for (number, (wide, narrow, fits, _)) in COLUMNS.iter().enumerate() {
        world.at_source(&format!("CREATE TABLE t{number} (id integer PRIMARY KEY, v {wide}); INSERT INTO t{number} SELECT i, {fits} FROM generate_series(1, 5) AS i"))?;
        world.at_target(&format!("CREATE TABLE t{number} (id integer PRIMARY KEY, v {narrow})"))?;
    }
    let crossfade = Crossfade::new(&world.plan().target_exists())?;
    let mut run = follow::following(&crossfade).await?;
    run.stop().await?;
    for (number, (wide, narrow, fits, too_long)) in COLUMNS.iter().enumerate() {
        let table = format!("t{number}");
        let run = crossfade.start(&["run", "--json"])?;
        // Among some that fit.
        world.at_source(&format!("UPDATE {table} SET v = CASE id WHEN 3 THEN {too_long}::{wide} ELSE {fits} END"))?;
        let stopped = run.finish(MINUTE).await?;
        ensure!(stopped.status.code() == Some(1), "{narrow}: {}", stopped.status);
        ensure!(stopped.error_code()? == "row_refused", "{narrow}: {}", stopped.stdout);
        ensure!(
            [&format!("public.{table}"), "id = 3"].iter().all(|name| stopped.stdout.contains(*name)),
            "{narrow}: {}",
            stopped.stdout
        );
        let kept = world.at_target(&format!("SELECT v = {fits} FROM {table} WHERE id = 3"))?;
        ensure!(kept == "t", "{narrow}: something was written");
        world.at_target(&format!("ALTER TABLE {table} ALTER v TYPE {wide} USING v::text::{wide}"))?;
        let mut run = crossfade.start(&["run"])?;
        crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
        run.stop().await?;
    }
    world.expect_equal().await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_copy() -> Result<()> {
    let world = world()?;
    for (number, (wide, narrow, fits, too_long)) in COLUMNS.iter().enumerate() {
        let table = format!("t{number}");
        world.at_source(&format!("CREATE TABLE {table} (id integer PRIMARY KEY, v {wide}); INSERT INTO {table} VALUES (1, {fits}), (2, {too_long})"))?;
        world.at_target(&format!("CREATE TABLE {table} (id integer PRIMARY KEY, v {narrow})"))?;
    }
    let crossfade = Crossfade::new(&world.plan().target_exists())?;
    for (number, (wide, narrow, ..)) in COLUMNS.iter().enumerate() {
        let stopped = crossfade.start(&["run", "--json"])?.finish(MINUTE).await?;
        ensure!(stopped.status.code() == Some(1), "{}: {}", stopped.status, stopped.stdout);
        ensure!(stopped.error_code()? == "row_refused", "{}", stopped.stdout);
        // Whichever of them was the first.
        let named = (0..COLUMNS.len()).find(|number| stopped.stdout.contains(&format!("public.t{number}")));
        let table = format!("t{}", named.unwrap_or(usize::MAX));
        ensure!(
            world.at_target(&format!("SELECT count(*) FROM {table}"))? == "0",
            "{number} {wide} {narrow}: something was written"
        );
        let wide = COLUMNS[named.unwrap_or_default()].0;
        world.at_target(&format!("ALTER TABLE {table} ALTER v TYPE {wide} USING v::text::{wide}"))?;
    }
    let mut run = follow::following(&crossfade).await?;
    world.expect_equal().await?;
    run.stop().await
}
