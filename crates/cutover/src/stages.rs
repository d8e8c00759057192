//! Stages of an application that switches by flags. Which one holds stands in one key of a JetStream KV bucket, and nowhere else: the application watches it there.
//!
//! [`set`] writes it behind the revision that it has read, so of two that move at the same time one is refused. [`gate`] says what is in the way of a move. What they tell is in [`told`].

mod gate;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use log::{Bucket, Entry, Log, LogError};
use model::{Code, Problem, Seq};
use plan::{Plan, Stage, Stages};
use serde::{Deserialize, Serialize};
use status::{Gather, Status};

use crate::report::Refusal;
pub use told::{Moved, Next, Outcome, Shown, env, moved_text, shown_text};

/// The bucket's key.
pub const KEY: &str = "stage";

/// What is needed to show stages and to move between them.
pub struct Job {
    /// It has stages.
    pub plan: Arc<Plan>,
    /// The plan's log.
    pub log: Arc<dyn Log>,
    /// The plan's bucket, with the key [`KEY`].
    pub bucket: Bucket,
    /// Who acts, `host:pid`.
    pub worker: String,
}

/// What stands in the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    stage: String,
    flags: BTreeMap<String, String>,
    /// The stage before; none if it was the first to be set.
    from: Option<String>,
    /// When it was set, RFC 3339.
    at: String,
    /// Who set it, `host:pid`.
    by: String,
}

/// The stage that is set, and which revision of the key that is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Now {
    revision: Seq,
    value: Option<Value>,
}

/// Shows the stage that is set, its flags, and what may come next.
///
/// # Errors
/// [`Code::NoStage`] if the plan has none; the log.
pub async fn show(job: &Job) -> Result<Shown, Problem> {
    let stages = declared(&job.plan)?;
    let now = now(&job.bucket).await?;
    let next: Vec<&Stage> = match &now.value {
        None => stages.get(&stages.first).into_iter().collect(),
        Some(value) => {
            let here = stages.get(&value.stage);
            here.into_iter().flat_map(|stage| &stage.next).filter_map(|name| stages.get(name)).collect()
        }
    };
    let status = match now.value.is_some() && next.iter().any(|stage| gate::asks(&stage.gate)) {
        true => Some(look(job).await?),
        false => None,
    };
    let next = next
        .iter()
        .map(|stage| {
            let refused = in_the_way(stages, &now, stage, status.as_ref());
            Next { stage: stage.name.clone(), open: refused.is_empty(), refused }
        })
        .collect();
    Ok(Shown::of(now, next))
}

/// The flags of the stage that is set, asking the log alone.
///
/// # Errors
/// [`Code::NoStage`] if the plan has none, or none is set yet; the log.
pub async fn flags(job: &Job) -> Result<Shown, Problem> {
    let stages = declared(&job.plan)?;
    let now = now(&job.bucket).await?;
    match now.value.is_some() {
        true => Ok(Shown::of(now, Vec::new())),
        false => Err(Problem::new(
            Code::NoStage,
            format!("plan {:?}", job.plan.name),
            "no stage is set yet",
            format!("begin with `crossfade stage set {}`", stages.first),
        )),
    }
}

/// Moves to a stage, unless something is in the way. To the one that is set already it does nothing.
///
/// # Errors
/// [`Code::NoStage`] if the plan does not have it; the log.
pub async fn set(job: &Job, name: &str) -> Result<Moved, Problem> {
    let stages = declared(&job.plan)?;
    let wanted = stages.get(name).ok_or_else(|| {
        let names: Vec<&str> = stages.stages.iter().map(|stage| stage.name.as_str()).collect();
        let next = format!("name one of the plan's: {}", names.join(", "));
        Problem::new(Code::NoStage, format!("stage {name:?}"), "the plan does not have it", next)
    })?;
    let now = now(&job.bucket).await?;
    if is(&now, wanted) {
        return Ok(Moved::of(Outcome::Already, now, Vec::new()));
    }
    // What cannot come next whatever the gate says is told without asking anybody.
    let status = match follows(stages, &now, wanted).is_none() && now.value.is_some() && gate::asks(&wanted.gate) {
        true => Some(look(job).await?),
        false => None,
    };
    let refused = in_the_way(stages, &now, wanted, status.as_ref());
    if !refused.is_empty() {
        return Ok(Moved::of(Outcome::Refused, now, refused));
    }
    write(job, now, wanted).await
}

fn declared(plan: &Plan) -> Result<&Stages, Problem> {
    plan.stages.as_ref().ok_or_else(|| none_declared(plan))
}

/// The plan has no stages.
pub fn none_declared(plan: &Plan) -> Problem {
    let next = "declare them: a section [stages] with first = \"legacy\", and [stages.legacy] with its flags; see docs/stages.md";
    Problem::new(Code::NoStage, plan.path.display().to_string(), "the plan has no stages", next)
}

/// What the bucket says.
async fn now(bucket: &Bucket) -> Result<Now, Problem> {
    let Some(Entry { revision, value }) = bucket.get().await? else { return Ok(Now::default()) };
    if value.is_empty() {
        return Ok(Now { revision, value: None });
    }
    let read = match serde_json::from_slice::<Value>(&value) {
        Ok(value) if value.plain() => Ok(value),
        Ok(_) => Err("a flag, or what stands beside it, is none that a plan could have".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    match read {
        Ok(value) => Ok(Now { revision, value: Some(value) }),
        Err(why) => Err(Problem::new(
            Code::LogDamaged,
            format!("key {KEY} of bucket {}, revision {revision}", bucket.name()),
            format!("it is nothing that crossfade has written ({why})"),
            "see who else writes there; `nats kv del` takes the value away, and `crossfade stage set` begins again with the first stage",
        )),
    }
}

impl Value {
    /// Nothing in it could mean something else to a shell that reads it.
    fn plain(&self) -> bool {
        let beside = [&self.stage, &self.at, &self.by].into_iter().chain(&self.from);
        let flags = self.flags.iter().all(|(name, value)| plan::is_flag(name) && plan::is_flag_value(value));
        flags && beside.into_iter().all(|text| !text.contains(char::is_control))
    }
}

async fn look(job: &Job) -> Result<Status, Problem> {
    let log = Arc::clone(&job.log);
    Ok(Gather::new(Arc::clone(&job.plan))?.now(async || Ok(Some(log))).await)
}

/// The stage is set, with the flags that the plan gives it now.
fn is(now: &Now, stage: &Stage) -> bool {
    now.value.as_ref().is_some_and(|value| value.stage == stage.name && value.flags == stage.flags)
}

/// Why a stage cannot follow the one that is set, whatever its gate says.
fn follows(stages: &Stages, now: &Now, wanted: &Stage) -> Option<Refusal> {
    let Some(value) = &now.value else {
        let text = format!("no stage is set yet: begin with `crossfade stage set {}`", stages.first);
        return (wanted.name != stages.first).then_some(Refusal { code: "not_begun", text });
    };
    let Some(here) = stages.get(&value.stage) else {
        let text = format!(
            "stage {:?} is set, which the plan does not have: put it back, with what may come next",
            value.stage
        );
        return Some(Refusal { code: "transition", text });
    };
    // The plan has given it other flags since.
    if here.name == wanted.name || here.next.contains(&wanted.name) {
        return None;
    }
    let text = match here.next.is_empty() {
        true => format!("stage {:?} is the last one: the plan names none that may come next", here.name),
        false => {
            format!("from stage {:?} the plan leads to {}, not to {:?}", here.name, here.next.join(" or "), wanted.name)
        }
    };
    Some(Refusal { code: "transition", text })
}

/// Everything that is in the way. The first stage needs nothing but that none is set.
fn in_the_way(stages: &Stages, now: &Now, wanted: &Stage, status: Option<&Status>) -> Vec<Refusal> {
    match (follows(stages, now, wanted), &now.value) {
        (Some(refusal), _) => vec![refusal],
        (None, None) => Vec::new(),
        (None, Some(value)) => gate::closed(&wanted.gate, &value.at, SystemTime::now(), status),
    }
}

/// Writes it behind what was read.
async fn write(job: &Job, now: Now, wanted: &Stage) -> Result<Moved, Problem> {
    let value = Value {
        stage: wanted.name.clone(),
        flags: wanted.flags.clone(),
        from: now.value.map(|value| value.stage),
        at: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
        by: job.worker.clone(),
    };
    let text = serde_json::to_vec(&value)
        .map_err(|error| Problem::new(Code::Internal, "the stage", error.to_string(), "report it"))?;
    let failed = match job.bucket.put(now.revision, Bytes::from(text)).await {
        Ok(revision) => {
            return Ok(Moved::of(Outcome::Moved, Now { revision, value: Some(value) }, Vec::new()));
        }
        Err(error) => error,
    };
    // An answer may have been lost, and with it nothing else.
    let there = self::now(&job.bucket).await?;
    if there.value.as_ref() == Some(&value) {
        return Ok(Moved::of(Outcome::Moved, there, Vec::new()));
    }
    match failed {
        LogError::Conflict { .. } | LogError::NoStream if is(&there, wanted) => {
            Ok(Moved::of(Outcome::Already, there, Vec::new()))
        }
        // The latter where the bucket was removed meanwhile.
        LogError::Conflict { .. } | LogError::NoStream => {
            let stage = there.value.as_ref().map_or("none", |value| &value.stage);
            let text = format!(
                "another `crossfade stage set` was quicker: the stage is {stage} now, revision {}",
                there.revision
            );
            Ok(Moved::of(Outcome::Refused, there, vec![Refusal { code: "overtaken", text }]))
        }
        error => Err(error.into()),
    }
}
