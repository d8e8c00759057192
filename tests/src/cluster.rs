use std::fs::{File, Permissions};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::attached::{As, Attached, command, postgres_ids};
use crate::folder::temp_folder;
use crate::{Authority, KeyPairFiles, Port};

/// Longer than any start or stop of a test's server takes, crash recovery included.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The superuser of every cluster; it has no password and is trusted, unless the builder says otherwise.
const SUPERUSER: &str = "postgres";

/// What a cluster is to be like.
#[derive(Default)]
pub struct ClusterBuilder {
    settings: Vec<(String, String)>,
    password: Option<String>,
    tls: Option<(KeyPairFiles, PathBuf)>,
    client_certs: bool,
}

impl ClusterBuilder {
    /// A server setting, in place of the default or of an earlier one.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// With fsync, for what is measured; tests lose nothing without.
    pub fn durable(self) -> Self {
        self.set("fsync", "on")
    }

    /// Connections over TCP need this password (SCRAM); the unix socket stays trusted, for the harness.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Connections over TCP need TLS; the server shows a certificate of `authority`.
    pub fn tls(mut self, authority: &Authority) -> Result<Self> {
        self.tls = Some((authority.server()?, authority.ca()));
        Ok(self)
    }

    /// Connections over TCP need a client certificate of the same authority, too.
    pub fn client_certs(mut self) -> Self {
        self.client_certs = true;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Cluster> {
        let folder = temp_folder("pg")?;
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        own(folder.path())?;
        let mut cluster = Cluster { folder, port: Port::reserve()?, server: None };
        let copied = run(command("cp", As::Postgres, "KILL", cluster.folder.path())?
            .args(["-r", "--reflink=auto"])
            .arg(template()?)
            .arg(cluster.data()));
        copied.context("copy the template cluster")?;
        std::fs::set_permissions(cluster.data(), Permissions::from_mode(0o700))?;
        cluster.become_another()?;
        cluster.configure(&self)?;
        cluster.boot()?;
        if let Some(password) = &self.password {
            cluster.psql("postgres", &format!("ALTER ROLE {SUPERUSER} PASSWORD '{password}'"))?;
        }
        Ok(cluster)
    }
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are ended, a checkpoint is written.
    Fast,
    /// Without a checkpoint: the next start recovers.
    Immediate,
}

/// A Postgres server of its own on 127.0.0.1, and on a unix socket in its folder. Ends, folder included, when dropped.
pub struct Cluster {
    folder: TempDir,
    port: Port,
    server: Option<Attached>,
}

impl Cluster {
    /// Describes one: `wal_level=logical`, room for 20 slots and senders, no fsync, everybody trusted.
    pub fn build() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// One as [`Cluster::build`] describes it.
    pub fn start() -> Result<Cluster> {
        Cluster::build().start()
    }

    /// Its TCP port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where its unix socket and its log lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A URL of the superuser for `database`, over TCP, without password.
    pub fn url(&self, database: &str) -> String {
        self.url_as(SUPERUSER, database)
    }

    /// A URL of `user` (or `user:password`) for `database`, over TCP.
    pub fn url_as(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port())
    }

    /// A client of the superuser, over the unix socket.
    pub async fn client(&self, database: &str) -> Result<Client> {
        connect(&self.socket_dsn(database)).await
    }

    /// A connection string of the superuser, over the unix socket: it works whatever the server asks for over TCP.
    pub fn socket_dsn(&self, database: &str) -> String {
        format!("host={} port={} user={SUPERUSER} dbname={database}", self.folder.path().display(), self.port())
    }

    /// Creates a database.
    pub fn create_db(&self, name: &str) -> Result<()> {
        self.psql("postgres", &format!("CREATE DATABASE {name}")).map(drop)
    }

    /// Runs statements by `psql`, each in a transaction of its own, and returns what they print, unaligned and without
    /// headings.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut script = tempfile::tempfile()?;
        script.write_all(sql.as_bytes())?;
        script.rewind()?;
        let mut psql = Command::new(bin("psql")?);
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.socket_dsn(database), "-f", "-"]);
        run(psql.stdin(script)).map(|out| out.trim_end().to_owned())
    }

    /// Changes a server setting that needs no restart, and waits until new sessions have it.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.psql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"))?;
        self.psql("postgres", "SELECT pg_reload_conf()")?;
        let deadline = Instant::now() + START_LIMIT;
        let pending = format!("SELECT coalesce(setting, '') <> '{value}' FROM pg_settings WHERE name = '{name}'");
        // Compared as text: for settings with a unit, pass the value in the base unit.
        while self.psql("postgres", &pending)? != "f" {
            ensure!(Instant::now() < deadline, "{name} has not become {value:?}");
        }
        Ok(())
    }

    /// Stops it.
    pub fn stop(&mut self, how: Shutdown) -> Result<()> {
        let signal = match how {
            Shutdown::Fast => Signal::SIGINT,
            Shutdown::Immediate => Signal::SIGQUIT,
        };
        if let Some(mut server) = self.server.take() {
            server.signal(signal)?;
            server.wait_blocking(START_LIMIT)?;
        }
        Ok(())
    }

    /// `kill -9` of the postmaster; its children notice that and end.
    pub fn kill9(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), |mut server| server.kill9())
    }

    /// Starts it again after [`Cluster::stop`] or [`Cluster::kill9`], on the same port.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the server runs already");
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let mut server = self.launch()?;
            loop {
                if self.is_ready(server.pid()) {
                    self.server = Some(server);
                    return Ok(());
                }
                if server.ended()?.is_some() {
                    break;
                }
                ensure!(Instant::now() < deadline, "Postgres does not become ready:\n{}", self.log_tail());
                std::thread::sleep(Duration::from_millis(5));
            }
            // After a kill -9 the children of the old postmaster may still hold its shared memory.
            let log = self.log_tail();
            let retry = log.contains("pre-existing shared memory block") && Instant::now() < deadline;
            ensure!(retry, "Postgres does not start:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops it and starts it again.
    pub fn restart(&mut self, how: Shutdown) -> Result<()> {
        self.stop(how)?;
        self.boot()
    }

    /// Keeps a copy of its data as it is, under a name; the server must be stopped. What [`Cluster::put_back`] puts back.
    pub fn keep(&self, name: &str) -> Result<()> {
        ensure!(self.server.is_none(), "the server runs");
        copy_folder(&self.data(), &self.folder.path().join(name))
    }

    /// Puts its data back to what it was at [`Cluster::keep`]; the server must be stopped.
    pub fn put_back(&mut self, name: &str) -> Result<()> {
        ensure!(self.server.is_none(), "the server runs");
        std::fs::remove_dir_all(self.data())?;
        copy_folder(&self.folder.path().join(name), &self.data())
    }

    /// A hot standby of it, on a port of its own: physical replication from now on, and no slot of this one there.
    pub fn standby(&self) -> Result<Cluster> {
        let folder = temp_folder("pg")?;
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        own(folder.path())?;
        let mut standby = Cluster { folder, port: Port::reserve()?, server: None };
        let mut backup = command(bin("pg_basebackup")?, As::Postgres, "KILL", standby.folder.path())?;
        backup.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-d"]).arg(self.socket_dsn("postgres"));
        run(backup.arg("-D").arg(standby.data()))?;
        let conf = standby.data().join("postgresql.conf");
        let text = std::fs::read_to_string(&conf)?;
        let own =
            format!("port = {}\nunix_socket_directories = '{}'\n", standby.port(), standby.folder.path().display());
        std::fs::write(&conf, text + &own)?;
        standby.boot()?;
        Ok(standby)
    }

    /// Makes a standby a primary of its own.
    pub fn promote(&self) -> Result<()> {
        ensure!(self.psql("postgres", "SELECT pg_promote()")? == "t", "it is not promoted");
        Ok(())
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        tail(&self.folder.path().join("postgres.log"), 30)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn launch(&self) -> Result<Attached> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("postgres.log"))?;
        let mut postgres = command(bin("postgres")?, As::Postgres, "QUIT", self.folder.path())?;
        postgres.arg("-D").arg(self.data()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Attached::start(postgres)
    }

    /// The eighth line of postmaster.pid says `ready`, or `standby`, once connections are taken.
    fn is_ready(&self, pid: u32) -> bool {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        lines.next() == Some(&pid.to_string())
            && lines.nth(6).is_some_and(|status| ["ready", "standby"].contains(&status.trim()))
    }

    /// Gives the copy an identity of its own: clusters are told apart by their system identifier. It stands at the
    /// beginning of pg_control, whose checksum is wrong then; `pg_resetwal -f` takes it nevertheless, and carries it over
    /// into the WAL.
    fn become_another(&self) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let number = u64::from(std::process::id()) << 10 | NEXT.fetch_add(1, Ordering::Relaxed) & 0x3FF;
        let identifier = seconds << 32 | number & 0xFFFF_FFFF;
        let mut control = File::options().write(true).open(self.data().join("global/pg_control"))?;
        control.write_all(&identifier.to_ne_bytes())?;
        let mut reset = command(bin("pg_resetwal")?, As::Postgres, "KILL", self.folder.path())?;
        run(reset.arg("-f").arg("-D").arg(self.data())).map(drop)
    }

    fn configure(&self, builder: &ClusterBuilder) -> Result<()> {
        let folder = self.folder.path().display();
        // A server that stops waits that long for a connection whose first bytes do not come; by default as long as we wait for it.
        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{folder}'\nwal_level = logical\n\
             max_wal_senders = 20\nmax_replication_slots = 20\nmax_worker_processes = 20\nmax_connections = 100\n\
             fsync = off\nmax_wal_size = '4GB'\nauthentication_timeout = '20s'\nlog_line_prefix = '%m [%p] %q%a '\n",
            self.port()
        );
        for (name, value) in &builder.settings {
            conf += &format!("{name} = '{value}'\n");
        }
        if let Some((server, ca)) = &builder.tls {
            for (from, to) in [(&server.cert, "server.crt"), (&server.key, "server.key"), (ca, "ca.crt")] {
                let to = self.data().join(to);
                std::fs::copy(from, &to)?;
                std::fs::set_permissions(&to, Permissions::from_mode(0o600))?;
                own(&to)?;
            }
            conf += "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.crt'\n";
        }
        let kind = if builder.tls.is_some() { "hostssl" } else { "host" };
        let method = match (&builder.password, builder.client_certs) {
            (Some(_), true) => "scram-sha-256 clientcert=verify-ca",
            (Some(_), false) => "scram-sha-256",
            (None, true) => "cert",
            (None, false) => "trust",
        };
        let hba = format!(
            "local all all trust\nlocal replication all trust\n\
             {kind} all all 127.0.0.1/32 {method}\n{kind} replication all 127.0.0.1/32 {method}\n"
        );
        let appended = std::fs::read_to_string(self.data().join("postgresql.conf"))? + &conf;
        std::fs::write(self.data().join("postgresql.conf"), appended)?;
        std::fs::write(self.data().join("pg_hba.conf"), hba)?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The folder goes away after this; what the server did not write does not matter.
        let _ = self.stop(Shutdown::Immediate);
    }
}

/// A client for a URL or connection string, without TLS.
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.with_context(|| format!("connect to {url}"))?;
    // A broken connection shows as an error of the client's next call.
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of the first row of `sql`, as text.
pub(crate) async fn scalar(client: &Client, sql: &str) -> Result<Option<String>> {
    for message in client.simple_query(sql).await.with_context(|| sql.to_owned())? {
        if let SimpleQueryMessage::Row(row) = message {
            return Ok(row.get(0).map(str::to_owned));
        }
    }
    Ok(None)
}

/// A program of the Postgres to test with: `CROSSFADE_PG_BIN`, else the newest one where Debian puts them, else `PATH`.
pub fn bin(name: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CROSSFADE_PG_BIN") {
        return Ok(Path::new(&folder).join(name));
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.max_by_key(|entry| entry.file_name().to_string_lossy().parse::<u32>().unwrap_or(0));
    Ok(newest.map_or_else(|| name.into(), |entry| entry.path().join("bin").join(name)))
}

/// Runs a command to its end and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last `lines` lines of a file, or why they cannot be had.
pub(crate) fn tail(file: &Path, lines: usize) -> String {
    match std::fs::read(file) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", file.display()),
    }
}

/// Copies a folder, with owners and rights.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}

fn own(path: &Path) -> Result<()> {
    if let Some((uid, gid)) = postgres_ids()? {
        chown(path, Some(uid), Some(gid)).with_context(|| format!("chown {}", path.display()))?;
    }
    Ok(())
}

/// The freshly made cluster that every other one is a copy of: `initdb` takes seconds, a copy a fraction of one.
fn template() -> Result<PathBuf> {
    let temp = std::env::temp_dir();
    let version = run(Command::new(bin("postgres")?).arg("--version"))?;
    let version = version.split_whitespace().nth(2).context("postgres --version says its version")?.to_owned();
    let user = postgres_ids()?.map_or_else(|| nix::unistd::geteuid().as_raw(), |(uid, _)| uid);
    let name = format!("crossfade-template-{version}-{user}");
    let ready = temp.join(&name);
    if ready.is_dir() {
        return Ok(ready);
    }
    let lock = File::create(temp.join(format!("{name}.lock")))?;
    lock.lock()?;
    if !ready.is_dir() {
        // Under another name until it is whole: a killed initdb leaves nothing that looks finished.
        let unfinished = temp.join(format!("{name}.{}", std::process::id()));
        let mut initdb = command(bin("initdb")?, As::Postgres, "KILL", &temp)?;
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "-U", SUPERUSER, "-D"]);
        run(initdb.arg(&unfinished))?;
        std::fs::rename(&unfinished, &ready)?;
    }
    Ok(ready)
}
