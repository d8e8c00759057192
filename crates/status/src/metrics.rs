//! The status as metrics, in Prometheus's text format (version 0.0.4). Names and labels stay; docs/http.md lists them. What is not known is absent, and no zero.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ::model::Seq;
use apply::Counted;

use crate::model::{Phase, Status, TableState};
use crate::text::word;

/// What the format is called in HTTP.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All phases, each a metric of its own that is 1 or 0: so an alarm can name one.
const PHASES: [Phase; 11] = [
    Phase::Starting,
    Phase::Copying,
    Phase::Joining,
    Phase::Following,
    Phase::Fencing,
    Phase::Fenced,
    Phase::Drained,
    Phase::Prepared,
    Phase::Committed,
    Phase::Routed,
    Phase::Reversing,
];

/// See [`PHASES`].
const SIDES: [&str; 4] = ["source", "target", "none", "unknown"];

/// See [`PHASES`].
const STATES: [TableState; 5] =
    [TableState::Waiting, TableState::Copying, TableState::Copied, TableState::Indexing, TableState::Joined];

/// The stage that is set.
pub(crate) struct Stage {
    pub name: String,
    pub revision: Seq,
}

/// The metrics of a status.
pub(crate) fn text(status: &Status, stage: Option<&Stage>) -> String {
    let mut page = Page { text: String::new(), plan: &status.plan };
    migration(&mut page, status);
    sources(&mut page, status);
    tables(&mut page, status);
    // With the target away they are not known.
    let known = |count: u64| status.phase.is_some().then_some(count as f64);
    page.counter("crossfade_applied_transactions_total", "Transactions applied from the tail.")
        .known(&[], known(status.apply.transactions));
    page.counter("crossfade_applied_rows_total", "Rows written from the tail.").known(&[], known(status.apply.rows));
    page.gauge("crossfade_log_bytes", "What the plan's streams take on the log's disk.")
        .known(&[], status.log.bytes.map(|bytes| bytes as f64));
    page.gauge("crossfade_log_messages", "Messages in the plan's streams.")
        .known(&[], status.log.messages.map(|messages| messages as f64));
    verdicts(&mut page, status);
    findings(&mut page, status);
    warnings(&mut page, status);
    if let Some(Stage { name, revision }) = stage {
        page.gauge("crossfade_stage", "The stage that is set.").value(&[("stage", name)], 1.0);
        page.gauge("crossfade_stage_revision", "The revision of the stage that is set.").value(&[], revision.0 as f64);
    }
    page.text
}

fn migration(page: &mut Page<'_>, status: &Status) {
    let reached = status.phase.is_some();
    page.gauge("crossfade_target_reached", "1 if the target could be asked.").value(&[], f64::from(u8::from(reached)));
    page.gauge("crossfade_epoch", "Cutovers so far.").known(&[], reached.then_some(status.epoch as f64));
    if let Some(phase) = status.phase {
        let mut metric = page.gauge("crossfade_phase", "1 for the phase that the migration is in, 0 for the others.");
        for other in PHASES {
            let name = format!("{other:?}").to_lowercase();
            metric.value(&[("phase", &name)], f64::from(u8::from(other == phase)));
        }
    }
    let mut metric = page.gauge("crossfade_writable_side", "1 for the side that the application may write to.");
    for side in SIDES {
        metric.value(&[("side", side)], f64::from(u8::from(side == status.writable_side)));
    }
}

fn sources(page: &mut Page<'_>, status: &Status) {
    let mut each = |name, help, of: &dyn Fn(&crate::SourceState) -> Option<f64>| {
        let mut metric = page.gauge(name, help);
        for source in status.sources.iter().chain(status.way_back.as_ref().map(|back| &back.state)) {
            metric.known(&[("source", &source.name)], of(source));
        }
    };
    each("crossfade_lag_bytes", "WAL that the target lacks.", &|source| source.lag.bytes.map(|bytes| bytes as f64));
    each("crossfade_lag_seconds", "Age of the oldest commit that the target lacks.", &|source| source.lag.seconds);
    each("crossfade_lag_transactions", "Transactions logged and not applied.", &|source| {
        source.lag.transactions.map(|transactions| transactions as f64)
    });
    each("crossfade_wal_kept_bytes", "WAL that the source keeps back for the slot.", &|source| {
        source.wal_kept_bytes.map(|bytes| bytes as f64)
    });
    let mut metric = page.gauge("crossfade_rogue_rows", "Rows that others than apply have written to the target.");
    for rogue in &status.rogue {
        metric.value(&[("table", &rogue.table)], rogue.rows as f64);
    }
}

/// By source: a metric for each table would be too many where there are thousands; `/status` has each.
fn tables(page: &mut Page<'_>, status: &Status) {
    #[derive(Default)]
    struct Sum {
        rows: u64,
        estimated: u64,
        bytes: u64,
        states: BTreeMap<&'static str, u64>,
    }
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for table in &status.tables {
        let sum = sums.entry(&table.source).or_default();
        sum.rows += table.rows_copied;
        sum.estimated += table.rows_estimated;
        sum.bytes += table.bytes_copied;
        *sum.states.entry(word(table.state)).or_default() += 1;
    }
    let mut each = |name, help, of: &dyn Fn(&Sum) -> u64| {
        let mut metric = page.gauge(name, help);
        for (source, sum) in &sums {
            metric.value(&[("source", source)], of(sum) as f64);
        }
    };
    each("crossfade_rows_copied", "Rows that are in the target by the copy.", &|sum| sum.rows);
    each("crossfade_rows_estimated", "How many they will be.", &|sum| sum.estimated);
    each("crossfade_bytes_copied", "Bytes of COPY text that are in the target.", &|sum| sum.bytes);
    let mut metric = page.gauge("crossfade_tables", "Tables by state.");
    for (source, sum) in &sums {
        for state in STATES.map(word) {
            let count = sum.states.get(state).copied().unwrap_or_default();
            metric.value(&[("source", source), ("state", state)], count as f64);
        }
    }
}

fn verdicts(page: &mut Page<'_>, status: &Status) {
    let Some(verify) = &status.verify else { return };
    let mut metric = page.gauge("crossfade_verify_tables", "Tables by their last verdict.");
    for (verdict, count) in [
        ("equal", verify.equal),
        ("different", verify.different),
        ("inconclusive", verify.inconclusive),
        ("unverified", verify.unverified),
    ] {
        metric.value(&[("verdict", verdict)], count as f64);
    }
    page.gauge("crossfade_verify_oldest_seconds", "Age of the oldest verdict that is equal or different.")
        .known(&[], verify.oldest.as_ref().map(|oldest| oldest.age));
}

fn findings(page: &mut Page<'_>, status: &Status) {
    let mut each = |name, help, of: &dyn Fn(&Counted) -> Option<f64>| {
        let mut metric = page.gauge(name, help);
        for finding in &status.findings {
            metric.known(&[("finding", &finding.name), ("severity", finding.severity())], of(finding));
        }
    };
    each("crossfade_finding_rows", "Rows of a finding, as they were counted last.", &|finding| {
        finding.count.map(|rows| rows as f64)
    });
    each("crossfade_finding_age_seconds", "How long ago they were counted, or could not be.", &|finding| finding.age);
}

fn warnings(page: &mut Page<'_>, status: &Status) {
    let mut codes: BTreeMap<&str, u64> = BTreeMap::new();
    for warning in &status.warnings {
        *codes.entry(warning.code).or_default() += 1;
    }
    let mut metric =
        page.gauge("crossfade_warnings", "Warnings of `crossfade status` by code; absent if there is none of it.");
    for (code, count) in codes {
        metric.value(&[("code", code)], count as f64);
    }
}

struct Page<'a> {
    text: String,
    plan: &'a str,
}

impl<'a> Page<'a> {
    fn gauge(&mut self, name: &'static str, help: &str) -> Metric<'_, 'a> {
        self.metric(name, help, "gauge")
    }

    fn counter(&mut self, name: &'static str, help: &str) -> Metric<'_, 'a> {
        self.metric(name, help, "counter")
    }

    fn metric(&mut self, name: &'static str, help: &str, kind: &str) -> Metric<'_, 'a> {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Metric { page: self, name }
    }
}

struct Metric<'p, 'a> {
    page: &'p mut Page<'a>,
    name: &'static str,
}

impl Metric<'_, '_> {
    fn known(&mut self, labels: &[(&str, &str)], value: Option<f64>) {
        if let Some(value) = value {
            self.value(labels, value);
        }
    }

    fn value(&mut self, labels: &[(&str, &str)], value: f64) {
        let text = &mut self.page.text;
        let _ = write!(text, "{}{{plan=\"{}\"", self.name, self.page.plan);
        for (name, label) in labels {
            let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, ",{name}=\"{label}\"");
        }
        let _ = writeln!(text, "}} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Applied, Lag, LogState, Rogue, SourceState, Warning};

    fn status(phase: Option<Phase>) -> Status {
        let lag = Lag { bytes: Some(0), seconds: Some(1.5), transactions: None };
        let source = SourceState {
            name: "shop".to_owned(),
            slot: "crossfade_shop_shop".to_owned(),
            source_lsn: None,
            confirmed_lsn: None,
            logged_lsn: None,
            applied_lsn: None,
            wal_kept_bytes: Some(16),
            lag,
        };
        Status {
            schema_version: 1,
            plan: "shop".to_owned(),
            epoch: 1,
            phase,
            follows: phase,
            way_back: None,
            rogue: vec![Rogue {
                table: "public.\"t\"".to_owned(),
                rows: 2,
                key: "id = 7".to_owned(),
                at: String::new(),
            }],
            writable_side: "source",
            sources: vec![source],
            tables: Vec::new(),
            apply: Applied { transactions: 3, ..Applied::default() },
            log: LogState::default(),
            verify: None,
            findings: Vec::new(),
            warnings: vec![Warning::new("wal_warn", "a \"quoted\" text"), Warning::new("wal_warn", "another")],
        }
    }

    #[test]
    fn what_is_known_is_told_and_what_is_not_is_absent() {
        let text = text(&status(Some(Phase::Following)), Some(&Stage { name: "legacy".to_owned(), revision: Seq(7) }));
        for line in [
            "crossfade_lag_seconds{plan=\"shop\",source=\"shop\"} 1.5",
            "crossfade_lag_bytes{plan=\"shop\",source=\"shop\"} 0",
            "crossfade_rogue_rows{plan=\"shop\",table=\"public.\\\"t\\\"\"} 2",
            "crossfade_wal_kept_bytes{plan=\"shop\",source=\"shop\"} 16",
            "crossfade_phase{plan=\"shop\",phase=\"following\"} 1",
            "crossfade_phase{plan=\"shop\",phase=\"copying\"} 0",
            "crossfade_writable_side{plan=\"shop\",side=\"source\"} 1",
            "crossfade_applied_transactions_total{plan=\"shop\"} 3",
            "crossfade_warnings{plan=\"shop\",code=\"wal_warn\"} 2",
            "crossfade_stage{plan=\"shop\",stage=\"legacy\"} 1",
            "crossfade_stage_revision{plan=\"shop\"} 7",
            "# TYPE crossfade_applied_transactions_total counter",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing:\n{text}");
        }
        for absent in ["crossfade_lag_transactions{", "crossfade_log_bytes{", "crossfade_verify"] {
            assert!(!text.contains(absent), "{absent}:\n{text}");
        }
        let unknown = super::text(&status(None), None);
        assert!(unknown.contains("crossfade_target_reached{plan=\"shop\"} 0") && !unknown.contains("crossfade_phase{"));
        assert!(!unknown.contains("crossfade_applied_rows_total{"), "{unknown}");
    }
}
