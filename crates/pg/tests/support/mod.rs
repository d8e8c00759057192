//! A Postgres cluster of a test's own: in a temporary folder, on a free port, gone with the value.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crossfade_pg::Endpoint;
use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair};
use tempfile::TempDir;

pub struct Cluster {
    folder: TempDir,
    pub port: u16,
}

/// What `pg_hba.conf` says unless a test has its own.
const TRUST: &str = "host all all 127.0.0.1/32 trust\n";

impl Cluster {
    pub fn start(settings: &[&str]) -> Cluster {
        Cluster::start_with(settings, TRUST, |_| {})
    }

    /// `prepare` gets the data folder before the server starts.
    pub fn start_with(settings: &[&str], hba: &str, prepare: impl FnOnce(&Path)) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Cluster { folder, port };
        give(cluster.folder.path());
        let data = cluster.data();
        run(program("initdb")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data));
        std::fs::write(data.join("pg_hba.conf"), format!("local all all trust\n{hba}")).unwrap();
        let mut conf = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\n\
             wal_level = logical\nshared_buffers = 32MB\nautovacuum = off\n",
            cluster.folder.path().display()
        );
        settings.iter().for_each(|setting| conf.push_str(&format!("{setting}\n")));
        std::fs::write(data.join("postgresql.auto.conf"), conf).unwrap();
        prepare(&data);
        cluster.control(&["-w", "start"]);
        cluster
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// `pg_ctl` with these arguments.
    pub fn control(&self, arguments: &[&str]) {
        let log = self.folder.path().join("log");
        run(program("pg_ctl").arg("-D").arg(self.data()).arg("-l").arg(&log).args(["-s", "-t", "60"]).args(arguments));
    }

    /// Past `pg_hba.conf`: by the Unix socket, as the superuser.
    pub fn admin(&self) -> Endpoint {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        Endpoint::parse(&format!("postgres://postgres@{folder}:{}/postgres", self.port)).unwrap()
    }

    /// `who` is user and password, `rest` starts with the database.
    pub fn endpoint(&self, who: &str, host: &str, rest: &str) -> Endpoint {
        Endpoint::parse(&format!("postgres://{who}@{host}:{}/{rest}", self.port)).unwrap()
    }

    pub fn tcp(&self) -> Endpoint {
        self.endpoint("postgres", "127.0.0.1", "postgres")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.data();
        let _ = program("pg_ctl").arg("-D").arg(data).args(["-s", "-m", "immediate", "stop"]).output();
    }
}

/// A certificate authority for one test.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        write_file(folder, name, &self.0.pem())
    }

    /// A certificate for `name`, good for `hosts`: the files `<file>.crt` and `<file>.key`.
    pub fn issue(&self, folder: &Path, file: &str, name: &str, hosts: &[&str]) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (
            write_file(folder, &format!("{file}.crt"), &certificate.pem()),
            write_file(folder, &format!("{file}.key"), &key.serialize_pem()),
        )
    }
}

fn write_file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    give(&path);
    path
}

/// Waits until `done` says so; fails with `what` after 20 s.
pub async fn eventually<F: Future<Output = bool>>(what: &str, done: impl Fn() -> F) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The user that servers run as where we are root, which Postgres refuses.
fn server_user() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| -> u32 {
        let output = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().expect("there is a user postgres")
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}

fn give(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// One of the server's programs: of the newest version that is installed, or in the PATH.
fn program(name: &str) -> Command {
    let mut versions: Vec<PathBuf> =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    versions.sort();
    let found = versions.iter().rev().map(|version| version.join("bin").join(name)).find(|path| path.exists());
    let mut command = Command::new(found.unwrap_or_else(|| name.into()));
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command.current_dir("/");
    command
}

fn run(command: &mut Command) {
    // Files, not pipes: the server inherits them, and a pipe would stay open as long as it runs.
    let output = tempfile::tempfile().unwrap();
    command.stdout(output.try_clone().unwrap()).stderr(output);
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
