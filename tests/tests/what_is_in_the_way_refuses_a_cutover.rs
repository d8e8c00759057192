//! Given something that is in the way of a cutover, or of a rollback: it is refused with a code and the next step, and not any more once that is done. What needs little is in
//! a_cutover_is_whole_or_not_at_all.rs, PgBouncer in pgbouncer_leads_it_over.rs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Cluster, Crossfade, Nats, Shutdown, World, until};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE TABLE a (id bigserial PRIMARY KEY, v text); INSERT INTO a (v) SELECT i::text FROM generate_series(1, 200) i;
    CREATE TABLE b (id integer PRIMARY KEY, v text); INSERT INTO b SELECT i, 'b' FROM generate_series(1, 200) i;";

const CUTOVER: &[&str] = &["cutover", "--no-way-back", "--dry-run"];
const ROLLBACK: &[&str] = &["rollback", "--dry-run"];

async fn says(crossfade: &Crossfade, arguments: &[&str]) -> Result<(Value, Option<i32>)> {
    let finished = crossfade.run(&[arguments, &["--json"]].concat()).await?;
    let document = finished.json().with_context(|| format!("{finished:?}"))?;
    Ok((document, finished.status.code()))
}

fn text_of(report: &Value, code: &str) -> Option<String> {
    let refused = report["refused"].as_array()?.iter().find(|refused| refused["code"] == code)?;
    refused["text"].as_str().map(str::to_owned)
}

/// It is refused with this code, and a text that mentions all of these. Returns the text.
async fn refused(crossfade: &Crossfade, arguments: &[&str], code: &str, mentions: &[&str]) -> Result<String> {
    let (report, exit) = says(crossfade, arguments).await?;
    let text = text_of(&report, code).with_context(|| format!("{code} expected: {report:#}"))?;
    ensure!(exit == Some(1) && report["outcome"] == "refused", "{report:#}");
    for mention in mentions {
        ensure!(text.contains(mention), "{code} does not mention {mention:?}: {text}");
    }
    Ok(text)
}

/// Nothing is in the way any more.
async fn possible(crossfade: &Crossfade, arguments: &[&str]) -> Result<()> {
    let mut last = Value::Null;
    let tried = until("nothing in the way", MINUTE, || async {
        let (report, exit) = says(crossfade, arguments).await?;
        Ok((exit == Some(0) && report["outcome"] == "possible").then_some(()))
    })
    .await;
    if tried.is_err() {
        last = says(crossfade, arguments).await?.0;
    }
    tried.with_context(|| format!("{last:#}"))
}

async fn verified(crossfade: &Crossfade) -> Result<()> {
    let (report, code) = says(crossfade, &["verify"]).await?;
    ensure!(code == Some(0), "{report:#}");
    Ok(())
}

async fn captured(world: &World) -> Result<()> {
    let query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_back' AND active";
    until("the way back captured", MINUTE, || async { Ok((world.at_target(query)? == "1").then_some(())) }).await
}

/// A VACUUM that cannot go on: a cursor holds a page of the table, and needs no transaction id for it.
struct Vacuum {
    cursor: Client,
    vacuum: JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Vacuum {
    async fn hold(cluster: &Cluster) -> Result<Vacuum> {
        let cursor = cluster.client("app").await?;
        cursor.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT * FROM a; FETCH 1 FROM c").await?;
        let client = cluster.client("app").await?;
        let vacuum =
            tokio::spawn(async move { client.batch_execute("VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) a").await });
        let under_way = "SELECT count(*) FROM pg_stat_progress_vacuum";
        until("a vacuum under way", MINUTE, || async { Ok((cluster.psql("app", under_way)? == "1").then_some(())) })
            .await?;
        Ok(Vacuum { cursor, vacuum })
    }

    async fn let_go(self) -> Result<()> {
        self.cursor.batch_execute("ROLLBACK").await?;
        Ok(self.vacuum.await??)
    }
}

/// Rows of the plan's table that come by a subscription, from another database of the same server.
fn subscribed(cluster: &Cluster) -> Result<()> {
    cluster.create_db("upstream")?;
    cluster.psql(
        "upstream",
        "CREATE TABLE a (id bigserial PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE a; SELECT pg_create_logical_replication_slot('upstream', 'pgoutput')",
    )?;
    let subscription = format!(
        "CREATE SUBSCRIPTION upstream CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=upstream' PUBLICATION p WITH (create_slot = false, copy_data = false)",
        cluster.port()
    );
    cluster.psql("app", &subscription).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_under_way_at_the_source() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    let vacuum = Vacuum::hold(&world.source).await?;
    refused(&crossfade, CUTOVER, "maintenance", &["source \"shop\"", "VACUUM", "pid ", "let it end"]).await?;
    vacuum.let_go().await?;
    possible(&crossfade, CUTOVER).await?;
    // An index that waits for a writer.
    let writer = world.source.client("app").await?;
    writer.batch_execute("BEGIN; LOCK TABLE b IN ROW EXCLUSIVE MODE").await?;
    let client = world.source.client("app").await?;
    let index = tokio::spawn(async move { client.batch_execute("CREATE INDEX CONCURRENTLY b_v ON b (v)").await });
    let under_way = "SELECT count(*) FROM pg_stat_progress_create_index";
    until("an index under way", MINUTE, || async { Ok((world.at_source(under_way)? == "1").then_some(())) }).await?;
    refused(&crossfade, CUTOVER, "maintenance", &["CREATE INDEX CONCURRENTLY b_v", "let it end"]).await?;
    writer.batch_execute("ROLLBACK").await?;
    index.await??;
    possible(&crossfade, CUTOVER).await?;
    subscribed(&world.source)?;
    let text = refused(&crossfade, CUTOVER, "subscription", &["source \"shop\"", "\"upstream\"", "DISABLE"]).await?;
    let mends = text.rsplit(": ").next().context("the next step")?;
    world.at_source(mends)?;
    possible(&crossfade, CUTOVER).await?;
    world.at_source("ALTER SUBSCRIPTION upstream SET (slot_name = NONE); DROP SUBSCRIPTION upstream")?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_behind_or_open_or_not_there_yet() -> Result<()> {
    let mut world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    // Apply waits for a lock.
    let reader = world.target.client("app").await?;
    reader.batch_execute("BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE").await?;
    world.at_source("INSERT INTO a (v) VALUES ('late')")?;
    let behind = |status: &Value| status["sources"][0]["lag"]["seconds"].as_f64().is_some_and(|lag| lag > 1.0);
    crossfade.wait_for(&mut run, "it is behind", MINUTE, behind).await?;
    let asked = [CUTOVER, &["--max-lag", "1s"]].concat();
    refused(&crossfade, &asked, "lag", &["target", "source \"shop\"", "--max-lag", "wait until it has caught up"])
        .await?;
    reader.batch_execute("ROLLBACK").await?;
    possible(&crossfade, CUTOVER).await?;
    // A table is to be copied again, and its copy waits for a transaction that is older.
    let writer = world.source.client("app").await?;
    writer.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let asked = crossfade.run(&["recopy", "public.b"]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    crossfade.wait_for(&mut run, "a copy", MINUTE, |status| status["phase"] != "following").await?;
    refused(&crossfade, CUTOVER, "not_following", &["the phase is ", "wait for `following`"]).await?;
    writer.batch_execute("ROLLBACK").await?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    verified(&crossfade).await?;
    possible(&crossfade, CUTOVER).await?;
    world.at_target("ALTER TABLE a DISABLE TRIGGER USER")?;
    let next = "ALTER TABLE ONLY \"public\".\"a\" ENABLE TRIGGER \"crossfade_fence_shop\"";
    refused(&crossfade, CUTOVER, "target_not_fenced", &[next]).await?;
    world.at_target(next)?;
    possible(&crossfade, CUTOVER).await?;
    world.at_target("DROP TRIGGER crossfade_fence_shop ON a")?;
    refused(&crossfade, CUTOVER, "target_not_fenced", &["\"public\".\"a\"", "start apply again"]).await?;
    run.stop().await?;
    let mut run = crossfade.start(&["run"])?;
    let leads = |status: &Value| status["phase"] == "following" && !status["warnings"].to_string().contains("_down");
    crossfade.wait_for(&mut run, "it runs again", MINUTE, leads).await?;
    possible(&crossfade, CUTOVER).await?;
    // A column of another name.
    world.at_target("ALTER TABLE b RENAME v TO w")?;
    ensure!(crossfade.run(&["verify"]).await?.status.code() == Some(1), "nothing can be said of it");
    refused(&crossfade, CUTOVER, "verify_inconclusive", &["public.b", "no column \"v\"", "`crossfade verify`"]).await?;
    world.at_target("ALTER TABLE b RENAME w TO v")?;
    verified(&crossfade).await?;
    possible(&crossfade, CUTOVER).await?;
    world.nats.as_mut().context("NATS")?.stop()?;
    // What is away from the beginning on is no refusal: it could not run.
    let (report, code) = says(&crossfade, CUTOVER).await?;
    ensure!(code == Some(2) && report["error"]["code"] == "connection_failed", "{report:#}");
    world.nats.as_mut().context("NATS")?.boot()?;
    possible(&crossfade, CUTOVER).await?;
    let (report, code) = says(&crossfade, &["cutover", "--no-way-back"]).await?;
    ensure!(code == Some(0), "{report:#}");
    refused(&crossfade, &["cutover", "--cancel"], "decided", &["epoch 1", "target is the writable side"]).await?;
    run.stop().await
}

/// Each of its texts ends with a statement, and that is enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_do_what_is_wanted_of_it() -> Result<()> {
    let world = World::with_nats()?;
    world.source.psql(
        "postgres",
        "CREATE ROLE mover LOGIN REPLICATION; ALTER DATABASE app OWNER TO mover; GRANT pg_read_all_stats TO mover",
    )?;
    world.at_source(&format!("SET ROLE mover; {SCHEMA}"))?;
    world.target.psql("postgres", "CREATE ROLE mover")?;
    let plan = |read_only: bool| {
        let plan = crossfade_tests::PlanFile::new("shop", &world.source.url_as("mover", "app"), &world.target_url());
        let plan = plan.log(&world.nats.as_ref().map(Nats::url).unwrap_or_default());
        if read_only { plan.section("[cutover.fence]\nread_only = true") } else { plan }
    };
    let mut crossfade = Crossfade::new(&plan(false))?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    possible(&crossfade, CUTOVER).await?;
    let mended = async |crossfade: &Crossfade, mentions: &[&str]| -> Result<()> {
        let text =
            refused(crossfade, CUTOVER, "privileges", &[mentions, &["source \"shop\"", "mover"]].concat()).await?;
        world.source.psql("app", text.rsplit(": ").next().context("a statement")?).map(drop)
    };
    world.at_source("REVOKE pg_read_all_stats FROM mover")?;
    mended(&crossfade, &["GRANT pg_read_all_stats TO \"mover\""]).await?;
    possible(&crossfade, CUTOVER).await?;
    crossfade.replan(&plan(true))?;
    mended(&crossfade, &["end the sessions of others", "GRANT pg_signal_backend TO \"mover\""]).await?;
    possible(&crossfade, CUTOVER).await?;
    world.at_source("ALTER DATABASE app OWNER TO CURRENT_USER; GRANT CREATE ON DATABASE app TO mover")?;
    // Its member would be a superuser.
    let mends = ["ALTER DATABASE \"app\" OWNER TO a role that is no superuser", "TO \"mover\""];
    refused(&crossfade, CUTOVER, "privileges", &mends).await?;
    world.at_source("CREATE ROLE boss; ALTER DATABASE app OWNER TO boss")?;
    mended(&crossfade, &["ALTER DATABASE \"app\"", "GRANT \"boss\" TO \"mover\""]).await?;
    possible(&crossfade, CUTOVER).await?;
    let (report, code) = says(&crossfade, &["cutover", "--no-way-back"]).await?;
    ensure!(code == Some(0), "{report:#}");
    run.stop().await
}

/// A rollback closes the target as a cutover closes the source. That it could not is said before there is anything to roll back.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_could_not_close_the_target_in_a_rollback() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    world.target.psql(
        "postgres",
        "CREATE ROLE mover LOGIN REPLICATION; ALTER DATABASE app OWNER TO mover; GRANT pg_read_all_stats TO mover",
    )?;
    world.at_target(
        "GRANT SET ON PARAMETER session_replication_role TO mover;
         GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_oid(text), pg_replication_origin_drop(text),
           pg_replication_origin_session_setup(text) TO mover;
         SET ROLE mover; CREATE TABLE a (id bigserial PRIMARY KEY, v text); CREATE TABLE b (id integer PRIMARY KEY, v text)",
    )?;
    let plan = crossfade_tests::PlanFile::new("shop", &world.source_url(), &world.target.url_as("mover", "app"));
    let plan = plan.log(&world.nats.as_ref().map(Nats::url).unwrap_or_default()).target_exists();
    let crossfade = Crossfade::new(&plan.section("[cutover.fence]\nread_only = true"))?;
    let mut run = following(&crossfade).await?;
    captured(&world).await?;
    verified(&crossfade).await?;
    let grant = "GRANT pg_signal_backend TO \"mover\"";
    refused(&crossfade, &["cutover", "--dry-run"], "way_back", &["the target", "end the sessions of others", grant])
        .await?;
    world.target.psql("postgres", grant)?;
    possible(&crossfade, &["cutover", "--dry-run"]).await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_table_without_room() -> Result<()> {
    let source = Cluster::build().set("max_connections", "40").start()?;
    let mut world = World::of(source, Cluster::start()?, Some(Nats::start()?))?;
    // Of 10 x 40 locks half are its own.
    let many = "DO $$ BEGIN FOR i IN 1..210 LOOP EXECUTE format('CREATE TABLE t%s (id integer PRIMARY KEY)', i); END LOOP; END $$";
    world.at_source(many)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    let restarted = |world: &mut World, locks: &str| -> Result<()> {
        world.source.psql("postgres", &format!("ALTER SYSTEM SET max_locks_per_transaction = {locks}"))?;
        world.source.restart(Shutdown::Fast)
    };
    restarted(&mut world, "10")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    refused(
        &crossfade,
        CUTOVER,
        "locks_short",
        &["source \"shop\"", "some 400 locks", "takes 210", "raise max_locks_per_transaction"],
    )
    .await?;
    restarted(&mut world, "64")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    verified(&crossfade).await?;
    possible(&crossfade, CUTOVER).await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_keeps_back_too_much_or_is_lost() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let limits = "[limits]\nwal_warn = \"4MiB\"\nwal_critical = \"24MiB\"";
    let crossfade = Crossfade::new(&world.plan().log_lines("sync = \"0s\"").section(limits))?;
    let mut run = following(&crossfade).await?;
    verified(&crossfade).await?;
    possible(&crossfade, CUTOVER).await?;
    // Nobody reads it meanwhile.
    run.stop().await?;
    let writes = |mebibytes: u32| {
        let rows = mebibytes * 1000;
        world.at_source(&format!("INSERT INTO b SELECT (SELECT max(id) FROM b) + i, repeat(md5(i::text), 30) FROM generate_series(1, {rows}) i")).map(drop)
    };
    writes(30)?;
    let mentions = ["source \"shop\" keeps back", "limits.wal_critical is 24 MiB", "wait until capture has caught up"];
    refused(&crossfade, CUTOVER, "slot_at_risk", &mentions).await?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.at_source("CHECKPOINT")?;
    possible(&crossfade, CUTOVER).await?;
    run.stop().await?;
    // The server gives it up.
    world.source.set("max_slot_wal_keep_size", "1")?;
    let lost = "SELECT bool_or(wal_status = 'lost') FROM pg_replication_slots";
    until("the slot lost", MINUTE, || async {
        writes(20)?;
        world.at_source("SELECT pg_switch_wal(); CHECKPOINT")?;
        Ok((world.at_source(lost)? == "t").then_some(()))
    })
    .await?;
    refused(&crossfade, CUTOVER, "slot_at_risk", &["can no longer serve", "crossfade recopy"]).await?;
    world.source.set("max_slot_wal_keep_size", "-1")?;
    let asked = crossfade.run(&["recopy"]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    let mut run = crossfade.start(&["run"])?;
    let again = "SELECT count(*) FROM crossfade.tables WHERE epoch = 2";
    until("the next epoch", MINUTE, || async { Ok((world.at_target(again)? == "2").then_some(())) }).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    verified(&crossfade).await?;
    possible(&crossfade, CUTOVER).await?;
    run.stop().await
}

/// The same from the other side, and what is not asked there.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_rollback() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut capture = crossfade.start(&["capture"])?;
    let mut apply = crossfade.start(&["apply"])?;
    crossfade.wait_for_phase(&mut apply, "following", MINUTE).await?;
    captured(&world).await?;
    verified(&crossfade).await?;
    let (report, code) = says(&crossfade, &["cutover"]).await?;
    ensure!(code == Some(0) && report["unfinished"].is_null(), "{report:#}");
    // Verdicts however old, and what anybody writes there, are not in its way.
    world.at_target("UPDATE crossfade.verdict SET at = at - interval '1 year'")?;
    world.target.psql("app", "UPDATE a SET v = 'written' WHERE id = 7")?;
    possible(&crossfade, ROLLBACK).await?;
    let (report, _) = says(&crossfade, &["cutover"]).await?;
    ensure!(report["refused"][0]["code"] == "already", "{report:#}");
    let vacuum = Vacuum::hold(&world.target).await?;
    refused(&crossfade, ROLLBACK, "maintenance", &["at the target", "VACUUM", "let it end"]).await?;
    vacuum.let_go().await?;
    possible(&crossfade, ROLLBACK).await?;
    let long = world.target.client("app").await?;
    long.batch_execute("BEGIN; INSERT INTO a (v) VALUES ('long')").await?;
    let old = "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - interval '5 seconds'";
    until("a transaction that is old", MINUTE, || async { Ok((world.at_target(old)? == "1").then_some(())) }).await?;
    refused(&crossfade, ROLLBACK, "long_transaction", &["at the target", "pg_terminate_backend("]).await?;
    long.batch_execute("ROLLBACK").await?;
    possible(&crossfade, ROLLBACK).await?;
    subscribed(&world.target)?;
    let text = refused(&crossfade, ROLLBACK, "subscription", &["the target", "\"upstream\"", "DISABLE"]).await?;
    world.target.psql("app", text.rsplit(": ").next().context("the next step")?)?;
    world.target.psql("app", "ALTER SUBSCRIPTION upstream SET (slot_name = NONE); DROP SUBSCRIPTION upstream")?;
    possible(&crossfade, ROLLBACK).await?;
    // The way back's apply waits for a lock.
    let reader = world.source.client("app").await?;
    reader.batch_execute("BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE").await?;
    world.target.psql("app", "UPDATE a SET v = 'late' WHERE id = 8")?;
    let behind = |status: &Value| status["way_back"]["lag"]["seconds"].as_f64().is_some_and(|lag| lag > 1.0);
    crossfade.wait_for(&mut apply, "it is behind", MINUTE, behind).await?;
    let asked = [ROLLBACK, &["--max-lag", "1s"]].concat();
    refused(&crossfade, &asked, "lag", &["the source is", "behind the target", "--max-lag"]).await?;
    reader.batch_execute("ROLLBACK").await?;
    possible(&crossfade, ROLLBACK).await?;
    capture.stop().await?;
    refused(&crossfade, ROLLBACK, "capture_down", &[]).await?;
    let mut capture = crossfade.start(&["capture"])?;
    possible(&crossfade, ROLLBACK).await?;
    apply.stop().await?;
    refused(&crossfade, ROLLBACK, "apply_down", &[]).await?;
    let mut apply = crossfade.start(&["apply"])?;
    possible(&crossfade, ROLLBACK).await?;
    let (report, _) = says(&crossfade, &["rollback", "--cancel"]).await?;
    ensure!(report["refused"][0]["code"] == "nothing_to_cancel", "{report:#}");
    let (report, code) = says(&crossfade, &["rollback"]).await?;
    ensure!(code == Some(0), "{report:#}");
    refused(&crossfade, &["rollback", "--cancel"], "decided", &["epoch 2", "source is the writable side"]).await?;
    capture.stop().await?;
    apply.stop().await
}

/// What leads back is lost, and what was written since is nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_rollback_whose_slot_is_gone() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    captured(&world).await?;
    verified(&crossfade).await?;
    let (report, code) = says(&crossfade, &["cutover"]).await?;
    ensure!(code == Some(0) && report["unfinished"].is_null(), "{report:#}");
    possible(&crossfade, ROLLBACK).await?;
    run.stop().await?;
    let slot = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE '%_back' AND NOT active";
    let left = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_back'";
    until("the slot gone", MINUTE, || async {
        world.at_target(slot)?;
        Ok((world.at_target(left)? == "0").then_some(()))
    })
    .await?;
    refused(&crossfade, ROLLBACK, "slot_at_risk", &["no way back any more", "`crossfade complete`"]).await.map(drop)
}
