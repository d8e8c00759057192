//! Given a PgBouncer between application and source: it is paused and led over by a cutover, and goes on whatever becomes of that.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::{captured_back, following};
use crossfade_tests::{Crossfade, PgBouncer, PlanFile, World, connect, until};

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "CREATE TABLE a (id bigserial PRIMARY KEY, v text); INSERT INTO a (v) SELECT i::text FROM generate_series(1, 100) i;";

/// Which server the application writes to, by its port.
async fn writes_to(pool: &PgBouncer) -> Result<u16> {
    let client = connect(&pool.url()).await?;
    let messages = client.simple_query("INSERT INTO a (v) VALUES ('x') RETURNING current_setting('port')").await?;
    let port = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(port.context("a row")?.parse()?)
}

fn plan(world: &World, pool: &PgBouncer) -> PlanFile {
    world.plan().section(&pool.section())
}

async fn migrating(world: &World) -> Result<(PgBouncer, Crossfade)> {
    world.at_source(SCHEMA)?;
    let pool = PgBouncer::start(&world.source, &world.target).await?;
    let crossfade = Crossfade::new(&plan(world, &pool))?;
    Ok((pool, crossfade))
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_and_nothing_else_of_its_file_changes() -> Result<()> {
    let world = World::with_nats()?;
    let (pool, crossfade) = migrating(&world).await?;
    let mut run = following(&crossfade).await?;
    captured_back(&world).await?;
    crossfade.verified().await?;
    let (before, owner) = (std::fs::read_to_string(pool.file())?, pool.file().metadata()?);
    ensure!(writes_to(&pool).await? == world.source.port());
    for (command, to, epoch) in [("cutover", &world.target, 1), ("rollback", &world.source, 2)] {
        let (report, code) = crossfade.says(&[command]).await?;
        ensure!(code == Some(0) && report["unfinished"].is_null(), "{report:#}\n{}", run.log_tail());
        ensure!(writes_to(&pool).await? == to.port() && !pool.is_paused().await?, "{command}");
        let note = format!("; crossfade wrote the next line in epoch {epoch} of plan shop\n");
        let now = std::fs::read_to_string(pool.file())?;
        ensure!(now.contains(&note), "{now}");
        ensure!(command == "cutover" || now.replace(&note, "") == before, "{now}");
    }
    let now = pool.file().metadata()?;
    ensure!((now.uid(), now.gid(), now.mode()) == (owner.uid(), owner.gid(), owner.mode()), "another owner or mode");
    run.stop().await
}

/// The failpoints of PgBouncer: up to the decision, while it is cancelled, and behind the decision.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_step() -> Result<()> {
    let world = World::with_nats()?;
    let (pool, mut crossfade) = migrating(&world).await?;
    let mut run = following(&crossfade).await?;
    crossfade.verified().await?;
    for (point, hooks) in [("pgbouncer_paused", ""), ("pgbouncer_resumed", "[cutover.hooks]\ndrained = \"exit 1\"\n")] {
        crossfade.replan(&plan(&world, &pool).section(hooks))?;
        let died = crossfade.start_armed(&["cutover", "--no-way-back"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        until("the application writing again", MINUTE, || async {
            let writing = tokio::time::timeout(Duration::from_secs(1), writes_to(&pool)).await;
            Ok(writing.ok().and_then(Result::ok).filter(|port| *port == world.source.port()))
        })
        .await
        .with_context(|| point.to_owned())?;
        let idle = "SELECT count(*) FROM crossfade.fence WHERE pid IS NOT NULL";
        until("nobody at it", MINUTE, || async { Ok((world.at_source(idle)? == "0").then_some(())) }).await?;
    }
    crossfade.replan(&plan(&world, &pool))?;
    for point in ["pgbouncer_switched", "pgbouncer_reloaded"] {
        let died = crossfade.start_armed(&["cutover", "--no-way-back"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        ensure!(pool.is_paused().await?, "{point}: it goes on with a side that is closed");
    }
    let (report, code) = crossfade.says(&["cutover", "--no-way-back"]).await?;
    ensure!(code == Some(0) && report["unfinished"].is_null(), "{report:#}");
    ensure!(writes_to(&pool).await? == world.target.port());
    run.stop().await
}

/// Nobody waits for long for one who has left a transaction open.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_cancels_it() -> Result<()> {
    let world = World::with_nats()?;
    let (pool, mut crossfade) = migrating(&world).await?;
    let mut run = following(&crossfade).await?;
    crossfade.verified().await?;
    let open = connect(&pool.url()).await?;
    open.batch_execute("BEGIN; SELECT 1").await?;
    let (report, code) = crossfade.says(&["cutover", "--no-way-back"]).await?;
    let why = report["why"].as_str().unwrap_or_default();
    ensure!(code == Some(1) && report["outcome"] == "cancelled" && why.contains("still open"), "{report:#}");
    ensure!(report["unfinished"].is_null() && writes_to(&pool).await? == world.source.port(), "{report:#}");
    open.batch_execute("COMMIT").await?;
    // Whoever asks for it to go on, and cannot reach it, is told.
    let away = pool.section().replace(&pool.console(), "postgres://postgres@127.0.0.1:1/pgbouncer");
    crossfade.replan(&world.plan().section(&away))?;
    let (told, code) = crossfade.says(&["cutover", "--cancel"]).await?;
    ensure!(code == Some(1) && told["error"]["code"] == "pgbouncer_failed", "{told:#}");
    run.stop().await
}

/// Before anything is closed.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_could_not_be_led_over_refuses_it() -> Result<()> {
    let world = World::with_nats()?;
    let (pool, mut crossfade) = migrating(&world).await?;
    let mut run = following(&crossfade).await?;
    crossfade.verified().await?;
    let section = pool.section();
    let elsewhere = pool.file().with_file_name("elsewhere.ini");
    std::fs::write(
        &elsewhere,
        std::fs::read_to_string(pool.file())?
            .replace(&world.source.port().to_string(), &world.target.port().to_string()),
    )?;
    let file = pool.file().display().to_string();
    for (from, to, text) in [
        (pool.console(), "postgres://postgres@127.0.0.1:1/pgbouncer".to_owned(), "console"),
        ("database = \"app\"".to_owned(), "database = \"shop\"".to_owned(), "no line"),
        (file.clone(), "/nowhere/databases.ini".to_owned(), "cannot be found"),
        (file, elsewhere.display().to_string(), "does not connect to where the line"),
        ("dbname=app".to_owned(), "dbname=app pool_size=5".to_owned(), "neither"),
    ] {
        crossfade.replan(&world.plan().section(&section.replace(&from, &to)))?;
        let (report, code) = crossfade.says(&["cutover", "--no-way-back"]).await?;
        let refused = report["refused"].as_array().and_then(|all| all.iter().find(|one| one["code"] == "pgbouncer"));
        let told = refused.and_then(|one| one["text"].as_str()).unwrap_or_default();
        ensure!(code == Some(1) && told.contains(text), "{text} expected: {report:#}");
    }
    ensure!(world.at_target("SELECT to_regclass('crossfade.journal') IS NULL")? == "t", "an epoch was begun");
    ensure!(!pool.is_paused().await? && writes_to(&pool).await? == world.source.port());
    run.stop().await
}
