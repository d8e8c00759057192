use apply::Counted;
use pg::Session;
use serde::Serialize;
use tokio::time::Instant;

use crate::error::CutoverError;
use crate::journal;

/// How a cutover went. Its JSON is what scripts rely on.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which one; 0 if none was begun.
    pub epoch: i64,
    /// `forward`, or `back` for a rollback.
    pub direction: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// Behind the last write of the (first) source.
    pub lsn: Option<String>,
    /// From the source's closing to the target's opening, in milliseconds; with `--dry-run` what it would have been.
    pub write_gap_ms: Option<i64>,
    /// Its steps, in their order.
    pub phases: Vec<Phase>,
    /// What was in the way.
    pub refused: Vec<Refusal>,
    /// It is committed or cancelled, and this is still to be done: another `crossfade cutover` goes on with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<String>,
    /// What the hooks printed, by name.
    pub hooks: Vec<Hook>,
    /// Sequences of the source's tables that have no counterpart at the target.
    pub sequences_left: Vec<String>,
    /// Why it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Rows that were compared once more while both sides stood still.
    pub rechecked: u64,
    /// Tables that were not, because they have no key, or were emptied, and are large: equal a moment before.
    pub left_out: Vec<String>,
    /// Rows that the plan's rules leave out, or let be less than they were, counted before anything was closed.
    pub findings: Vec<Counted>,
}

/// A step.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// The state that it led to, in lower case.
    pub phase: String,
    /// When that was, RFC 3339.
    pub at: String,
    /// How long it took.
    pub ms: i64,
}

/// A command of the plan.
#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    /// Which one.
    pub hook: String,
    /// When it ended, RFC 3339.
    pub at: String,
    /// How long it took.
    pub ms: i64,
    /// On both of its outputs.
    pub output: String,
}

/// Something that is in the way.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    /// What scripts go by.
    pub code: &'static str,
    /// For people, with the next step.
    pub text: String,
}

/// What came of a cutover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The target is the writable side.
    Committed,
    /// The source is, as before.
    Cancelled,
    /// Nothing was begun.
    Refused,
    /// Nothing is in the way. Only with `--dry-run`.
    Possible,
    /// The target cannot be asked, and may have been opened: the source stays closed.
    Unknown,
}

impl Outcome {
    /// As scripts see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Committed => "committed",
            Outcome::Cancelled => "cancelled",
            Outcome::Refused => "refused",
            Outcome::Possible => "possible",
            Outcome::Unknown => "unknown",
        }
    }

    /// The command's exit code.
    pub fn exit(self) -> u8 {
        match self {
            Outcome::Committed | Outcome::Possible => 0,
            Outcome::Cancelled | Outcome::Refused => 1,
            Outcome::Unknown => 2,
        }
    }
}

impl Report {
    pub(crate) fn new(outcome: Outcome) -> Report {
        Report {
            epoch: 0,
            direction: "forward",
            outcome,
            lsn: None,
            write_gap_ms: None,
            phases: Vec::new(),
            refused: Vec::new(),
            unfinished: None,
            hooks: Vec::new(),
            sequences_left: Vec::new(),
            why: None,
            rechecked: 0,
            left_out: Vec::new(),
            findings: Vec::new(),
        }
    }
}

/// What the journal says of an epoch.
pub(crate) async fn of(target: &Session, epoch: i64, outcome: Outcome) -> Result<Report, CutoverError> {
    let Some(entry) = journal::last(target).await?.filter(|entry| entry.epoch == epoch) else {
        return Err(CutoverError::Overtaken("another epoch has begun".to_owned()));
    };
    let query = "SELECT hook, step, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), ms, coalesce(output, '')
                   FROM crossfade.journal_step WHERE epoch = $1 ORDER BY at";
    let direction = if entry.back { "back" } else { "forward" };
    let mut report = Report {
        epoch,
        direction,
        lsn: entry.lsn,
        write_gap_ms: entry.write_gap_ms,
        why: entry.why,
        ..Report::new(outcome)
    };
    for row in &target.query(query, &[&epoch]).await? {
        let (name, at, ms): (String, String, i64) = (row.get(1), row.get(2), row.get(3));
        match row.get(0) {
            true => report.hooks.push(Hook { hook: name, at, ms, output: row.get(4) }),
            false => report.phases.push(Phase { phase: name, at, ms }),
        }
    }
    Ok(report)
}

pub(crate) fn milliseconds(since: Instant) -> i64 {
    since.elapsed().as_millis().try_into().unwrap_or(i64::MAX)
}

/// For people.
pub fn text(report: &Report) -> String {
    let mut text: String =
        report.refused.iter().map(|refusal| format!("refused: {} ({})\n", refusal.text, refusal.code)).collect();
    for finding in &report.findings {
        text += &format!("finding: {}", finding.text());
    }
    for phase in &report.phases {
        text += &format!("{:<10} {:>6} ms  {}\n", phase.phase, phase.ms, phase.at);
    }
    for table in &report.left_out {
        text += &format!("not compared once more: {table} (equal when it was compared before)\n");
    }
    for sequence in &report.sequences_left {
        text += &format!("not set, for the target has no such sequence: {sequence}\n");
    }
    if let Some(unfinished) = &report.unfinished {
        text += &format!("still to be done: {unfinished}\n");
    }
    let gap = report.write_gap_ms.map(|ms| format!("; nobody could write for {ms} ms")).unwrap_or_default();
    let why = report.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let (old, new) = if report.direction == "back" { ("target", "source") } else { ("source", "target") };
    text + &match report.outcome {
        Outcome::Committed => format!("committed, epoch {}{gap}: the {new} is the writable side\n", report.epoch),
        Outcome::Cancelled => format!("cancelled, epoch {}{why}; the {old} takes writes as before\n", report.epoch),
        Outcome::Unknown => format!("unknown, epoch {}{why}\n", report.epoch),
        Outcome::Refused => "refused: nothing was changed\n".to_owned(),
        Outcome::Possible => {
            let gap =
                report.write_gap_ms.map(|ms| format!("; nobody would write for some {ms} ms")).unwrap_or_default();
            format!("nothing is in the way{gap}\n")
        }
    }
}
