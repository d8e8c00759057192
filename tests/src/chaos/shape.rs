use std::fmt;
use std::time::Duration;

use super::fault::{self, Planned};
use crate::{Dice, PlanFile, mixed};

/// Which processes do the work, and over which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `crossfade run` with the embedded log.
    Embedded,
    /// `crossfade run` over NATS.
    Run,
    /// `crossfade capture` and two `crossfade apply` over NATS.
    Split,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Embedded => "run, embedded log",
            Mode::Run => "run, NATS",
            Mode::Split => "capture and two apply, NATS",
        })
    }
}

/// A while in which things go wrong.
#[derive(Clone, Debug)]
pub struct Act {
    /// How long it is; all faults are over then.
    pub length: Duration,
    /// In the order in which they come.
    pub faults: Vec<Planned>,
}

/// All that a seed decides.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The seed.
    pub seed: u64,
    /// Who does the work.
    pub mode: Mode,
    /// How many sessions write.
    pub clients: u64,
    /// What goes wrong from the beginning on, while tables are copied.
    pub copy: Act,
    /// What goes wrong once copy and tail are joined.
    pub tail: Act,
    /// `logical_decoding_work_mem` of the source: with little, transactions are streamed while they are in progress.
    pub(super) decoding_memory: &'static str,
    copy_workers: u64,
    lock_timeout: &'static str,
    log_sync: Option<&'static str>,
}

impl Shape {
    /// What `seed` decides.
    pub fn of(seed: u64) -> Shape {
        // Of another kind than the load's, which takes the seed as it is.
        let mut dice = Dice::of(seed, 1 << 32);
        let mode = dice.one_of(&[Mode::Embedded, Mode::Run, Mode::Split]);
        let nats = mode != Mode::Embedded;
        let mut act = |shortest, longest| {
            let length = Duration::from_millis(dice.between(shortest, longest));
            let faults = fault::schedule(&mut dice, length, nats);
            Act { length, faults }
        };
        let (copy, tail) = (act(3_000, 9_500), act(5_000, 11_000));
        Shape {
            seed,
            mode,
            clients: dice.between(3, 7),
            copy,
            tail,
            decoding_memory: dice.one_of(&["64kB", "256kB", "64MB"]),
            copy_workers: dice.between(1, 4),
            lock_timeout: dice.one_of(&["500ms", "5s"]),
            log_sync: dice.one_of(&[None, Some("0s"), Some("2s")]),
        }
    }

    /// The plan, given where source, target and log are reached.
    pub(super) fn plan(&self, source: &str, target: &str, nats: Option<&str>) -> PlanFile {
        let plan = identities(PlanFile::new("shop", source, target)).section(&format!(
            "[limits]\nmemory = \"64MiB\"\ncopy_workers = {}\nlock_timeout = \"{}\"",
            self.copy_workers, self.lock_timeout
        ));
        match (nats, self.log_sync) {
            (None, _) => plan,
            (Some(nats), None) => plan.log(nats),
            // The servers here lose their processes, never their power.
            (Some(nats), Some(sync)) => plan.log(nats).log_lines(&format!("sync = \"{sync}\"")),
        }
    }
}

/// What a plan must say of the workload's tables.
pub fn identities(plan: PlanFile) -> PlanFile {
    mixed::plan(plan).identity("public.loose", "full").identity("public.trace", "insert_only")
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}, {} clients", self.seed, self.mode, self.clients)?;
        for (name, act) in [("the copy", &self.copy), ("the tail", &self.tail)] {
            writeln!(f, "in {name}, {:.1} s:", act.length.as_secs_f32())?;
            act.faults.iter().try_for_each(|fault| writeln!(f, "  {fault}"))?;
        }
        Ok(())
    }
}
