//! Given a plan that closes a side with more than triggers: that is undone by whatever opens the side, whoever dies on the way, and crossfade's own sessions are not in its way.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Cluster, Crossfade, PgBouncer, PlanFile, World, connect, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE TABLE a (id bigserial PRIMARY KEY, v text); INSERT INTO a (v) SELECT i::text FROM generate_series(1, 200) i;
    CREATE SCHEMA other; CREATE TABLE other.t (id integer);";

/// What no trigger of the fence stands on.
const ELSEWHERE: &str = "INSERT INTO other.t VALUES (1)";

const FENCE: &str = "[cutover.fence]\nread_only = true\ncommand = \"echo $CROSSFADE_PHASE $CROSSFADE_WRITABLE_SIDE $CROSSFADE_SOURCE; touch shut_$CROSSFADE_SIDE\"\nundo = \"rm -f shut_$CROSSFADE_SIDE\"\n";

const FAILS: &str = "[cutover.hooks]\ndrained = \"exit 1\"\n";

async fn says(crossfade: &Crossfade, arguments: &[&str]) -> Result<(Value, Option<i32>)> {
    let finished = crossfade.run(&[arguments, &["--json"]].concat()).await?;
    let document = finished.json().with_context(|| format!("{finished:?}"))?;
    Ok((document, finished.status.code()))
}

async fn committed(crossfade: &Crossfade, arguments: &[&str]) -> Result<Value> {
    let (report, code) = says(crossfade, arguments).await?;
    ensure!(code == Some(0) && report["outcome"] == "committed" && report["unfinished"].is_null(), "{report:#}");
    Ok(report)
}

async fn verified(crossfade: &Crossfade) -> Result<()> {
    let (report, code) = says(crossfade, &["verify"]).await?;
    ensure!(code == Some(0), "{report:#}");
    Ok(())
}

/// What the database has as its own, or an empty string.
fn setting(cluster: &Cluster) -> Result<String> {
    let own = "SELECT c FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c WHERE d.datname = 'app' AND c LIKE 'default_transaction_read_only%'";
    cluster.psql("postgres", own)
}

/// A new session is told that it is read-only, by Postgres itself.
async fn read_only(cluster: &Cluster) -> Result<()> {
    let error = cluster.client("app").await?.batch_execute(ELSEWHERE).await.err().context("it was let through")?;
    let error = error.as_db_error().context("the server refuses it")?;
    ensure!(error.code().code() == "25006" && error.message().contains("read-only transaction"), "{error:?}");
    Ok(())
}

/// It takes writes, those of the plan's tables and others.
fn open(cluster: &Cluster) -> Result<()> {
    cluster.psql("app", ELSEWHERE)?;
    cluster.psql("app", "UPDATE a SET v = v || '.' WHERE id = 1").map(drop)
}

async fn captured(world: &World) -> Result<()> {
    let query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_back' AND active";
    until("the way back captured", MINUTE, || async { Ok((world.at_target(query)? == "1").then_some(())) }).await
}

async fn arrives(cluster: &Cluster, value: &str) -> Result<()> {
    let query = format!("SELECT count(*) FROM a WHERE v = '{value}'");
    until("the row on the other side", MINUTE, || async { Ok((cluster.psql("app", &query)? == "1").then_some(())) })
        .await
}

fn shut(crossfade: &Crossfade, side: &str) -> bool {
    crossfade.folder().join(format!("shut_{side}")).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_and_gone_in_the_end() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    // Somebody has said so before.
    world.at_source("ALTER DATABASE app SET default_transaction_read_only = off")?;
    let crossfade = Crossfade::new(&world.plan().section(FENCE))?;
    let mut run = following(&crossfade).await?;
    world.target.psql("app", "CREATE SCHEMA IF NOT EXISTS other; CREATE TABLE IF NOT EXISTS other.t (id integer)")?;
    captured(&world).await?;
    verified(&crossfade).await?;
    let pooled = world.source.client("app").await?;
    let report = committed(&crossfade, &["cutover"]).await.with_context(|| run.log_tail())?;
    let hooks = report["hooks"].as_array().context("a list")?;
    ensure!(hooks.iter().any(|hook| hook["hook"] == "fence" && hook["output"] == "fencing none shop\n"), "{report:#}");
    ensure!(pooled.batch_execute("SELECT 1").await.is_err(), "a session from before goes on");
    ensure!(shut(&crossfade, "source") && !shut(&crossfade, "target"));
    read_only(&world.source).await?;
    open(&world.target)?;
    // Capture, the way back's apply, verify and status go on.
    world.target.psql("app", "INSERT INTO a (v) VALUES ('there')")?;
    arrives(&world.source, "there").await?;
    verified(&crossfade).await?;
    ensure!(crossfade.status().await?["phase"] == "reversing");
    let late = world.source.client("app").await?;
    committed(&crossfade, &["rollback"]).await.with_context(|| run.log_tail())?;
    ensure!(late.batch_execute("SELECT 1").await.is_err(), "a session from meanwhile would be read-only for ever");
    ensure!(setting(&world.source)?.ends_with("=off"), "{}", setting(&world.source)?);
    ensure!(!shut(&crossfade, "source") && shut(&crossfade, "target"));
    open(&world.source)?;
    read_only(&world.target).await?;
    world.at_source("INSERT INTO a (v) VALUES ('home')")?;
    arrives(&world.target, "home").await?;
    verified(&crossfade).await?;
    committed(&crossfade, &["cutover"]).await.with_context(|| run.log_tail())?;
    ensure!(setting(&world.target)?.is_empty() && !shut(&crossfade, "target"));
    read_only(&world.source).await?;
    open(&world.target)?;
    committed(&crossfade, &["rollback"]).await?;
    run.stop().await?;
    let (listed, _) = says(&crossfade, &["complete"]).await?;
    ensure!(listed["found"].to_string().contains("default_transaction_read_only"), "{listed:#}");
    read_only(&world.target).await?;
    let (_, code) = says(&crossfade, &["complete", "--yes"]).await?;
    ensure!(code == Some(0) && setting(&world.target)?.is_empty() && setting(&world.source)?.ends_with("=off"));
    ensure!(!shut(&crossfade, "source") && !shut(&crossfade, "target"));
    open(&world.target)
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_opens_the_source() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    let crossfade = Crossfade::new(&world.plan().section(FENCE))?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    committed(&crossfade, &["cutover", "--no-way-back"]).await?;
    run.stop().await?;
    read_only(&world.source).await?;
    for point in COMPLETING {
        crossfade.start_armed(&["complete", "--yes"], point, 0)?.died_at(point, MINUTE).await?;
    }
    let (_, code) = says(&crossfade, &["complete", "--yes"]).await?;
    ensure!(code == Some(0) && setting(&world.source)?.is_empty() && !shut(&crossfade, "source"));
    open(&world.source)
}

/// The failpoints: while it is closed, while that is undone, and the latter again in `complete`.
const CLOSING: [&str; 3] = ["read_only_set", "fence_command_noted", "fence_command_run"];
const UNDOING: [&str; 2] = ["read_only_lifted", "fence_command_undone"];
const COMPLETING: [&str; 2] = UNDOING;

#[test]
fn every_failpoint_of_them_is_walked() {
    let walked: BTreeSet<&str> = CLOSING.into_iter().chain(UNDOING).collect();
    let ours = |name: &&str| name.contains("read_only") || name.contains("fence_command");
    assert_eq!(walked, model::failpoint::CUTOVER.iter().map(|(name, _)| *name).filter(ours).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_step() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let plan = world.plan().section(FENCE);
    let mut crossfade = Crossfade::new(&plan)?;
    let mut run = following(&crossfade).await?;
    captured(&world).await?;
    verified(&crossfade).await?;
    for point in CLOSING.into_iter().chain(UNDOING) {
        crossfade.replan(&if UNDOING.contains(&point) { plan.clone().section(FAILS) } else { plan.clone() })?;
        let died = crossfade.start_armed(&["cutover"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        let idle = "SELECT count(*) FROM crossfade.fence WHERE pid IS NOT NULL";
        until("nobody at it", MINUTE, || async { Ok((world.at_source(idle)? == "0").then_some(())) })
            .await
            .with_context(|| point.to_owned())?;
        open(&world.source).with_context(|| point.to_owned())?;
        ensure!(setting(&world.source)?.is_empty() && !shut(&crossfade, "source"), "{point}");
        ensure!(world.at_source("SELECT count(*) FROM crossfade.bolt")? == "0", "{point}");
        ensure!(world.at_target("SELECT state FROM crossfade.journal ORDER BY epoch DESC LIMIT 1")? == "cancelled");
    }
    crossfade.replan(&plan)?;
    committed(&crossfade, &["cutover"]).await?;
    // The decision opens the source; what is behind it is done by whoever goes on.
    for point in ["decision_committed", "read_only_lifted", "fence_command_undone"] {
        let died = crossfade.start_armed(&["rollback"], point, 0)?;
        died.died_at(point, MINUTE).await.with_context(|| point.to_owned())?;
        open(&world.source).with_context(|| point.to_owned())?;
    }
    committed(&crossfade, &["rollback"]).await?;
    ensure!(setting(&world.source)?.is_empty() && !shut(&crossfade, "source") && shut(&crossfade, "target"));
    ensure!(world.at_source("SELECT count(*) FROM crossfade.bolt")? == "0");
    run.stop().await
}

/// Neither a command that closes nothing, nor one that opens nothing, keeps the source closed.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_fail() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let fails = FENCE.replace("touch shut_$CROSSFADE_SIDE", "exit 1");
    let mut crossfade = Crossfade::new(&world.plan().section(&fails))?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    let (report, code) = says(&crossfade, &["cutover", "--no-way-back"]).await?;
    let why = report["why"].as_str().unwrap_or_default();
    ensure!(code == Some(1) && report["outcome"] == "cancelled" && why.contains("hook fence"), "{report:#}");
    ensure!(report["unfinished"].is_null() && setting(&world.source)?.is_empty(), "{report:#}");
    open(&world.source)?;
    let stuck = FENCE.replace("rm -f", "test -e may_open && rm -f");
    crossfade.replan(&world.plan().section(&stuck).section(FAILS))?;
    // The one before would undo it with the plan that it has read.
    run.stop().await?;
    run = following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let (report, code) = says(&crossfade, &["cutover", "--no-way-back"]).await?;
    let left = report["unfinished"].as_str().unwrap_or_default();
    ensure!(code == Some(1) && report["outcome"] == "cancelled" && left.contains("may be closed still"), "{report:#}");
    open(&world.source)?;
    ensure!(setting(&world.source)?.is_empty() && shut(&crossfade, "source"));
    run.stop().await?;
    std::fs::write(crossfade.folder().join("may_open"), "")?;
    // Whoever asks, or any process of the plan, half a minute later.
    let (report, code) = says(&crossfade, &["cutover", "--cancel"]).await?;
    ensure!(code == Some(0) && report["unfinished"].is_null() && !shut(&crossfade, "source"), "{report:#}");
    ensure!(world.at_source("SELECT count(*) FROM crossfade.bolt")? == "0");
    crossfade.replan(&world.plan().section(FENCE))?;
    run = following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    committed(&crossfade, &["cutover", "--no-way-back"]).await?;
    run.stop().await
}

/// Nor in `complete`, where it is told who takes writes then.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_fails_in_complete() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    let told = "echo $CROSSFADE_WRITABLE_SIDE $CROSSFADE_DIRECTION > told; test -e may_open && rm -f";
    let crossfade = Crossfade::new(&world.plan().section(&FENCE.replace("rm -f", told)))?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    committed(&crossfade, &["cutover", "--no-way-back"]).await?;
    run.stop().await?;
    let (report, code) = says(&crossfade, &["complete", "--yes"]).await?;
    ensure!(code == Some(1) && report["error"]["code"] == "hook_failed", "{report:#}");
    open(&world.source)?;
    ensure!(shut(&crossfade, "source") && setting(&world.source)?.is_empty());
    ensure!(std::fs::read_to_string(crossfade.folder().join("told"))? == "target forward\n");
    std::fs::write(crossfade.folder().join("may_open"), "")?;
    let (_, code) = says(&crossfade, &["complete", "--yes"]).await?;
    ensure!(code == Some(0) && !shut(&crossfade, "source"));
    Ok(())
}

/// A process that was started before the plan had a command leaves it to those that know how to undo it.
#[tokio::test(flavor = "multi_thread")]
async fn one_without_undo_forgets_nothing() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let mut crossfade = Crossfade::new(&world.plan())?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    crossfade.replan(&world.plan().section(FENCE))?;
    let died = crossfade.start_armed(&["cutover", "--no-way-back"], "fence_command_run", 0)?;
    died.died_at("fence_command_run", MINUTE).await?;
    let left = "SELECT count(*) FROM crossfade.fence WHERE opened >= closed AND pid IS NULL";
    until("the source open, nobody at it", MINUTE, || async { Ok((world.at_source(left)? == "1").then_some(())) })
        .await?;
    open(&world.source)?;
    ensure!(world.at_source("SELECT string_agg(kind, ' ') FROM crossfade.bolt")? == "command");
    ensure!(shut(&crossfade, "source"));
    let (report, code) = says(&crossfade, &["cutover", "--cancel"]).await?;
    ensure!(code == Some(0) && report["unfinished"].is_null() && !shut(&crossfade, "source"), "{report:#}");
    ensure!(world.at_source("SELECT count(*) FROM crossfade.bolt")? == "0");
    run.stop().await
}

/// Killed in its command, which closes nothing behind who has undone it.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_cutover() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let slow = FENCE.replace("touch", "echo $$ > pid; until test -e go; do sleep 0.02; done; touch");
    let crossfade = Crossfade::new(&world.plan().section("[cutover]\nhook_timeout = \"60s\"").section(&slow))?;
    let at = |name: &str| crossfade.folder().join(name);
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    let mut killed = crossfade.start(&["cutover", "--no-way-back", "--timeout", "60s"])?;
    let pid = until("the command", MINUTE, || async {
        Ok(std::fs::read_to_string(at("pid")).ok().and_then(|pid| pid.trim().parse::<u32>().ok()))
    });
    let pid = pid.await?;
    killed.kill9()?;
    // Nobody may have reaped it.
    let line = || std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    until("the command's end", MINUTE, || async { Ok(line().is_empty().then_some(())) }).await?;
    let bolts = "SELECT count(*) FROM crossfade.bolt";
    until("undone", MINUTE, || async { Ok((world.at_source(bolts)? == "0").then_some(())) }).await?;
    ensure!(!shut(&crossfade, "source"));
    open(&world.source)?;
    run.stop().await
}

/// Stopped in its command, overtaken, and continued.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_overtaken_leaves_nothing_closed() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let awake = Crossfade::new(&world.plan().section(FENCE))?;
    let folder = awake.folder().display().to_string();
    // Both in one folder; the command's parent is the cutover, and it closes something when it is too late.
    let late = FENCE
        .replace(
            "touch shut",
            &format!("kill -STOP $PPID; until test -e {folder}/go; do sleep 0.02; done; touch {folder}/shut"),
        )
        .replace("rm -f shut", &format!("rm -f {folder}/shut"));
    let sleepy = Crossfade::new(&world.plan().section("[cutover]\nhook_timeout = \"60s\"").section(&late))?;
    let mut run = following(&awake).await?;
    verified(&awake).await?;
    let mut stopped = sleepy.start(&["cutover", "--no-way-back", "--timeout", "60s", "--json"])?;
    until("the command", MINUTE, || async { Ok(stopped.is_frozen()?.then_some(())) }).await?;
    let (cancelled, code) = says(&awake, &["cutover", "--cancel"]).await?;
    ensure!(code == Some(0) && cancelled["unfinished"].is_null(), "{cancelled:#}");
    open(&world.source)?;
    std::fs::write(awake.folder().join("go"), "")?;
    until("what is too late", MINUTE, || async { Ok(shut(&awake, "source").then_some(())) }).await?;
    stopped.thaw()?;
    let ended = stopped.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1), "{ended:?}");
    ensure!(!shut(&awake, "source") && setting(&world.source)?.is_empty(), "it has closed it again");
    open(&world.source)?;
    run.stop().await
}

/// Its pool has no session that stays read-only.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_pgbouncer_in_front() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let pool = PgBouncer::start(&world.source, &world.target).await?;
    let plan: PlanFile = world.plan().section(&pool.section()).section("[cutover.fence]\nread_only = true");
    let mut crossfade = Crossfade::new(&plan.clone().section(FAILS))?;
    let mut run = following(&crossfade).await?;
    captured(&world).await?;
    verified(&crossfade).await?;
    let client = connect(&pool.url()).await?;
    let write = "INSERT INTO a (v) VALUES ('pooled')";
    client.batch_execute(write).await?;
    let (report, _) = says(&crossfade, &["cutover"]).await?;
    ensure!(report["outcome"] == "cancelled" && report["unfinished"].is_null(), "{report:#}");
    client.batch_execute(write).await?;
    crossfade.replan(&plan)?;
    for command in ["cutover", "rollback"] {
        committed(&crossfade, &[command]).await.with_context(|| run.log_tail())?;
        client.batch_execute(write).await.with_context(|| command.to_owned())?;
    }
    run.stop().await
}
