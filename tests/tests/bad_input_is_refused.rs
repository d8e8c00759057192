//! Given something that crossfade cannot work with: it says so by its code, ends with 2, and has changed nothing.

use anyhow::{Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Cluster, Crossfade, Nats, PlanFile, World};

const TABLE: &str = "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)";

/// A world with one table, whose source is like that.
fn world(source: Cluster) -> Result<World> {
    let world = World::of(source, Cluster::start()?, Some(Nats::start()?))?;
    world.at_source(TABLE)?;
    Ok(world)
}

async fn refuses(world: &World, plan: &PlanFile, code: &str, mentions: &[&str]) -> Result<()> {
    let before = traces(world)?;
    let crossfade = Crossfade::new(plan)?;
    refused(&crossfade, code, mentions).await?;
    let after = traces(world)?;
    ensure!(after == before, "it left something behind: {after:?}, before: {before:?}");
    Ok(())
}

async fn refused(crossfade: &Crossfade, code: &str, mentions: &[&str]) -> Result<()> {
    let finished = crossfade.run(&["run", "--json"]).await?;
    ensure!(finished.status.code() == Some(2), "exit code 2 expected: {finished:?}");
    ensure!(finished.error_code()? == code, "{code} expected: {finished:?}");
    let error = finished.json()?["error"].to_string();
    for word in mentions {
        ensure!(error.contains(word), "{word:?} is not in {error}");
    }
    // People without --json get one line with the same.
    let told = crossfade.run(&["run"]).await?;
    ensure!(told.status.code() == Some(2), "{told:?}");
    ensure!(mentions.iter().all(|word| told.stderr.contains(word)), "{mentions:?} expected on stderr: {told:?}");
    Ok(())
}

/// What a migration creates on either side.
fn traces(world: &World) -> Result<String> {
    let sql = "SELECT 'slot ' || slot_name FROM pg_replication_slots UNION ALL SELECT 'publication ' || pubname FROM pg_publication
               UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'crossfade'
               UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
               ORDER BY 1";
    Ok(format!("{} / {}", world.at_source(sql)?, world.at_target(sql)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_logical_wal() -> Result<()> {
    let world = world(Cluster::build().set("wal_level", "replica").start()?)?;
    refuses(&world, &world.plan(), "wal_level", &["wal_level", "logical"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_a_free_slot() -> Result<()> {
    let world = world(Cluster::build().set("max_replication_slots", "1").start()?)?;
    world.at_source("SELECT pg_create_physical_replication_slot('taken')")?;
    refuses(&world, &world.plan(), "slots_exhausted", &["max_replication_slots"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_replicate() -> Result<()> {
    let world = world(Cluster::start()?)?;
    world.at_source("CREATE ROLE mover LOGIN; GRANT SELECT ON t TO mover; GRANT CREATE ON DATABASE app TO mover")?;
    let plan = PlanFile::new("shop", &world.source.url_as("mover", "app"), &world.target_url());
    refuses(&world, &plan, "privilege_missing", &["mover", "REPLICATION"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_read_a_table() -> Result<()> {
    let world = world(Cluster::start()?)?;
    world.at_source("CREATE ROLE mover LOGIN REPLICATION; GRANT CREATE ON DATABASE app TO mover")?;
    let plan = PlanFile::new("shop", &world.source.url_as("mover", "app"), &world.target_url());
    refuses(&world, &plan, "privilege_missing", &["mover", "GRANT"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_role_that_may_not_create() -> Result<()> {
    let world = world(Cluster::start()?)?;
    world.at_target("CREATE ROLE mover LOGIN")?;
    let plan = PlanFile::new("shop", &world.source_url(), &world.target.url_as("mover", "app"));
    refuses(&world, &plan, "privilege_missing", &["mover", "GRANT"]).await
}

/// A member of the owner's role may hand it what it creates only where the owner may create as well.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_may_not_create_in_the_targets_schema() -> Result<()> {
    let world = world(Cluster::start()?)?;
    world.at_source("CREATE ROLE shop; ALTER TABLE t OWNER TO shop")?;
    world.at_target(
        "CREATE ROLE shop; CREATE ROLE mover LOGIN; GRANT shop TO mover; GRANT CREATE ON DATABASE app TO mover;
         GRANT CREATE, USAGE ON SCHEMA public TO mover; GRANT SET ON PARAMETER session_replication_role TO mover;
         GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_oid(text), pg_replication_origin_drop(text),
           pg_replication_origin_session_setup(text) TO mover",
    )?;
    let plan = PlanFile::new("shop", &world.source_url(), &world.target.url_as("mover", "app"));
    let next = "GRANT CREATE ON SCHEMA \"public\" TO \"shop\"";
    refuses(&world, &plan, "privilege_missing", &["role shop"]).await?;
    world.at_target(next)?;
    let mut run = following(&Crossfade::new(&plan)?).await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_replica_identity() -> Result<()> {
    let world = world(Cluster::start()?)?;
    world.at_source("CREATE TABLE keyless (a integer)")?;
    refuses(&world, &world.plan(), "identity_missing", &["public.keyless", "[identity]"]).await?;
    // Said to be full, and is not.
    let plan = world.plan().identity("public.keyless", "full");
    refuses(&world, &plan, "identity_missing", &["public.keyless", "REPLICA IDENTITY FULL"]).await?;
    world.at_source("DROP TABLE keyless; CREATE TABLE late (id integer PRIMARY KEY DEFERRABLE)")?;
    refuses(&world, &world.plan(), "identity_missing", &["public.late"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_has_such_a_table() -> Result<()> {
    let world = world(Cluster::start()?)?;
    world.at_target("CREATE TABLE t (other text)")?;
    refuses(&world, &world.plan(), "target_not_empty", &["public.t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_the_table_that_is_said_to_exist() -> Result<()> {
    let world = world(Cluster::start()?)?;
    refuses(&world, &world.plan().target_exists(), "target_missing", &["public.t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_without_jetstream() -> Result<()> {
    let mut world = world(Cluster::start()?)?;
    world.nats = Some(Nats::build().without_jetstream().start()?);
    refuses(&world, &world.plan(), "no_jetstream", &["jetstream"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_whose_name_another_one_has_on_that_log() -> Result<()> {
    let first = world(Cluster::start()?)?;
    let crossfade = first.crossfade()?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", std::time::Duration::from_secs(60)).await?;
    // Another source and target; only name and log are the same. Also while the first one is not running.
    let second = World::of(Cluster::start()?, Cluster::start()?, None)?;
    second.at_source(TABLE)?;
    let nats = first.nats.as_ref().map(Nats::url).unwrap_or_default();
    let plan = second.plan().log(&nats);
    refuses(&second, &plan, "plan_name_taken", &["shop"]).await?;
    run.stop().await?;
    refuses(&second, &plan, "plan_name_taken", &["shop"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_that_cannot_be_written() -> Result<()> {
    let world = world(Cluster::start()?)?;
    let crossfade = world.crossfade()?;
    // A file in its place stops root as well.
    std::fs::write(crossfade.state_dir(), "in the way")?;
    let before = traces(&world)?;
    refused(&crossfade, "state_not_writable", &["state"]).await?;
    ensure!(traces(&world)? == before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_selects_nothing_or_says_nonsense() -> Result<()> {
    let world = world(Cluster::start()?)?;
    refuses(&world, &world.plan().tables(&["nothing.*"]), "no_tables", &["nothing.*"]).await?;
    let plan = world.plan().section("[limits]\nmemroy = \"1GiB\"");
    refuses(&world, &plan, "plan_invalid", &["memroy", "memory", "crossfade.toml:"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_not_there_and_a_server_that_is_not() -> Result<()> {
    let world = world(Cluster::start()?)?;
    let plan = PlanFile::new("shop", "$CROSSFADE_TEST_UNSET", &world.target_url());
    refuses(&world, &plan, "secret_missing", &["CROSSFADE_TEST_UNSET"]).await?;
    let nobody = crossfade_tests::Port::reserve()?;
    let plan =
        PlanFile::new("shop", &world.source_url(), &format!("postgres://postgres@127.0.0.1:{}/app", nobody.number()));
    refuses(&world, &plan, "connection_failed", &[&nobody.number().to_string()]).await
}
