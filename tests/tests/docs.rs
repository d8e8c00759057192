//! docs/errors.md, docs/cutover.md and docs/monitoring.md say what the code does, and docs/ARCHITECTURE.md names what there is.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use model::Code;

fn read(document: &str) -> String {
    std::fs::read_to_string(Path::new("..").join(document)).unwrap()
}

/// The rows of docs/errors.md, one for each code in the model's order.
fn rows() -> String {
    Code::ALL.iter().map(|code| format!("| `{code}` | {} | {} |\n", code.exit(), code.meaning())).collect()
}

#[test]
fn every_code_stands_in_docs_errors() {
    assert!(read("docs/errors.md").contains(&rows()), "the table in docs/errors.md must read:\n{}", rows());
}

/// All of the workspace's sources.
fn sources() -> Vec<PathBuf> {
    let root = Path::new("..").canonicalize().unwrap();
    let mut folders = vec![root.join("crates"), root.join("tests"), root.join("benches")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// `capture/run.rs` is crates/capture/src/run.rs: what it is called there without the folders that every crate has.
fn is_called(path: &Path, name: &str) -> bool {
    path.to_string_lossy().replace("/src/", "/").ends_with(&format!("/{name}"))
}

/// The tests of a file stand right behind it: `file.rs` `a_test`, `another_test`.
#[test]
fn every_file_and_test_that_the_architecture_names_is_there() {
    let document = read("docs/ARCHITECTURE.md");
    let sources = sources();
    let mut named: Vec<&PathBuf> = Vec::new();
    let mut missing = Vec::new();
    let mut tests = 0;
    let parts: Vec<&str> = document.split('`').collect();
    for pair in parts.chunks_exact(2) {
        let [before, word] = pair else { continue };
        if word.ends_with(".rs") {
            named = sources.iter().filter(|path| is_called(path, word)).collect();
            if named.is_empty() {
                missing.push(format!("file {word}"));
            }
        } else if !named.is_empty() && ["", ","].contains(&before.trim()) && word.contains('_') {
            tests += 1;
            let function = format!("fn {word}(");
            if !named.iter().any(|path| std::fs::read_to_string(path).unwrap().contains(&function)) {
                missing.push(format!("{word} in {}", named[0].display()));
            }
        } else {
            named.clear();
        }
    }
    assert!(missing.is_empty(), "docs/ARCHITECTURE.md names what is not there: {missing:#?}");
    assert!(tests > 30, "only {tests} tests were recognised");
}

/// Keys that scripts rely on, as the code names them, each in a table of its document.
#[test]
fn every_key_of_a_report_stands_in_its_document() {
    for (document, file, types) in [
        ("docs/verify.md", "crates/verify/src/report.rs", &["Report", "TableReport", "Difference"][..]),
        ("docs/verify.md", "crates/status/src/model.rs", &["Verified", "NotEqual", "Oldest", "Unfinished"]),
        (
            "docs/rehearse.md",
            "crates/cutover/src/rehearse/report.rs",
            &["Report", "Phase", "Last", "SourceReport", "TableReport"],
        ),
        (
            "docs/rehearse.md",
            "crates/cutover/src/rehearse/drill/report.rs",
            &["DrillReport", "Switch", "LoadReport", "LeftOut"],
        ),
        ("docs/rehearse.md", "crates/verify/src/recorded.rs", &["PartDiffers"]),
    ] {
        let (text, source) = (read(document), read(file));
        for name in types {
            let body = source.split(&format!("pub struct {name} {{")).nth(1).unwrap().split("\n}").next().unwrap();
            let fields = body.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next());
            let missing: Vec<&str> = fields.filter(|field| !text.contains(&format!("`{field}`"))).collect();
            assert!(missing.is_empty(), "{document} lacks {missing:?} of {name}");
        }
    }
}

/// Metrics that alarms rely on, as the code names them.
#[test]
fn every_metric_stands_in_docs_http() {
    let (source, document) = (read("crates/status/src/metrics.rs"), read("docs/http.md"));
    let source = source.split("#[cfg(test)]").next().unwrap();
    let names: Vec<&str> =
        source.split('"').filter(|word| word.starts_with("crossfade_") && !word.contains('{')).collect();
    let missing: Vec<&&str> = names.iter().filter(|name| !document.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/http.md lacks {missing:?}");
    assert!(names.len() > 15, "only {names:?} were found");
}

/// Codes that scripts go by, as the gates name them.
#[test]
fn every_refusal_of_a_stage_stands_in_docs_stages() {
    let document = read("docs/stages.md");
    let gate = read("crates/cutover/src/stages/gate.rs");
    let gate = gate.split("#[cfg(test)]").next().unwrap();
    let stages = read("crates/cutover/src/stages.rs");
    let coded = stages.split("code: \"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let named = gate.split("refuse(").skip(1).filter_map(|rest| rest.split(';').next()?.split('"').nth(1));
    let named = named.filter(|word| !word.contains(' '));
    let known: Vec<&str> = coded.chain(named).chain(["verify_different", "verify_inconclusive"]).collect();
    let missing: Vec<&&str> = known.iter().filter(|code| !document.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "docs/stages.md lacks {missing:?}");
    assert!(known.len() > 12, "only {known:?} were found");
}

/// A crate's sources without their tests, and without any white space.
fn squeezed(folder: &str) -> String {
    let inside = format!("/crates/{folder}/src/");
    let part = |path: &PathBuf| {
        let path = path.to_string_lossy();
        // Stages and rehearsals have documents of their own.
        path.contains(&inside) && !path.contains("/stages") && !path.contains("/rehearse")
    };
    let sources = sources().into_iter().filter(part);
    let text = |path: PathBuf| std::fs::read_to_string(path).unwrap().split("#[cfg(test)]").next().unwrap().to_owned();
    sources.map(text).collect::<String>().split_whitespace().collect()
}

/// The strings that stand right behind one of these beginnings, and look like a code.
fn codes(source: &str, beginnings: &[&str]) -> BTreeSet<String> {
    let behind = beginnings.iter().flat_map(|beginning| source.split(beginning).skip(1));
    let quoted = behind.filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
    let code = |text: &&str| text.len() > 2 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    quoted.filter(code).map(str::to_owned).collect()
}

/// The codes in the first column of the table under a heading.
fn listed(document: &str, heading: &str) -> BTreeSet<String> {
    let text = read(document);
    let part = text.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap().to_owned();
    let first = part.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next().map(str::to_owned));
    first.flat_map(|cell| cell.replace('`', "").split(", ").map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn every_refusal_of_a_cutover_stands_in_its_document() {
    // Those that it takes over from the status are named behind an arrow.
    let source = squeezed("cutover");
    let mut used =
        codes(&source, &["refuse(found,", "refuse(&mutfound,", "self.refused(", "job.refused(", "Refusal{code:"]);
    let standing = source.split("letcode=matchwarning.code{").nth(1).unwrap().split("};").next().unwrap();
    used.extend(codes(standing, &["=>"]));
    assert!(used.len() > 20, "only {used:?} were found");
    assert_eq!(listed("docs/cutover.md", "What refuses it"), used, "left: docs/cutover.md, right: crates/cutover");
}

#[test]
fn every_warning_of_the_status_stands_in_its_document() {
    let source = squeezed("status");
    let mut used = codes(&source, &["Warning::new("]);
    // By a name: the limits that WAL is kept within, and the way back.
    let named: BTreeSet<&str> = source
        .split("Warning::new(")
        .skip(1)
        .filter(|rest| !rest.starts_with('"'))
        .filter_map(|rest| rest.split(',').next())
        .collect();
    assert!(named.iter().all(|name| ["WAY_BACK", "code", "code:&'staticstr"].contains(name)), "what is {named:?}?");
    used.extend(["way_back", "wal_warn", "wal_critical"].map(str::to_owned));
    assert!(used.len() > 10, "only {used:?} were found");
    assert_eq!(listed("docs/monitoring.md", "Warnings"), used, "left: docs/monitoring.md, right: crates/status");
}

/// Each key of the status that is the cutover's or the way back's.
#[test]
fn every_key_of_the_status_stands_in_the_document_for_those_who_watch() {
    let (document, source) = (read("docs/monitoring.md"), read("crates/status/src/model.rs"));
    for name in ["Status", "WayBack", "Rogue", "SourceState", "Lag", "TableProgress", "Applied", "LogState"] {
        let body = source.split(&format!("pub struct {name} {{")).nth(1).unwrap().split("\n}").next().unwrap();
        let fields = body.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next());
        // In the JSON the way back's state is flat, and `follows` is not there.
        let fields = fields.filter(|field| !(name == "WayBack" && *field == "state" || *field == "follows"));
        let missing: Vec<&str> = fields.filter(|field| !document.contains(&format!("`{field}`"))).collect();
        assert!(missing.is_empty(), "docs/monitoring.md lacks {missing:?} of {name}");
    }
}
