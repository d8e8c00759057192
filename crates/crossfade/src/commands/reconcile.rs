use std::sync::Arc;

use model::{Problem, count};
use plan::{CheckSeverity, Plan};
use serde_json::{Map, Value, json};
use verify::reconcile::{Report, Verdict, reconcile};
use verify::{Checked, Databases, Fixing, OnlyIn, Outcome, Sample};

use crate::report::{self, Output};
use crate::wiring;

/// Runs the plan's checks, with `fix` their safe fixes too. Exit code 1 if errors are left, 2 if a check could not be run.
pub(crate) async fn run(plan: Arc<Plan>, fix: bool, output: Output) -> Result<u8, Problem> {
    let mut sources = Vec::new();
    for source in &plan.sources {
        sources.push((source.name.clone(), wiring::source(source)?));
    }
    let databases = Databases::new(wiring::target(&plan)?, sources, fix.then(|| plan.name.clone()));
    let report = reconcile(&plan, databases, fix).await?;
    // Once: the report that people read says only which checks they are.
    for problem in report.checks.iter().filter_map(|check| check.error.as_ref()) {
        tracing::error!("{problem}");
    }
    let document = document(&report);
    if output.json {
        output.print(&document);
    } else {
        output.text(&text(&report));
    }
    report::keep(&plan, "reconcile", &document);
    Ok(match report.verdict() {
        Verdict::Clean => 0,
        Verdict::Findings => 1,
        Verdict::Failed => 2,
    })
}

fn document(report: &Report) -> Value {
    let verdict = match report.verdict() {
        Verdict::Clean => "clean",
        Verdict::Findings => "findings",
        Verdict::Failed => "failed",
    };
    let checks: Vec<Value> = report.checks.iter().map(check).collect();
    json!({ "verdict": verdict, "seconds": report.took.as_secs_f64(), "checks": checks, "findings": report.findings })
}

fn check(checked: &Checked) -> Value {
    json!({
        "name": checked.name,
        "severity": severity(checked),
        "outcome": outcome(checked),
        "runs": checked.runs,
        "findings": checked.findings,
        "samples": checked.samples.iter().map(sample).collect::<Vec<_>>(),
        "probed": checked.probed.map(|(pages, of)| json!({ "pages": pages, "of": of })),
        "fix": checked.fixing.as_ref().map(fixing),
        "error": checked.error.as_ref().map(report::object),
    })
}

fn severity(checked: &Checked) -> &'static str {
    match checked.severity {
        CheckSeverity::Error => "error",
        CheckSeverity::Warning => "warning",
    }
}

fn outcome(checked: &Checked) -> &'static str {
    match checked.outcome() {
        Outcome::Passed => "passed",
        Outcome::Fixed => "fixed",
        Outcome::Findings => "findings",
        Outcome::Failed => "failed",
    }
}

fn sample(sample: &Sample) -> Value {
    let mut value = json!({ "row": columns(&sample.row) });
    if !sample.tenant.is_empty() {
        value["tenant"] = columns(&sample.tenant);
    }
    if let Some(side) = sample.only_in {
        value["only_in"] = self::side(side).into();
    }
    if let Some(got) = &sample.got {
        value["got"] = got.as_str().into();
    }
    value
}

fn columns(columns: &[(String, Option<String>)]) -> Value {
    columns.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect::<Map<_, _>>().into()
}

fn side(side: OnlyIn) -> &'static str {
    match side {
        OnlyIn::Source => "source",
        OnlyIn::Target => "target",
    }
}

fn fixing(fixing: &Fixing) -> Value {
    json!({
        "sql": fixing.fix.statements,
        "safe": fixing.fix.safe,
        "applied": fixing.applied,
        "rows": fixing.rows,
        "rolled_back": fixing.rolled_back,
    })
}

fn text(report: &Report) -> String {
    let mut checks: String = report.checks.iter().map(paragraph).collect();
    checks.extend(report.findings.iter().map(|finding| finding.text()));
    let so = |outcome| report.are(outcome).count();
    let warnings = report.are(Outcome::Findings).filter(|check| check.severity == CheckSeverity::Warning).count();
    let (passed, fixed, failed) = (so(Outcome::Passed), so(Outcome::Fixed), so(Outcome::Failed));
    let errors = so(Outcome::Findings) - warnings;
    let (errors, warnings) = (count(errors as u64, "error"), count(warnings as u64, "warning"));
    checks + &format!("{passed} passed, {fixed} fixed, {errors}, {warnings}, {failed} could not run\n")
}

fn paragraph(checked: &Checked) -> String {
    let word = match checked.outcome() {
        Outcome::Findings => severity(checked),
        Outcome::Passed | Outcome::Fixed | Outcome::Failed => outcome(checked),
    };
    let mut text = format!("{word:<8} {}{}\n", checked.name, extent(checked));
    for sample in &checked.samples {
        // What a row holds must not steer the terminal.
        text += &format!("         {}\n", line(sample).replace(char::is_control, " "));
    }
    let more = checked.findings.saturating_sub(checked.samples.len() as u64);
    if more > 0 {
        text += &format!("         and {more} more\n");
    }
    if let Some(fixing) = &checked.fixing {
        text += &advice(checked, fixing);
    }
    text
}

/// How much was looked at and found.
fn extent(checked: &Checked) -> String {
    let runs = if checked.runs > 1 { format!(" ({})", count(checked.runs, "run")) } else { String::new() };
    let pages = checked.probed.map(|(pages, of)| format!(" ({pages} of {})", count(of, "page"))).unwrap_or_default();
    let findings = if checked.findings > 0 { format!(": {}", checked.findings) } else { String::new() };
    format!("{runs}{pages}{findings}")
}

fn line(sample: &Sample) -> String {
    let value = |(name, value): &(String, Option<String>)| format!("{name}={}", value.as_deref().unwrap_or("null"));
    let values = |columns: &[_]| columns.iter().map(value).collect::<Vec<_>>().join(", ");
    let mut line = values(&sample.row);
    if !sample.tenant.is_empty() {
        line = format!("[{}] {line}", values(&sample.tenant));
    }
    if let Some(side) = sample.only_in {
        line = format!("only in the {}: {line}", self::side(side));
    }
    match &sample.got {
        Some(got) => format!("{line}: got {got}"),
        None => line,
    }
}

/// What became of the fix, and what is left to people.
fn advice(checked: &Checked, Fixing { fix, applied, rows, rolled_back }: &Fixing) -> String {
    let mut text = String::new();
    if *applied > 0 {
        text += &format!("         fixed in {}, {} written\n", count(*applied, "run"), count(*rows, "row"));
    }
    if let Some(why) = rolled_back {
        text += &format!("         its fix was rolled back: {why}\n");
    }
    if checked.findings > 0 {
        let how = match (fix.safe, rolled_back) {
            (false, _) => "not marked safe, for you to judge",
            (true, Some(_)) => "correct it",
            (true, None) => "`crossfade reconcile --fix` runs it",
        };
        text += &format!("         fix ({how}): {}\n", fix.statements.join("; "));
    }
    text
}
