//! The admin console of a PgBouncer: a few commands by the simple query protocol, which is all that it speaks.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use crate::connect::{drive, each_host, login_error};
use crate::endpoint::{Endpoint, Host};
use crate::error::PgError;
use crate::settings;
use crate::transport::{self, Established};

/// A row that it shows: what is empty or not there is left out.
pub type ConsoleRow = BTreeMap<String, String>;

/// A session there. It ends when this is dropped; what it has paused stays paused.
pub struct Console {
    client: Client,
    place: String,
    /// Dropped with the session, which tells the driver to end.
    _owner: oneshot::Sender<()>,
}

impl Console {
    /// Opens one. The URL's `options` are not sent: PgBouncer refuses them.
    ///
    /// # Errors
    /// As [`connect`](crate::connect()).
    pub async fn open(endpoint: &Endpoint) -> Result<Console, PgError> {
        each_host(endpoint, |host| open(endpoint, host)).await
    }

    /// Runs a command, and returns what it shows.
    ///
    /// # Errors
    /// PgBouncer refuses it, or is gone.
    pub async fn command(&self, command: &str) -> Result<Vec<ConsoleRow>, PgError> {
        let messages = self.client.simple_query(command).await.map_err(|error| PgError::from(error).at(&self.place))?;
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                let cell = |(at, column): (usize, &tokio_postgres::SimpleColumn)| {
                    Some((column.name().to_owned(), row.get(at).filter(|text| !text.is_empty())?.to_owned()))
                };
                rows.push(row.columns().iter().enumerate().filter_map(cell).collect());
            }
        }
        Ok(rows)
    }
}

async fn open(endpoint: &Endpoint, host: &Host) -> Result<Console, PgError> {
    let transport = transport::open(endpoint, host).await?;
    let mut config = Config::new();
    config
        .user(&endpoint.user)
        .dbname(&endpoint.database)
        .application_name(settings::application_name(endpoint.application_name.as_deref(), "cutover"))
        // As in `connect`: the transport is there already.
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    if let Some(password) = &endpoint.password {
        config.password(password);
    }
    let (client, connection) = config.connect_raw(transport, Established).await.map_err(login_error)?;
    let (sender, _) = mpsc::channel(1);
    let (owner, gone) = oneshot::channel();
    tokio::spawn(drive(connection, sender, gone));
    Ok(Console { client, place: format!("{host}/{}", endpoint.database), _owner: owner })
}
