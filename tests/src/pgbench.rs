use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::Cluster;
use crate::attached::{As, Attached, command};
use crate::cluster::{bin, run, tail};
use crate::folder::temp_folder;

/// A load by pgbench against a database: 4 clients, the standard script, as fast as it goes.
#[derive(Clone, Debug)]
pub struct Pgbench {
    dsn: String,
    clients: u32,
    simple_update: bool,
    rate: Option<u32>,
    script: Option<String>,
    each: Option<u32>,
}

impl Pgbench {
    /// A load against `database`.
    pub fn new(cluster: &Cluster, database: &str) -> Pgbench {
        Pgbench {
            dsn: cluster.socket_dsn(database),
            clients: 4,
            simple_update: false,
            rate: None,
            script: None,
            each: None,
        }
    }

    /// Creates and fills pgbench's tables, with their keys: 100,000 accounts for each unit of `scale`.
    pub fn fill(&self, scale: u32) -> Result<()> {
        let mut pgbench = Command::new(bin("pgbench")?);
        run(pgbench.args(["-i", "-q", "-s", &scale.to_string(), &self.dsn])).map(drop)
    }

    /// How many sessions write.
    pub fn clients(mut self, clients: u32) -> Self {
        self.clients = clients;
        self
    }

    /// Without the updates of tellers and branches, on which sessions wait for each other (`-N`).
    pub fn simple_update(mut self) -> Self {
        self.simple_update = true;
        self
    }

    /// Transactions per second to aim at.
    pub fn rate(mut self, per_second: u32) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// A script in place of the standard one.
    pub fn script(mut self, script: &str) -> Self {
        self.script = Some(script.into());
        self
    }

    /// So many of each session, and then no more, instead of as many as the time allows.
    pub fn transactions(mut self, each: u32) -> Self {
        self.each = Some(each);
        self
    }

    /// Starts it, for so many seconds; with [`Pgbench::transactions`] it may take so long.
    pub fn start(&self, seconds: u32) -> Result<RunningPgbench> {
        let folder = temp_folder("pgbench")?;
        let mut pgbench = command(bin("pgbench")?, As::Me, "KILL", folder.path())?;
        pgbench.args(["-n", "-j", "1", "-P", "1", "-c", &self.clients.to_string()]);
        match self.each {
            Some(each) => pgbench.args(["-t", &each.to_string()]),
            None => pgbench.args(["-T", &seconds.to_string()]),
        };
        if self.simple_update {
            pgbench.arg("-N");
        }
        if let Some(rate) = self.rate {
            pgbench.args(["-R", &rate.to_string()]);
        }
        if let Some(script) = &self.script {
            std::fs::write(folder.path().join("script.sql"), script)?;
            pgbench.args(["-f", "script.sql"]);
        }
        let output = folder.path().join("output");
        let file = File::create(&output)?;
        pgbench.arg(&self.dsn).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(RunningPgbench { process: Attached::start(pgbench)?, output, seconds, _folder: folder })
    }
}

/// A load under way; ends when dropped.
pub struct RunningPgbench {
    process: Attached,
    output: PathBuf,
    seconds: u32,
    _folder: TempDir,
}

/// What a load did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadReport {
    /// Transactions per second.
    pub tps: f64,
    /// Transactions committed.
    pub transactions: u64,
}

impl RunningPgbench {
    /// Whether it still writes.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Waits for its end.
    pub async fn wait(mut self) -> Result<LoadReport> {
        // With --rate, transactions behind schedule are still done after the time is up.
        let limit = Duration::from_secs(u64::from(self.seconds) * 2 + 30);
        let status = self.process.wait(limit).await?;
        let output = tail(&self.output, 200);
        ensure!(status.success(), "pgbench: {status}:\n{output}");
        let after = |label: &str| {
            let rest = output.lines().find_map(|line| line.strip_prefix(label)).with_context(|| output.clone())?;
            rest.split([' ', '/']).find(|word| !word.is_empty()).map(str::to_owned).with_context(|| output.clone())
        };
        Ok(LoadReport {
            tps: after("tps =")?.parse()?,
            transactions: after("number of transactions actually processed:")?.parse()?,
        })
    }

    /// Ends it now; what is open is rolled back.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait_blocking(Duration::from_secs(10)).map(drop)
    }
}
