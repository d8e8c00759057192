//! The plan's tables that are queries, and its findings: whether they can be kept current, and whether their target is free for them.

use model::{Code, Finding, Severity};
use pg::Session;
use plan::{Plan, WhenMissing};

use super::{Begun, begun, tables};
use crate::ApplyError;
use crate::derived::{self, CompileError};

pub(super) async fn look(plan: &Plan, session: &Session) -> Result<Vec<Finding>, ApplyError> {
    if plan.derived.is_empty() && plan.findings.is_empty() {
        return Ok(Vec::new());
    }
    let mut findings: Vec<Finding> = match derived::compile_all(plan, session).await {
        Ok(all) => {
            let warnings = plan.derived.iter().zip(&all.tables).flat_map(|(declared, compiled)| {
                compiled.warnings.iter().map(|trouble| derived::problem(plan, declared, trouble))
            });
            warnings.map(|problem| Finding { severity: Severity::Warning, problem }).collect()
        }
        Err(CompileError::Refused(problems)) => problems.into_iter().map(Finding::from).collect(),
        Err(error) => vec![model::Problem::from(error).into()],
    };
    if begun(session, plan).await? == Begun::No {
        findings.extend(occupied(plan, session).await?);
    }
    Ok(findings)
}

/// Rows that are there already would go, unless the query gives them; triggers would fire for each row that is written.
async fn occupied(plan: &Plan, session: &Session) -> Result<Vec<Finding>, ApplyError> {
    let (mut findings, mut oids) = (Vec::new(), Vec::new());
    for declared in &plan.derived {
        let into = &declared.into;
        let query = "SELECT c.oid, has_table_privilege(c.oid, 'SELECT') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE n.nspname = $1::text AND c.relname = $2::text";
        let Some(row) = session.query_opt(query, &[&into.schema, &into.name]).await? else { continue };
        oids.push(row.get(0));
        let goes = declared.when_missing == WhenMissing::Delete;
        if goes && row.get(1) && tables::has_rows(session, into).await? {
            findings.push(Finding::blocker(
                Code::TargetNotEmpty,
                format!("{}:{} ([[table]] {into})", plan.path.display(), declared.line),
                "the table has rows, and those that the query does not give would be deleted",
                format!("if they are of no use, TRUNCATE {}; else say when_missing = \"keep\"", into.quoted()),
            ));
        }
    }
    findings.extend(tables::triggers(session, &oids).await?);
    Ok(findings)
}
