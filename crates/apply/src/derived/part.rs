//! What of the plan is spoken of, for people: file, line and character, and its name.

use mapping::Trouble;
use model::{Code, Problem};
use plan::{Derived, Finding, Plan};

/// A table of the plan, or a finding.
pub(super) struct Part<'p> {
    pub plan: &'p Plan,
    name: String,
    line: usize,
    /// Line and character of where its query begins.
    place: (usize, usize),
}

impl<'p> Part<'p> {
    pub fn table(plan: &'p Plan, derived: &'p Derived) -> Part<'p> {
        let name = format!("[[table]] {}", derived.into);
        Part { plan, name, line: derived.line, place: derived.place() }
    }

    pub fn finding(plan: &'p Plan, finding: &'p Finding) -> Part<'p> {
        let name = format!("[[finding]] {:?}", finding.name);
        Part { plan, name, line: finding.line, place: finding.sql.place(0) }
    }

    fn what(&self, place: Option<(usize, usize)>) -> String {
        let (file, name) = (self.plan.path.display(), &self.name);
        match place {
            Some((line, column)) => format!("{file}:{line}:{column} ({name})"),
            None => format!("{file}:{} ({name})", self.line),
        }
    }

    /// Something wrong with it as a whole.
    pub fn refused(&self, why: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem::new(Code::SqlRefused, self.what(Some(self.place)), why, next)
    }

    /// A trouble, or a warning.
    pub fn trouble(&self, trouble: &Trouble) -> Problem {
        let place = trouble.at.map(|at| (at.line, at.column));
        let why = format!("{}: {}", trouble.what, trouble.why);
        Problem::new(Code::SqlRefused, self.what(place), why, trouble.next.clone())
    }
}
