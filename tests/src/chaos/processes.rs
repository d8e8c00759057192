use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::shape::Mode;
use crate::{Crossfade, Running};

/// How long the supervisor waits before it starts what has ended: less than systemd's unit has, for a run is short.
const PAUSE: Duration = Duration::from_millis(400);

/// A stop is promised within 5 s; the rest is for a loaded machine.
const STOP: Duration = Duration::from_secs(15);

/// One process and who keeps it alive, as systemd does: an exit with 1 is an answer and stays, anything else is tried
/// again. What it may exit with at all is another question, see [`Processes::judge`].
struct Slot {
    command: &'static str,
    home: Crossfade,
    running: Option<Running>,
    started: bool,
    /// When it is to be started again.
    again: Instant,
    frozen: bool,
    /// It has stood still once: another one may have its place.
    was_frozen: bool,
    /// Refused, because another one does its work: it stays away.
    retired: bool,
    /// Ours is the last signal that it got.
    killed: bool,
}

/// The processes of a run.
pub(super) struct Processes {
    slots: Vec<Slot>,
    /// A connection was cut, stalled or throttled: to the others whoever used it may have been silent for too long.
    pub cut_off: bool,
    /// Starts after the first.
    pub restarts: u64,
    /// Exits by themselves, with their codes.
    pub exits: Vec<String>,
}

impl Processes {
    /// Says who they are: each has a machine of its own. They start with the first look.
    pub(super) fn ready(mode: Mode, home: &Crossfade) -> Result<Processes> {
        let commands: &[&str] = if mode == Mode::Split { &["capture", "apply", "apply"] } else { &["run"] };
        let mut slots = Vec::new();
        for command in commands {
            slots.push(Slot::new(command, home.elsewhere()?));
        }
        Ok(Processes { slots, cut_off: false, restarts: 0, exits: Vec::new() })
    }

    /// Looks who has ended, and does about it what a supervisor does.
    ///
    /// # Errors
    /// Somebody ended in a way that no fault explains.
    pub(super) fn supervise(&mut self) -> Result<()> {
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if let Some(running) = &mut slot.running
                && let Some(status) = running.ended()?
            {
                let code = running.error_code();
                slot.running = None;
                slot.again = Instant::now() + PAUSE;
                if !std::mem::take(&mut slot.killed) {
                    self.judge(at, status, code)?;
                }
            }
            let slot = &mut self.slots[at];
            if slot.running.is_none() && !slot.retired && Instant::now() >= slot.again {
                let mut running = slot.home.start(&[slot.command, "--json"])?;
                running.hush();
                slot.running = Some(running);
                self.restarts += u64::from(slot.started);
                slot.started = true;
            }
        }
        Ok(())
    }

    /// A process ended by itself. It may, where it cannot start because a server is away, and where it was replaced.
    fn judge(&mut self, at: usize, status: ExitStatus, code: Option<String>) -> Result<()> {
        let command = self.slots[at].command;
        let code = code.unwrap_or_else(|| "no code".to_owned());
        self.exits.push(format!("{command} {code}"));
        let others =
            self.slots.iter().enumerate().any(|(other, slot)| other != at && slot.command == command && !slot.retired);
        match (code.as_str(), status.code()) {
            ("connection_failed", Some(2)) => Ok(()),
            ("writer_refused", Some(1)) if others && (self.cut_off || self.slots[at].was_frozen) => {
                self.slots[at].retired = true;
                Ok(())
            }
            _ => bail!("{command} ended with {code} ({status}), which no fault explains"),
        }
    }

    /// `kill -9` of one that runs. Says which, if there is one.
    pub(super) fn kill(&mut self, number: u64) -> Result<Option<&'static str>> {
        let Some(slot) = self.alive(number)? else { return Ok(None) };
        if let Some(running) = &mut slot.running {
            running.kill9()?;
        }
        slot.killed = true;
        Ok(Some(slot.command))
    }

    /// Stops one that runs, and starts another one in its place if it is to be replaced. Says which, if there is one.
    pub(super) fn freeze(&mut self, number: u64, replaced: bool) -> Result<Option<&'static str>> {
        let Some(slot) = self.alive(number)? else { return Ok(None) };
        if let Some(running) = &mut slot.running {
            running.freeze()?;
        }
        slot.frozen = true;
        slot.was_frozen = true;
        let (command, elsewhere) = (slot.command, slot.home.elsewhere()?);
        if replaced {
            self.slots.push(Slot::new(command, elsewhere));
        }
        Ok(Some(command))
    }

    /// Lets all that stand still go on.
    pub(super) fn thaw(&mut self) -> Result<()> {
        for slot in self.slots.iter_mut().filter(|slot| slot.frozen) {
            slot.frozen = false;
            if let Some(running) = &mut slot.running {
                running.thaw()?;
            }
        }
        Ok(())
    }

    fn alive(&mut self, number: u64) -> Result<Option<&mut Slot>> {
        let mut alive = Vec::new();
        for slot in &mut self.slots {
            if let Some(running) = &mut slot.running
                && running.is_running()?
            {
                alive.push(slot);
            }
        }
        let count = alive.len() as u64;
        Ok(if count == 0 { None } else { alive.into_iter().nth((number % count) as usize) })
    }

    /// Stops all of them as a person would.
    pub(super) async fn stop(&mut self) -> Result<()> {
        for running in self.slots.iter_mut().filter_map(|slot| slot.running.as_mut()) {
            running.term()?;
        }
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            let Some(mut running) = slot.running.take() else { continue };
            let status = running.wait(STOP).await?;
            let code = running.error_code();
            // One that stood still may find out just now that it was replaced.
            let refused = code.as_deref() == Some("writer_refused");
            ensure!(status.success() || refused, "{} ended with {status} after SIGTERM", slot.command);
            if refused {
                self.judge(at, status, code)?;
            }
        }
        Ok(())
    }

    /// Copies plans and logs into `folder`.
    pub(super) fn keep(&self, folder: &Path) -> Result<()> {
        for (number, slot) in self.slots.iter().enumerate() {
            let to = folder.join(format!("process-{number}-{}", slot.command));
            std::fs::create_dir_all(&to)?;
            for entry in std::fs::read_dir(slot.home.folder())? {
                let entry = entry?;
                // The state is not for people, and large; of the many looks at the status the last says enough.
                let look = entry.file_name().to_string_lossy().starts_with("status");
                if entry.file_type()?.is_file() && !look {
                    std::fs::copy(entry.path(), to.join(entry.file_name())).context("keep a log")?;
                }
            }
        }
        Ok(())
    }

    /// The ends of the logs of all that run.
    pub(super) fn log_tails(&self) -> String {
        self.slots.iter().filter_map(|slot| slot.running.as_ref()).map(Running::log_tail).collect::<Vec<_>>().join("\n")
    }

    /// Whose status can be asked for: an embedded log is in its process's folder.
    pub(super) fn home(&self) -> Result<&Crossfade> {
        self.slots.first().map(|slot| &slot.home).context("there are processes")
    }
}

impl Slot {
    fn new(command: &'static str, home: Crossfade) -> Slot {
        let again = Instant::now();
        Slot {
            command,
            home,
            running: None,
            started: false,
            again,
            frozen: false,
            was_frozen: false,
            retired: false,
            killed: false,
        }
    }
}
