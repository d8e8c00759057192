//! Everything that speaks Postgres.
//!
//! - [`Endpoint`]: where a database is, from a checked URL; [`beside`] is the URL of another one on that server
//! - [`connect`], [`connect_read_only`]: ordinary sessions, by tokio-postgres
//! - [`Replication`], [`ReplicationStream`]: a replication connection of our own, on postgres-protocol
//! - [`pgoutput`]: what travels on it, decoded
//! - [`catalog`]: which tables there are and what they look like
//! - [`definitions`]: what queries have to know of the tables that they read
//! - [`fence`]: what keeps the application from writing
//! - [`Console`]: the admin console of a PgBouncer
//! - [`somebody_waits`]: whether the application waits for locks of ours
//! - [`PgError`], [`policy`]: what a failure means, and whether to try again
//!
//! Every session, the replication connection included, runs under pinned settings (`settings.rs`), so that a value is
//! printed in the same way whatever the database or the role has as its default.

pub mod catalog;
mod connect;
mod console;
pub mod definitions;
mod endpoint;
mod error;
pub mod fence;
pub mod pgoutput;
pub mod read_only;
mod replication;
mod settings;
mod sqlstate;
mod tls;
mod transport;
mod url;
mod waiting;

pub use connect::{Canceller, Session, connect, connect_read_only};
pub use console::{Console, ConsoleRow};
pub use endpoint::Endpoint;
pub use error::{PgError, Policy, ServerError, policy};
pub use replication::{Frame, ProtocolVersion, Replication, ReplicationStream, SlotCreated, SystemInfo};
pub use tokio_postgres;
pub use url::beside;
pub use waiting::somebody_waits;
