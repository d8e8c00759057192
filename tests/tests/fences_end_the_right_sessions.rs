//! Given a plan that makes the sessions of a closed side read-only: those end that would stay so for ever, and no others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Crossfade, PlanFile, World, connect, until};

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE TABLE a (id bigserial PRIMARY KEY, v text); INSERT INTO a (v) SELECT i::text FROM generate_series(1, 200) i;
    CREATE SCHEMA other; CREATE TABLE other.t (id integer);";

/// What no trigger of the fence stands on.
const ELSEWHERE: &str = "INSERT INTO other.t VALUES (1)";

const SETTING: &str =
    "SELECT count(*) FROM pg_db_role_setting, unnest(setconfig) c WHERE c LIKE 'default_transaction_read_only%'";

const READ_ONLY: &str = "[cutover.fence]\nread_only = true\n";

/// Stays closed until there is a file.
const HELD: &str =
    "[cutover]\nhook_timeout = \"60s\"\n[cutover.hooks]\ndrained = \"until test -e go; do sleep 0.02; done; exit 1\"\n";

async fn drained(world: &World) -> Result<()> {
    let query = "SELECT state FROM crossfade.journal ORDER BY epoch DESC LIMIT 1";
    until("drained", MINUTE, || async { Ok((world.at_target(query)? == "drained").then_some(())) }).await
}

/// Overtaken between the statement that makes sessions read-only and the one that ends those from before.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_overtaken_sends_nobody_away() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = Crossfade::new(&world.plan().section(READ_ONLY))?;
    let mut run = following(&crossfade).await?;
    crossfade.verified().await?;
    let stands = Duration::from_secs(6);
    let late = crossfade.start_standing(&["cutover", "--no-way-back", "--json"], "read_only_set", stands)?;
    until("read-only", MINUTE, || async { Ok((world.at_source(SETTING)? == "1").then_some(())) }).await?;
    let (report, code) = crossfade.says(&["cutover", "--cancel"]).await?;
    ensure!(code == Some(0) && report["unfinished"].is_null(), "{report:#}");
    let client = world.source.client("app").await?;
    let ended = late.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1), "{ended:?}");
    client.batch_execute(ELSEWHERE).await?;
    run.stop().await
}

/// Whoever undoes it ends those sessions that began while it was closed, and no younger ones.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_from_meanwhile_alone_are_ended() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let mut crossfade = Crossfade::new(&world.plan().section(READ_ONLY))?;
    let mut run = following(&crossfade).await?;
    crossfade.verified().await?;
    // Nobody of the plan is to come before us.
    let held = HELD.replace("exit", &format!("kill -STOP {}; exit", run.pid()));
    crossfade.replan(&world.plan().section(READ_ONLY).section(&held))?;
    let died = crossfade.start_armed(&["cutover", "--no-way-back"], "read_only_lifted", 0)?;
    drained(&world).await?;
    let meanwhile = world.source.client("app").await?;
    std::fs::write(crossfade.folder().join("go"), "")?;
    died.died_at("read_only_lifted", MINUTE).await?;
    ensure!(meanwhile.batch_execute(ELSEWHERE).await.is_err(), "it is read-only");
    meanwhile.batch_execute("SELECT 1").await?;
    let later = world.source.client("app").await?;
    let (report, code) = crossfade.says(&["cutover", "--cancel"]).await?;
    ensure!(code == Some(0) && report["unfinished"].is_null(), "{report:#}");
    ensure!(meanwhile.batch_execute("SELECT 1").await.is_err(), "it would be read-only for ever");
    later.batch_execute(ELSEWHERE).await?;
    run.thaw()?;
    run.stop().await
}

/// Those that the role may not end are named, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_superusers_session_from_meanwhile() -> Result<()> {
    let world = World::with_nats()?;
    let role = "CREATE ROLE mover LOGIN REPLICATION; ALTER DATABASE app OWNER TO mover; GRANT pg_read_all_stats, pg_signal_backend TO mover";
    world.source.psql("postgres", role)?;
    world.at_source(&format!("SET ROLE mover; {SCHEMA}"))?;
    world.target.psql("postgres", "CREATE ROLE mover")?;
    let plan = PlanFile::new("shop", &world.source.url_as("mover", "app"), &world.target_url());
    let nats = world.nats.as_ref().context("NATS")?;
    let crossfade = Crossfade::new(&plan.log(&nats.url()).section(READ_ONLY).section(HELD))?;
    let mut run = following(&crossfade).await?;
    crossfade.verified().await?;
    let cutover = crossfade.start(&["cutover", "--no-way-back", "--json"])?;
    drained(&world).await?;
    let boss = world.source.client("app").await?;
    let pid: i32 = boss.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let other = connect(&world.source.url_as("mover", "app")).await?;
    std::fs::write(crossfade.folder().join("go"), "")?;
    let report = cutover.finish(MINUTE).await?.json()?;
    let left = report["unfinished"].as_str().unwrap_or_default();
    ensure!(report["outcome"] == "cancelled" && left.contains(&format!("pids [{pid}]")), "{report:#}");
    boss.batch_execute("SELECT 1").await?;
    ensure!(other.batch_execute("SELECT 1").await.is_err(), "it would be read-only for ever");
    ensure!(world.at_source("SELECT count(*) FROM crossfade.bolt")? == "0");
    run.stop().await
}
