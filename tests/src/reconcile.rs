//! What `crossfade reconcile` says of a world.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Crossfade, PlanFile, World};

/// How it ended.
#[derive(Debug)]
pub struct Reconciled {
    /// The exit code.
    pub code: i32,
    /// What it printed with `--json`.
    pub document: Value,
}

impl Reconciled {
    /// What it says of the check of that name.
    pub fn check(&self, name: &str) -> Result<&Value> {
        let checks = self.document["checks"].as_array();
        let found = checks.into_iter().flatten().find(|check| check["name"] == name);
        found.with_context(|| format!("no check {name:?} in {:#}", self.document))
    }

    /// An error unless the check of that name went so, with so many findings.
    pub fn expect(&self, name: &str, outcome: &str, findings: u64) -> Result<&Value> {
        let check = self.check(name)?;
        let right = check["outcome"] == outcome && check["findings"] == findings;
        ensure!(right, "{outcome} with {findings} findings expected: {check:#}");
        Ok(check)
    }

    /// An error unless it ended so.
    pub fn ended_with(&self, code: i32) -> Result<()> {
        ensure!(self.code == code, "exit code {code} expected, it is {}: {:#}", self.code, self.document);
        Ok(())
    }
}

/// Runs the plan's checks.
pub async fn run(crossfade: &Crossfade, fix: bool) -> Result<Reconciled> {
    let arguments = if fix { &["reconcile", "--fix", "--json"][..] } else { &["reconcile", "--json"] };
    let finished = crossfade.run(arguments).await?;
    let code = finished.status.code().with_context(|| format!("{finished:?}"))?;
    Ok(Reconciled { code, document: finished.json()? })
}

/// A plan from source to target of `world` with these `[[check]]`s.
pub fn plan(world: &World, checks: &str) -> PlanFile {
    world.plan().target_exists().section(checks)
}

/// Runs these `[[check]]`s over `world`.
pub async fn checks(world: &World, checks: &str) -> Result<Reconciled> {
    run(&Crossfade::new(&plan(world, checks))?, false).await
}

/// The same with `--fix`.
pub async fn fixes(world: &World, checks: &str) -> Result<Reconciled> {
    run(&Crossfade::new(&plan(world, checks))?, true).await
}
