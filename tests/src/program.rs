use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::Value;
use tempfile::TempDir;

use crate::attached::{As, Attached, command};
use crate::cluster::{run, tail};
use crate::folder::temp_folder;
use crate::{PlanFile, until};

/// Longer than any one-shot command takes on a test's data.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A status is a process of its own; asked for more often, it would take the processors from what is tested.
const BETWEEN_STATUS: Duration = Duration::from_millis(150);

/// The built program with a plan file, as on one machine: a folder of its own for plan, state and logs.
pub struct Crossfade {
    folder: TempDir,
    plan: PathBuf,
    binary: PathBuf,
    written: PlanFile,
    started: AtomicU32,
    /// Of the state folder, in MiB, if it is on a disk of its own.
    disk: Option<u32>,
}

impl Crossfade {
    /// Writes the plan; starts nothing.
    pub fn new(plan: &PlanFile) -> Result<Crossfade> {
        let folder = temp_folder("run")?;
        let file = plan.write(folder.path())?;
        Ok(Crossfade {
            folder,
            plan: file,
            binary: binary()?,
            written: plan.clone(),
            started: AtomicU32::new(0),
            disk: None,
        })
    }

    /// The same plan on another machine: nothing is shared but the servers.
    pub fn elsewhere(&self) -> Result<Crossfade> {
        Crossfade::new(&self.written)
    }

    /// What it starts has its state folder on a disk of its own, of so many MiB. Nobody else sees what is on it, `status` neither.
    pub fn on_a_disk_of(mut self, mib: u32) -> Crossfade {
        self.disk = Some(mib);
        self
    }

    /// Gives that disk more room.
    pub fn enlarge(&self, running: &Running, mib: u32) -> Result<()> {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &running.pid().to_string(), "--mount"]);
        if !geteuid().is_root() {
            enter.args(["--user", "--preserve-credentials"]);
        }
        enter.args(["mount", "-o", &format!("remount,size={mib}m")]).arg(self.state_dir());
        run(&mut enter).map(drop)
    }

    /// The program, in front of its arguments.
    fn program(&self) -> Result<Command> {
        let Some(mib) = self.disk else { return command(&self.binary, As::Me, "KILL", self.folder.path()) };
        std::fs::create_dir_all(self.state_dir())?;
        let mut unshare = command("unshare", As::Me, "KILL", self.folder.path())?;
        unshare.arg("--mount");
        if !geteuid().is_root() {
            unshare.arg("--map-root-user");
        }
        let mount = format!("mount -t tmpfs -o size={mib}m tmpfs state && exec \"$0\" \"$@\"");
        unshare.args(["sh", "-c", &mount]).arg(&self.binary);
        Ok(unshare)
    }

    /// The plan file.
    pub fn plan(&self) -> &Path {
        &self.plan
    }

    /// The program itself, for what is started by others.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where the plan, the state and the logs of its commands lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder that the plan names as `state.dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Writes another plan in place of this one; for what starts from now on.
    pub fn replan(&mut self, plan: &PlanFile) -> Result<()> {
        self.written = plan.clone();
        self.plan = plan.write(self.folder.path())?;
        Ok(())
    }

    /// Starts a command, `run` for one, with arguments, in the background.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        self.start_in(arguments, &[])
    }

    /// The same, to die at a failpoint once it has passed it so many times.
    pub fn start_armed(&self, arguments: &[&str], failpoint: &str, passages: u32) -> Result<Running> {
        // `0*off` would be refused.
        let before = if passages > 0 { format!("{passages}*off->") } else { String::new() };
        self.start_in(arguments, &[("FAILPOINTS", &format!("{failpoint}={before}return"))])
    }

    /// The same, to stand still at a failpoint for so long.
    pub fn start_standing(&self, arguments: &[&str], failpoint: &str, stands: Duration) -> Result<Running> {
        self.start_in(arguments, &[("FAILPOINTS", &format!("{failpoint}=1*sleep({})", stands.as_millis()))])
    }

    fn start_in(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Running> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", arguments.first().unwrap_or(&"crossfade"));
        let at = |ending| self.folder.path().join(format!("{name}.{ending}"));
        let (stdout, stderr) = (at("stdout"), at("stderr"));
        let mut program = self.program()?;
        program.args(arguments).arg("--plan").arg(&self.plan);
        program.env("RUST_BACKTRACE", "1").envs(self.written.environment().iter().map(|(k, v)| (k, v)));
        program.envs(environment.iter().copied());
        program.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        Ok(Running { name, process: Attached::start(program)?, stdout, stderr, quiet: false })
    }

    /// Runs a command to its end, for at most a minute.
    pub async fn run(&self, arguments: &[&str]) -> Result<Finished> {
        self.start(arguments)?.finish(COMMAND_LIMIT).await
    }

    /// What a command says with --json, and its exit code.
    pub async fn says(&self, arguments: &[&str]) -> Result<(Value, Option<i32>)> {
        let finished = self.run(&[arguments, &["--json"]].concat()).await?;
        let document = finished.json().with_context(|| format!("{finished:?}"))?;
        Ok((document, finished.status.code()))
    }

    /// `crossfade verify`, which has to find everything equal.
    pub async fn verified(&self) -> Result<()> {
        let (report, code) = self.says(&["verify"]).await?;
        ensure!(code == Some(0), "{report:#}");
        Ok(())
    }

    /// What `crossfade status --json` prints; its exit code has to be 2 if the target could not be asked, and else 0.
    pub async fn status(&self) -> Result<Value> {
        let mut running = self.start(&["status", "--json"])?;
        running.quiet = true;
        let finished = running.finish(COMMAND_LIMIT).await?;
        let status = finished.json()?;
        let expected = if status["phase"].is_null() { 2 } else { 0 };
        let right = finished.status.code() == Some(expected) && status["warnings"].is_array();
        ensure!(right, "status: {}: {}{}", finished.status, finished.stdout, finished.stderr);
        Ok(status)
    }

    /// Waits until `condition` holds of the status, while `running` runs.
    pub async fn wait_for(
        &self,
        running: &mut Running,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let running = std::sync::Mutex::new(running);
        let last = std::sync::Mutex::new(Value::Null);
        let died = std::sync::atomic::AtomicBool::new(false);
        let found = until(what, limit, || async {
            if let Some(status) = lock(&running)?.process.ended()? {
                died.store(true, Ordering::Relaxed);
                return Ok(Some(Err(anyhow!("{what}: it ended before that: {status}"))));
            }
            let status = self.status().await?;
            let holds = condition(&status);
            *lock(&last)? = status.clone();
            if !holds {
                tokio::time::sleep(BETWEEN_STATUS).await;
            }
            Ok(holds.then_some(Ok(status)))
        });
        let outcome = found.await.and_then(|inner| inner);
        outcome.map_err(|error| {
            let last = lock(&last).map(|last| last.to_string()).unwrap_or_default();
            error.context(format!("last status: {last}"))
        })
    }

    /// Waits until the status's phase is `phase`.
    pub async fn wait_for_phase(&self, running: &mut Running, phase: &str, limit: Duration) -> Result<Value> {
        self.wait_for(running, &format!("phase {phase}"), limit, |status| status["phase"] == phase).await
    }

    /// Waits until copy and tail are joined and nothing is left to apply. Holds for good only once nobody writes.
    pub async fn wait_for_lag_zero(&self, running: &mut Running, limit: Duration) -> Result<Value> {
        let caught_up = |status: &Value| status["phase"] == "following" && lag(status) == Some((0, 0.0, 0));
        self.wait_for(running, "lag zero", limit, caught_up).await
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> Result<std::sync::MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| anyhow!("a thread that held the lock panicked"))
}

/// The worst lag of all sources in a status: bytes, seconds, transactions; none where it is not known.
pub fn lag(status: &Value) -> Option<(u64, f64, u64)> {
    let mut worst = (0, 0.0_f64, 0);
    for source in status["sources"].as_array()? {
        let lag = &source["lag"];
        worst.0 = worst.0.max(lag["bytes"].as_u64()?);
        worst.1 = worst.1.max(lag["seconds"].as_f64()?);
        worst.2 = worst.2.max(lag["transactions"].as_u64()?);
    }
    Some(worst)
}

/// The program that was built next to what is running now; `CROSSFADE_BIN` names another.
fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CROSSFADE_BIN") {
        return Ok(named.into());
    }
    let me = std::env::current_exe()?;
    let mut folder = me.parent().context("an executable lies in a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps lies in the target folder")?;
    }
    let binary = folder.join("crossfade");
    ensure!(binary.is_file(), "{} is not there: cargo build -p crossfade", binary.display());
    Ok(binary)
}

/// A command under way. Killed when dropped; the end of its logs is printed then, which shows where a test failed.
pub struct Running {
    name: String,
    process: Attached,
    stdout: PathBuf,
    stderr: PathBuf,
    quiet: bool,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
}

impl Finished {
    /// Its standard output as the one JSON document that it is with `--json`.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}{}", self.stdout, self.stderr))
    }

    /// The code of the error that `--json` prints.
    pub fn error_code(&self) -> Result<String> {
        let json = self.json()?;
        json["error"]["code"].as_str().map(str::to_owned).with_context(|| format!("no error in {json}"))
    }
}

impl Running {
    /// Prints no logs when dropped, from now on.
    pub fn hush(&mut self) {
        self.quiet = true;
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// The code of the error that `--json` printed, if it did.
    pub fn error_code(&self) -> Option<String> {
        let printed: Value = serde_json::from_str(&std::fs::read_to_string(&self.stdout).ok()?).ok()?;
        printed["error"]["code"].as_str().map(str::to_owned)
    }

    /// SIGSTOP: it stands still, and everything of it stays as it is.
    pub fn freeze(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    /// Whether it stands still.
    pub fn is_frozen(&self) -> Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name in parentheses may hold anything.
        Ok(stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
    }

    /// SIGCONT.
    pub fn thaw(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// SIGTERM.
    pub fn term(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }

    /// Stops it as a person would, and expects exit code 0 within the 5 s that are promised.
    pub async fn stop(&mut self) -> Result<()> {
        self.term()?;
        let status = self.wait(Duration::from_secs(5)).await?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }

    /// Waits for its end.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit).await.with_context(|| self.name.clone())
    }

    /// Waits for its end and takes what it printed.
    pub async fn finish(mut self, limit: Duration) -> Result<Finished> {
        let status = self.wait(limit).await?;
        self.quiet = true;
        let read = |file: &Path| std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Finished { status, stdout: read(&self.stdout)?, stderr: read(&self.stderr)? })
    }

    /// The most memory it had resident so far, in MiB; none once it has ended.
    pub fn peak_rss_mib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib.div_ceil(1024))
    }

    /// Waits until it has died at a failpoint, where else it may not end.
    pub async fn died_at(mut self, failpoint: &str, limit: Duration) -> Result<()> {
        let status = self.wait(limit).await.with_context(|| format!("it does not get to failpoint {failpoint}"))?;
        let at_it = status.signal() == Some(Signal::SIGABRT as i32);
        ensure!(
            at_it && self.log_tail().contains(&format!("failpoint {failpoint}: abort")),
            "{status}, not at failpoint {failpoint}"
        );
        self.quiet = true;
        Ok(())
    }

    /// The end of what it printed and logged.
    pub fn log_tail(&self) -> String {
        format!("-- {} --\n{}\n{}", self.name, tail(&self.stdout, 20), tail(&self.stderr, 60))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.quiet {
            eprintln!("{}", self.log_tail());
        }
    }
}
