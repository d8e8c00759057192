//! The end-to-end tests' harness: real servers, the real program, and the oracle that says whether it was right.
//!
//! - servers: [`Cluster`] (Postgres), [`PgBouncer`], [`Nats`], [`Authority`] for their certificates, [`Proxy`] for a bad network;
//!   they live on free ports of 127.0.0.1 in temporary folders, and end with the value or, at the latest, with the test
//!   process ([`attached`])
//! - load: [`Pgbench`], [`mixed`] for a schema with something of everything, [`writers`] that know what was acknowledged; [`rounds`] of cutovers under them
//! - the program: [`PlanFile`], [`Crossfade`], [`Running`]
//! - the oracle: [`compare`]; [`follow`] for changes that are made and compared
//! - the plan's checks: [`reconcile`]; what a process says of itself: [`http`]
//! - the moments in which data gets lost: [`standby`], [`startup`]
//! - waiting: [`until`]; nothing here sleeps for a time that somebody guessed
//!
//! Tests use `#[tokio::test(flavor = "multi_thread")]`: starting and stopping a server blocks its thread.

pub mod attached;
mod certs;
pub mod chaos;
mod cluster;
pub mod compare;
mod dice;
mod folder;
pub mod follow;
pub mod http;
mod jetstream;
pub mod mixed;
mod nats;
mod pgbench;
mod pgbouncer;
mod plan_file;
mod port;
mod program;
mod proxy;
pub mod reconcile;
pub mod rounds;
pub mod standby;
pub mod startup;
mod until;
mod world;
pub mod writers;

pub use certs::{Authority, KeyPairFiles};
pub use cluster::{Cluster, ClusterBuilder, Shutdown, bin, connect};
pub use compare::Comparison;
pub use dice::Dice;
pub use nats::{Nats, NatsBuilder};
pub use pgbench::{LoadReport, Pgbench, RunningPgbench};
pub use pgbouncer::PgBouncer;
pub use plan_file::PlanFile;
pub use port::Port;
pub use program::{Crossfade, Finished, Running, lag};
pub use proxy::{Orphan, Proxy};
pub use until::until;
pub use world::World;
