//! The plan's own commands, each at its point.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use model::{Code, Problem};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pg::Session;
use plan::Plan;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::error::CutoverError;
use crate::journal;
use crate::report::milliseconds;

/// What a hook is told, besides what the command was started in.
pub(crate) struct Told<'a> {
    pub plan: &'a str,
    pub epoch: i64,
    pub direction: &'a str,
    pub phase: &'a str,
    pub lsn: &'a str,
    /// `source`, `target` or `none`.
    pub writable: &'a str,
    /// More variables: which side a command closes or opens.
    pub side: &'a [(&'a str, &'a str)],
}

/// Of a hook's output, in bytes: what the journal keeps.
const KEPT: u64 = 16 << 10;

/// How often one is run that fails.
pub(crate) const TRIES: u32 = 2;

/// Runs a command, if the plan has one, and puts what it printed into a journal, if there is one.
pub(crate) async fn noted(
    plan: &Plan,
    journal: Option<&Session>,
    name: &str,
    command: Option<&str>,
    told: &Told<'_>,
) -> Result<(), CutoverError> {
    let Some(command) = command else { return Ok(()) };
    let begun = Instant::now();
    let output = run(name, command, plan.cutover.hook_timeout, told).await?;
    tracing::info!(epoch = told.epoch, hook = name, "ran in {} ms", begun.elapsed().as_millis());
    match journal {
        Some(session) => journal::note(session, told.epoch, name, milliseconds(begun), &output).await,
        None => Ok(()),
    }
}

/// Runs a command; once more if it fails. Returns what it printed.
///
/// # Errors
/// It failed, or took too long, each time.
async fn run(name: &str, command: &str, limit: Duration, told: &Told<'_>) -> Result<String, Problem> {
    let mut tries = 1;
    loop {
        let begun = Instant::now();
        let why = match once(command, limit, told).await {
            Ok((status, output)) if status.success() => return Ok(output),
            Ok((status, output)) => format!("it failed ({status}): {}", last_line(&output)),
            Err(why) => why,
        };
        tracing::warn!(hook = name, "{why}, after {} ms", begun.elapsed().as_millis());
        if tries >= TRIES {
            let next = "correct the command in the plan's [cutover], then start it again";
            return Err(Problem::new(Code::HookFailed, format!("the hook {name}"), why, next));
        }
        tries += 1;
    }
}

fn last_line(output: &str) -> &str {
    output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing")
}

/// Runs its first argument, and ends its whole group when the pipe it gets is closed: `crossfade` is gone, killed perhaps, and who takes its place may have undone what the command is about to do.
const WATCHED: &str = r#"exec 3<&0 </dev/null
{ read -r nothing <&3; kill -s KILL 0; } >/dev/null & watcher=$!
(exec 3<&- 2>&1; eval "$1"); status=$?
kill "$watcher"; exit "$status""#;

async fn once(command: &str, limit: Duration, told: &Told<'_>) -> Result<(ExitStatus, String), String> {
    // Its own group, so that what it has started ends with it.
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", WATCHED, "sh", command])
        .env("CROSSFADE_PLAN", told.plan)
        .env("CROSSFADE_EPOCH", told.epoch.to_string())
        .env("CROSSFADE_DIRECTION", told.direction)
        .env("CROSSFADE_PHASE", told.phase)
        .env("CROSSFADE_LSN", told.lsn)
        .env("CROSSFADE_WRITABLE_SIDE", told.writable)
        .envs(told.side.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    // Open until it has ended, or this process has; waiting for a child would close it.
    let _alive = child.stdin.take();
    let Some(mut stdout) = child.stdout.take() else { return Err("its output cannot be read".to_owned()) };
    let work = async {
        let mut output = Vec::new();
        let _ = (&mut stdout).take(KEPT).read_to_end(&mut output).await;
        // What is more is not kept, but must not make it wait.
        let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
        let status = child.wait().await.map_err(|error| error.to_string())?;
        Ok((status, String::from_utf8_lossy(&output).into_owned()))
    };
    if let Ok(ended) = tokio::time::timeout(limit, work).await {
        group.0 = None;
        return ended;
    }
    Err(format!("it took longer than {} ms", limit.as_millis()))
}

/// What a hook has started: it ends when nobody waits for it any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: Told<'_> = Told {
        plan: "shop",
        epoch: 3,
        direction: "forward",
        phase: "routed",
        lsn: "0/1",
        writable: "target",
        side: &[("CROSSFADE_SIDE", "source")],
    };

    async fn run_for(command: &str, limit: Duration) -> Result<String, Problem> {
        run("route", command, limit, &TOLD).await
    }

    #[tokio::test]
    async fn is_told_what_happens_and_heard_on_both_outputs() {
        let command = "echo $CROSSFADE_PLAN $CROSSFADE_EPOCH $CROSSFADE_DIRECTION; echo $CROSSFADE_PHASE $CROSSFADE_LSN $CROSSFADE_WRITABLE_SIDE $CROSSFADE_SIDE >&2";
        let output = run_for(command, Duration::from_secs(10)).await;
        assert_eq!(output.as_deref(), Ok("shop 3 forward\nrouted 0/1 target source\n"));
    }

    #[tokio::test]
    async fn one_that_fails_is_run_once_more() -> Result<(), std::io::Error> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("ran");
        let command = format!("echo x >> {0}; test $(wc -l < {0}) -ge 2", file.display());
        assert!(run_for(&command, Duration::from_secs(10)).await.is_ok());
        let failed = run_for("echo no such pool; exit 3", Duration::from_secs(10)).await;
        assert!(failed.is_err_and(
            |problem| problem.code == Code::HookFailed && problem.why == "it failed (exit status: 3): no such pool"
        ));
        Ok(())
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended() {
        let failed = run_for("sleep 100", Duration::from_millis(50)).await;
        assert!(failed.is_err_and(|problem| problem.why.contains("longer than 50 ms")));
    }
}
