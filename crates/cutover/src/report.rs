use serde::Serialize;

/// How a cutover went. Its JSON is what scripts rely on.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which one; 0 if none was begun.
    pub epoch: i64,
    /// `forward`.
    pub direction: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// Behind the last write of the (first) source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// From the source's closing to the target's opening, in milliseconds; with `--dry-run` what it would have been.
    pub write_gap_ms: Option<i64>,
    /// Its steps, in their order.
    pub phases: Vec<Phase>,
    /// What was in the way.
    pub refused: Vec<Refusal>,
    /// Why it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Rows that were compared once more while both sides stood still.
    pub rechecked: u64,
    /// Tables that were not, because they have no key, or were emptied, and are large: equal a moment before.
    pub left_out: Vec<String>,
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
}

impl Outcome {
    /// As scripts see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Committed => "committed",
            Outcome::Cancelled => "cancelled",
            Outcome::Refused => "refused",
            Outcome::Possible => "possible",
        }
    }

    /// The command's exit code.
    pub fn exit(self) -> u8 {
        match self {
            Outcome::Committed | Outcome::Possible => 0,
            Outcome::Cancelled | Outcome::Refused => 1,
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
            why: None,
            rechecked: 0,
            left_out: Vec::new(),
        }
    }
}

/// For people.
pub fn text(report: &Report) -> String {
    let mut text: String =
        report.refused.iter().map(|refusal| format!("refused: {} ({})\n", refusal.text, refusal.code)).collect();
    for phase in &report.phases {
        text += &format!("{:<10} {:>6} ms  {}\n", phase.phase, phase.ms, phase.at);
    }
    for table in &report.left_out {
        text += &format!("not compared once more: {table} (equal when it was compared before)\n");
    }
    let gap = report.write_gap_ms.map(|ms| format!("; nobody could write for {ms} ms")).unwrap_or_default();
    let why = report.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    text + &match report.outcome {
        Outcome::Committed => format!("committed, epoch {}{gap}: the target is the writable side\n", report.epoch),
        Outcome::Cancelled => format!("cancelled, epoch {}{why}; the source takes writes as before\n", report.epoch),
        Outcome::Refused => "refused: nothing was changed\n".to_owned(),
        Outcome::Possible => {
            let gap =
                report.write_gap_ms.map(|ms| format!("; nobody would write for some {ms} ms")).unwrap_or_default();
            format!("nothing is in the way{gap}\n")
        }
    }
}
