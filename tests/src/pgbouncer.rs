use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tempfile::TempDir;

use crate::attached::{As, Attached, command, postgres_ids};
use crate::cluster::tail;
use crate::folder::temp_folder;
use crate::{Cluster, Port, connect};

/// Longer than its start takes.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Debian puts it where a plain user's PATH does not lead.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// A PgBouncer of its own on 127.0.0.1, in transaction mode, whose database `app` leads to a source. Ends, folder included, when dropped.
pub struct PgBouncer {
    folder: TempDir,
    port: Port,
    server: Attached,
    source: String,
    target: String,
}

impl PgBouncer {
    /// Starts one in front of the source; the target is where it is to lead later.
    pub async fn start(source: &Cluster, target: &Cluster) -> Result<PgBouncer> {
        let folder = temp_folder("pool")?;
        let port = Port::reserve()?;
        let line = |cluster: &Cluster| format!("host=127.0.0.1 port={} dbname=app", cluster.port());
        let (source, target) = (line(source), line(target));
        let files = [
            ("users.txt", "\"postgres\" \"\"\n".to_owned()),
            ("databases.ini", format!("; databases\nother = {target}\napp = {source}\n")),
            (
                "pgbouncer.ini",
                format!(
                    "[databases]\n%include {folder}/databases.ini\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
                     auth_type = trust\nauth_file = {folder}/users.txt\nadmin_users = postgres\npool_mode = transaction\nmax_client_conn = 200\n\
                     default_pool_size = 20\nserver_login_retry = 1\n",
                    port.number(),
                    folder = folder.path().display(),
                ),
            ),
        ];
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let ids = postgres_ids()?;
        for (name, text) in files {
            let file = folder.path().join(name);
            std::fs::write(&file, text)?;
            std::fs::set_permissions(&file, Permissions::from_mode(0o640))?;
            if let Some((uid, gid)) = ids {
                chown(&file, Some(uid), Some(gid))?;
            }
        }
        let log = File::create(folder.path().join("pgbouncer.log"))?;
        let program = if Path::new(PROGRAM).exists() { PROGRAM } else { "pgbouncer" };
        let mut program = command(program, As::Postgres, "KILL", folder.path())?;
        program.arg("pgbouncer.ini").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut pool = PgBouncer { port, server: Attached::start(program)?, source, target, folder };
        pool.ready().await?;
        Ok(pool)
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while connect(&self.console()).await.is_err() {
            if self.server.ended()?.is_some() || Instant::now() >= deadline {
                bail!("PgBouncer does not start:\n{}", tail(&self.folder.path().join("pgbouncer.log"), 30));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// A URL of its database `app`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/app", self.port.number())
    }

    /// A URL of its admin console.
    pub fn console(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/pgbouncer", self.port.number())
    }

    /// The file that has the line of `app`.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("databases.ini")
    }

    /// The plan's section about it.
    pub fn section(&self) -> String {
        format!(
            "[cutover.pgbouncer]\nurl = \"{}\"\ndatabase = \"app\"\nfile = \"{}\"\nsource = \"{}\"\ntarget = \"{}\"\n",
            self.console(),
            self.file().display(),
            self.source,
            self.target
        )
    }

    /// Whether `app` is paused.
    pub async fn is_paused(&self) -> Result<bool> {
        let console = connect(&self.console()).await?;
        let messages = console.simple_query("SHOW DATABASES").await?;
        Ok(messages.iter().any(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                row.get("name") == Some("app") && row.get("paused") == Some("1")
            }
            _ => false,
        }))
    }
}
