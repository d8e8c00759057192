//! One check of the plan: what it asks is asked for each of its tenants, and what it finds mended where it may be.
//!
//! [`databases`] are visited in transactions, [`rows`] come back as text, [`tenant`] says for whom, [`found`] what was found. A check of both sides
//! compares them in [`same`]; an HTTP probe chooses pages with [`spread`] and fetches them in [`probe`]; [`fix`](mod@fix) runs what mends it.
//! Every run is a transaction of its own, so no snapshot is held longer than one answer takes.

mod databases;
mod fix;
mod found;
mod probe;
mod refused;
mod rows;
mod same;
mod spread;
mod tenant;

use model::{Problem, count};
use plan::{Asks, Check, CheckSeverity, Fix};

pub use databases::Databases;
pub use found::{OnlyIn, Sample};

use databases::Visit;
use fix::Fixed;
use found::Found;
use rows::{Rows, Statement};
use same::Side;
use tenant::Tenant;

/// How a check went.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The check's name.
    pub name: String,
    /// What its findings mean.
    pub severity: CheckSeverity,
    /// How often it ran: once for each tenant. Fewer if one of them failed.
    pub runs: u64,
    /// What is found, after any fix.
    pub findings: u64,
    /// Some of it, as many as the check keeps.
    pub samples: Vec<Sample>,
    /// Of an HTTP probe: how many pages were fetched, and of how many.
    pub probed: Option<(u64, u64)>,
    /// The check's fix.
    pub fixing: Option<Fixing>,
    /// Why it could not be run, or not for all of its tenants.
    pub error: Option<Problem>,
}

/// The fix of a check, and what became of it.
#[derive(Clone, Debug)]
pub struct Fixing {
    /// What would mend the findings, or has.
    pub fix: Fix,
    /// For how many tenants it is committed, and the check passes.
    pub applied: u64,
    /// How many rows were written by that.
    pub rows: u64,
    /// Why it was rolled back, the first time it was.
    pub rolled_back: Option<String>,
}

/// In one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is nothing to find.
    Passed,
    /// There was something, and it is mended.
    Fixed,
    /// There is something.
    Findings,
    /// It could not be run.
    Failed,
}

impl Checked {
    fn new(check: &Check) -> Checked {
        let fix = match &check.asks {
            Asks::Rows { fix, .. } => fix.clone(),
            Asks::Same { .. } | Asks::Http { .. } => None,
        };
        Checked {
            name: check.name.clone(),
            severity: check.severity,
            runs: 0,
            findings: 0,
            samples: Vec::new(),
            probed: matches!(check.asks, Asks::Http { .. }).then_some((0, 0)),
            fixing: fix.map(|fix| Fixing { fix, applied: 0, rows: 0, rolled_back: None }),
            error: None,
        }
    }

    /// In one word.
    pub fn outcome(&self) -> Outcome {
        match (&self.error, self.findings, &self.fixing) {
            (Some(_), _, _) => Outcome::Failed,
            (None, 1.., _) => Outcome::Findings,
            (None, 0, Some(Fixing { applied: 1.., .. })) => Outcome::Fixed,
            (None, 0, _) => Outcome::Passed,
        }
    }

    fn add(&mut self, found: Found, keep: usize) {
        self.findings += found.count;
        self.samples.extend(found.samples);
        self.samples.truncate(keep);
    }

    fn saw(&mut self, found: &Found) {
        self.runs += 1;
        if let Some((pages, of)) = &mut self.probed {
            *pages += found.probed.0;
            *of += found.probed.1;
        }
    }
}

/// Runs a check, for all of its tenants; with `fix` its fix too, where it is safe and something is found.
pub(crate) async fn run(check: &Check, databases: &mut Databases, fix: bool) -> Checked {
    let mut checked = Checked::new(check);
    checked.error = run_all(check, databases, fix, &mut checked).await.err();
    checked
}

async fn run_all(check: &Check, databases: &mut Databases, fix: bool, checked: &mut Checked) -> Result<(), Problem> {
    for tenant in tenant::all(check, databases).await? {
        let found = look(check, &tenant, databases).await.map_err(|problem| tenant.at(problem))?;
        checked.saw(&found);
        if found.count == 0 {
            continue;
        }
        let left = match (&check.asks, &mut checked.fixing) {
            (Asks::Rows { sql, .. }, Some(fixing)) if fix && fixing.fix.safe => {
                fixed(check, sql, &tenant, databases, fixing, found).await
            }
            _ => found,
        };
        checked.add(left, check.sample);
    }
    match checked.probed {
        Some((_, 0)) => {
            Err(tenant::nothing("the query names no page", "correct it, or take the check out while there is none"))
        }
        _ => Ok(()),
    }
}

/// What a check finds for one tenant.
async fn look(check: &Check, tenant: &Tenant, databases: &mut Databases) -> Result<Found, Problem> {
    match &check.asks {
        Asks::Rows { sql, on, .. } => query(check, sql, tenant, &databases.read(on, check).await?).await,
        Asks::Same { sql, source, source_sql } => {
            let (ours, theirs) = databases.read_both(source, check).await?;
            let (ours, theirs) = (Side { visit: &ours, sql: source_sql }, Side { visit: &theirs, sql });
            same::differences(check, tenant, ours, theirs).await
        }
        Asks::Http { sql, on } => {
            let visit = databases.read(on, check).await?;
            let (all, pages) = probe::pages(check, sql, tenant, &visit).await?;
            // No transaction is open while servers are waited for.
            drop(visit);
            let probed = (pages.len() as u64, all);
            Ok(Found { probed, ..probe::fetch(check, pages).await? })
        }
    }
}

/// Every row is a finding.
async fn query(check: &Check, sql: &str, tenant: &Tenant, visit: &Visit<'_>) -> Result<Found, Problem> {
    let Statement { sql, values, .. } = Statement::of(visit, sql, tenant).await?;
    let mut rows = Rows::start(visit, &sql, &values).await?;
    let mut found = Found::default();
    while let Some(row) = rows.next().await? {
        found.add(check.sample, || Sample::new(tenant, &rows.columns(), &row));
    }
    Ok(found)
}

/// Lets the fix run, and notes in `fixing` how it went. What is left of what was found.
async fn fixed(
    check: &Check,
    sql: &str,
    tenant: &Tenant,
    databases: &mut Databases,
    fixing: &mut Fixing,
    found: Found,
) -> Found {
    let why = match fix::run(check, sql, &fixing.fix, tenant, databases).await {
        Ok(Fixed::Yes(rows)) => {
            fixing.applied += 1;
            fixing.rows += rows;
            return Found::default();
        }
        Ok(Fixed::No(left)) => format!("behind it the check still finds {}", count(left.count, "row")),
        Err(problem) => problem.why,
    };
    fixing.rolled_back.get_or_insert(why);
    found
}
