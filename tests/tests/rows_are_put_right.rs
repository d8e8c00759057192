//! Given rows that verify found to differ: `recopy --rows` puts them right from the source, through the log, while everybody writes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Crossfade, Pgbench, World};

const MINUTE: Duration = Duration::from_secs(60);

/// The file of rows that the last verify wrote.
async fn differing(crossfade: &Crossfade) -> Result<PathBuf> {
    let finished = crossfade.run(&["verify"]).await?;
    ensure!(finished.status.code() == Some(1), "{finished:?}");
    let line = finished.stdout.lines().find_map(|line| line.strip_prefix("the rows that differ: "));
    Ok(line.with_context(|| finished.stdout.clone())?.into())
}

const SCHEMA: &str = "CREATE TABLE t (id integer PRIMARY KEY, v text, n integer UNIQUE, big text, twice integer GENERATED ALWAYS AS (n * 2) STORED);
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
    INSERT INTO t SELECT i, 'v', i, repeat('x', 3000) FROM generate_series(1, 2000) i";

/// A value, a row missing, a row too many, and unique values that changed places.
const DAMAGE: &str = "UPDATE t SET v = 'wrong', big = 'wrong' WHERE id = 5; DELETE FROM t WHERE id BETWEEN 10 AND 19; INSERT INTO t VALUES (9000, 'x', -1, 'y');
    UPDATE t SET n = -2 WHERE id = 30; UPDATE t SET n = 30 WHERE id = 31; UPDATE t SET n = 31 WHERE id = 30";

#[tokio::test(flavor = "multi_thread")]
async fn while_they_are_written() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    // An update of a row that is missing, or in the way of another, would stop the tail: the load leaves those alone.
    let script = "\\set id random(40, 2000)\nUPDATE t SET v = md5(random()::text) WHERE id = :id;\n";
    let mut pgbench = Pgbench::new(&world.source, "app").clients(3).rate(300).script(script).start(300)?;
    world.at_target(DAMAGE)?;
    let file = differing(&crossfade).await?;
    let finished = crossfade.run(&["recopy", "--rows", &file.display().to_string(), "--json"]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    ensure!(finished.json()?["rows"][0]["rows"] == 14, "{finished:?}");
    ensure!(pgbench.is_running()? && run.is_running()?, "something has ended");
    let again = crossfade.run(&["verify", "--json"]).await?;
    ensure!(again.json()?["verdict"] == "equal", "{again:?}");
    pgbench.stop()?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

/// Whoever applies the log from its beginning has them, too: they are what the source had at that commit.
#[tokio::test(flavor = "multi_thread")]
async fn and_in_the_log() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    // The target's fault is in the rows, not in the log: a target that is put back to before it has to end the same.
    world.at_source("UPDATE t SET v = 'before' WHERE id < 100")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let backup = world.at_target("SELECT lsn || ' ' || seq FROM crossfade.checkpoint")?;
    world.at_target("CREATE TABLE public.backup AS SELECT id, v, n, big FROM t")?;
    world.at_source("UPDATE t SET v = 'between' WHERE id < 50")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.at_target("UPDATE t SET v = 'wrong' WHERE id < 30")?;
    let file = differing(&crossfade).await?;
    let finished = crossfade.run(&["recopy", "--rows", &file.display().to_string()]).await?;
    ensure!(finished.status.success() && finished.stdout.contains("29 rows"), "{finished:?}");
    world.at_source("UPDATE t SET v = 'after' WHERE id < 20")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    // The target's last hours are lost, and one row of the backup is wrong: what the log says of it puts it right on the way.
    let (lsn, seq) = backup.split_once(' ').context("a checkpoint")?;
    world.at_target(&format!(
        "TRUNCATE t; INSERT INTO t (id, v, n, big) SELECT id, v, n, big FROM backup; DROP TABLE backup; UPDATE t SET big = 'wrong' WHERE id = 25;
         UPDATE crossfade.checkpoint SET lsn = '{lsn}', seq = {seq}; UPDATE crossfade.mend SET done_at = NULL, outcome = NULL"
    ))?;
    let mut run = following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    ensure!(
        world.at_target("SELECT count(*) FROM crossfade.mend WHERE done_at IS NOT NULL AND outcome IS NULL")? == "1"
    );
    run.stop().await
}

/// A key that is equal by its type and printed otherwise is the same row to a DELETE, and another one to who compares.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_equal_and_printed_otherwise() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source("CREATE EXTENSION citext; CREATE TABLE c (name citext PRIMARY KEY, v integer); INSERT INTO c VALUES ('Anna', 1), ('Bert', 2)")?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    world.at_target("UPDATE c SET name = 'anna' WHERE v = 1")?;
    let file = differing(&crossfade).await?;
    let lines = std::fs::read_to_string(&file)?;
    ensure!(lines.lines().count() == 2, "{lines}");
    // Whichever of the two somebody takes.
    for kind in ["extra", "missing"] {
        let line = lines.lines().find(|line| line.contains(kind)).context(kind)?;
        std::fs::write(&file, line)?;
        world.at_target("UPDATE c SET name = 'anna' WHERE v = 1")?;
        let finished = crossfade.run(&["recopy", "--rows", &file.display().to_string()]).await?;
        ensure!(finished.status.success(), "{kind}: {finished:?}");
        world.expect_equal().await?;
    }
    run.stop().await
}

/// What cannot be put right is said, and nothing has stopped.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_said() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    world.at_source(
        "CREATE TABLE keyless (a integer); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES (1)",
    )?;
    let crossfade = Crossfade::new(&world.plan().identity("public.keyless", "full"))?;
    let mut run = following(&crossfade).await?;
    world.at_target("UPDATE t SET v = 'wrong' WHERE id = 5; ALTER TABLE t ADD CHECK (id <> 5 OR v = 'wrong')")?;
    let file = differing(&crossfade).await?;
    let finished = crossfade.run(&["recopy", "--rows", &file.display().to_string()]).await?;
    ensure!(finished.status.code() == Some(1) && finished.stdout.contains("check constraint"), "{finished:?}");
    let odd = crossfade.folder().join("odd.jsonl");
    let right = "{\"source\":\"shop\",\"table\":\"public.t\",\"key\":{\"id\":\"1\"}}";
    // What stands in the second line, the code, and words of the error.
    for (line, code, words) in [
        (
            "{\"source\":\"shop\",\"table\":\"public.keyless\",\"key\":{}}",
            "no_tables",
            "crossfade recopy public.keyless",
        ),
        ("{\"source\":\"shop\",\"table\":\"public.t\",\"key\":{\"v\":\"a\"}}", "no_tables", "its key is"),
        ("{\"source\":\"shop\",\"table\":\"public.t\",\"key\":{\"id\":\"one\"}}", "plan_invalid", "integer"),
        ("{\"source\":\"shop\",\"table\":\"t\",\"key\":{\"id\":\"1\"}}", "plan_invalid", "schema.table"),
        ("{\"source\":\"other\",\"table\":\"public.t\",\"key\":{\"id\":\"1\"}}", "plan_invalid", "other"),
        (
            "{\"source\":\"shop\",\"table\":\"public.t\",\"key\":{},\"kind\":\"odd\"}",
            "plan_invalid",
            "unknown variant `odd`",
        ),
        ("nothing", "plan_invalid", "column 2"),
    ] {
        std::fs::write(&odd, format!("{right}\n{line}\n"))?;
        let finished = crossfade.run(&["recopy", "--json", "--rows", &odd.display().to_string()]).await?;
        ensure!(finished.status.code() == Some(2) && finished.error_code()? == code, "{line}: {finished:?}");
        let error = &finished.json()?["error"];
        ensure!(error["what"].as_str().is_some_and(|what| what.contains("odd.jsonl:2")), "{line}: {error:#}");
        ensure!(error.to_string().contains(words) && !finished.stderr.contains(" at line "), "{line}: {error:#}");
    }
    std::fs::write(&odd, "")?;
    let empty = crossfade.run(&["recopy", "--json", "--rows", &odd.display().to_string()]).await?;
    ensure!(empty.error_code()? == "plan_invalid", "{empty:?}");
    // The report that stands beside it says which file is meant.
    let beside = std::fs::read_dir(crossfade.state_dir().join("reports"))?.flatten().map(|entry| entry.path());
    let report = beside.filter(|path| path.to_string_lossy().ends_with("-verify.json")).max().context("a report")?;
    let told = crossfade.run(&["recopy", "--rows", &report.display().to_string()]).await?;
    ensure!(told.status.code() == Some(2) && told.stderr.contains(&file.display().to_string()), "{told:?}");
    // A row that stands there twice is one, and a table is told of once.
    world.at_target("ALTER TABLE t DROP CONSTRAINT t_check")?;
    let many = |id: u32| right.replace("\"1\"", &format!("\"{id}\""));
    let lines: Vec<String> = (1..=250).chain(1..=3).map(many).collect();
    std::fs::write(&odd, lines.join("\n"))?;
    let told = crossfade.run(&["recopy", "--rows", &odd.display().to_string()]).await?;
    ensure!(told.stdout == "public.t: 250 rows are as the source has them\n", "{told:?}");
    world.at_source("UPDATE t SET v = 'later' WHERE id = 6")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    let begun = Instant::now();
    let finished = crossfade.run(&["recopy", "--json", "--rows", &file.display().to_string()]).await?;
    ensure!(finished.status.code() == Some(2) && finished.error_code()? == "not_running", "{finished:?}");
    ensure!(begun.elapsed() < MINUTE / 4 && finished.stdout.contains("start `crossfade run`"), "{finished:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_log_is_refused() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    world.at_target("UPDATE t SET v = 'wrong' WHERE id = 5")?;
    let file = differing(&crossfade).await?;
    let finished = crossfade.run(&["recopy", "--json", "--rows", &file.display().to_string()]).await?;
    ensure!(finished.status.code() == Some(2) && finished.error_code()? == "embedded_log", "{finished:?}");
    run.stop().await
}
