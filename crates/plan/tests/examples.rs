//! examples/ holds plans.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use crossfade_plan::{Plan, WritableSide};

/// Each variable is a database, or a server, of its own.
fn variable(name: &str) -> Option<String> {
    let scheme = if name == "NATS_URL" { "nats" } else { "postgres" };
    Some(format!("{scheme}://crossfade@{}/shop", name.to_lowercase()))
}

fn examples() -> Vec<(String, Plan)> {
    let folder = Path::new("../../examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let plans = files.filter(|file| file.extension().is_some_and(|extension| extension == "toml"));
    plans
        .map(|file| {
            let text = std::fs::read_to_string(&file).unwrap();
            let plan = Plan::parse(&text, &file, &variable).unwrap_or_else(|problem| panic!("{problem}"));
            (file.file_name().unwrap().to_string_lossy().into_owned(), plan)
        })
        .collect()
}

#[test]
fn every_example_is_a_plan() {
    assert!(!examples().is_empty());
}

/// The matrix of the example's head is that of its stages.
#[test]
fn the_example_of_a_promotion_goes_from_the_old_side_to_the_new_one() {
    let (_, plan) = examples().into_iter().find(|(name, _)| name == "promotion.toml").unwrap();
    let stages = plan.stages.unwrap();
    let matrix: Vec<(&str, [&str; 3])> = stages
        .stages
        .iter()
        .map(|stage| (stage.name.as_str(), ["READS", "WRITES", "DUAL_WRITE"].map(|flag| stage.flags[flag].as_str())))
        .collect();
    let right = [
        ("legacy", ["old", "old", "off"]),
        ("read_new", ["new", "old", "off"]),
        ("dual_write", ["new", "old", "on"]),
        ("write_new", ["new", "new", "on"]),
        ("steady", ["new", "new", "off"]),
    ];
    assert_eq!((stages.first.as_str(), matrix), ("legacy", right.to_vec()));
    for (stage, next) in right.iter().zip(&right[1..]) {
        let next = stages.get(next.0).unwrap();
        assert!(stages.get(stage.0).is_some_and(|stage| stage.next.contains(&next.name)), "{}", next.name);
        let written_there = next.flags["WRITES"] == "new";
        assert_eq!(next.gate.lag.is_some() && next.gate.verify.is_some(), !written_there, "{}", next.name);
        assert_eq!(next.gate.writable == Some(WritableSide::Target), written_there, "{}", next.name);
    }
}
