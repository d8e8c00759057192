//! The plan's checks, one after the other, and what they amount to.

use std::time::{Duration, Instant};

use apply::Counted;
use model::{Code, Problem};
use plan::{Check, CheckSeverity, Plan};

use crate::check::{self, Checked, Databases, Outcome};

/// How all checks of a plan went.
#[derive(Clone, Debug)]
pub struct Report {
    /// Each of them, in the plan's order.
    pub checks: Vec<Checked>,
    /// Rows that rules leave out, or let be less than they were, in the plan's order, and then crossfade's own.
    pub findings: Vec<Counted>,
    /// How long it took.
    pub took: Duration,
}

/// What that amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every check ran, and what is found are warnings at most.
    Clean,
    /// Every check ran, and something is found.
    Findings,
    /// Some checks could not be run.
    Failed,
}

impl Report {
    /// What it amounts to.
    pub fn verdict(&self) -> Verdict {
        if self.are(Outcome::Failed).count() > 0 || self.findings.iter().any(|finding| finding.count.is_none()) {
            Verdict::Failed
        } else if self.are(Outcome::Findings).any(|check| check.severity == CheckSeverity::Error)
            || self.findings.iter().any(Counted::is_error)
        {
            Verdict::Findings
        } else {
            Verdict::Clean
        }
    }

    /// The checks that went so.
    pub fn are(&self, outcome: Outcome) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(move |check| check.outcome() == outcome)
    }
}

/// Runs the plan's checks one after the other, with `fix` those fixes too that are marked safe, and counts its findings. What cannot be run is in
/// the report, and the others run all the same.
///
/// # Errors
/// The plan has neither check nor finding.
pub async fn reconcile(plan: &Plan, mut databases: Databases, fix: bool) -> Result<Report, Problem> {
    if plan.checks.is_empty() && plan.findings.is_empty() {
        return Err(Problem::new(
            Code::PlanInvalid,
            plan.path.display().to_string(),
            "it has no [[check]] and no [[finding]], so there is nothing to reconcile",
            "write what must hold as a [[check]]; docs/plan.md has the keys",
        ));
    }
    let begun = Instant::now();
    let mut checks = Vec::new();
    for check in &plan.checks {
        let mut checked = check::run(check, &mut databases, fix).await;
        checked.error = checked.error.map(|problem| named(plan, check, problem));
        checks.push(checked);
    }
    // Behind them: what a fix has mended at the target is nothing that a finding is about.
    let findings = databases.findings(plan).await;
    Ok(Report { checks, findings, took: begun.elapsed() })
}

/// Says which check it was.
fn named(plan: &Plan, check: &Check, problem: Problem) -> Problem {
    let name = format!("check {:?} ({}:{})", check.name, plan.path.display(), check.line);
    let what =
        if problem.what.is_empty() { name } else { format!("{name}, {}", problem.what.trim_start_matches(", ")) };
    Problem { what, ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(severity: CheckSeverity, findings: u64, failed: bool) -> Checked {
        let error = failed.then(|| Problem::new(Code::CheckFailed, "", "", ""));
        Checked {
            name: String::new(),
            severity,
            runs: 1,
            findings,
            samples: Vec::new(),
            probed: None,
            fixing: None,
            error,
        }
    }

    #[test]
    fn a_failed_check_outweighs_findings_and_warnings_weigh_nothing() {
        use CheckSeverity::{Error, Warning};
        for (checks, verdict) in [
            (vec![checked(Error, 0, false), checked(Warning, 3, false)], Verdict::Clean),
            (vec![checked(Warning, 3, false), checked(Error, 1, false)], Verdict::Findings),
            (vec![checked(Error, 1, false), checked(Warning, 0, true)], Verdict::Failed),
        ] {
            assert_eq!(Report { checks, findings: Vec::new(), took: Duration::ZERO }.verdict(), verdict);
        }
    }
}
