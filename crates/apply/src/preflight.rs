//! What must be right at the target before anything is changed. Reads only.
//!
//! [`preflight`] looks at the server and the role, [`preflight_source`] at what a source brings: tables, roles, extensions, [`preflight_derived`] at the
//! tables that are queries.

mod derived;
mod schema;
mod tables;

use model::{Code, Finding, Problem, Severity, quote};
use pg::Session;
use pg::catalog::Table;
use plan::{Plan, SchemaMode};

use crate::{ApplyError, state};

/// `crossfade` is tested from here on, as with sources.
const OLDEST: u32 = 140_000;

/// Sessions of an apply process besides its copy workers' two each: tail, news, catalog, heartbeat, control, schema, findings and who looks whom they keep waiting.
const SESSIONS: i64 = 8;

/// How far this plan has got in the target.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Begun {
    /// There is no state of any plan.
    No,
    /// This plan's.
    Yes,
    /// That plan's.
    Other(String),
}

async fn begun(session: &Session, plan: &Plan) -> Result<Begun, ApplyError> {
    if !state::exists(session).await? {
        return Ok(Begun::No);
    }
    let names = session.query("SELECT name FROM crossfade.plan", &[]).await?;
    Ok(match names.first().map(|row| row.get::<_, String>(0)) {
        Some(name) if name == plan.name => Begun::Yes,
        Some(name) => Begun::Other(name),
        None => Begun::Other(String::new()),
    })
}

const FACTS: &str = "
SELECT r.rolname::text AS role, r.rolsuper AS superuser, pg_is_in_recovery() AS standby, current_database()::text AS database,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int4 AS max_origins,
       current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
         - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS free,
       ARRAY(SELECT f FROM unnest(ARRAY['pg_replication_origin_create(text)', 'pg_replication_origin_oid(text)', 'pg_replication_origin_drop(text)',
                                        'pg_replication_origin_session_setup(text)']) f
              WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')) AS functions
  FROM pg_roles r WHERE r.rolname = current_user";

/// What must be right at the target itself.
///
/// # Errors
/// The target cannot be asked.
pub async fn preflight(plan: &Plan, session: &Session) -> Result<Vec<Finding>, ApplyError> {
    let place = format!("the target ({})", session.place());
    let version = session.server_version();
    if version < OLDEST {
        let why = format!("it runs Postgres {}, crossfade writes 14 and newer", version / 10_000);
        return Ok(vec![Finding::blocker(Code::ServerTooOld, place, why, "upgrade the server, or use another one")]);
    }
    let row = session.query_one(FACTS, &[]).await?;
    let (role, database): (String, String) = (row.get("role"), row.get("database"));
    let (me, quoted_database) = (quote::ident(&role), quote::ident(&database));
    let mut findings = Vec::new();
    if row.get("standby") {
        let next = "name the primary in [target] url";
        return Ok(vec![Finding::blocker(
            Code::ConnectionFailed,
            place,
            "it is a standby, which takes no writes",
            next,
        )]);
    }
    let mut missing =
        |why: String, next: String| findings.push(Finding::blocker(Code::PrivilegeMissing, &place, why, next));
    let create = !row.get::<_, bool>("may_create");
    let schema_there: bool = session.query_one("SELECT to_regnamespace('crossfade') IS NOT NULL", &[]).await?.get(0);
    if create && !schema_there {
        let why = format!("role {role} may not create schemas in database {database}");
        missing(why, format!("GRANT CREATE ON DATABASE {quoted_database} TO {me};"));
    }
    if schema_there {
        let usable: bool = session
            .query_one("SELECT has_schema_privilege('crossfade', 'USAGE') AND (to_regclass('crossfade.plan') IS NULL OR has_table_privilege('crossfade.plan', 'SELECT'))", &[])
            .await?
            .get(0);
        if !usable {
            missing(
                format!("its schema crossfade is not role {role}'s"),
                "log in as the role that began the migration".to_owned(),
            );
            return Ok(findings);
        }
    }
    if let Err(error) = session.batch_execute("BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK").await {
        session.batch_execute("ROLLBACK").await?;
        let why = format!(
            "role {role} may not set session_replication_role, so triggers would run a second time: {}",
            pg::PgError::from(error)
        );
        let next = if version >= 150_000 {
            format!("GRANT SET ON PARAMETER session_replication_role TO {me};")
        } else {
            format!("ALTER ROLE {me} SUPERUSER;")
        };
        missing(why, next);
    }
    for function in row.get::<_, Vec<String>>("functions") {
        let why = format!("role {role} may not call {function}");
        missing(why, format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {me};"));
    }
    if let Begun::Other(other) = begun(session, plan).await? {
        let why = format!("it belongs to plan {other:?}, this is plan {:?}", plan.name);
        let next = format!("use another database, or end plan {other:?} with `crossfade complete`");
        findings.push(Finding::blocker(Code::TargetNotEmpty, "the target's schema crossfade", why, next));
    }
    findings.extend(origins(plan, session, &place, row.get("max_origins")).await?);
    let (free, wanted): (i64, i64) = (row.get("free"), 2 * plan.limits.copy_workers as i64 + SESSIONS);
    if free < wanted {
        let why = format!("{free} connections are free, an apply process uses {wanted}");
        let next = format!(
            "ALTER SYSTEM SET max_connections = …; then restart the server, or lower limits.copy_workers from {}",
            plan.limits.copy_workers
        );
        findings.push(Finding::warning(Code::ConnectionFailed, &place, why, next));
    }
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// Every session that writes rows takes a replication origin of its own.
async fn origins(plan: &Plan, session: &Session, place: &str, max: i32) -> Result<Option<Finding>, ApplyError> {
    let taken: i64 = session
        .query_one(
            "SELECT count(*) FROM pg_replication_origin WHERE NOT starts_with(roname, $1::text)",
            &[&plan::origins(&plan.name)],
        )
        .await?
        .get(0);
    let wanted = (plan.limits.copy_workers + 1 + plan.sources.len()) as i64;
    let free = i64::from(max) - taken;
    if free >= wanted {
        return Ok(None);
    }
    let setting =
        if session.server_version() >= 180_000 { "max_active_replication_origins" } else { "max_replication_slots" };
    let why = format!("{free} of {max} replication origins are free ({setting}), an apply process uses {wanted}");
    let next = format!(
        "ALTER SYSTEM SET {setting} = {}; then restart the server, or lower limits.copy_workers",
        taken + wanted + 4
    );
    Ok(Some(Finding::blocker(Code::SlotsExhausted, place, why, next)))
}

/// What a source's schema needs of the target, besides its tables.
#[derive(Clone, Copy, Debug)]
pub struct Needed<'a> {
    /// Tables that go into the target as they are.
    pub tables: &'a [Table],
    /// Roles that own something.
    pub owners: &'a [String],
    /// Who owns something in which schema.
    pub owned: &'a [(String, String)],
    /// Roles that something is granted to.
    pub grantees: &'a [String],
    /// Extensions.
    pub extensions: &'a [String],
}

/// What must be right for the plan's tables that are queries: at the target, and at the sources that they read. Asks all of them.
///
/// # Errors
/// The target cannot be asked.
pub async fn preflight_derived(plan: &Plan, session: &Session) -> Result<Vec<Finding>, ApplyError> {
    let mut findings = derived::look(plan, session).await?;
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// What must be right at the target for what a source brings. Nothing is looked for once the plan's state is there.
///
/// # Errors
/// The target cannot be asked.
pub async fn preflight_source(plan: &Plan, session: &Session, needed: Needed<'_>) -> Result<Vec<Finding>, ApplyError> {
    if begun(session, plan).await? != Begun::No {
        return Ok(Vec::new());
    }
    let mut findings = match plan.target.schema {
        SchemaMode::Clone => schema::look(session, needed).await?,
        SchemaMode::Exists => tables::look(session, needed.tables).await?,
    };
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// What keeps it from beginning: the first blocker; of rights that are missing all at once, so that nobody has to come back for the next one.
pub(crate) fn refusal(findings: Vec<Finding>) -> Option<Problem> {
    let blockers = findings.into_iter().filter(|finding| finding.severity == Severity::Blocker);
    let mut problems = blockers.map(|finding| finding.problem);
    let first = problems.next()?;
    if first.code != Code::PrivilegeMissing {
        return Some(first);
    }
    let rights = problems.filter(|problem| problem.code == Code::PrivilegeMissing);
    Some(rights.fold(first, |all, one| Problem {
        why: format!("{}; {}", all.why, one.why),
        next: format!("{} {}", all.next, one.next),
        ..all
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_rights_that_are_missing_are_told_at_once() {
        let blocker = |code, why: &str, next: &str| Finding::blocker(code, "the target", why, next);
        let warning = Finding::warning(Code::PrivilegeMissing, "the target", "w", "W;");
        let one = blocker(Code::PrivilegeMissing, "a", "GRANT A;");
        let other = blocker(Code::PrivilegeMissing, "b", "GRANT B;");
        let full = blocker(Code::TargetNotEmpty, "c", "C");
        let refused = refusal(vec![warning.clone(), one.clone(), full.clone(), other]).unwrap();
        assert_eq!((refused.why.as_str(), refused.next.as_str()), ("a; b", "GRANT A; GRANT B;"));
        assert_eq!(refusal(vec![full, one]).unwrap().why, "c");
        assert_eq!(refusal(vec![warning]), None);
    }
}
