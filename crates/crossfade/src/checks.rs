//! What is looked at before anything is changed, by `survey` for people and by the others for themselves: log, target and sources, and
//! what only two of them together show.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::log::Log;
use model::{Code, Finding, Identity, Problem, Severity, TableName};
use pg::Session;
use pg::catalog::Table;
use plan::{Plan, Source};
use tracing::warn;

use crate::wiring;

/// What was found, and which database the target is if it could be asked.
pub(crate) struct Look {
    pub(crate) findings: Vec<Finding>,
    pub(crate) target: Option<Identity>,
}

/// For `run` and `capture`: everything. Returns the target's identity.
///
/// # Errors
/// The first blocker.
pub(crate) async fn before_capture(plan: &Plan, log: &Arc<dyn Log>) -> Result<Identity, Problem> {
    let look = everything(plan, Some(log)).await?;
    let gone =
        || Problem::new(Code::ConnectionFailed, "the target", "it could not be asked who it is", "see that it runs");
    first_blocker(look.findings)?;
    look.target.ok_or_else(gone)
}

/// For `apply`: what concerns the target alone.
///
/// # Errors
/// The first blocker.
pub(crate) async fn before_apply(plan: &Plan) -> Result<(), Problem> {
    let session = pg::connect(&wiring::target(plan)?, "preflight").await?;
    first_blocker(apply::preflight(plan, &session).await?)
}

fn first_blocker(findings: Vec<Finding>) -> Result<(), Problem> {
    for finding in findings {
        match finding.severity {
            Severity::Blocker => return Err(finding.problem),
            Severity::Warning => warn!("{}", finding.problem),
        }
    }
    Ok(())
}

/// Looks at all there is. What cannot be reached is a finding too.
///
/// # Errors
/// The plan's URLs make no sense.
pub(crate) async fn everything(plan: &Plan, log: Option<&Arc<dyn Log>>) -> Result<Look, Problem> {
    let mut findings = Vec::new();
    let target = reach(&wiring::target(plan)?, &mut findings).await;
    if let Some((session, _)) = &target {
        take(&mut findings, apply::preflight(plan, session).await);
    }
    // A target that is no use as it is need not be compared with what is to come there.
    let usable = !findings.iter().any(|finding| finding.severity == Severity::Blocker);
    let mut names: BTreeMap<TableName, &str> = BTreeMap::new();
    let mut reached_all = true;
    for source in &plan.sources {
        let Some((session, identity)) = reach(&wiring::source(source)?, &mut findings).await else {
            reached_all = false;
            continue;
        };
        if let (Some(log), Some((_, target))) = (log, &target) {
            take(&mut findings, capture::preflight_log(log, plan, source, &identity, target).await);
        }
        take(&mut findings, capture::preflight(plan, source, &session).await);
        let needs = match capture::needs(source, &session).await {
            Ok(needs) => needs,
            Err(error) => {
                findings.push(Problem::from(error).into());
                continue;
            }
        };
        findings.extend(twice(plan, source, &needs, &mut names));
        let Some((target_session, target)) = &target else { continue };
        let one = needs.identity == *target && same_server(&session, target_session).await;
        let onto_itself = if one { onto_itself(plan, source, &needs) } else { Vec::new() };
        let torn = !onto_itself.is_empty();
        findings.extend(onto_itself);
        if usable && !torn {
            let capture::Needs { owners, owned, grantees, extensions, .. } = &needs;
            // The others go into mirrors, which crossfade makes itself.
            let tables: Vec<Table> =
                needs.tables.iter().filter(|table| goes_as_it_is(source, table)).cloned().collect();
            let needed = apply::Needed { tables: &tables, owners, owned, grantees, extensions };
            take(&mut findings, apply::preflight_source(plan, target_session, needed).await);
        }
    }
    if let (Some((session, _)), true, true) = (&target, usable, reached_all) {
        take(&mut findings, apply::preflight_derived(plan, session).await);
    }
    if reached_all {
        findings.extend(unknown_identity(plan, &names));
    }
    // Stable: within a severity the order is that of the checks.
    findings.sort_by_key(|finding| finding.severity);
    Ok(Look { findings, target: target.map(|(_, identity)| identity) })
}

async fn reach(endpoint: &pg::Endpoint, findings: &mut Vec<Finding>) -> Option<(Session, Identity)> {
    let reached = async {
        let session = pg::connect(endpoint, "preflight").await?;
        let identity =
            pg::catalog::identity(&session).await.map_err(|error| pg::PgError::from(error).at(session.place()))?;
        Ok::<_, pg::PgError>((session, identity))
    };
    match reached.await {
        Ok(reached) => Some(reached),
        Err(error) => {
            findings.push(Problem::from(error).into());
            None
        }
    }
}

/// A check that could not be made is a blocker: nobody knows what it would have found.
fn take<E: Into<Problem>>(findings: &mut Vec<Finding>, outcome: Result<Vec<Finding>, E>) {
    match outcome {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(error.into().into()),
    }
}

/// Whether a table goes into the target's of its name, or of its root's.
fn goes_as_it_is(source: &Source, table: &Table) -> bool {
    source.as_is.selects(&table.name) || table.root.as_ref().is_some_and(|root| source.as_is.selects(root))
}

/// Two sources must not fill one table.
fn twice<'a>(
    plan: &Plan,
    source: &'a Source,
    needs: &capture::Needs,
    names: &mut BTreeMap<TableName, &'a str>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for table in &needs.tables {
        let first = *names.entry(table.name.clone()).or_insert(&source.name);
        let both =
            || plan.source(first).is_some_and(|first| goes_as_it_is(first, table)) && goes_as_it_is(source, table);
        if first != source.name && both() {
            let why =
                format!("sources {first:?} and {:?} both select it, and the target can have it once", source.name);
            let next = format!("leave it out of one of them: \"!{}\" in its `tables`", table.name);
            findings.push(Finding::blocker(Code::PlanInvalid, format!("table {}", table.name), why, next));
        }
    }
    findings
}

/// Whether two sessions are on one running server. A server made from a base backup of another has its system identifier, so
/// that alone does not tell.
async fn same_server(one: &Session, other: &Session) -> bool {
    const STARTED: &str = "SELECT pg_postmaster_start_time()::text";
    match tokio::join!(one.query_one(STARTED, &[]), other.query_one(STARTED, &[])) {
        (Ok(one), Ok(other)) => one.get::<_, &str>(0) == other.get::<_, &str>(0),
        _ => false,
    }
}

/// Source and target are one database, under whatever names: no table can be both, and nothing may close or copy the database as a whole.
fn onto_itself(plan: &Plan, source: &Source, needs: &capture::Needs) -> Vec<Finding> {
    let database = &needs.identity.database;
    let into = |table: &&Table| plan.derived.iter().any(|derived| derived.into == table.name);
    if let Some(table) = needs.tables.iter().find(|table| goes_as_it_is(source, table) || into(table)) {
        let name = &table.name;
        let what = format!("{}: source {:?} and the target", plan.path.display(), source.name);
        let why = format!("they are the same database {database:?}, so {name} would be its own target");
        let next = match into(&table) {
            true => format!(
                "leave the target's tables out of the source's: \"!{name}\" in `tables` of [sources.{}]",
                source.name
            ),
            false => format!(
                "point [target] at another database; or let only queries read {name}, by a [[table]] into another table"
            ),
        };
        return vec![Finding::blocker(Code::PlanInvalid, what, why, next)];
    }
    if !plan.cutover.fence.read_only {
        return Vec::new();
    }
    let what = format!("{}: cutover.fence.read_only", plan.path.display());
    let why = format!(
        "source {:?} and the target are the same database {database:?}, and all of it would be read-only",
        source.name
    );
    vec![Finding::blocker(
        Code::PlanInvalid,
        what,
        why,
        "take it out: the triggers on the source's tables refuse their writes",
    )]
}

/// Tables under [identity] that no source has: a mistyped name would leave another table without its line.
fn unknown_identity(plan: &Plan, names: &BTreeMap<TableName, &str>) -> Vec<Finding> {
    // A root's line holds for its partitions, and roots are not among the names.
    let known = |table: &TableName| names.contains_key(table);
    plan.identity
        .keys()
        .filter(|table| !known(table))
        .map(|table| {
            let why = "no source of the plan has or selects a table of that name (it may be a partitioned one)";
            let next = "correct the name, or take the line out";
            Finding::warning(
                Code::IdentityMissing,
                format!("{}: [identity] \"{table}\"", plan.path.display()),
                why,
                next,
            )
        })
        .collect()
}
