//! docs/errors.md says what the code does.

#![allow(clippy::unwrap_used)]

use std::path::Path;

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
