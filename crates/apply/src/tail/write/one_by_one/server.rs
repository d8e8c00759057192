//! A Postgres server of a test's own, on a Unix socket in its folder; gone with the value.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pg::Endpoint;
use tempfile::TempDir;

pub struct Server {
    folder: TempDir,
}

impl Server {
    pub fn start() -> Server {
        let server = Server { folder: tempfile::tempdir().unwrap() };
        if let Some((user, group)) = server_user() {
            chown(server.folder.path(), Some(user), Some(group)).unwrap();
        }
        let folder = server.folder.path().display();
        run(program("initdb")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(server.data()));
        let options = format!("-k {folder} -c listen_addresses= -c fsync=off -c autovacuum=off");
        server.control(&["-w", "-t", "60", "-l", &format!("{folder}/log"), "-o", &options, "start"]);
        server
    }

    /// Its superuser's database.
    pub fn endpoint(&self) -> Endpoint {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        Endpoint::parse(&format!("postgres://postgres@{folder}:5432/postgres")).unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn control(&self, arguments: &[&str]) {
        run(program("pg_ctl").arg("-s").arg("-D").arg(self.data()).args(arguments));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = program("pg_ctl").arg("-D").arg(self.data()).args(["-s", "-m", "immediate", "stop"]).output();
    }
}

/// The user that the server runs as where we are root, which Postgres refuses.
fn server_user() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| -> u32 {
        let output = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}

/// One of the server's programs: of the newest version that is installed, or in the PATH.
fn program(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = versions.map(|version| version.join("bin").join(name)).filter(|path| path.exists()).max();
    let mut command = Command::new(newest.unwrap_or_else(|| name.into()));
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command.current_dir(Path::new("/"));
    command
}

fn run(command: &mut Command) {
    // A file, no pipe: the server inherits it, and a pipe would stay open as long as it runs.
    let output = tempfile::tempfile().unwrap();
    command.stdout(output.try_clone().unwrap()).stderr(output);
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
