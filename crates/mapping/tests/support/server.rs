use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// A Postgres cluster in a temporary folder, reached by its socket, gone with the value.
pub struct Server {
    folder: TempDir,
}

impl Server {
    pub fn start() -> Server {
        let server = Server { folder: tempfile::tempdir().unwrap() };
        if am_root() {
            let (uid, gid) = (id("-u"), id("-g"));
            chown(server.folder.path(), Some(uid), Some(gid)).unwrap();
        }
        let data = server.data();
        run(program("initdb")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data));
        let folder = server.folder.path().display();
        let conf = format!(
            "listen_addresses = ''\nunix_socket_directories = '{folder}'\nfsync = off\nautovacuum = off\njit = off\n"
        );
        let before = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
        std::fs::write(data.join("postgresql.conf"), before + &conf).unwrap();
        run(program("pg_ctl")
            .arg("-D")
            .arg(&data)
            .args(["-s", "-w", "-l"])
            .arg(server.folder.path().join("log"))
            .arg("start"));
        server
    }

    pub async fn connect(&self) -> Session {
        let text = format!("host={} user=postgres dbname=postgres", self.folder.path().display());
        let (client, connection) = tokio_postgres::connect(&text, NoTls).await.unwrap();
        tokio::spawn(connection);
        Session(client)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = program("pg_ctl").arg("-D").arg(self.data()).args(["-s", "-m", "immediate", "stop"]).output();
    }
}

pub struct Session(Client);

impl Session {
    pub async fn run(&self, sql: &str) {
        self.try_run(sql).await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }

    pub async fn try_run(&self, sql: &str) -> Result<(), String> {
        self.0.batch_execute(sql).await.map_err(|error| match error.as_db_error() {
            Some(db) => db.to_string(),
            None => error.to_string(),
        })
    }

    /// Rows as texts of their columns.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages = self.0.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
        messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect()
    }

    /// The first column, sorted.
    pub async fn bag(&self, sql: &str) -> Vec<String> {
        let mut all: Vec<String> =
            self.rows(sql).await.into_iter().map(|row| row.into_iter().next().flatten().unwrap_or_default()).collect();
        all.sort();
        all
    }
}

fn am_root() -> bool {
    String::from_utf8(Command::new("id").arg("-u").output().unwrap().stdout).unwrap().trim() == "0"
}

fn id(which: &str) -> u32 {
    let output = Command::new("id").args([which, "postgres"]).output().unwrap().stdout;
    String::from_utf8(output).unwrap().trim().parse().unwrap()
}

/// A program of Postgres, run by the user postgres where we are root: the server refuses root.
fn program(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.max_by_key(|entry| entry.file_name().to_string_lossy().parse::<u32>().unwrap_or(0));
    let path = match (std::env::var_os("CROSSFADE_PG_BIN"), newest) {
        (Some(folder), _) => Path::new(&folder).join(name),
        (None, Some(entry)) => entry.path().join("bin").join(name),
        (None, None) => name.into(),
    };
    let mut command = if am_root() {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={}", id("-u")), format!("--regid={}", id("-g")), "--init-groups".to_owned()]);
        command.arg("--").arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir("/tmp");
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
