use std::time::Duration;

use model::Problem;

use super::{derived, positive, questions};
use crate::Finding;
use crate::written::{Entry, Section};

/// As for a check: longer than a query over a large table takes, shorter than people wait.
const TIMEOUT: Duration = Duration::from_secs(60);

const KNOWN: [&str; 5] = ["name", "reason", "severity", "sql", "timeout"];

/// The plan's `[[finding]]`s.
pub(super) fn check(entry: &Entry<'_>) -> Result<Vec<Finding>, Problem> {
    let mut findings: Vec<Finding> = Vec::new();
    for section in entry.sections(&KNOWN)? {
        let (entry, name) =
            questions::one_line(&section, "name", "member without a workspace", "say what is wrong with such rows")?;
        if let Some(other) = findings.iter().find(|other| other.name == name) {
            let why = format!("the finding in line {} has the same name", other.line);
            return Err(entry.problem(why, "give each finding a name of its own: reports go by it"));
        }
        findings.push(one(&section, name)?);
    }
    Ok(findings)
}

fn one(section: &Section<'_>, name: String) -> Result<Finding, Problem> {
    const SELECT: &str = "SELECT id FROM shop.public.orders WHERE …";
    let (_, reason) = questions::one_line(
        section,
        "reason",
        "not carried: it would belong to nobody",
        "say what becomes of such rows, and why",
    )?;
    let sql = section.get("sql").ok_or_else(|| {
        section.lacks("sql", format!("write the query over source tables whose rows they are: sql = {SELECT:?}"))
    })?;
    let timeout = section.get("timeout").map(|entry| positive(&entry, "60s")).transpose()?;
    Ok(Finding {
        name,
        reason,
        severity: questions::severity(section)?,
        sql: derived::sql(&sql, SELECT)?,
        timeout: timeout.unwrap_or(TIMEOUT),
        line: section.line(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{CheckSeverity, Plan};

    const PLAN: &str = r#"name = "shop"
[target]
url = "postgres://h/target"
schema = "exists"
[log]
url = "embedded"
[sources.shop]
url = "postgres://h/shop"
tables = ["public.*"]
"#;

    /// The plan with more lines behind it; they begin with line 10.
    fn parse(more: &str) -> Result<Plan, Problem> {
        Plan::parse(&format!("{PLAN}{more}"), Path::new("shop.toml"), &|_| None)
    }

    #[test]
    fn what_is_said_is_heard_and_the_rest_gets_its_default() {
        let plan = parse(
            "[[finding]]\nname = \"a\"\nreason = \" not carried \"\nsql = \"SELECT id FROM t\"
             [[finding]]\nname = \"b\"\nreason = \"r\"\nseverity = \"warning\"\ntimeout = \"5min\"\nsql = \"SELECT 1\"\n",
        )
        .unwrap();
        let [a, b] = plan.findings.try_into().unwrap();
        assert_eq!((a.name.as_str(), a.reason.as_str(), a.severity), ("a", "not carried", CheckSeverity::Error));
        assert_eq!(
            (a.timeout, a.line, a.sql.text.as_str(), a.sql.place(7)),
            (TIMEOUT, 10, "SELECT id FROM t", (13, 15))
        );
        assert_eq!((b.severity, b.timeout), (CheckSeverity::Warning, Duration::from_secs(300)));
    }

    #[test]
    fn what_has_no_meaning_is_told_with_its_line() {
        let finding = "[[finding]]\nname = \"a\"\nreason = \"r\"\nsql = \"SELECT 1\"\n";
        for (more, place, why, next) in [
            (format!("{finding}{finding}"), "15 (finding.name)", "line 10", "of its own"),
            (finding.replace("name = \"a\"\n", ""), "10 (finding.name)", "missing", "what is wrong"),
            (finding.replace("reason = \"r\"\n", ""), "10 (finding.reason)", "missing", "what becomes"),
            (finding.replace("\"r\"", "\"a\\nb\""), "12 (finding.reason)", "one line", "what becomes"),
            (finding.replace("sql = \"SELECT 1\"\n", ""), "10 (finding.sql)", "missing", "source tables"),
            (finding.replace("SELECT 1", " "), "13 (finding.sql)", "empty", "SELECT id"),
            (format!("{finding}severity = \"fatal\"\n"), "14 (finding.severity)", "\"fatal\"", "\"warning\""),
            (format!("{finding}timeout = \"0s\"\n"), "14 (finding.timeout)", "", ""),
            (format!("{finding}on = \"source\"\n"), "14 (finding.on)", "no key `on`", "name"),
        ] {
            let problem = parse(&more).unwrap_err();
            assert!(problem.what.contains(place), "{place}: {problem}");
            assert!(problem.why.contains(why) && problem.next.contains(next), "{why}, {next}: {problem}");
        }
    }

    #[test]
    fn the_way_back_and_a_drill_have_none() {
        let plan = parse("[[finding]]\nname = \"a\"\nreason = \"r\"\nsql = \"SELECT 1\"\n").unwrap();
        assert_eq!(plan.back().map(|back| back.findings.len()), Some(0));
    }
}
