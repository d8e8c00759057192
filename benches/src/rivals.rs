use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Crossfade, Running, World, until};

use crate::PATIENCE;

/// crossfade, into database `ours` of the target.
pub struct Ours {
    crossfade: Crossfade,
}

impl Ours {
    /// An empty database and a plan; nothing is started.
    pub fn prepare(world: &World) -> Result<Ours> {
        world.target.create_db("ours")?;
        let plan = harness::PlanFile::new("bench", &world.source_url(), &world.target.url("ours"));
        let log = world.nats.as_ref().map_or("embedded".into(), |nats| nats.url());
        let plan = plan.log(&log).identity("public.pgbench_history", "insert_only");
        Ok(Ours { crossfade: Crossfade::new(&plan)? })
    }

    /// `crossfade run`.
    pub fn start(&self) -> Result<Running> {
        let mut running = self.crossfade.start(&["run"])?;
        running.hush();
        Ok(running)
    }

    /// `crossfade verify`.
    pub fn verify(&self) -> Result<Running> {
        let mut running = self.crossfade.start(&["verify"])?;
        running.hush();
        Ok(running)
    }

    /// `crossfade rehearse` into the database of this URL.
    pub fn rehearse(&self, into: &str) -> Result<Running> {
        let mut running = self.crossfade.start(&["rehearse", "--into", into])?;
        running.hush();
        Ok(running)
    }

    /// Waits until copy and tail are joined, keys built. The target is asked itself: calling `crossfade status` again
    /// and again would take from the processors that are measured.
    pub async fn joined(&self, world: &World, running: &mut Running) -> Result<()> {
        let target = world.target.client("ours").await?;
        let sql = "SELECT bool_and(joined) FROM crossfade.checkpoint";
        let joined = until("copy and tail joined", PATIENCE, || async {
            Ok((target.query_one(sql, &[]).await?.get::<_, Option<bool>>(0) == Some(true)).then_some(()))
        });
        joined.await.map_err(|error| error.context(running.log_tail()))?;
        ensure!(running.is_running()?, "{}", running.log_tail());
        Ok(())
    }

    /// The target's URL.
    pub fn url(&self, world: &World) -> String {
        world.target.url("ours")
    }

    /// Ends the migration and drops the database.
    pub async fn remove(self, world: &World) -> Result<()> {
        let done = self.crossfade.run(&["complete", "--yes"]).await?;
        ensure!(done.status.success(), "complete: {done:?}");
        world.target.psql("postgres", "DROP DATABASE ours WITH (FORCE)").map(drop)
    }
}

/// A subscription, into database `theirs` of the target.
pub struct Theirs {
    connection: String,
}

impl Theirs {
    /// A database with the source's schema, keys included, and a publication; nothing is subscribed.
    pub fn prepare(world: &World) -> Result<Theirs> {
        world.target.create_db("theirs")?;
        copy_schema(world, "theirs", &[])?;
        world.at_source("CREATE PUBLICATION theirs FOR TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history, probe")?;
        Ok(Theirs { connection: world.source_url() })
    }

    /// Creates the subscription, which starts it.
    pub fn subscribe(&self, world: &World) -> Result<()> {
        let sql = format!("CREATE SUBSCRIPTION theirs CONNECTION '{}' PUBLICATION theirs", self.connection);
        world.target.psql("theirs", &sql).map(drop)
    }

    /// Waits until all tables are copied and follow.
    pub async fn joined(&self, world: &World) -> Result<()> {
        let target = world.target.client("theirs").await?;
        until("the subscription's copy", PATIENCE, || async {
            let sql = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel";
            Ok((target.query_one(sql, &[]).await?.get::<_, Option<bool>>(0) == Some(true)).then_some(()))
        })
        .await
    }

    /// Goes on.
    pub fn enable(&self, world: &World) -> Result<()> {
        world.target.psql("theirs", "ALTER SUBSCRIPTION theirs ENABLE").map(drop)
    }

    /// Stops; changes stay in the slot.
    pub async fn disable(&self, world: &World) -> Result<()> {
        world.target.psql("theirs", "ALTER SUBSCRIPTION theirs DISABLE")?;
        let source = world.source.client("app").await?;
        until("the subscription's end", Duration::from_secs(30), || async {
            let sql = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'theirs' AND NOT active";
            Ok(source.query_opt(sql, &[]).await?)
        })
        .await
        .map(drop)
    }

    /// Ends it and drops the database.
    pub fn remove(self, world: &World) -> Result<()> {
        world.target.psql("theirs", "DROP SUBSCRIPTION theirs")?;
        world.target.psql("postgres", "DROP DATABASE theirs WITH (FORCE)")?;
        world.at_source("DROP PUBLICATION theirs").map(drop)
    }
}

/// Creates the source's tables in a database of the target.
pub fn copy_schema(world: &World, database: &str, options: &[&str]) -> Result<()> {
    let mut dump = Command::new(harness::bin("pg_dump")?);
    dump.args(["-s", "--no-owner", "-d", &world.source.socket_dsn("app")]).args(options);
    pipe(dump, psql(&world.target.socket_dsn(database))?)
}

/// `psql` that stops at the first error, not started yet.
pub fn psql(dsn: &str) -> Result<Command> {
    let mut psql = Command::new(harness::bin("psql")?);
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn]);
    Ok(psql)
}

/// Runs `from | to`.
pub fn pipe(mut from: Command, mut to: Command) -> Result<()> {
    let mut first = from.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let out = first.stdout.take().map_or(Stdio::null(), Stdio::from);
    let second = to.stdin(out).stdout(Stdio::null()).status()?;
    let first = first.wait()?;
    ensure!(first.success() && second.success(), "{from:?} | {to:?}: {first}, {second}");
    Ok(())
}
