//! docs/errors.md says what the code does, and docs/ARCHITECTURE.md names what there is.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use model::Code;

fn read(document: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document)).unwrap()
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
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
            "crates/rehearse/src/report.rs",
            &["Report", "Phase", "Last", "SourceReport", "TableReport"],
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
