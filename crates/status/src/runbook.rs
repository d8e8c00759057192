//! The runbooks with a plan's own values in them: [`DOCUMENTS`] as they stand in docs, [`Values`] gathered from the plan, its servers and the reports that its commands have left, and
//! [`fill`], which puts the ones into the others. Works while servers are down: what is not known is said, with what makes it known.

mod fill;
mod values;

pub use fill::fill;
pub use values::{Predicted, Reports, SourceValues, TableValues, Values, VerifyRun, values};

/// A document of docs, in which `{{name}}` stands for a value.
#[derive(Clone, Copy, Debug)]
pub struct Document {
    /// As people ask for it.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// With its placeholders.
    pub text: &'static str,
}

/// All there are.
pub const DOCUMENTS: [Document; 4] = [
    Document {
        name: "cutover",
        about: "cutting over, from a week before to the end",
        text: include_str!("../../../docs/cutover.md"),
    },
    Document { name: "rollback", about: "going back after a cutover", text: include_str!("../../../docs/rollback.md") },
    Document {
        name: "monitoring",
        about: "what to watch, and what each warning means",
        text: include_str!("../../../docs/monitoring.md"),
    },
    Document {
        name: "announcement",
        about: "what to tell those who use the database",
        text: include_str!("../../../docs/announcement.md"),
    },
];

/// The document of this name.
pub fn document(name: &str) -> Option<&'static Document> {
    DOCUMENTS.iter().find(|document| document.name == name)
}
