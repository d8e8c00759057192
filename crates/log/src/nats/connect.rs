//! The connection: where to, as whom, over TLS or not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::{ConnectOptions, Event};
use tokio::sync::watch;

use super::{Shared, refusal};
use crate::LogError;

/// A command's first answer must come within seconds; a server further away than this is as good as none.
const CONNECT: Duration = Duration::from_secs(5);

/// For an answer of JetStream's. An election in a cluster takes two to four seconds, and what has taken longer is asked
/// again.
const ANSWER: Duration = Duration::from_secs(5);

/// How often the server is asked whether it is still there. After three questions without an answer the connection is made anew: one that lost
/// its other end without a word is noticed within 40 s, where the client's default takes minutes.
const PING: Duration = Duration::from_secs(10);

/// Commands on their way to the socket; each may hold a message, so the client's default of 2,048 would be gigabytes.
const COMMANDS: usize = 64;

/// How to reach a nats-server.
#[derive(Clone)]
pub struct NatsOptions {
    /// `nats://` or `tls://`, several with commas between; may hold `user:password@` or `token@`.
    pub url: String,
    /// Of each stream.
    pub replicas: usize,
    /// After which time an acknowledged message would survive a power loss (the server's sync interval and a margin).
    pub sync: Duration,
    /// Authority of the server's certificate, PEM; turns TLS on.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate, PEM; goes with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// JWT and key as NATS's tools write them.
    pub credentials_file: Option<PathBuf>,
    /// Limit of each stream that is created; a smaller one of an existing stream is raised to it.
    pub max_bytes: Option<u64>,
}

impl NatsOptions {
    /// Without TLS, one replica, the server's default sync interval, no limit.
    pub fn new(url: impl Into<String>) -> Self {
        NatsOptions {
            url: url.into(),
            replicas: 1,
            // Two minutes, and a margin for the sync itself.
            sync: Duration::from_secs(150),
            ca_file: None,
            cert_file: None,
            key_file: None,
            credentials_file: None,
            max_bytes: None,
        }
    }
}

/// Who connects, taken out of the URL: neither the client's errors nor ours are to show it.
enum User {
    Nobody,
    Token(String),
    Password(String, String),
}

struct Address {
    servers: Vec<String>,
    user: User,
    tls: bool,
}

impl Address {
    fn parse(url: &str) -> Result<Address, LogError> {
        let mut address = Address { servers: Vec::new(), user: User::Nobody, tls: false };
        for part in url.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (scheme, rest) = part.split_once("://").unwrap_or(("nats", part));
            address.tls |= scheme == "tls";
            let host = match rest.rsplit_once('@') {
                None => rest,
                Some((user, host)) => {
                    address.user = match user.split_once(':') {
                        None => User::Token(decoded(user)?),
                        Some((user, password)) => User::Password(decoded(user)?, decoded(password)?),
                    };
                    host
                }
            };
            if !matches!(scheme, "nats" | "tls") {
                return Err(LogError::Other(format!(
                    "{scheme}://{host} is no URL of a nats-server: nats:// or tls://"
                )));
            }
            address.servers.push(format!("{scheme}://{}", host.trim_end_matches('/')));
        }
        match address.servers.is_empty() {
            true => Err(LogError::Other("the URL of the nats-server is empty".to_owned())),
            false => Ok(address),
        }
    }
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Result<String, LogError> {
    let wrong =
        || LogError::Other("user or password in the nats-server's URL: % is not followed by two hex digits".into());
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let digits = part.get(..2).ok_or_else(wrong)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// Checked here because the client reads certificates only during the handshake, and its error names no file.
async fn readable(path: &Path) -> Result<(), LogError> {
    match tokio::fs::read(path).await {
        Ok(content) if content.windows(11).any(|window| window == b"-----BEGIN ") => Ok(()),
        Ok(_) => Err(LogError::Tls(format!("{} is no PEM file", path.display()))),
        Err(error) => Err(LogError::Tls(format!("{} cannot be read: {error}", path.display()))),
    }
}

pub(super) async fn connect(options: &NatsOptions) -> Result<Shared, LogError> {
    let address = Address::parse(&options.url)?;
    let describe = address.servers.join(",");
    let (count, connected) = watch::channel(0);
    let mut connection = ConnectOptions::new()
        .name("crossfade")
        .connection_timeout(CONNECT)
        .ping_interval(PING)
        .client_capacity(COMMANDS)
        .event_callback(move |event| {
            note(&count, event);
            std::future::ready(())
        });
    match address.user {
        User::Nobody => {}
        User::Token(token) => connection = connection.token(token),
        User::Password(user, password) => connection = connection.user_and_password(user, password),
    }
    if let Some(path) = &options.credentials_file {
        connection = connection
            .credentials_file(path)
            .await
            .map_err(|error| LogError::Auth(format!("{} cannot be used: {error}", path.display())))?;
    }
    if address.tls || options.ca_file.is_some() {
        // The client takes the process's default; with two providers in the program there would be none. An error means
        // that somebody has chosen already.
        rustls::crypto::ring::default_provider().install_default().ok();
        connection = connection.require_tls(true);
    }
    if let Some(path) = &options.ca_file {
        readable(path).await?;
        connection = connection.add_root_certificates(path.clone());
    }
    match (&options.cert_file, &options.key_file) {
        (None, None) => {}
        (Some(cert), Some(key)) => {
            readable(cert).await?;
            readable(key).await?;
            connection = connection.add_client_certificate(cert.clone(), key.clone());
        }
        (Some(_), None) => return Err(LogError::Tls("cert_file is given without key_file".to_owned())),
        (None, Some(_)) => return Err(LogError::Tls("key_file is given without cert_file".to_owned())),
    }
    let client = match tokio::time::timeout(CONNECT, connection.connect(address.servers)).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Err(refusal::connect(&error, &describe)),
        Err(_) => return Err(LogError::Unavailable(format!("{describe} does not answer within {CONNECT:?}"))),
    };
    let jetstream = client.server_info().jetstream;
    let context = ContextBuilder::new().timeout(ANSWER).build(client);
    // Any question shows whether JetStream answers; that of the account is told differently by every version.
    if let Err(error) = context.get_stream("CROSSFADE").await {
        match refusal::first_answer(&error, jetstream) {
            LogError::NoStream => {}
            error => return Err(error),
        }
    }
    Ok(Shared {
        context,
        connected,
        replicas: options.replicas.max(1),
        sync: options.sync,
        max_bytes: options.max_bytes,
        describe,
    })
}

fn note(connected: &watch::Sender<u64>, event: Event) {
    match event {
        Event::Connected => {
            connected.send_modify(|count| *count += 1);
            tracing::debug!("connected to the nats-server");
        }
        Event::Disconnected => tracing::warn!("the connection to the nats-server is lost; trying to get it back"),
        Event::LameDuckMode => tracing::info!("the nats-server is about to stop"),
        Event::SlowConsumer(_) => tracing::warn!("messages of the nats-server were dropped; they are read again"),
        Event::ServerError(error) => tracing::warn!(%error, "nats-server"),
        Event::ClientError(error) => tracing::warn!(%error, "nats connection"),
        Event::Draining | Event::Closed => tracing::debug!("the connection to the nats-server is closed"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_the_url() {
        let address = Address::parse("nats://me:p%40ss%3A@h:1, tls://u:v@[::1]:2/").unwrap();
        assert_eq!(address.servers, ["nats://h:1", "tls://[::1]:2"]);
        assert!(address.tls);
        let Address { user: User::Password(user, password), .. } = Address::parse("nats://me:p%40ss%3A@h").unwrap()
        else {
            panic!("no password");
        };
        assert_eq!((user.as_str(), password.as_str()), ("me", "p@ss:"));
        let Address { user: User::Token(token), .. } = Address::parse("s3cr3t@h:1").unwrap() else {
            panic!("no token")
        };
        assert_eq!(token, "s3cr3t");
        for wrong in ["", "http://h", "nats://a:%4@h"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }
}
