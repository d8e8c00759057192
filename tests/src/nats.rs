use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::attached::{As, Attached, command};
use crate::cluster::{copy_folder, tail};
use crate::folder::temp_folder;
use crate::{Authority, KeyPairFiles, Port};

/// Longer than a test's store takes to be recovered.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a nats-server is to be like.
pub struct NatsBuilder {
    jetstream: bool,
    max_payload: Option<u32>,
    auth: Option<(String, String)>,
    tls: Option<(KeyPairFiles, std::path::PathBuf)>,
}

impl NatsBuilder {
    /// Without JetStream.
    pub fn without_jetstream(mut self) -> Self {
        self.jetstream = false;
        self
    }

    /// The largest message in bytes; the server's default is 1 MiB.
    pub fn max_payload(mut self, bytes: u32) -> Self {
        self.max_payload = Some(bytes);
        self
    }

    /// Clients need this user and password.
    pub fn auth(mut self, user: &str, password: &str) -> Self {
        self.auth = Some((user.into(), password.into()));
        self
    }

    /// Clients need TLS and a certificate of `authority`.
    pub fn tls(mut self, authority: &Authority) -> Result<Self> {
        self.tls = Some((authority.server()?, authority.ca()));
        Ok(self)
    }

    /// Starts it.
    pub fn start(self) -> Result<Nats> {
        let folder = temp_folder("nats")?;
        let port = Port::reserve()?;
        let quoted = |text: &dyn std::fmt::Display| serde_json::Value::String(text.to_string()).to_string();
        let mut conf = format!("listen: \"127.0.0.1:{}\"\n", port.number());
        if self.jetstream {
            let store = quoted(&folder.path().join("store").display());
            let sync = if syncs_always() { "sync_interval: always" } else { "" };
            writeln!(conf, "jetstream {{ store_dir: {store}\n{sync}\n}}")?;
        }
        if let Some(bytes) = self.max_payload {
            writeln!(conf, "max_payload: {bytes}")?;
        }
        if let Some((user, password)) = &self.auth {
            writeln!(conf, "authorization {{ user: {}, password: {} }}", quoted(user), quoted(password))?;
        }
        if let Some((server, ca)) = &self.tls {
            let (cert, key, ca) =
                (quoted(&server.cert.display()), quoted(&server.key.display()), quoted(&ca.display()));
            writeln!(conf, "tls {{ cert_file: {cert}\nkey_file: {key}\nca_file: {ca}\nverify: true }}")?;
        }
        std::fs::write(folder.path().join("nats.conf"), conf)?;
        let mut nats = Nats { folder, port, server: None, tls: self.tls.is_some() };
        nats.boot()?;
        Ok(nats)
    }
}

/// `NATS_SYNC=always` in the environment: every nats-server syncs each message before it acknowledges it (2.10 and newer can), and plans say so. The same
/// suite holds for both.
pub(crate) fn syncs_always() -> bool {
    std::env::var("NATS_SYNC").is_ok_and(|when| when == "always")
}

/// A nats-server of its own on 127.0.0.1, with its store in a temporary folder. Ends, folder included, when dropped.
pub struct Nats {
    folder: TempDir,
    port: Port,
    server: Option<Attached>,
    tls: bool,
}

impl Nats {
    /// Describes one: JetStream, no user, no TLS.
    pub fn build() -> NatsBuilder {
        NatsBuilder { jetstream: true, max_payload: None, auth: None, tls: None }
    }

    /// One as [`Nats::build`] describes it.
    pub fn start() -> Result<Nats> {
        Nats::build().start()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its URL, without user and password.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "tls" } else { "nats" }, self.port())
    }

    /// Where its store and its log lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id; none while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Attached::pid)
    }

    /// Stops it; the store stays.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.signal(Signal::SIGINT)?;
            server.wait_blocking(START_LIMIT)?;
        }
        Ok(())
    }

    /// `kill -9`; the store stays as it is.
    pub fn kill9(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), |mut server| server.kill9())
    }

    /// Keeps a copy of its store as it is, under a name; the server must be stopped. What [`Nats::put_back`] puts back.
    pub fn keep(&self, name: &str) -> Result<()> {
        ensure!(self.server.is_none(), "the nats-server runs");
        copy_folder(&self.folder.path().join("store"), &self.folder.path().join(name))
    }

    /// Puts its store back to what it was at [`Nats::keep`], as a power loss does with what was not synced; the server must be
    /// stopped.
    pub fn put_back(&mut self, name: &str) -> Result<()> {
        ensure!(self.server.is_none(), "the nats-server runs");
        let store = self.folder.path().join("store");
        std::fs::remove_dir_all(&store)?;
        copy_folder(&self.folder.path().join(name), &store)
    }

    /// Starts it again after [`Nats::stop`] or [`Nats::kill9`], on the same port and store.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the nats-server runs already");
        let log = File::options().create(true).append(true).open(self.folder.path().join("nats.log"))?;
        let mut program = command("nats-server", As::Me, "KILL", self.folder.path())?;
        program.args(["-c", "nats.conf"]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut server = Attached::start(program)?;
        let deadline = Instant::now() + START_LIMIT;
        while !self.greets() {
            if server.ended()?.is_some() || Instant::now() >= deadline {
                bail!("nats-server does not start:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.server = Some(server);
        Ok(())
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        tail(&self.folder.path().join("nats.log"), 30)
    }

    /// A server that takes clients begins with an INFO line, also with TLS; JetStream is recovered before that.
    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port())) else { return false };
        let mut start = [0; 4];
        stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
            && stream.read_exact(&mut start).is_ok()
            && &start == b"INFO"
    }
}
