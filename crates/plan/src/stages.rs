use std::collections::BTreeMap;
use std::time::Duration;

/// What an application that switches by flags can be told, and how one comes from one to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    /// The name of the one that it begins with.
    pub first: String,
    /// Each with the same flags, in the order of the file, names unique. Every one can be reached from the first.
    pub stages: Vec<Stage>,
}

/// A set of flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Same form as the plan's name.
    pub name: String,
    /// At least one. Names of environment variables; values that need no quotes in a shell.
    pub flags: BTreeMap<String, String>,
    /// The stages that may follow it, all of them known.
    pub next: Vec<String>,
    /// What must hold before it is entered.
    pub gate: Gate,
}

/// What must hold before a stage is entered; what is absent need not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// How far the target may be behind each source.
    pub lag: Option<Duration>,
    /// Every table was found to be equal, longer ago by no more than this.
    pub verify: Option<Duration>,
    /// How long the stage before must have been set.
    pub age: Option<Duration>,
    /// Where the application may write.
    pub writable: Option<WritableSide>,
}

/// A side that the application writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritableSide {
    /// The sources: before a cutover.
    Source,
    /// The target: after it.
    Target,
}

impl Stages {
    /// The stage of that name.
    pub fn get(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

impl WritableSide {
    /// As the plan and `status` have it.
    pub fn as_str(self) -> &'static str {
        match self {
            WritableSide::Source => "source",
            WritableSide::Target => "target",
        }
    }
}
