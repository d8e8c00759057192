//! The harness itself: servers come and go as told, and the oracle sees every kind of difference.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use crossfade_tests::standby::{self, HeldCommit};
use crossfade_tests::{Authority, Cluster, Nats, Pgbench, Proxy, Shutdown, World, compare, connect, mixed};

/// A world with the mixed schema on both sides, equal.
fn twins() -> Result<World> {
    let world = World::embedded()?;
    mixed::create(&world.source, "app")?;
    mixed::create(&world.target, "app")?;
    Ok(world)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_sees_planted_differences_and_nothing_else() -> Result<()> {
    let world = twins()?;
    let (source, target) = (world.source_url(), world.target_url());
    let found = compare::databases(&source, &target).await?;
    found.expect_equal()?;
    assert_eq!(found.tables, 19);
    assert!(found.rows > 17_000, "{found}");
    for (planted, differences) in [
        ("UPDATE documents SET title = 'other' WHERE id = 7", 2),
        ("DELETE FROM measures_2023 WHERE sensor = (SELECT min(sensor) FROM measures_2023)", 1),
        ("INSERT INTO keyless VALUES (1, NULL)", 1),
        ("INSERT INTO keyless VALUES (1, '')", 1),
        ("UPDATE keyless SET b = '' WHERE ctid = (SELECT ctid FROM keyless WHERE b IS NULL LIMIT 1)", 2),
        ("UPDATE everything SET double = double + 1e-13 WHERE id = 5", 2),
        ("UPDATE everything SET exact = exact + 1e-30 WHERE id = 5", 2),
        ("TRUNCATE ONLY animal", 200),
        ("DROP TABLE chosen", 1),
        ("CREATE TABLE surplus (a integer)", 1),
        ("ALTER TABLE journal ADD COLUMN surplus integer", 1),
    ] {
        let client = world.target.client("app").await?;
        client.batch_execute(planted).await?;
        let before = compare::databases(&source, &target).await?;
        assert_eq!(before.differences, differences, "{planted}: {before}");
        assert!(before.expect_equal().is_err());
        // Mend it: the same at the source.
        world.at_source(planted)?;
        compare::databases(&source, &target).await?.expect_equal()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_sees_different_definitions() -> Result<()> {
    let world = twins()?;
    let (source, target) = (world.source_url(), world.target_url());
    assert_eq!(compare::schemas(&source, &target).await?, Vec::<String>::new());
    world.at_target("DROP INDEX orders_by_time; ALTER TABLE orders DROP CONSTRAINT orders_customer_fkey")?;
    world.at_target("ALTER TABLE ranking ALTER place DROP NOT NULL; DROP TRIGGER counts ON no_columns_of_note")?;
    let found = compare::schemas(&source, &target).await?;
    assert_eq!(found.len(), 5, "{found:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_back_after_every_kind_of_end() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.psql("postgres", "CREATE TABLE t AS SELECT 1 AS a")?;
    cluster.restart(Shutdown::Fast)?;
    cluster.restart(Shutdown::Immediate)?;
    cluster.kill9()?;
    cluster.boot()?;
    assert_eq!(cluster.psql("postgres", "SELECT a FROM t")?, "1");
    cluster.set("synchronous_commit", "local")?;
    let client = connect(&cluster.url("postgres")).await?;
    let row = client.query_one("SHOW synchronous_commit", &[]).await?;
    assert_eq!(row.get::<_, &str>(0), "local");
    let folder = cluster.folder().to_owned();
    drop(cluster);
    assert!(!folder.exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_commit_is_flushed_and_not_visible_until_it_is_released() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.psql("postgres", "CREATE TABLE t (a integer)")?;
    standby::require_absent(&cluster, "postgres").await?;
    let held = HeldCommit::start(&cluster, "postgres", "INSERT INTO t VALUES (1)").await?;
    // Everybody else goes on.
    cluster.psql("postgres", "INSERT INTO t VALUES (2)")?;
    assert_eq!(cluster.psql("postgres", "SELECT a FROM t")?, "2");
    let visible = format!("SELECT pg_visible_in_snapshot('{}', pg_current_snapshot())", held.xid);
    assert_eq!(cluster.psql("postgres", &visible)?, "f");
    standby::release(&cluster).await?;
    held.done().await?;
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM t")?, "2");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_servers_take_clients_with_the_right_certificates_only() -> Result<()> {
    let (authority, stranger) = (Authority::new()?, Authority::new()?);
    let cluster = Cluster::build().tls(&authority)?.client_certs().password("geheim").start()?;
    let (ours, theirs) = (authority.client("postgres")?, stranger.client("postgres")?);
    let attempt = |ca: std::path::PathBuf, files: &crossfade_tests::KeyPairFiles, password: &str| {
        let dsn = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
            cluster.port(),
            ca.display(),
            files.cert.display(),
            files.key.display()
        );
        let mut psql = std::process::Command::new(crossfade_tests::bin("psql").unwrap());
        let output = psql.args(["-X", "-d", &dsn, "-c", "SELECT 1"]).env("PGPASSWORD", password).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(attempt(authority.ca(), &ours, "geheim"), "");
    assert!(attempt(stranger.ca(), &ours, "geheim").contains("certificate verify failed"));
    assert_ne!(attempt(authority.ca(), &theirs, "geheim"), "");
    assert!(attempt(authority.ca(), &ours, "falsch").contains("password authentication failed"));
    let nats = Nats::build().tls(&authority)?.auth("me", "geheim").start()?;
    assert!(nats.url().starts_with("tls://"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_keeps_its_port_through_a_kill() -> Result<()> {
    let mut nats = Nats::start()?;
    let url = nats.url();
    nats.kill9()?;
    nats.boot()?;
    nats.stop()?;
    nats.boot()?;
    assert_eq!(nats.url(), url);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_proxy_breaks_connections_and_a_resumed_one_takes_new_ones() -> Result<()> {
    let cluster = Cluster::start()?;
    let proxy = Proxy::start(cluster.port()).await?;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
    let client = connect(&url).await?;
    client.batch_execute("SELECT 1").await?;
    proxy.stall();
    let stalled = client.batch_execute("SELECT 1");
    assert!(tokio::time::timeout(Duration::from_millis(200), stalled).await.is_err());
    proxy.cut();
    assert!(client.batch_execute("SELECT 1").await.is_err());
    assert!(connect(&url).await.is_err());
    proxy.resume();
    connect(&url).await?.batch_execute("SELECT 1").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_and_pgbench_write() -> Result<()> {
    let world = World::embedded()?;
    mixed::create(&world.source, "app")?;
    let writers = mixed::Writers::start(&world.source, "app", 3, 1).await?;
    crossfade_tests::until("some transactions", Duration::from_secs(30), || async {
        Ok((writers.transactions() > 500).then_some(()))
    })
    .await?;
    writers.stop().await?;
    let bench = Pgbench::new(&world.target, "app").clients(2).rate(200).simple_update();
    bench.fill(1)?;
    let report = bench.start(2)?.wait().await?;
    assert!(report.transactions > 200 && report.tps > 100.0, "{report:?}");
    Ok(())
}
