//! The plan's findings: queries over what its tables are made of, whose rows are counted and not kept.

use mapping::{Catalog, Question, Trouble};
use model::Problem;
use pg::Session;
use plan::{Finding, Plan};

use super::catalog::{SourceTables, explained, unreadable};
use super::kept::Known;
use super::part::Part;
use super::trial::{self, Trial};
use crate::ApplyError;

/// Those of the plan, in its order, and all that is wrong with them: then some are left out.
///
/// # Errors
/// The target could not be asked.
pub(super) async fn questions(
    plan: &Plan,
    sources: &SourceTables,
    catalog: &Catalog,
    target: &Session,
) -> Result<(Vec<Question>, Vec<Problem>), ApplyError> {
    let (mut questions, mut problems) = (Vec::new(), Vec::new());
    for finding in &plan.findings {
        let part = Part::finding(plan, finding);
        let sql = &finding.sql;
        let question = match mapping::question(sql, catalog, &sources.homes) {
            Ok(question) => question,
            Err(trouble) => {
                problems.push(part.trouble(&explained(&trouble, sources)));
                continue;
            }
        };
        problems.extend(unreadable(&part, &question.sources, sources, target).await?);
        if let Ok(tried) = mapping::question(sql, catalog, &Trial) {
            problems.extend(trial::trouble_of(&part, &tried, catalog, target).await?);
        }
        questions.push(question);
    }
    Ok((questions, problems))
}

impl Known {
    /// What a finding asks, as the target has what it reads.
    ///
    /// # Errors
    /// What is in the way, for people.
    pub fn question(&self, finding: &Finding) -> Result<Question, String> {
        let question = mapping::question(&finding.sql, self.catalog(), &self.homes).map_err(|trouble| {
            let Trouble { what, why, .. } = trouble;
            format!("{what}: {why}")
        })?;
        match question.sources.iter().find(|source| self.is_unstored(source)) {
            None => Ok(question),
            // Its place is empty, and would be counted as such.
            Some(source) => Err(format!(
                "nothing is stored of table {source} but what is streamed from it, as no finding read it when it was copied; let it be copied again (`crossfade recopy {}`)",
                source.table
            )),
        }
    }
}
