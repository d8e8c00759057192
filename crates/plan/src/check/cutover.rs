use std::time::Duration;

use model::Problem;

use super::{Env, bouncers, positive};
use crate::written::{Entry, Section};
use crate::{Cutover, Fence, FenceCommand, Hooks};

/// The plan's `[cutover]`.
pub(super) fn check(entry: Option<Entry<'_>>, env: Env<'_>) -> Result<Cutover, Problem> {
    const KNOWN: [&str; 5] = ["sequence_margin", "hook_timeout", "hooks", "fence", "pgbouncer"];
    let mut cutover = Cutover::default();
    let Some(section) = entry.map(|entry| entry.section(&KNOWN)).transpose()? else { return Ok(cutover) };
    for entry in section.entries() {
        match entry.key {
            "sequence_margin" => cutover.sequence_margin = entry.number(0..=1_000_000_000)? as i64,
            "hook_timeout" => cutover.hook_timeout = positive(&entry, "10s")?,
            "hooks" => cutover.hooks = hooks(&entry)?,
            "fence" => cutover.fence = fence(&entry)?,
            "pgbouncer" => cutover.bouncers = bouncers::check(&entry, env)?,
            _ => {}
        }
    }
    Ok(cutover)
}

fn hooks(entry: &Entry<'_>) -> Result<Hooks, Problem> {
    let section = entry.section(&["before_fence", "drained", "route", "after"])?;
    let command = |key| command(&section, key, "./route.sh");
    Ok(Hooks {
        before_fence: command("before_fence")?,
        drained: command("drained")?,
        route: command("route")?,
        after: command("after")?,
    })
}

/// What a shell is to run, if anything.
fn command(section: &Section<'_>, key: &str, example: &str) -> Result<Option<String>, Problem> {
    let Some(entry) = section.get(key) else { return Ok(None) };
    let text = entry.text(example)?;
    match text.trim() {
        "" => Err(entry.problem("it is empty", "write a command, or take the line out")),
        _ => Ok(Some(text.to_owned())),
    }
}

fn fence(entry: &Entry<'_>) -> Result<Fence, Problem> {
    let section = entry.section(&["read_only", "command", "undo"])?;
    let (close, undo) = (command(&section, "command", "./block.sh")?, command(&section, "undo", "./unblock.sh")?);
    let command = match (close, undo) {
        (Some(close), Some(undo)) => Some(FenceCommand { close, undo }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(section.lacks("undo", "say how that is opened again: undo = \"./unblock.sh\""));
        }
        (None, Some(_)) => {
            return Err(section.lacks("command", "say what closes it: command = \"./block.sh\", or take `undo` out"));
        }
    };
    let read_only = section.get("read_only").map(|entry| entry.flag()).transpose()?.unwrap_or_default();
    Ok(Fence { read_only, command })
}

impl Default for Cutover {
    /// What holds where the plan says nothing.
    fn default() -> Self {
        Cutover {
            sequence_margin: 1000,
            hook_timeout: Duration::from_secs(10),
            hooks: Hooks::default(),
            fence: Fence::default(),
            bouncers: Vec::new(),
        }
    }
}
