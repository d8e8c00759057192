//! Given two source databases: both are copied and followed into one target, each in its own order.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, Pgbench, World, until};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn under_load() -> Result<()> {
    let world = World::with_nats()?;
    world.source.create_db("other")?;
    let schema = |table: &str| {
        format!(
            "CREATE TABLE {table} (id integer PRIMARY KEY, n integer DEFAULT 0);
             INSERT INTO {table} SELECT generate_series(1, 5000)"
        )
    };
    world.at_source(&schema("here"))?;
    world.source.psql("other", &schema("there"))?;
    let load = |database: &str, table: &str| {
        let script = format!("\\set id random(1, 5000)\nUPDATE {table} SET n = n + 1 WHERE id = :id;\n");
        Pgbench::new(&world.source, database).clients(2).rate(200).script(&script).start(120)
    };
    let (first, second) = (load("app", "here")?, load("other", "there")?);
    let plan = world.plan().source("other", &world.source.url("other"), &["public.*"]);
    let crossfade = Crossfade::new(&plan)?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let sum = || async {
        let row = world
            .target
            .client("app")
            .await?
            .query_one("SELECT (SELECT sum(n) FROM here), (SELECT sum(n) FROM there)", &[])
            .await?;
        anyhow::Ok((row.get::<_, i64>(0), row.get::<_, i64>(1)))
    };
    let before = sum().await?;
    until("changes of both", MINUTE, || async {
        let now = sum().await?;
        Ok((now.0 > before.0 + 100 && now.1 > before.1 + 100).then_some(()))
    })
    .await?;
    first.stop()?;
    second.stop()?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let content = |table: &str| format!("SELECT md5(string_agg(id || ' ' || n, ',' ORDER BY id)) FROM {table}");
    ensure!(world.at_source(&content("here"))? == world.at_target(&content("here"))?);
    ensure!(world.source.psql("other", &content("there"))? == world.at_target(&content("there"))?);
    run.stop().await
}
