#![allow(clippy::unwrap_used)]

use std::path::Path;

use model::Code;

use super::*;
use crate::Plan;

const PLAN: &str = r#"name = "shop"
[sources.shop]
url = "postgres://app@source/shop"
tables = ["public.*"]
[log]
url = "nats://127.0.0.1:4222"
[target]
url = "postgres://app@target/shop"
schema = "clone"
"#;

/// Begins in line 10.
const STAGES: &str = r#"[stages]
first = "legacy"
[stages.legacy]
flags = { READS = "old", DUAL_WRITE = "off" }
next = ["read_new"]
[stages.read_new]
flags = { READS = "new", DUAL_WRITE = "off" }
next = ["legacy"]
gate = { lag = "0s", verify = "equal" }
"#;

fn parse(stages: &str) -> Result<Stages, Problem> {
    let plan = Plan::parse(&format!("{PLAN}{stages}"), Path::new("shop.toml"), &|_| None);
    plan.map(|plan| plan.stages.unwrap())
}

#[test]
fn stages_come_with_their_flags_gates_and_what_follows() {
    let stages = parse(STAGES).unwrap();
    assert_eq!(stages.first, "legacy");
    let legacy = stages.get("legacy").unwrap();
    assert_eq!((legacy.flags["READS"].as_str(), legacy.next.as_slice()), ("old", &["read_new".to_owned()][..]));
    assert_eq!(legacy.gate, Gate::default());
    let gate = Gate { lag: Some(Duration::ZERO), verify: Some(VERIFY_AGE), ..Gate::default() };
    assert_eq!(stages.get("read_new").unwrap().gate, gate);
    let gate = "gate = { verify = \"equal\", verify_age = \"1h\", age = \"10min\", writable = \"target\" }";
    let stages = parse(&STAGES.replace("gate = { lag = \"0s\", verify = \"equal\" }", gate)).unwrap();
    let hour = Duration::from_secs(3600);
    let side = Some(WritableSide::Target);
    assert_eq!(
        stages.get("read_new").unwrap().gate,
        Gate { lag: None, verify: Some(hour), age: Some(hour / 6), writable: side }
    );
}

#[test]
fn they_stand_in_the_order_of_the_file() {
    let text = STAGES.replace("stages.legacy]", "stages.zero]").replace("\"legacy\"", "\"zero\"");
    let names: Vec<String> = parse(&text).unwrap().stages.into_iter().map(|stage| stage.name).collect();
    assert_eq!(names, ["zero", "read_new"]);
}

/// Each error: what is replaced in right stages, by what, the line and key that are named, and words of why and next.
#[test]
fn what_has_no_meaning_is_told_with_file_line_and_what_to_write_instead() {
    let mut wrong = Vec::new();
    for (old, new, place, why, next) in [
        ("first = \"legacy\"\n", "", "10 (stages.first)", "missing", "first = \"legacy\""),
        (
            "first = \"legacy\"",
            "first = \"new\"",
            "11 (stages.first)",
            "no stage \"new\"",
            "\"legacy\" or \"read_new\"",
        ),
        ("first = \"legacy\"", "first = 1", "11 (stages.first)", "integer", "first = \"legacy\""),
        ("[stages.legacy]", "[stages.Legacy]", "12 (stages.Legacy)", "\"Legacy\"", "a-z"),
        ("READS = \"old\"", "reads = \"old\"", "13 (stages.legacy.flags.reads)", "environment variable", "A-Z"),
        ("READS = \"old\"", "CROSSFADE_X = \"1\"", "13 (stages.legacy.flags.CROSSFADE_X)", "own", "another name"),
        ("READS = \"old\"", "READS = true", "13 (stages.legacy.flags.READS)", "boolean", "READS = \"old\""),
        ("READS = \"old\"", "READS = \"a b\"", "13 (stages.legacy.flags.READS)", "' '", "letters, digits"),
        ("READS = \"old\"", "READS = \"$(x)\"", "13 (stages.legacy.flags.READS)", "'$'", "letters, digits"),
        ("flags = { READS = \"old\", DUAL_WRITE = \"off\" }\n", "", "12 (stages.legacy.flags)", "missing", "flags = {"),
        (
            "flags = { READS = \"old\", DUAL_WRITE = \"off\" }",
            "flags = {}",
            "13 (stages.legacy.flags)",
            "no flag",
            "READS",
        ),
        ("\"new\", DUAL_WRITE = \"off\"", "\"new\"", "15 (stages.read_new)", "DUAL_WRITE", "the same flags"),
        ("\"new\", DUAL", "\"new\", WRITES = \"x\", DUAL", "15 (stages.read_new)", "WRITES", "the same flags"),
        ("next = [\"read_new\"]", "next = [\"reed_new\"]", "14 (stages.legacy.next)", "\"reed_new\"", "\"read_new\""),
        ("next = [\"read_new\"]", "next = \"read_new\"", "14 (stages.legacy.next)", "list", "[\"read_new\"]"),
        ("next = [\"read_new\"]", "next = [\"legacy\"]", "14 (stages.legacy.next)", "itself", "take it out"),
        ("next = [\"read_new\"]", "next = [\"read_new\", \"read_new\"]", "14 (stages.legacy.next)", "twice", "take it"),
        ("next = [\"read_new\"]\n", "", "14 (stages.read_new)", "no way leads", "next = [\"read_new\"]"),
        ("next = [\"read_new\"]", "after = []", "14 (stages.legacy.after)", "no key `after`", "flags, next, gate"),
        ("lag = \"0s\"", "lag = 0", "18 (stages.read_new.gate.lag)", "0 is not a length", "lag = \"0s\""),
        ("lag = \"0s\"", "lags = \"0s\"", "18 (stages.read_new.gate.lags)", "no key", "did you mean `lag`?"),
        ("\"equal\"", "\"same\"", "18 (stages.read_new.gate.verify)", "\"same\"", "\"equal\""),
        ("verify = \"equal\"", "verify_age = \"1h\"", "18 (stages.read_new.gate.verify_age)", "verdict", "verify = "),
        ("verify = \"equal\"", "writable = \"new\"", "18 (stages.read_new.gate.writable)", "\"new\"", "\"target\""),
        ("gate = {", "gate = [] # {", "18 (stages.read_new.gate)", "array", "a section"),
    ] {
        let problem = parse(&STAGES.replacen(old, new, 1)).expect_err(new);
        let right = problem.code == Code::PlanInvalid
            && problem.what == format!("shop.toml:{place}")
            && problem.why.contains(why)
            && problem.next.contains(next);
        if !right {
            wrong.push(format!("{new:?}: {problem:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let problem = parse("[stages]\nfirst = \"legacy\"\n").unwrap_err();
    assert!(problem.why.contains("no stage") && problem.next.contains("[stages.legacy]"), "{problem}");
}
