//! Given a cutover, and an application that goes on writing at the target: a rollback leads it back with everything that was acknowledged, and one can cut over again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Crossfade, Pgbench, World, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE TABLE a (id bigserial PRIMARY KEY, v text);
    CREATE TABLE b (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a bigint REFERENCES a, n integer);
    CREATE TABLE parts (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
    CREATE TABLE touched (id bigint, at timestamptz DEFAULT now(), PRIMARY KEY (id));
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.touched VALUES (NEW.id) ON CONFLICT DO NOTHING; RETURN NEW; END $$;
    CREATE TRIGGER touches AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION touch();
    ALTER TABLE a ENABLE ALWAYS TRIGGER touches;
    INSERT INTO a (v) SELECT i::text FROM generate_series(1, 500) i;
    INSERT INTO b (a, n) SELECT i, i FROM generate_series(1, 500) i;
    INSERT INTO parts SELECT i, 'p' FROM generate_series(1, 199) i;";

const SCRIPT: &str = "INSERT INTO a (v) VALUES ('x') RETURNING id \\gset\nINSERT INTO b (a, n) VALUES (:id, 1);\nUPDATE parts SET v = v || 'y' WHERE id = 1 + :id % 199;\nDELETE FROM b WHERE id = :id - 400;\n";

/// What a command says with --json, with its exit code.
async fn says(crossfade: &Crossfade, arguments: &[&str]) -> Result<(Value, Option<i32>)> {
    let finished = crossfade.run(&[arguments, &["--json"]].concat()).await?;
    let document = finished.json().with_context(|| format!("{finished:?}"))?;
    Ok((document, finished.status.code()))
}

async fn committed(crossfade: &Crossfade, command: &str) -> Result<Value> {
    let (report, code) = says(crossfade, &[command]).await?;
    ensure!(code == Some(0) && report["outcome"] == "committed" && report["unfinished"].is_null(), "{report:#}");
    println!("{command}: {} ms", report["write_gap_ms"]);
    Ok(report)
}

async fn verified(crossfade: &Crossfade) -> Result<()> {
    let (report, code) = says(crossfade, &["verify"]).await?;
    ensure!(code == Some(0), "{report:#}");
    Ok(())
}

/// The way back's slot is read.
async fn captured(world: &World) -> Result<()> {
    let query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_back' AND active";
    until("the way back captured", MINUTE, || async { Ok((world.at_target(query)? == "1").then_some(())) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn and_forth_under_load() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    captured(&world).await?;
    verified(&crossfade).await?;
    for round in 0..3 {
        let load = Pgbench::new(&world.source, "app").clients(4).script(SCRIPT).start(300)?;
        let report = committed(&crossfade, "cutover").await.with_context(|| run.log_tail())?;
        ensure!(report["direction"] == "forward" && report["epoch"] == 2 * round + 1, "{report:#}");
        load.stop()?;
        let load = Pgbench::new(&world.target, "app").clients(4).script(SCRIPT).start(300)?;
        let before = world.target.psql("app", "SELECT count(*) FROM a")?.parse::<i64>()?;
        until("rows at the target", MINUTE, || async {
            let now = world.target.psql("app", "SELECT count(*) FROM a")?.parse::<i64>()?;
            Ok((now > before + 200).then_some(()))
        })
        .await?;
        let report = committed(&crossfade, "rollback").await.with_context(|| run.log_tail())?;
        ensure!(report["direction"] == "back" && report["epoch"] == 2 * round + 2, "{report:#}");
        load.stop()?;
        world.expect_equal().await?;
    }
    world.at_source("INSERT INTO a (v) VALUES ('home')")?;
    until("the row at the target", MINUTE, || async {
        Ok((world.at_target("SELECT count(*) FROM a WHERE v = 'home'")? == "1").then_some(()))
    })
    .await?;
    world.expect_equal().await?;
    verified(&crossfade).await?;
    run.stop().await
}
