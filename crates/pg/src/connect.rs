use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::config::{self, SslMode, SslNegotiation};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Connection, Notification};

use crate::endpoint::{ChannelBinding, Endpoint, Host};
use crate::error::{PgError, Policy, policy};
use crate::settings;
use crate::transport::{self, Established, Transport};

/// Notifications that wait for a reader; more are dropped. One that has this many before it has nothing new to say:
/// a notification means "look again".
const NOTIFICATIONS: usize = 1024;

/// How long a session whose owner is gone may take to say goodbye. Then it is cut off, whatever its server is doing.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often the server looks whether we are still there while it works for us: a killed process must not hold its locks
/// for as long as its last statement takes.
const SERVER_LOOKS_EVERY: &str = "2s";

/// An ordinary session. Its settings are pinned (see the crate's documentation); it ends when this is dropped.
pub struct Session {
    /// The queries' way in; a `Session` can be used as one directly.
    pub client: Client,
    notifications: mpsc::Receiver<Notification>,
    place: String,
    endpoint: Endpoint,
    host: Host,
    server_version: u32,
    /// Dropped with the session, which tells the driver to end.
    _owner: oneshot::Sender<()>,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Session {
    /// Waits for the next notification of a channel that this session listens on. Cancel-safe.
    ///
    /// # Errors
    /// [`PgError::Closed`] when the connection is gone.
    pub async fn notification(&mut self) -> Result<Notification, PgError> {
        self.notifications.recv().await.ok_or_else(|| PgError::closed("the connection is closed").at(&self.place))
    }

    /// The server's version: 150018 is 15.18.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// `host:port/database`, for [`PgError::at`].
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What cancels this session's statement from elsewhere.
    pub fn canceller(&self) -> Canceller {
        Canceller { token: self.client.cancel_token(), endpoint: self.endpoint.clone(), host: self.host.clone() }
    }
}

/// Cancels the statement that a [`Session`] is running.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    endpoint: Endpoint,
    host: Host,
}

impl Canceller {
    /// Asks the server to. That it was asked does not mean that there was something to cancel.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn cancel(&self) -> Result<(), PgError> {
        let ask = async {
            let transport = transport::open(&self.endpoint, &self.host).await?;
            Ok(self.token.cancel_query_raw(transport, Established).await?)
        };
        bounded(&self.endpoint, ask).await.map_err(|error| error.at(&self.endpoint.describe()))
    }
}

/// Where the server's default is that a commit need not be on disk: ours are, unless the session says otherwise later. What is built on them, a marker that the log
/// names, must not be taken back by a crash. No more than that: a default that waits for standbys, or does not, stays.
const FLUSHED: &str =
    "SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off'";

/// Opens a session that may write, and whose commits are flushed. `purpose` becomes part of its `application_name`.
///
/// # Errors
/// Within `connect_timeout` for each host of the URL: it cannot be reached, does not let us in, or has no such database.
pub async fn connect(endpoint: &Endpoint, purpose: &str) -> Result<Session, PgError> {
    each_host(endpoint, |host| open(endpoint, host, purpose, false)).await
}

/// The same with `default_transaction_read_only = on`: every transaction is read-only unless it says otherwise.
///
/// # Errors
/// As [`connect`].
pub async fn connect_read_only(endpoint: &Endpoint, purpose: &str) -> Result<Session, PgError> {
    each_host(endpoint, |host| open(endpoint, host, purpose, true)).await
}

/// Tries the hosts in their order until one lets us in. What would be refused by the next one too is not tried there.
pub(crate) async fn each_host<'a, T, F>(endpoint: &'a Endpoint, attempt: impl Fn(&'a Host) -> F) -> Result<T, PgError>
where
    F: Future<Output = Result<T, PgError>>,
{
    let mut last = PgError::closed("the URL names no host");
    for host in &endpoint.hosts {
        match bounded(endpoint, attempt(host)).await {
            Ok(open) => return Ok(open),
            Err(error) => {
                let elsewhere = policy(&error) == Policy::Retry || error.sqlstate() == Some(READ_ONLY);
                last = error.at(&format!("{host}/{}", endpoint.database));
                if !elsewhere {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// SQLSTATE read_only_sql_transaction.
const READ_ONLY: &str = "25006";

async fn bounded<T>(endpoint: &Endpoint, attempt: impl Future<Output = Result<T, PgError>>) -> Result<T, PgError> {
    match tokio::time::timeout(endpoint.connect_timeout, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(PgError::Unreachable {
            place: String::new(),
            reason: format!("no answer within {} s", endpoint.connect_timeout.as_secs()),
        }),
    }
}

async fn open(endpoint: &Endpoint, host: &Host, purpose: &str, read_only: bool) -> Result<Session, PgError> {
    let transport = transport::open(endpoint, host).await?;
    let mut config = Config::new();
    config
        .user(&endpoint.user)
        .dbname(&endpoint.database)
        .application_name(settings::application_name(endpoint.application_name.as_deref(), purpose))
        .options(settings::options(endpoint.options.as_deref(), read_only))
        .channel_binding(match endpoint.channel_binding {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        })
        // With these two tokio-postgres hands the transport to `Established` without a word to the server.
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    if let Some(password) = &endpoint.password {
        config.password(password);
    }
    let (client, connection) = config.connect_raw(transport, Established).await.map_err(login_error)?;
    verify_reported(endpoint, |name| connection.parameter(name))?;
    let server_version = settings::version_number(connection.parameter("server_version").unwrap_or_default());
    let (sender, notifications) = mpsc::channel(NOTIFICATIONS);
    let (owner, gone) = oneshot::channel();
    tokio::spawn(drive(connection, sender, gone));
    // Not every platform that a server runs on can do this, and then it refuses the setting.
    let _ = client.batch_execute(&format!("SET client_connection_check_interval = '{SERVER_LOOKS_EVERY}'")).await;
    if !read_only {
        client.batch_execute(FLUSHED).await?;
    }
    Ok(Session {
        client,
        notifications,
        place: format!("{host}/{}", endpoint.database),
        endpoint: endpoint.clone(),
        host: host.clone(),
        server_version,
        _owner: owner,
    })
}

/// While logging in, what is neither the server's word nor the connection's end is about credentials.
pub(crate) fn login_error(error: tokio_postgres::Error) -> PgError {
    match PgError::from(error) {
        PgError::Unexpected { reason, .. } => PgError::credentials(reason),
        other => other,
    }
}

/// Whether the server runs under the pinned settings as far as it reports them, and takes writes if that was asked for.
pub(crate) fn verify_reported<'a>(
    endpoint: &Endpoint,
    reported: impl Fn(&'static str) -> Option<&'a str>,
) -> Result<(), PgError> {
    for (name, pinned) in settings::REPORTED {
        if let Some(value) = reported(name).filter(|value| !value.starts_with(pinned)) {
            return Err(PgError::protocol(format!(
                "{name} is {value:?} although the session asked for {pinned:?}: something in between drops its settings"
            )));
        }
    }
    if endpoint.read_write && reported("in_hot_standby") == Some("on") {
        return Err(PgError::Server(Box::new(crate::error::ServerError {
            sqlstate: READ_ONLY.to_owned(),
            message: "the server is a standby, and target_session_attrs asks for one that takes writes".to_owned(),
            ..Default::default()
        })));
    }
    Ok(())
}

/// Moves the session's bytes until its owner is gone or the server is.
pub(crate) async fn drive(
    connection: Connection<Transport, Transport>,
    notifications: mpsc::Sender<Notification>,
    gone: oneshot::Receiver<()>,
) {
    let mut connection = connection;
    let mut run = pin!(async {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => {
                    let _ = notifications.try_send(notification);
                }
                Some(Ok(AsyncMessage::Notice(notice))) => {
                    tracing::debug!(severity = notice.severity(), "server: {}", notice.message());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::debug!("a session ended: {}", PgError::from(error));
                    return;
                }
                None => return,
            }
        }
    });
    if let Either::Right((_, run)) = select(run.as_mut(), gone).await {
        let _ = tokio::time::timeout(FAREWELL, run).await;
    }
}
