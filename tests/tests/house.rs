//! Imports point downwards: docs/ARCHITECTURE.md, "The house". Held here for every kind of dependency, those of tests
//! included, and for every crate: one that has no floor yet fails.

#![allow(clippy::unwrap_used)]

use cargo_metadata::{MetadataCommand, Package};

/// From the ground up. No crate imports another one of its own floor.
const FLOORS: &[&[&str]] = &[
    &["crossfade-model"],
    &["crossfade-plan"],
    &["crossfade-mapping", "crossfade-log", "crossfade-offsets", "crossfade-pg"],
    &["crossfade-capture", "crossfade-apply"],
    &["crossfade-verify", "crossfade-status"],
    &["crossfade-cutover"],
    &["crossfade-rehearse"],
    &["crossfade"],
    &["crossfade-tests"],
    &["crossfade-benches"],
];

fn floor(package: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&package))
}

/// What is wrong with `package` importing `imports`, all of them crates of this workspace.
fn wrong<'a>(package: &str, imports: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let Some(own) = floor(package) else {
        return vec![format!("{package} stands on no floor: give it one here and in docs/ARCHITECTURE.md")];
    };
    let upward = |import: &&str| floor(import).is_none_or(|floor| floor >= own);
    imports.into_iter().filter(upward).map(|import| format!("{package} must not import {import}")).collect()
}

#[test]
fn imports_point_downwards_and_never_sideways() {
    let workspace = MetadataCommand::new().no_deps().exec().unwrap().packages;
    let ours = |name: &str| workspace.iter().any(|package| package.name.as_str() == name);
    let found: Vec<String> = workspace
        .iter()
        .flat_map(|package: &Package| {
            let imports =
                package.dependencies.iter().map(|dependency| dependency.name.as_str()).filter(|name| ours(name));
            wrong(package.name.as_str(), imports)
        })
        .collect();
    assert!(workspace.len() > 10, "this looks at the wrong workspace");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_rule_can_be_broken() {
    for (package, import, right) in [
        ("crossfade-capture", "crossfade-pg", true),
        ("crossfade", "crossfade-model", true),
        ("crossfade-capture", "crossfade-apply", false),
        ("crossfade-pg", "crossfade-log", false),
        ("crossfade-log", "crossfade-status", false),
        ("crossfade-plan", "crossfade-new", false),
        ("crossfade-new", "crossfade-model", false),
    ] {
        assert_eq!(wrong(package, [import]).is_empty(), right, "{package} -> {import}");
    }
}
