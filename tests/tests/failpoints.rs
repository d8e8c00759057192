//! The list of failpoints is that of the code, and a release has none of them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crossfade_tests::{Crossfade, PlanFile};
use model::failpoint;

fn crates() -> PathBuf {
    Path::new("../crates").canonicalize().unwrap()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

#[test]
fn every_failpoint_of_the_list_stands_in_the_code_once_and_no_other() {
    let mut files = Vec::new();
    sources(&crates(), &mut files);
    let mut found = BTreeMap::new();
    for file in files.iter().filter(|file| !file.ends_with("model/src/failpoint.rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        for (before, _) in text.match_indices("failpoint!(\"") {
            let name = text[before..].split('"').nth(1).unwrap().to_owned();
            *found.entry(name).or_insert(0) += 1;
        }
    }
    let listed: BTreeMap<String, i32> = failpoint::all().map(|(name, _)| ((*name).to_owned(), 1)).collect();
    assert_eq!(listed.len(), failpoint::all().count(), "a name is listed twice");
    assert_eq!(found, listed);
}

/// Compiles the module alone, without the crate `fail`, and a constant function with a failpoint in it.
fn compiled(debug_assertions: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let module = crates().join("model/src/failpoint.rs");
    let library = format!(
        "#[path = {module:?}] pub mod failpoint;
         pub const fn nothing() {{ crate::failpoint!(\"slot_created\"); }}"
    );
    std::fs::write(folder.path().join("lib.rs"), library).unwrap();
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "-O", "lib.rs"]);
    rustc.args(["-C", &format!("debug-assertions={debug_assertions}")]).current_dir(folder.path());
    rustc.output().unwrap()
}

#[test]
fn nothing_is_left_of_them_without_debug_assertions() {
    let release = compiled("off");
    assert!(release.status.success(), "{}", String::from_utf8_lossy(&release.stderr));
    // With them it needs the crate, and is no constant.
    let debug = compiled("on");
    let errors = String::from_utf8_lossy(&debug.stderr);
    assert!(!debug.status.success() && errors.contains("fail::"), "{errors}");
}

/// A test that arms nothing would show nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_in_the_list_is_refused() {
    let crossfade = Crossfade::new(&PlanFile::new("none", "postgres://nobody", "postgres://nobody")).unwrap();
    let refused = crossfade.start_armed(&["survey"], "no_such_place", 0).unwrap();
    let refused = refused.finish(std::time::Duration::from_secs(60)).await.unwrap();
    assert!(refused.status.code() == Some(2) && refused.stderr.contains("no_such_place"), "{refused:?}");
}
