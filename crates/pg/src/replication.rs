//! A replication connection: tokio-postgres has none, so this one stands on postgres-protocol.
//!
//! It lives in two states. [`Replication`] asks one thing after the other (who are you, make a slot); starting a slot
//! turns it into a [`ReplicationStream`], which only ever reads and reports, until it ends. From there on a task owns the
//! socket (`stream.rs`), so that the server hears from us while whoever reads is busy.

mod frame;
mod login;
mod stream;
mod wire;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use model::{Lsn, quote};

use crate::connect::{each_host, verify_reported};
use crate::endpoint::{Endpoint, Host};
use crate::error::PgError;
use crate::{settings, transport};
use wire::{Incoming, Wire};

pub use frame::Frame;
pub use stream::ReplicationStream;

/// The oldest server whose pgoutput streams transactions in progress and carries logical messages.
const OLDEST: u32 = 140_000;

/// A server that answers a query within this time is near: 64 KiB a round trip are more than it can decode.
const NEAR: Duration = Duration::from_millis(1);

/// From this version on a slot can be made to follow a failover.
const FAILOVER: u32 = 170_000;

/// A replication connection that has not started a slot. Its settings are pinned as those of any session.
pub struct Replication {
    wire: Wire,
    place: String,
    parameters: HashMap<String, String>,
    server_version: u32,
}

/// What `IDENTIFY_SYSTEM` returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemInfo {
    /// Unique to the database cluster, as `pg_control_system()` prints it.
    pub system_identifier: String,
    /// Its timeline.
    pub timeline: u32,
    /// How far its WAL is flushed.
    pub xlogpos: Lsn,
    /// The database connected to.
    pub database: String,
}

/// A slot that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotCreated {
    /// Its name.
    pub name: String,
    /// Transactions that commit after this position will be sent, and complete. Not: what a snapshot taken now does
    /// not see (see the barrier in the protocols).
    pub consistent_point: Lsn,
}

/// Which of pgoutput's protocol versions is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolVersion {
    /// Streams transactions in progress. Servers from 14 on. What the later ones add (two-phase commit, parallel apply) is
    /// not asked for.
    V2,
}

impl ProtocolVersion {
    /// The one to use with a server; `None` if it is too old for any.
    pub fn for_server(server_version: u32) -> Option<ProtocolVersion> {
        (server_version >= OLDEST).then_some(ProtocolVersion::V2)
    }

    fn number(self) -> u8 {
        match self {
            ProtocolVersion::V2 => 2,
        }
    }
}

impl Replication {
    /// Connects with `replication=database`. `purpose` becomes part of its `application_name`.
    ///
    /// # Errors
    /// As [`connect`](crate::connect); [`PgError::TooOld`] for a server before 14.
    pub async fn connect(endpoint: &Endpoint, purpose: &str) -> Result<Replication, PgError> {
        each_host(endpoint, |host| open(endpoint, host, purpose)).await
    }

    /// The server's version: 150018 is 15.18.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// A setting that the server reported when it let us in, `DateStyle` for one.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Which cluster and database this is, and how far its WAL has got.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn identify(&mut self) -> Result<SystemInfo, PgError> {
        let row = self.one_row("IDENTIFY_SYSTEM").await?;
        let [Some(system_identifier), Some(timeline), Some(xlogpos), database] = row.as_slice() else {
            return Err(self.strange("IDENTIFY_SYSTEM"));
        };
        let (Ok(timeline), Ok(xlogpos)) = (timeline.parse(), xlogpos.parse()) else {
            return Err(self.strange("IDENTIFY_SYSTEM"));
        };
        let database = database.clone().unwrap_or_default();
        Ok(SystemInfo { system_identifier: system_identifier.clone(), timeline, xlogpos, database })
    }

    /// Makes a permanent slot for pgoutput, without a snapshot: each table takes its own. It waits for every transaction
    /// that is writing when it begins, without a limit. `failover` is left out where the server does not have it.
    ///
    /// # Errors
    /// [`PgError::NotLogical`] where `wal_level` is too low; the server's refusal, 42710 if there is such a slot.
    pub async fn create_slot(&mut self, name: &str, failover: bool) -> Result<SlotCreated, PgError> {
        let options = if failover && self.server_version >= FAILOVER {
            "(SNAPSHOT 'nothing', FAILOVER true)"
        } else {
            "NOEXPORT_SNAPSHOT"
        };
        let sql = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}", quote::ident(name));
        let row = self.one_row(&sql).await.map_err(|error| match error {
            PgError::Server(error) if error.sqlstate == NOT_IN_STATE => {
                PgError::NotLogical { place: error.place.clone(), reason: error.to_string() }
            }
            error => error,
        })?;
        match row.as_slice() {
            [Some(name), Some(point), ..] => {
                let consistent_point = point.parse().map_err(|_| self.strange(&sql))?;
                Ok(SlotCreated { name: name.clone(), consistent_point })
            }
            _ => Err(self.strange(&sql)),
        }
    }

    /// Starts to receive what is committed after `from` (or after the slot's confirmed position, if that is later).
    /// Nothing is confirmed to the server before the first [`ReplicationStream::status`].
    ///
    /// # Errors
    /// [`PgError::SlotLost`] where the slot is not there or can serve no more; 55006 while another session reads it.
    pub async fn start(
        mut self,
        slot: &str,
        from: Lsn,
        publications: &[String],
        protocol: ProtocolVersion,
    ) -> Result<ReplicationStream, PgError> {
        let asked = Instant::now();
        let every = self.status_interval().await?;
        if asked.elapsed() < NEAR {
            self.wire.transport.keep_little_under_way();
        }
        let publications = quote::idents(publications.iter().map(String::as_str));
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '{}', publication_names {}, \
             streaming 'on', messages 'true')",
            quote::ident(slot),
            protocol.number(),
            // The replication grammar knows no other escape than the doubled quote.
            format_args!("'{}'", publications.replace('\'', "''")),
        );
        let started = async {
            self.wire.query(&sql).await?;
            loop {
                match self.wire.next().await? {
                    Incoming::CopyBoth => return Ok::<(), PgError>(()),
                    Incoming::Message(message) => self.wire.pass_over(message)?,
                }
            }
        };
        match started.await {
            Ok(()) => Ok(stream::start(self.wire, every, self.place, slot.to_owned())),
            Err(error) => Err(frame::slot_error(error.at(&self.place), slot)),
        }
    }

    /// How often to report: three times within `wal_sender_timeout`, so that the server never has to ask (it does at the
    /// half of it) and one late report does not end the connection. Never more than 10 s apart, so that what is
    /// confirmed shows soon.
    async fn status_interval(&mut self) -> Result<Duration, PgError> {
        let longest = Duration::from_secs(10);
        let sql = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'";
        let row = self.one_row(sql).await?;
        let timeout = row.first().cloned().flatten().and_then(|ms| ms.parse().ok()).unwrap_or(0);
        Ok(match timeout {
            0 => longest,
            ms => Duration::from_millis((ms / 3).max(1)).min(longest),
        })
    }

    async fn one_row(&mut self, sql: &str) -> Result<Vec<Option<String>>, PgError> {
        let rows = self.wire.rows(sql).await.map_err(|error| error.at(&self.place))?;
        rows.into_iter().next().ok_or_else(|| self.strange(sql))
    }

    fn strange(&self, sql: &str) -> PgError {
        PgError::protocol(format!("{sql} returned something unexpected")).at(&self.place)
    }
}

/// SQLSTATE object_not_in_prerequisite_state.
const NOT_IN_STATE: &str = "55000";

async fn open(endpoint: &Endpoint, host: &Host, purpose: &str) -> Result<Replication, PgError> {
    let transport = transport::open(endpoint, host).await?;
    // A walsender reads what we say at any time, so nothing that we send stays unacknowledged for long.
    transport.limit_unacknowledged();
    let mut wire = Wire::new(transport);
    let parameters = login::login(&mut wire, endpoint, purpose).await?;
    verify_reported(endpoint, |name| parameters.get(name).map(String::as_str))?;
    let place = format!("{host}/{}", endpoint.database());
    let found = parameters.get("server_version").cloned().unwrap_or_default();
    let server_version = settings::version_number(&found);
    if ProtocolVersion::for_server(server_version).is_none() {
        return Err(PgError::TooOld { place, found, needed: OLDEST / 10_000 });
    }
    Ok(Replication { wire, place, parameters, server_version })
}
