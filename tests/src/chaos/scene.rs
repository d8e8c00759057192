use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::fault::{Server, Trouble};
use super::shape::{Mode, Shape};
use crate::{Cluster, Crossfade, Nats, Proxy, Shutdown, World, compare, mixed};

/// Larger tables, and rows that collide; beside [`mixed::SCHEMA`].
pub const SCHEMA: &str = include_str!("schema.sql");

/// Longer than a look into a running database takes.
const LOOK: Duration = Duration::from_secs(2);

/// The servers, with a proxy before each of them.
pub(super) struct Scene {
    world: World,
    source: Proxy,
    target: Proxy,
    nats: Option<Proxy>,
}

impl Scene {
    /// Starts everything, and fills the source.
    pub(super) async fn set(shape: &Shape) -> Result<Scene> {
        let source = Cluster::build()
            .set("max_prepared_transactions", "20")
            .set("deadlock_timeout", "200ms")
            // Who is left behind by a broken connection must not take longer to notice than a run lasts.
            .set("wal_sender_timeout", "5s")
            .set("logical_decoding_work_mem", shape.decoding_memory)
            .start()?;
        let nats = if shape.mode == Mode::Embedded { None } else { Some(Nats::start()?) };
        // What takes long there is what people ask first about a slow run.
        let target = Cluster::build().set("log_min_duration_statement", "500").start()?;
        let world = World::of(source, target, nats)?;
        mixed::create(&world.source, "app")?;
        world.at_source(SCHEMA)?;
        let source = Proxy::start(world.source.port()).await?;
        let target = Proxy::start(world.target.port()).await?;
        let nats = match &world.nats {
            Some(nats) => Some(Proxy::start(nats.port()).await?),
            None => None,
        };
        Ok(Scene { world, source, target, nats })
    }

    /// The program with the seed's plan, which leads through the proxies.
    pub(super) fn crossfade(&self, shape: &Shape) -> Result<Crossfade> {
        let url = |proxy: &Proxy| format!("postgres://postgres@127.0.0.1:{}/app", proxy.port());
        let nats = self.nats.as_ref().map(|proxy| format!("nats://127.0.0.1:{}", proxy.port()));
        Crossfade::new(&shape.plan(&url(&self.source), &url(&self.target), nats.as_deref()))
    }

    /// The application's way to the source, past the proxy.
    pub(super) fn source_dsn(&self) -> String {
        self.world.source.socket_dsn("app")
    }

    pub(super) fn target_dsn(&self) -> String {
        self.world.target.socket_dsn("app")
    }

    /// Stops a server at once.
    pub(super) fn stop(&mut self, server: Server) -> Result<()> {
        match server {
            Server::Source => self.world.source.stop(Shutdown::Immediate),
            Server::Target => self.world.target.stop(Shutdown::Immediate),
            Server::Nats => self.world.nats.as_mut().map_or(Ok(()), Nats::kill9),
        }
    }

    pub(super) fn start(&mut self, server: Server) -> Result<()> {
        match server {
            Server::Source => self.world.source.boot(),
            Server::Target => self.world.target.boot(),
            Server::Nats => self.world.nats.as_mut().map_or(Ok(()), Nats::boot),
        }
    }

    fn proxy(&self, server: Server) -> Option<&Proxy> {
        match server {
            Server::Source => Some(&self.source),
            Server::Target => Some(&self.target),
            Server::Nats => self.nats.as_ref(),
        }
    }

    /// Makes the network bad; says whether there was a connection to suffer from it.
    pub(super) fn trouble(&self, server: Server, trouble: Trouble) -> bool {
        let Some(proxy) = self.proxy(server) else { return false };
        let landed = proxy.connections() > 0;
        match trouble {
            Trouble::Cut => proxy.cut(),
            Trouble::Stalled => proxy.stall(),
            Trouble::Throttled(rate) => proxy.throttle(rate),
            Trouble::HalfOpen(orphan) => proxy.orphan(orphan),
        }
        landed
    }

    /// Makes it good again.
    pub(super) fn relief(&self, server: Server, trouble: Trouble) {
        let Some(proxy) = self.proxy(server) else { return };
        match trouble {
            Trouble::Cut | Trouble::Stalled | Trouble::Throttled(_) => proxy.resume(),
            Trouble::HalfOpen(_) => proxy.release(),
        }
    }

    /// Whether copy and tail are joined, if the target can be asked.
    pub(super) async fn joined(&self) -> bool {
        let look = async {
            let client = self.world.target.client("app").await?;
            let row = client.query_one("SELECT coalesce(bool_and(joined), false) FROM crossfade.checkpoint", &[]);
            anyhow::Ok(row.await?.get(0))
        };
        matches!(tokio::time::timeout(LOOK, look).await, Ok(Ok(true)))
    }

    /// Transactions that came by the tail.
    pub(super) fn applied(&self) -> Result<u64> {
        Ok(self.world.at_target("SELECT coalesce(sum(transactions), 0) FROM crossfade.checkpoint")?.parse()?)
    }

    /// Everything, compared.
    pub(super) async fn compare(&self) -> Result<compare::Comparison> {
        compare::databases(&self.source_dsn(), &self.target_dsn()).await
    }

    /// Writes into `folder` what the servers said, and how crossfade's state stands in them.
    pub(super) fn keep(&self, folder: &Path) -> Result<()> {
        let mut logs = vec![
            ("source.log", self.world.source.folder().join("postgres.log")),
            ("target.log", self.world.target.folder().join("postgres.log")),
        ];
        logs.extend(self.world.nats.as_ref().map(|nats| ("nats.log", nats.folder().join("nats.log"))));
        for (name, log) in logs {
            std::fs::copy(log, folder.join(name)).with_context(|| format!("keep {name}"))?;
        }
        let mut state = String::new();
        let at_source = ["pg_replication_slots", "pg_prepared_xacts", "pg_stat_replication", "pg_stat_activity"];
        for table in at_source {
            let rows = self.world.at_source(&format!("SELECT * FROM {table}"));
            writeln!(state, "== source: {table}\n{}", rows.unwrap_or_else(|error| error.to_string()))?;
        }
        for table in ["checkpoint", "lease", "worker", "tables", "marker", "copied", "schema_item"] {
            let rows = self.world.at_target(&format!("SELECT * FROM crossfade.{table}"));
            writeln!(state, "== target: {table}\n{}", rows.unwrap_or_else(|error| error.to_string()))?;
        }
        let rows = self.world.at_target("SELECT * FROM pg_stat_activity");
        writeln!(state, "== target: pg_stat_activity\n{}", rows.unwrap_or_else(|error| error.to_string()))?;
        let locks = "SELECT relation::regclass, mode, granted, pid, waitstart FROM pg_locks WHERE relation IS NOT NULL";
        for (side, rows) in [("source", self.world.at_source(locks)), ("target", self.world.at_target(locks))] {
            writeln!(state, "== {side}: locks\n{}", rows.unwrap_or_else(|error| error.to_string()))?;
        }
        std::fs::write(folder.join("state.txt"), state)?;
        Ok(())
    }
}
