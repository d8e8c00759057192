use anyhow::Result;

use crate::{Cluster, Crossfade, Nats, PlanFile};

/// The database that worlds use on both sides.
const DATABASE: &str = "app";

/// A source, a target, and perhaps a nats-server, with an empty database `app` on each side.
pub struct World {
    /// Where the data comes from.
    pub source: Cluster,
    /// Where it goes.
    pub target: Cluster,
    /// The log's server; none with the embedded log.
    pub nats: Option<Nats>,
}

impl World {
    /// One whose log is NATS.
    pub fn with_nats() -> Result<World> {
        World::of(Cluster::start()?, Cluster::start()?, Some(Nats::start()?))
    }

    /// One whose log is embedded.
    pub fn embedded() -> Result<World> {
        World::of(Cluster::start()?, Cluster::start()?, None)
    }

    /// One of these servers.
    pub fn of(source: Cluster, target: Cluster, nats: Option<Nats>) -> Result<World> {
        source.create_db(DATABASE)?;
        target.create_db(DATABASE)?;
        Ok(World { source, target, nats })
    }

    /// The source's URL.
    pub fn source_url(&self) -> String {
        self.source.url(DATABASE)
    }

    /// The target's URL.
    pub fn target_url(&self) -> String {
        self.target.url(DATABASE)
    }

    /// A plan from here to there, named `shop`.
    pub fn plan(&self) -> PlanFile {
        let plan = PlanFile::new("shop", &self.source_url(), &self.target_url());
        match &self.nats {
            Some(nats) => plan.log(&nats.url()),
            None => plan,
        }
    }

    /// The program with [`World::plan`].
    pub fn crossfade(&self) -> Result<Crossfade> {
        Crossfade::new(&self.plan())
    }

    /// Runs SQL at the source by `psql`.
    pub fn at_source(&self, sql: &str) -> Result<String> {
        self.source.psql(DATABASE, sql)
    }

    /// Runs SQL at the target by `psql`, past its fence: as somebody who writes there behind crossfade's back.
    pub fn at_target(&self, sql: &str) -> Result<String> {
        self.target.psql(DATABASE, &format!("SET session_replication_role = replica;\n{sql}"))
    }

    /// Waits until copy and tail are joined, by what the target says of itself.
    pub async fn joined(&self) -> Result<()> {
        let joined = "SELECT bool_and(joined) FROM crossfade.checkpoint";
        let limit = std::time::Duration::from_secs(60);
        crate::until("copy and tail joined", limit, || async { Ok((self.at_target(joined)? == "t").then_some(())) })
            .await
    }

    /// Compares both sides in full; an error shows the first differences.
    pub async fn expect_equal(&self) -> Result<()> {
        let (source, target) = (self.source.socket_dsn(DATABASE), self.target.socket_dsn(DATABASE));
        crate::compare::databases(&source, &target).await?.expect_equal()
    }
}
