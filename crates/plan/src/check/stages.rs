use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::Problem;

use super::checked_name;
use crate::written::{Entry, Section};
use crate::{Gate, Stage, Stages, WritableSide};

/// As long as a cutover goes by a verdict where it is not told otherwise.
const VERIFY_AGE: Duration = Duration::from_secs(24 * 3600);

/// What a name costs in an environment.
const LONGEST: usize = 64;

/// The plan's `[stages]`: the key `first`, and a section for each stage.
pub(super) fn check(entry: &Entry<'_>) -> Result<Stages, Problem> {
    let section = entry.open()?;
    let mut written: Vec<(Entry<'_>, Stage, Option<Entry<'_>>)> = Vec::new();
    for entry in section.entries().filter(|entry| entry.key != "first") {
        let name = checked_name(&entry, entry.key)?;
        let stage = entry.section(&["flags", "next", "gate"])?;
        let checked = Stage {
            flags: flags(&stage)?,
            next: stage.get("next").map(|next| names(&next)).transpose()?.unwrap_or_default(),
            gate: stage.get("gate").map(|gate| check_gate(&gate)).transpose()?.unwrap_or_default(),
            name,
        };
        written.push((entry, checked, stage.get("next")));
    }
    // A file's order is that in which people think of them; TOML's tables have none of their own.
    written.sort_by_key(|(entry, ..)| entry.line());
    let Some((_, model, _)) = written.first() else {
        return Err(entry.problem("there is no stage", EXAMPLE));
    };
    let first = section.get("first").ok_or_else(|| {
        section.lacks("first", format!("say which stage it begins with, in [stages]: first = {:?}", model.name))
    })?;
    let known: Vec<String> = written.iter().map(|(_, stage, _)| stage.name.clone()).collect();
    one_of(&first, first.text("legacy")?, &known)?;
    for (entry, stage, next) in &written {
        same_flags(entry, stage, model)?;
        leads(next.as_ref().unwrap_or(entry), stage, &known)?;
    }
    let stages = Stages {
        first: first.text("legacy")?.to_owned(),
        stages: written.iter().map(|(_, stage, _)| stage.clone()).collect(),
    };
    let reached = reached(&stages);
    match written.iter().find(|(_, stage, _)| !reached.contains(stage.name.as_str())) {
        None => Ok(stages),
        Some((entry, stage, _)) => Err(entry.problem(
            format!("no way leads from {:?} to this stage", stages.first),
            format!("name it in the stage that comes before it: next = [{:?}], or take it out", stage.name),
        )),
    }
}

const EXAMPLE: &str =
    "write a section for each: [stages.legacy] with flags = { READS = \"old\" } and next = [\"read_new\"]";

fn one_of(entry: &Entry<'_>, name: &str, known: &[String]) -> Result<(), Problem> {
    if known.iter().any(|stage| stage == name) {
        return Ok(());
    }
    let names: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
    Err(entry.problem(format!("there is no stage {name:?}"), format!("write {}", names.join(" or "))))
}

/// Whether that can name a flag: it becomes an environment variable.
pub fn is_flag(name: &str) -> bool {
    let safe = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(safe) && name.len() <= LONGEST
}

/// Whether a flag can have that value: it needs no quotes in an environment file.
pub fn is_flag_value(value: &str) -> bool {
    value.chars().all(plain)
}

fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.,:/@%+".contains(c)
}

fn flags(stage: &Section<'_>) -> Result<BTreeMap<String, String>, Problem> {
    const NEXT: &str = "write it like this: flags = { READS = \"old\", DUAL_WRITE = \"off\" }";
    let entry = stage.get("flags").ok_or_else(|| stage.lacks("flags", NEXT))?;
    let mut flags = BTreeMap::new();
    for flag in entry.open()?.entries() {
        let name = flag.key;
        if !is_flag(name) {
            return Err(flag.problem(
                format!("{name:?} cannot name a flag: it becomes an environment variable"),
                format!("use at most {LONGEST} of A-Z, 0-9 and _, the first a letter: READS"),
            ));
        }
        if name.starts_with("CROSSFADE_") {
            return Err(
                flag.problem("names that begin with CROSSFADE_ are crossfade's own", "give the flag another name")
            );
        }
        let value = flag.text("old")?;
        if let Some(c) = value.chars().find(|c| !plain(*c)) {
            return Err(flag.problem(
                format!("{c:?} would need quotes in an environment file"),
                "use letters, digits and any of _ - . , : / @ % +",
            ));
        }
        flags.insert(name.to_owned(), value.to_owned());
    }
    if flags.is_empty() {
        return Err(entry.problem("there is no flag", NEXT));
    }
    Ok(flags)
}

/// An application must find each of its flags, whatever the stage.
fn same_flags(entry: &Entry<'_>, stage: &Stage, model: &Stage) -> Result<(), Problem> {
    let lacks = |a: &Stage, b: &Stage| a.flags.keys().find(|flag| !b.flags.contains_key(*flag)).cloned();
    let (flag, has, has_not) = match (lacks(model, stage), lacks(stage, model)) {
        (Some(flag), _) => (flag, model, stage),
        (None, Some(flag)) => (flag, stage, model),
        (None, None) => return Ok(()),
    };
    Err(entry.problem(
        format!("stage {:?} has the flag {flag}, and stage {:?} has not", has.name, has_not.name),
        "give all stages the same flags: an application must find each of them in every stage",
    ))
}

fn names(entry: &Entry<'_>) -> Result<Vec<String>, Problem> {
    entry.list("[\"read_new\"]")?.iter().map(|item| Ok(item.text("read_new")?.to_owned())).collect()
}

/// The stages that a stage names as the next ones are other ones, known, and named once.
fn leads(entry: &Entry<'_>, stage: &Stage, known: &[String]) -> Result<(), Problem> {
    let mut seen = BTreeSet::new();
    for next in &stage.next {
        one_of(entry, next, known)?;
        if *next == stage.name || !seen.insert(next) {
            let why = match *next == stage.name {
                true => format!("stage {next:?} leads to itself"),
                false => format!("stage {next:?} stands there twice"),
            };
            return Err(entry.problem(why, "take it out"));
        }
    }
    Ok(())
}

/// The stages that can be reached from the first.
fn reached(stages: &Stages) -> BTreeSet<&str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![stages.first.as_str()];
    while let Some(name) = open.pop() {
        if reached.insert(name) {
            open.extend(stages.get(name).into_iter().flat_map(|stage| &stage.next).map(String::as_str));
        }
    }
    reached
}

fn check_gate(entry: &Entry<'_>) -> Result<Gate, Problem> {
    let section = entry.section(&["lag", "verify", "verify_age", "age", "writable"])?;
    let time = |key: &str, example: &str| section.get(key).map(|entry| entry.duration(example)).transpose();
    let equal = section.get("verify").map(|entry| entry.word(&[("equal", ())])).transpose()?;
    let verify_age = section.get("verify_age").map(|entry| super::positive(&entry, "24h")).transpose()?;
    if let (None, Some(entry)) = (equal, section.get("verify_age")) {
        return Err(entry.problem("no verdict is asked for whose age it could be", "add verify = \"equal\""));
    }
    let sides = [("source", WritableSide::Source), ("target", WritableSide::Target)];
    Ok(Gate {
        lag: time("lag", "0s")?,
        verify: equal.map(|()| verify_age.unwrap_or(VERIFY_AGE)),
        age: time("age", "1h")?,
        writable: section.get("writable").map(|entry| entry.word(&sides)).transpose()?,
    })
}

#[cfg(test)]
mod tests;
