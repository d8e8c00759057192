use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use model::{Code, Problem};

/// A server that takes longer than this to let us in is treated as unreachable; people wait for the answer of a
/// command, and supervision tries again anyway. `connect_timeout` in the URL overrides it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a database is and how to get in: a checked `postgres://` URL. Its `Debug` form holds no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) password: Option<String>,
    pub(crate) database: String,
    pub(crate) tls: Tls,
    pub(crate) connect_timeout: Duration,
    pub(crate) application_name: Option<String>,
    pub(crate) options: Option<String>,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) read_write: bool,
}

/// One of the servers that a URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// A name, an address, or the folder of a Unix socket (it then starts with a slash).
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl Host {
    pub(crate) fn is_socket(&self) -> bool {
        self.name.starts_with('/')
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// What a URL says about encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) mode: SslMode,
    /// PEM file of the authorities that are trusted; the system's when absent or `system`.
    pub(crate) roots: Option<PathBuf>,
    /// PEM files of our certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server can; nothing is verified.
    Prefer,
    /// Encrypted; the server's certificate is verified only where a CA file is given.
    Require,
    /// The certificate's authority is verified, the host's name is not.
    VerifyCa,
    /// Both are.
    VerifyFull,
}

impl SslMode {
    const NAMES: [(&'static str, SslMode); 5] = [
        ("disable", SslMode::Disable),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, mode)| *mode == self).map_or("prefer", |(name, _)| name)
    }
}

/// Whether SCRAM must prove that nobody sits between us and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl Endpoint {
    /// Whether the URL had a password in it.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Reads `postgres://user:password@host:port,host:port/database?key=value&…`. Known keys: `host`, `port`, `user`,
    /// `password`, `dbname`, `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `channel_binding`, `connect_timeout`
    /// (seconds), `application_name`, `options`, `target_session_attrs` (`any`, `read-write`, `primary`).
    ///
    /// # Errors
    /// [`Code::PlanInvalid`], saying which part; never with the password in it.
    pub fn parse(url: &str) -> Result<Endpoint, Problem> {
        parse(url).map_err(|(part, why)| {
            Problem::new(
                Code::PlanInvalid,
                format!("the connection URL's {part}"),
                why,
                "write postgres://user:password@host:5432/database?sslmode=verify-full, special characters as %XX",
            )
        })
    }

    /// `host:port/database`, for people. Holds no secret.
    pub fn describe(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        format!("{}/{}", hosts.join(","), self.database)
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role that logs in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The same in the variables that libpq's programs read, so that nothing secret is among their arguments.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let list = |each: fn(&Host) -> String| self.hosts.iter().map(each).collect::<Vec<_>>().join(",");
        let mut env = vec![
            ("PGHOST", list(|host| host.name.clone())),
            ("PGPORT", list(|host| host.port.to_string())),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database.clone()),
            ("PGSSLMODE", self.tls.mode.name().to_owned()),
            ("PGCONNECT_TIMEOUT", self.connect_timeout.as_secs().to_string()),
        ];
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        env.extend(self.password.clone().map(|password| ("PGPASSWORD", password)));
        match (&self.tls.roots, self.tls.mode) {
            (Some(file), _) => env.push(("PGSSLROOTCERT", path(file))),
            // libpq would look into the home directory instead of asking the system, and fail.
            (None, SslMode::VerifyCa | SslMode::VerifyFull) => env.push(("PGSSLROOTCERT", system_roots())),
            (None, SslMode::Disable | SslMode::Prefer | SslMode::Require) => {}
        }
        if let Some((certificate, key)) = &self.tls.identity {
            env.push(("PGSSLCERT", path(certificate)));
            env.push(("PGSSLKEY", path(key)));
        }
        env.extend(self.options.clone().map(|options| ("PGOPTIONS", options)));
        if self.read_write {
            env.push(("PGTARGETSESSIONATTRS", "read-write".to_owned()));
        }
        env
    }
}

/// The system's authorities, for libpq: it knows the word `system` only since version 16.
fn system_roots() -> String {
    let debian = "/etc/ssl/certs/ca-certificates.crt";
    let file = std::env::var("SSL_CERT_FILE").unwrap_or_else(|_| debian.to_owned());
    if std::path::Path::new(&file).exists() { file } else { "system".to_owned() }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({}@{}, sslmode={})", self.user, self.describe(), self.tls.mode.name())
    }
}

/// What is wrong: the part of the URL, and why.
type Wrong = (String, String);

fn wrong(part: &str, why: impl Into<String>) -> Wrong {
    (part.to_owned(), why.into())
}

fn parse(url: &str) -> Result<Endpoint, Wrong> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or_else(|| wrong("beginning", "it does not start with postgres://"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = match credentials.split_once(':') {
        Some((user, password)) => (user, Some(decode(password, "password")?)),
        None => (credentials, None),
    };
    let mut fields = Fields {
        user: decode(user, "user")?,
        password,
        database: decode(database, "database")?,
        hosts: Vec::new(),
        ports: Vec::new(),
        roots: None,
        certificate: None,
        key: None,
        endpoint: Endpoint {
            hosts: Vec::new(),
            user: String::new(),
            password: None,
            database: String::new(),
            tls: Tls { mode: SslMode::Prefer, roots: None, identity: None },
            connect_timeout: CONNECT_TIMEOUT,
            application_name: None,
            options: None,
            channel_binding: ChannelBinding::Prefer,
            read_write: false,
        },
    };
    for host in hosts.split(',').filter(|host| !host.is_empty()) {
        let (name, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((name, port)) => (name, port.strip_prefix(':')),
            None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
        };
        fields.hosts.push(decode(name, "host")?);
        fields.ports.push(port.map_or(Ok(5432), read_port)?);
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            wrong("parameters", "one of them has no value (a password with / ? or @ in it needs %XX)")
        })?;
        fields.set(key, decode(value, key)?)?;
    }
    fields.finish()
}

/// What has been read so far.
struct Fields {
    user: String,
    password: Option<String>,
    database: String,
    hosts: Vec<String>,
    ports: Vec<u16>,
    roots: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    endpoint: Endpoint,
}

impl Fields {
    fn set(&mut self, key: &str, value: String) -> Result<(), Wrong> {
        let unknown = |choices: &str| wrong(key, format!("{value:?} is none of {choices}"));
        match key {
            "host" => self.hosts = value.split(',').map(str::to_owned).collect(),
            "port" => self.ports = value.split(',').map(read_port).collect::<Result<_, _>>()?,
            "user" => self.user = value,
            "password" => self.password = Some(value),
            "dbname" => self.database = value,
            "application_name" => self.endpoint.application_name = Some(value),
            "options" => self.endpoint.options = Some(value),
            "sslrootcert" => self.roots = (value != "system").then(|| value.into()),
            "sslcert" => self.certificate = Some(value.into()),
            "sslkey" => self.key = Some(value.into()),
            "sslmode" => {
                let found = SslMode::NAMES.iter().find(|(name, _)| *name == value);
                self.endpoint.tls.mode =
                    found.ok_or_else(|| unknown("disable, prefer, require, verify-ca, verify-full"))?.1;
            }
            "channel_binding" => {
                self.endpoint.channel_binding = match value.as_str() {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(unknown("disable, prefer, require")),
                }
            }
            "target_session_attrs" => {
                self.endpoint.read_write = match value.as_str() {
                    "any" => false,
                    "read-write" | "primary" => true,
                    _ => return Err(unknown("any, read-write, primary")),
                }
            }
            "connect_timeout" => {
                let seconds: u64 =
                    value.parse().map_err(|_| wrong(key, format!("{value:?} is no number of seconds")))?;
                // libpq reads 0 as "wait for ever"; nothing here does.
                if seconds > 0 {
                    self.endpoint.connect_timeout = Duration::from_secs(seconds);
                }
            }
            _ => {
                return Err(wrong("parameters", "one of them is not known (a password with / ? or @ in it needs %XX)"));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Endpoint, Wrong> {
        let Fields { user, password, database, hosts, ports, roots, certificate, key, mut endpoint } = self;
        if user.is_empty() {
            return Err(wrong("user", "there is none"));
        }
        if hosts.is_empty() || hosts.iter().any(String::is_empty) {
            return Err(wrong("host", "there is none"));
        }
        if ports.len() > 1 && ports.len() != hosts.len() {
            return Err(wrong("port", format!("{} ports for {} hosts", ports.len(), hosts.len())));
        }
        let port = |i: usize| ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        endpoint.hosts = hosts.into_iter().enumerate().map(|(i, name)| Host { name, port: port(i) }).collect();
        endpoint.tls.identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(wrong("sslkey", "sslcert is given without it")),
            (None, Some(_)) => return Err(wrong("sslcert", "sslkey is given without it")),
        };
        endpoint.tls.roots = roots;
        // As libpq does: the database of the role's name.
        endpoint.database = if database.is_empty() { user.clone() } else { database };
        endpoint.user = user;
        endpoint.password = password;
        for text in [Some(&endpoint.user), Some(&endpoint.database), endpoint.password.as_ref()].into_iter().flatten() {
            // The protocol's strings end at a zero byte: what follows one would be read as something else.
            if text.contains('\0') {
                return Err(wrong("text", "it holds a zero byte"));
            }
        }
        Ok(endpoint)
    }
}

fn read_port(text: &str) -> Result<u16, Wrong> {
    text.parse().map_err(|_| wrong("port", "it is none (a password with / ? or @ in it needs %XX)"))
}

/// Resolves `%XX`. The message never repeats the text: it may be the password.
fn decode(text: &str, part: &str) -> Result<String, Wrong> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (code, after) = rest
            .split_at_checked(2)
            .and_then(|(digits, after)| Some((u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?, after)))
            .ok_or_else(|| wrong(part, "a % is not followed by two hexadecimal digits"))?;
        bytes.push(code);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| wrong(part, "it is not UTF-8"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_url_is_read() {
        let endpoint = Endpoint::parse(
            "postgres://us%40er:p%2Fw:d@a:1,[::1]:2/my%20db?sslmode=verify-ca&sslrootcert=/ca&sslcert=c&sslkey=k\
             &connect_timeout=3&target_session_attrs=read-write",
        )
        .unwrap();
        assert_eq!(endpoint.describe(), "a:1,[::1]:2/my db");
        assert_eq!((endpoint.user(), endpoint.database()), ("us@er", "my db"));
        let env = endpoint.environment();
        for (name, value) in [
            ("PGHOST", "a,::1"),
            ("PGPORT", "1,2"),
            ("PGPASSWORD", "p/w:d"),
            ("PGSSLMODE", "verify-ca"),
            ("PGSSLROOTCERT", "/ca"),
            ("PGSSLKEY", "k"),
            ("PGCONNECT_TIMEOUT", "3"),
        ] {
            assert!(env.contains(&(name, value.to_owned())), "{name}");
        }
        let socket = Endpoint::parse("postgresql://u@%2Frun%2Fpg/d").unwrap();
        assert!(socket.hosts[0].is_socket());
        assert_eq!(Endpoint::parse("postgres://u@h").unwrap().database(), "u");
    }

    #[test]
    fn a_mistake_is_named_and_the_password_is_not() {
        for (url, part) in [
            ("mysql://u:secret@h/d", "beginning"),
            ("postgres://u:secret@h:x/d", "port"),
            ("postgres://u:secret%zz@h/d", "password"),
            ("postgres://u:secret@/d", "host"),
            ("postgres://:secret@h/d", "user"),
            ("postgres://u:secret@h/d?sslmode=on", "sslmode"),
            ("postgres://u:secret@h/d?sslcert=c", "sslkey"),
            ("postgres://u:secret@h/d?colour=red", "parameters"),
            ("postgres://u:pa/secret@h/d", "port"),
        ] {
            let problem = Endpoint::parse(url).unwrap_err();
            let text = problem.to_string();
            assert_eq!(problem.code, Code::PlanInvalid);
            assert!(text.contains(part), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
        let endpoint = Endpoint::parse("postgres://u:secret@h/d").unwrap();
        assert!(!format!("{endpoint:?}").contains("secret"));
    }
}
