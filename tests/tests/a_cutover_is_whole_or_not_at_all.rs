//! Given an application that writes: a cutover leads it over with everything that was acknowledged, or leaves it where it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Crossfade, Pgbench, Running, World, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

/// What `crossfade cutover --json` says, with its exit code.
async fn cutover(crossfade: &Crossfade, arguments: &[&str]) -> Result<(Value, Option<i32>)> {
    let finished = crossfade.run(&[&["cutover", "--json", "--no-way-back"], arguments].concat()).await?;
    let document = finished.json().with_context(|| format!("{finished:?}"))?;
    Ok((document, finished.status.code()))
}

async fn verified(crossfade: &Crossfade) -> Result<()> {
    let finished = crossfade.run(&["verify", "--json"]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    Ok(())
}

/// Refused with SQLSTATE 25006, and a text that says why.
async fn expect_closed(world: &World, at_source: bool, sql: &str) -> Result<()> {
    let cluster = if at_source { &world.source } else { &world.target };
    let error = cluster.client("app").await?.batch_execute(sql).await.err().context("it was let through")?;
    let error = error.as_db_error().context("the server refuses it")?;
    ensure!(error.code().code() == "25006" && error.detail().is_some(), "{error:?}");
    Ok(())
}

const SCHEMA: &str = "
    CREATE TABLE a (id bigserial PRIMARY KEY, v text);
    CREATE TABLE b (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a bigint REFERENCES a, n integer);
    CREATE TABLE parts (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
    CREATE TABLE touched (id bigint, at timestamptz DEFAULT now(), PRIMARY KEY (id));
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.touched VALUES (NEW.id) ON CONFLICT DO NOTHING; RETURN NEW; END $$;
    CREATE TRIGGER touches AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION touch();
    INSERT INTO a (v) SELECT i::text FROM generate_series(1, 500) i;
    INSERT INTO b (a, n) SELECT i, i FROM generate_series(1, 500) i;
    INSERT INTO parts SELECT i, 'p' FROM generate_series(1, 199) i;";

async fn stop(mut run: Running) -> Result<()> {
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_nothing_is_lost_and_the_other_side_is_open() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let run = following(&crossfade).await?;
    let script = "INSERT INTO a (v) VALUES ('x') RETURNING id \\gset\nINSERT INTO b (a, n) VALUES (:id, 1);\nUPDATE parts SET v = v || 'y' WHERE id = 1 + :id % 199;\n";
    let load = Pgbench::new(&world.source, "app").clients(4).script(script).start(300)?;
    verified(&crossfade).await?;
    expect_closed(&world, false, "INSERT INTO touched VALUES (-1)").await?;
    let (report, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(0) && report["outcome"] == "committed", "{report:#}\n{}", run.log_tail());
    println!("{report:#}");
    load.stop()?;
    for sql in [
        "INSERT INTO a (v) VALUES ('late')",
        "TRUNCATE touched",
        "COPY parts_1 FROM PROGRAM 'true'",
        "DELETE FROM parts_2",
        "SET session_replication_role = replica; UPDATE b SET n = 0",
    ] {
        expect_closed(&world, true, sql).await?;
    }
    world.expect_equal().await?;
    let next: i64 = world.target.psql("app", "INSERT INTO a (v) VALUES ('here') RETURNING id")?.parse()?;
    let last: i64 = world.at_source("SELECT last_value FROM a_id_seq")?.parse()?;
    ensure!(next > last, "the target gives out {next}, the source was at {last}");
    ensure!(
        world.at_target(&format!("SELECT count(*) FROM touched WHERE id = {next}"))? == "1",
        "its triggers do not fire"
    );
    let (again, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(1) && again["refused"][0]["code"] == "already", "{again:#}");
    stop(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_before_the_decision_leaves_the_source_open() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    let plan = world.plan().section("[cutover.hooks]\ndrained = \"echo no; exit 1\"");
    let mut crossfade = Crossfade::new(&plan)?;
    let run = following(&crossfade).await?;
    verified(&crossfade).await?;
    let (report, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(1) && report["outcome"] == "cancelled", "{report:#}");
    world.at_source("INSERT INTO a (v) VALUES ('goes on'); UPDATE parts SET v = 'q'")?;
    expect_closed(&world, false, "INSERT INTO touched VALUES (-1)").await?;
    crossfade.replan(&world.plan())?;
    let (report, code) = cutover(&crossfade, &[]).await?;
    ensure!(code == Some(0) && report["epoch"] == 2, "{report:#}");
    world.expect_equal().await?;
    stop(run).await
}

/// Whoever is there opens the source again, and the outcome is the same wherever it died.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_step() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let run = following(&crossfade).await?;
    verified(&crossfade).await?;
    let open = "UPDATE a SET v = v WHERE id = 1";
    for point in [
        "cutover_begun",
        "fence_prepared",
        "cutover_fencing",
        "fence_written",
        "fence_closed",
        "cutover_fenced",
        "drain_marker_emitted",
        "cutover_drained",
        "sequences_set",
        "cutover_prepared",
        "decision_written",
    ] {
        let died = crossfade.start_armed(&["cutover", "--no-way-back"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        until("the source open again", MINUTE, || async { Ok(world.at_source(open).ok()) })
            .await
            .with_context(|| point.to_owned())?;
        expect_closed(&world, false, "INSERT INTO touched VALUES (-1)").await?;
        until("the journal", MINUTE, || async {
            Ok((world.at_target("SELECT state FROM crossfade.journal ORDER BY epoch DESC LIMIT 1")? == "cancelled")
                .then_some(()))
        })
        .await?;
    }
    for (number, point) in ["decision_committed", "application_routed", "cutover_routed"].into_iter().enumerate() {
        let died = crossfade.start_armed(&["cutover", "--no-way-back"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        expect_closed(&world, true, open).await?;
        ensure!(
            world.target.psql("app", &format!("INSERT INTO touched VALUES (-{number}); SELECT 1"))? == "1",
            "{point}: the target is closed"
        );
    }
    stop(run).await
}
