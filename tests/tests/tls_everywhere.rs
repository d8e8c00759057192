//! Given servers that want TLS, passwords and client certificates: the migration works with them, and an error with one
//! of them says which.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Authority, Cluster, Crossfade, Nats, PlanFile, World};

const MINUTE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "s3cr3t of servers";

struct Guarded {
    authority: Authority,
    world: World,
}

impl Guarded {
    fn start() -> Result<Guarded> {
        let authority = Authority::new()?;
        let cluster = || Cluster::build().tls(&authority)?.client_certs().password(PASSWORD).start();
        let nats = Nats::build().tls(&authority)?.auth("mover", PASSWORD).start()?;
        let world = World::of(cluster()?, cluster()?, Some(nats))?;
        world.at_source("CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) AS i")?;
        Ok(Guarded { authority, world })
    }

    fn postgres(&self, cluster: &Cluster, ca: &Path, password: &str) -> Result<String> {
        let client = self.authority.client("postgres")?;
        Ok(format!(
            "postgres://postgres:{}@127.0.0.1:{}/app?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
            password.replace(' ', "%20"),
            cluster.port(),
            ca.display(),
            client.cert.display(),
            client.key.display()
        ))
    }

    /// A plan in which one of three (source, log, target) trusts another authority or says another password.
    fn plan(&self, ca: [&Path; 3], passwords: [&str; 3]) -> Result<PlanFile> {
        let source = self.postgres(&self.world.source, ca[0], passwords[0])?;
        let target = self.postgres(&self.world.target, ca[2], passwords[2])?;
        let client = self.authority.client("mover")?;
        let port = self.world.nats.as_ref().map_or(0, Nats::port);
        let lines = format!(
            "ca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"",
            ca[1].display(),
            client.cert.display(),
            client.key.display()
        );
        let log = format!("tls://mover:{}@127.0.0.1:{port}", passwords[1].replace(' ', "%20"));
        Ok(PlanFile::new("shop", "$SHOP_URL", "$TARGET_URL")
            .log("$LOG_URL")
            .log_lines(&lines)
            .env("SHOP_URL", &source)
            .env("TARGET_URL", &target)
            .env("LOG_URL", &log))
    }

    /// The port that tells people which of the servers is meant.
    fn ports(&self) -> [u16; 3] {
        [self.world.source.port(), self.world.nats.as_ref().map_or(0, Nats::port), self.world.target.port()]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migration_ends_equal() -> Result<()> {
    let guarded = Guarded::start()?;
    let ca = guarded.authority.ca();
    let crossfade = Crossfade::new(&guarded.plan([&ca; 3], [PASSWORD; 3])?)?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    guarded.world.at_source("UPDATE t SET v = 'y' WHERE id % 2 = 0")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    guarded.world.expect_equal().await?;
    run.stop().await
}

async fn error_names_the_server(guarded: &Guarded, plan: &PlanFile, which: usize, code: &str) -> Result<()> {
    let finished = Crossfade::new(plan)?.run(&["run", "--json"]).await?;
    ensure!(finished.status.code() == Some(2), "{finished:?}");
    ensure!(finished.error_code()? == code, "{code} expected: {finished:?}");
    let error = finished.json()?["error"].to_string();
    ensure!(error.contains(&guarded.ports()[which].to_string()), "which server is it? {error}");
    let told = finished.stdout + &finished.stderr;
    ensure!(!told.contains(PASSWORD) && !told.contains("s3cr3t"), "a secret was told: {told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_authority_is_named() -> Result<()> {
    let guarded = Guarded::start()?;
    let (right, stranger) = (guarded.authority.ca(), Authority::new()?);
    let wrong = stranger.ca();
    for which in 0..3 {
        let mut ca: [&Path; 3] = [&right; 3];
        ca[which] = &wrong;
        error_names_the_server(&guarded, &guarded.plan(ca, [PASSWORD; 3])?, which, "tls_failed").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named() -> Result<()> {
    let guarded = Guarded::start()?;
    let ca = guarded.authority.ca();
    for which in 0..3 {
        let mut passwords = [PASSWORD; 3];
        passwords[which] = "another s3cr3t";
        error_names_the_server(&guarded, &guarded.plan([&ca; 3], passwords)?, which, "authentication_failed").await?;
    }
    Ok(())
}
