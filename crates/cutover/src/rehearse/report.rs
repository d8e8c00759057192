use apply::Counted;
use model::count;
use serde::Serialize;
use verify::{PartDiffers, Verdict};

use crate::rehearse::drill::{self, DrillReport, Played};

/// How a rehearsal came out. Its JSON is what scripts rely on.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of all tables: equal if they all are, else different if one is, else inconclusive.
    pub verdict: Verdict,
    /// Why nothing can be said of a table, of the first one of which that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When it began, RFC 3339.
    pub at: String,
    /// Which database was filled: host, port and name.
    pub into: String,
    /// What it was compared with: `log` for what verifies have recorded there, or `target`.
    pub against: &'static str,
    /// How long it took.
    pub seconds: f64,
    /// What took how long, in the order in which it begins.
    pub phases: Vec<Phase>,
    /// The last rehearsal of the plan; null if there was none.
    pub last: Option<Last>,
    /// How cutover and rollback went; null without `--drill`.
    pub drill: Option<DrillReport>,
    /// By name.
    pub sources: Vec<SourceReport>,
    /// By source and name.
    pub tables: Vec<TableReport>,
    /// Rows that the plan's rules leave out, or let be less than they were, counted in the database that was filled. They have no part in the verdict.
    pub findings: Vec<Counted>,
}

/// A step of it.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// `log`, `schema`, `copy`, `indexes`, `tail`, `foreign_keys`, `compare`; of a drill `follow`, `verify`, `cutover`, `verify_reversing`, `rollback`, `verify_again`.
    pub phase: &'static str,
    /// How long it took.
    pub seconds: f64,
    /// How long it took the last time; null if that is not known.
    pub last_seconds: Option<f64>,
}

/// An earlier rehearsal.
#[derive(Clone, Debug, Serialize)]
pub struct Last {
    /// When it began, RFC 3339.
    pub at: String,
    /// How long it took.
    pub seconds: f64,
}

/// How far a source was replayed.
#[derive(Clone, Debug, Serialize)]
pub struct SourceReport {
    /// Its name in the plan.
    pub name: String,
    /// The last commit that the database has of it.
    pub lsn: String,
    /// When that was committed, RFC 3339; null if it was the source's first.
    pub commit_time: Option<String>,
    /// Transactions of the tail up to there.
    pub transactions: i64,
    /// Rows that these changed.
    pub rows: i64,
}

/// What it found of a table.
#[derive(Clone, Debug, Serialize)]
pub struct TableReport {
    /// The source that its rows come from.
    pub source: String,
    /// In the database that was filled.
    pub table: String,
    /// Whether it is the same.
    pub verdict: Verdict,
    /// Why nothing can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// As of this commit it was compared, of its last part; null if it was not.
    pub lsn: Option<String>,
    /// The verify that recorded what it was; null if none did.
    pub verify: Option<String>,
    /// Rows that were recorded.
    pub rows: i64,
    /// Parts of it that were compared.
    pub parts: u64,
    /// Those that are not the same.
    pub different: Vec<PartDiffers>,
}

impl Report {
    /// Every table is equal and, if there was a drill, it passed.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.verdict == Verdict::Equal && self.drill.as_ref().is_none_or(|drill| drill.outcome == Played::Passed)
    }

    /// Puts the times of an earlier rehearsal beside its own; `seconds` tells how long one of its phases took.
    pub fn compare_with(&mut self, last: Last, seconds: impl Fn(&str) -> Option<f64>) {
        for phase in &mut self.phases {
            phase.last_seconds = seconds(phase.phase);
        }
        self.last = Some(last);
    }
}

/// For people.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for table in &report.tables {
        let rows = count(table.rows.unsigned_abs(), "row");
        let lsn = table.lsn.as_ref().map_or(String::new(), |lsn| format!(", as of {lsn}"));
        text += &format!("{:<12} {}  {rows}{lsn}\n", table.verdict.as_str(), table.table);
        if let Some(why) = &table.why {
            text += &format!("             {why}\n");
        }
        for part in table.different.iter().take(SHOWN) {
            let line =
                format!("{}: {} were recorded, there are {}", range(part), rows_of(part.recorded_rows), part.rows);
            // No value is to steer the terminal.
            text += &format!("             {}\n", line.replace(char::is_control, " "));
        }
    }
    for finding in &report.findings {
        text += &format!("finding: {}", finding.text());
    }
    text += &format!("\n{:<16} {:>9}", "phase", "seconds");
    text += if report.last.is_some() { "  last time\n" } else { "\n" };
    for phase in report.phases.iter().chain(report.drill.iter().flat_map(|drill| &drill.phases)) {
        let last = phase.last_seconds.map_or(String::new(), |last| format!("  {last:>9.1}"));
        text += &format!("{:<16} {:>9.1}{last}\n", phase.phase.replace('_', " "), phase.seconds);
    }
    for source in &report.sources {
        let (transactions, rows) =
            (count(source.transactions.unsigned_abs(), "transaction"), count(source.rows.unsigned_abs(), "row"));
        text += &format!("source {}: {transactions} with {rows}, up to {}\n", source.name, source.lsn);
    }
    if let Some(drill) = &report.drill {
        text += &drill::text(drill);
    }
    let last =
        report.last.as_ref().map_or(String::new(), |last| format!(", {:.1} s last time ({})", last.seconds, last.at));
    text + &format!(
        "{}: {} in {:.1} s{last}; {} can be dropped\n",
        report.verdict.as_str(),
        count(report.tables.len() as u64, "table"),
        report.seconds,
        report.into
    )
}

/// Parts shown of a table; the report has all.
const SHOWN: usize = 5;

fn rows_of(number: i64) -> String {
    count(number.unsigned_abs(), "row")
}

fn range(part: &PartDiffers) -> String {
    match (&part.low, &part.high) {
        (None, None) => "the whole table".to_owned(),
        (Some(low), None) => format!("from {low} on"),
        (None, Some(high)) => format!("below {high}"),
        (Some(low), Some(high)) => format!("from {low} to below {high}"),
    }
}
