//! What `crossfade stage` tells. Its JSON is what scripts rely on; its text is an environment file, in which all else stands behind a `#`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Now;
use crate::report::Refusal;

/// The stage that is set, and what may come next.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Its name; absent if none is set yet.
    pub stage: Option<String>,
    /// Of the bucket's key: counts up with each move. 0 if there is none.
    pub revision: u64,
    /// Its flags.
    pub flags: BTreeMap<String, String>,
    /// The stage before.
    pub from: Option<String>,
    /// When it was set, RFC 3339.
    pub at: Option<String>,
    /// Who set it, `host:pid`.
    pub by: Option<String>,
    /// The stages that may follow it.
    pub next: Vec<Next>,
}

/// A stage that may come next.
#[derive(Clone, Debug, Serialize)]
pub struct Next {
    /// Its name.
    pub stage: String,
    /// Nothing is in its way.
    pub open: bool,
    /// What is in its way.
    pub refused: Vec<Refusal>,
}

/// What came of a move.
#[derive(Clone, Debug, Serialize)]
pub struct Moved {
    /// Whether it was made.
    pub outcome: Outcome,
    /// The stage that is set now; absent if none is.
    pub stage: Option<String>,
    /// See [`Shown::revision`].
    pub revision: u64,
    /// The flags of that stage.
    pub flags: BTreeMap<String, String>,
    /// The stage before that one.
    pub from: Option<String>,
    /// When it was set, RFC 3339.
    pub at: Option<String>,
    /// What was in the way.
    pub refused: Vec<Refusal>,
}

/// Whether a move was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was.
    Moved,
    /// The stage was set before.
    Already,
    /// Something is in the way; nothing was changed.
    Refused,
}

impl Outcome {
    /// The command's exit code.
    pub fn exit(self) -> u8 {
        match self {
            Outcome::Moved | Outcome::Already => 0,
            Outcome::Refused => 1,
        }
    }
}

impl Shown {
    pub(super) fn of(now: Now, next: Vec<Next>) -> Shown {
        let revision = now.revision.0;
        match now.value {
            None => Shown { stage: None, revision, flags: BTreeMap::new(), from: None, at: None, by: None, next },
            Some(value) => Shown {
                stage: Some(value.stage),
                revision,
                flags: value.flags,
                from: value.from,
                at: Some(value.at),
                by: Some(value.by),
                next,
            },
        }
    }
}

impl Moved {
    pub(super) fn of(outcome: Outcome, now: Now, refused: Vec<Refusal>) -> Moved {
        let Shown { stage, revision, flags, from, at, .. } = Shown::of(now, Vec::new());
        Moved { outcome, stage, revision, flags, from, at, refused }
    }
}

/// The flags as lines of an environment file, with the stage and its revision.
pub fn env(shown: &Shown) -> String {
    let Some(stage) = &shown.stage else { return String::new() };
    let flags: String = shown.flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    format!("{flags}CROSSFADE_STAGE={stage}\nCROSSFADE_STAGE_REVISION={}\n", shown.revision)
}

/// For people, and for shells.
pub fn shown_text(shown: &Shown) -> String {
    let mut text = match (&shown.stage, &shown.at, &shown.by) {
        (Some(stage), Some(at), Some(by)) => {
            let from = shown.from.as_ref().map(|from| format!(", from {from}")).unwrap_or_default();
            format!("# stage {stage}{from}, set at {at} by {by}\n{}", env(shown))
        }
        _ => "# no stage is set yet\n".to_owned(),
    };
    for next in &shown.next {
        text += &format!("# next: {}\n", next.stage);
        text += &next.refused.iter().map(|refusal| format!("#   in its way: {}\n", line(refusal))).collect::<String>();
    }
    if shown.stage.is_some() && shown.next.is_empty() {
        text += "# next: none, this is the last one\n";
    }
    text
}

/// For people.
pub fn moved_text(moved: &Moved) -> String {
    let mut text: String = moved.refused.iter().map(|refusal| format!("refused: {}\n", line(refusal))).collect();
    let stage = match &moved.stage {
        Some(stage) => format!("stage {stage}, revision {}", moved.revision),
        None => "no stage is set yet".to_owned(),
    };
    text += &match (moved.outcome, &moved.from) {
        (Outcome::Moved, Some(from)) => format!("moved from {from}: {stage}\n"),
        (Outcome::Moved, None) => format!("begun: {stage}\n"),
        (Outcome::Already, _) => format!("nothing to do: {stage}\n"),
        (Outcome::Refused, _) => format!("unchanged: {stage}\n"),
    };
    text
}

fn line(refusal: &Refusal) -> String {
    format!("{} ({})", refusal.text.replace(char::is_control, " "), refusal.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_shown_is_an_environment_file() {
        let refused = vec![Refusal { code: "lag", text: "two\nlines".to_owned() }];
        let next = Next { stage: "read_new".to_owned(), open: false, refused };
        let shown = Shown {
            stage: Some("legacy".to_owned()),
            revision: 4,
            flags: BTreeMap::from([("READS".to_owned(), "old".to_owned()), ("WRITES".to_owned(), "old".to_owned())]),
            from: Some("read_new".to_owned()),
            at: Some("2026-01-01T00:00:00.000000Z".to_owned()),
            by: Some("host:1".to_owned()),
            next: vec![next],
        };
        let text = shown_text(&shown);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["READS=old", "WRITES=old", "CROSSFADE_STAGE=legacy", "CROSSFADE_STAGE_REVISION=4"]);
        assert!(text.contains("# next: read_new\n#   in its way: two lines (lag)\n"), "{text}");
    }
}
