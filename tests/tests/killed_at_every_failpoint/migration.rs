//! One migration of a database of its own, that dies, goes on, and has to end equal.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use crossfade_tests::{Cluster, Crossfade, Nats, PlanFile, Running, compare, until};
use tokio_postgres::Client;

use crate::load::Load;

/// Longer than any of these migrations takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

const SCHEMA: &str = include_str!("schema.sql");

const EMPTY: &str = "SET client_min_messages = warning; DROP SCHEMA IF EXISTS crossfade CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public";

/// Its slot would keep the WAL of all the others.
const EMPTY_SOURCE: &str = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database();
    SET client_min_messages = warning; DROP SCHEMA public CASCADE; CREATE SCHEMA public;
    DO $$ DECLARE name text; BEGIN
      FOR name IN SELECT pubname FROM pg_publication LOOP EXECUTE format('DROP PUBLICATION %I', name); END LOOP; END $$";

/// Servers that many migrations share.
pub struct Servers {
    pub source: Cluster,
    pub target: Cluster,
    /// None with the embedded log.
    pub nats: Option<Nats>,
    migrations: AtomicU32,
    /// Databases that no migration uses, on both sides: making one anew for each would take longer than the migration.
    free: Mutex<Vec<String>>,
}

impl Servers {
    pub fn start(with_nats: bool) -> Result<Servers> {
        let cluster = || {
            let many = Cluster::build().set("autovacuum", "off").set("full_page_writes", "off");
            // Each migration leaves some replication origins behind.
            let many = many.set("max_connections", "300").set("max_replication_slots", "400");
            // Small, so that a transaction of some kilobytes is streamed while it is in progress.
            many.set("max_wal_senders", "50").set("logical_decoding_work_mem", "64kB").start()
        };
        let nats = if with_nats { Some(Nats::start()?) } else { None };
        Ok(Servers {
            source: cluster()?,
            target: cluster()?,
            nats,
            migrations: AtomicU32::new(0),
            free: Mutex::default(),
        })
    }

    /// An empty database on both sides.
    async fn database(&self, number: u32) -> Result<String> {
        let free = self.free.lock().map_err(|_| anyhow!("poisoned"))?.pop();
        let Some(name) = free else {
            let name = format!("d{number}");
            self.source.create_db(&name)?;
            self.target.create_db(&name)?;
            return Ok(name);
        };
        let (source, target) = (self.source.client(&name).await?, self.target.client(&name).await?);
        // Sessions of a process that was killed may still be ending.
        until("an empty source", LIMIT, || async { Ok(Some(source.batch_execute(EMPTY_SOURCE).await?)) }).await?;
        until("an empty target", LIMIT, || async { Ok(Some(target.batch_execute(EMPTY).await?)) }).await?;
        Ok(name)
    }

    pub fn log(&self) -> &'static str {
        if self.nats.is_some() { "nats" } else { "embedded" }
    }
}

/// A line of the ledger of a finished table: who copied it, and when.
type Finished = Vec<String>;

/// A migration with a database and a plan of its own, under load.
pub struct Migration<'a> {
    servers: &'a Servers,
    /// Of the plan.
    pub name: String,
    database: String,
    plan: PlanFile,
    pub crossfade: Crossfade,
    pub source: Client,
    pub target: Client,
    load: Option<Load>,
    transactions: u64,
}

impl<'a> Migration<'a> {
    /// Fills a database; `change` may change the plan. Nothing runs yet but the load.
    pub async fn new(servers: &'a Servers, change: impl Fn(PlanFile) -> PlanFile) -> Result<Migration<'a>> {
        let number = servers.migrations.fetch_add(1, Ordering::Relaxed);
        let (name, database) = (format!("m{number}"), servers.database(number).await?);
        let source = servers.source.client(&database).await?;
        source.batch_execute(SCHEMA).await?;
        let plan = PlanFile::new(&name, &servers.source.url(&database), &servers.target.url(&database));
        let plan = match &servers.nats {
            // What is acknowledged counts as synced at once, so that the source is told something.
            Some(nats) => plan.log(&nats.url()).log_lines("sync = \"0s\""),
            None => plan,
        };
        let plan = plan.identity("public.journal", "insert_only");
        let plan = plan.section("[limits]\nmemory = \"64MiB\"\ncopy_workers = 1\nlock_timeout = \"300ms\"");
        let plan = change(plan);
        let mut migration = Migration {
            crossfade: Crossfade::new(&plan)?,
            plan,
            source,
            target: servers.target.client(&database).await?,
            servers,
            name,
            database,
            load: None,
            transactions: 0,
        };
        migration.write().await?;
        Ok(migration)
    }

    /// Lets the application write, unless it does already.
    pub async fn write(&mut self) -> Result<()> {
        if self.load.is_none() {
            let dsn = self.servers.source.socket_dsn(&self.database);
            self.load = Some(Load::start(&dsn, self.transactions).await?);
        }
        Ok(())
    }

    /// Stops the application.
    pub async fn rest(&mut self) -> Result<()> {
        if let Some(load) = self.load.take() {
            self.transactions = load.stop().await?;
        }
        Ok(())
    }

    /// Starts `run` with nothing armed, and waits until it follows.
    pub async fn follows(&self) -> Result<Running> {
        let mut run = self.crossfade.start(&["run"])?;
        self.joined(&mut run).await?;
        run.hush();
        Ok(run)
    }

    /// Waits until copy and tail are joined. By SQL: a dozen of `status` a second would take the processors from what is tested.
    pub async fn joined(&self, run: &mut Running) -> Result<()> {
        let run = Mutex::new(run);
        let joined = "SELECT bool_and(joined) FROM crossfade.checkpoint";
        let joined = until("copy and tail joined", LIMIT, || async {
            if !run.lock().map_err(|_| anyhow!("poisoned"))?.is_running()? {
                return Ok(Some(false));
            }
            Ok(self.target.query_one(joined, &[]).await?.get::<_, Option<bool>>(0).filter(|joined| *joined))
        })
        .await?;
        ensure!(joined, "it ended before copy and tail were joined");
        Ok(())
    }

    /// Changes the plan, for what starts from now on.
    pub fn replan(&mut self, change: impl Fn(PlanFile) -> PlanFile) -> Result<()> {
        self.crossfade.replan(&change(self.plan.clone()))
    }

    /// Another session of the application.
    pub async fn another(&self) -> Result<Client> {
        self.servers.source.client(&self.database).await
    }

    /// Nothing of the plan is left on either side, and its rows are.
    pub async fn is_removed(&self) -> Result<()> {
        let at_source = "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()
             UNION ALL SELECT pubname::text FROM pg_publication";
        let at_target = format!(
            "SELECT nspname::text FROM pg_namespace WHERE nspname = 'crossfade'
             UNION ALL SELECT roname FROM pg_replication_origin WHERE roname LIKE 'crossfade_{}\\_%'",
            self.name
        );
        for (client, sql) in [(&self.source, at_source), (&self.target, at_target.as_str())] {
            let left: Vec<String> = client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect();
            ensure!(left.is_empty(), "{left:?} is left");
        }
        self.equal().await
    }

    /// Starts `run`, to die at `failpoint`, and waits until it has.
    pub async fn dies_at(&self, failpoint: &str, passages: u32) -> Result<()> {
        self.crossfade.start_armed(&["run"], failpoint, passages)?.died_at(failpoint, LIMIT).await
    }

    /// Starts it again, and sees it to the end: nothing finished is done again, and nothing is missing or there twice.
    pub async fn ends_equal(&mut self) -> Result<Running> {
        let finished = self.finished().await?;
        let before = self.load.as_ref().map_or(0, Load::transactions);
        let mut run = self.crossfade.start(&["run"])?;
        self.joined(&mut run).await?;
        // A table that was added to the plan may be on its way: the target says that it is joined until it hears of that.
        let there = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
        let there: i64 = self.source.query_one(there, &[]).await?.get(0);
        until("every table of the plan known at the target", LIMIT, || async {
            let known: i64 = self.target.query_one("SELECT count(*) FROM crossfade.tables", &[]).await?.get(0);
            Ok((known == there).then_some(()))
        })
        .await?;
        self.joined(&mut run).await?;
        if let Some(load) = &self.load {
            until("the load goes on", LIMIT, || async { Ok((load.transactions() > before + 5).then_some(())) }).await?;
        }
        self.rest().await?;
        self.crossfade.wait_for_lag_zero(&mut run, LIMIT).await?;
        self.built().await?;
        self.equal().await?;
        let now = self.finished().await?;
        let again = finished.iter().find(|line| !now.contains(line));
        ensure!(again.is_none(), "copied again although it was finished: {again:?} {now:#?}");
        ensure!(!run.log_tail().contains("deadlock"), "it got in its own way: {}", run.log_tail());
        run.hush();
        Ok(run)
    }

    /// Compares both sides in full, rows and definitions.
    async fn equal(&self) -> Result<()> {
        let dsn = |cluster: &Cluster| cluster.socket_dsn(&self.database);
        let (source, target) = (dsn(&self.servers.source), dsn(&self.servers.target));
        compare::databases(&source, &target).await?.expect_equal()?;
        let differences = compare::schemas(&source, &target).await?;
        ensure!(differences.is_empty(), "definitions differ: {differences:#?}");
        let enabled = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgname NOT LIKE 'crossfade_fence_%'";
        let enabled: i64 = self.target.query_one(enabled, &[]).await?.get(0);
        ensure!(enabled == 0, "a trigger of the target is enabled");
        Ok(())
    }

    /// Foreign keys and triggers come when everything else is done.
    async fn built(&self) -> Result<()> {
        let waits = "SELECT count(*) FROM crossfade.schema_item WHERE done_at IS NULL";
        until("keys, indexes and triggers", LIMIT, || async {
            Ok((self.target.query_one(waits, &[]).await?.get::<_, i64>(0) == 0).then_some(()))
        })
        .await
    }

    /// The ledger's lines of tables whose copy is complete; empty where apply has not begun.
    async fn finished(&self) -> Result<Finished> {
        let there = "SELECT to_regclass('crossfade.copied') IS NOT NULL";
        if !self.target.query_one(there, &[]).await?.get::<_, bool>(0) {
            return Ok(Vec::new());
        }
        let lines = "SELECT format('%s.%s epoch %s chunk %s: %s %s', c.schema, c.name, c.epoch, c.chunk, c.worker, c.done_at)
               FROM crossfade.tables t JOIN crossfade.copied c ON (c.source, c.schema, c.name, c.epoch) = (t.source, t.schema, t.name, t.epoch)
              WHERE t.chunks IS NOT NULL AND t.next_epoch IS NULL AND c.worker IS NOT NULL
             UNION ALL SELECT format('rows of still: %s', rows) FROM (SELECT string_agg(DISTINCT xmin::text, ',') AS rows FROM still) AS still
              WHERE EXISTS (SELECT FROM crossfade.tables t WHERE t.name = 'still' AND t.chunks = (
                    SELECT count(*) FROM crossfade.copied c WHERE (c.name, c.epoch) = (t.name, t.epoch) AND c.worker IS NOT NULL))";
        match self.target.query(lines, &[]).await {
            Ok(rows) => Ok(rows.iter().map(|row| row.get(0)).collect()),
            // Its tables are not created yet.
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Leaves its databases to the next one.
    pub async fn clear(mut self) -> Result<()> {
        self.rest().await?;
        self.servers.free.lock().map_err(|_| anyhow!("poisoned"))?.push(self.database.clone());
        Ok(())
    }
}
