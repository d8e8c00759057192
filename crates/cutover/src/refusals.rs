//! What is in the way of a cutover. Nothing is changed by looking.

use std::sync::Arc;

use apply::Counted;
use log::Log;
use model::{Problem, Severity, TableName};
use pg::Session;
use plan::Plan;
use status::{Gather, Phase, Status};

use crate::back;
use crate::bolts;
use crate::bouncer;
use crate::derived;
use crate::error::CutoverError;
use crate::journal;
use crate::report::Refusal;
use crate::run::{Job, Options};

/// Seconds for which a transaction that writes may be open: the fence would wait for its locks, and the application behind it.
const LONG: f64 = 5.0;

/// Of the server's lock table, in per cent, what the fence may take.
const LOCKS: i64 = 50;

/// Everything that is.
pub(crate) async fn find(job: &Job, options: &Options, target: &Session) -> Result<Vec<Refusal>, CutoverError> {
    let mut found = Vec::new();
    let log = async || -> Result<Option<Arc<dyn Log>>, Problem> { Ok(Some(job.verify.log.open().await?)) };
    let status = Gather::new(Arc::clone(&job.verify.plan))?.now(log).await;
    standing(job, &status, options, &mut found);
    verdicts(target, options, &mut found).await?;
    derived::find(target, &job.verify.plan, options, &mut found).await?;
    enclosed(target, &job.verify.plan, &job.verify.plan.target_side(), &mut found).await?;
    for (source, endpoint) in job.verify.plan.sources.iter().zip(&job.verify.sources) {
        let session = pg::connect_read_only(endpoint, "cutover").await?;
        let place = job.leaves(&source.name);
        at_source(&session, &place, &mut found).await?;
        subscribed(&session, target, &source.name, &place, &mut found).await?;
        fits(&session, target, &source.name, &place, &mut found).await?;
        if job.verify.plan.cutover.fence.read_only {
            may_set(&session, &place, &mut found).await?;
        }
    }
    // The decision makes it what it was before.
    if bolts::is_read_only(target, &job.verify.plan.target_side()).await? {
        may_set(target, &format!("the {}", job.opens()), &mut found).await?;
    }
    let mut epoch = journal::last(target).await?.map_or(0, |entry| entry.epoch);
    for endpoint in &job.verify.sources {
        let session = pg::connect_read_only(endpoint, "cutover").await?;
        epoch = epoch.max(journal::last(&session).await?.map_or(0, |entry| entry.epoch));
    }
    bouncer::find(&job.verify.plan, epoch, &mut found).await;
    if !job.is_back() {
        for (table, (rows, key)) in back::rogue(target).await? {
            let text = match rows {
                0 => format!(
                    "whether somebody else has written to table {table} of the target is not known, for {key}: `crossfade verify`"
                ),
                rows => format!(
                    "somebody else has written {rows} rows to table {table} of the target, the last with {key}: find out who; `crossfade verify` shows what differs and, where nothing does, forgives it"
                ),
            };
            refuse(&mut found, "rogue_writes", text);
        }
        if !options.no_way_back {
            way_back(job, target, &mut found).await?;
        }
    }
    Ok(found)
}

/// What is written to the target afterwards could be carried to the source.
async fn way_back(job: &Job, target: &Session, found: &mut Vec<Refusal>) -> Result<(), CutoverError> {
    let otherwise = "`crossfade cutover --no-way-back` if that is how you want it";
    if let Some(derived) = job.verify.plan.derived.first() {
        let text = format!(
            "there is no way back for tables that queries give, {} the first of them: what is written to them afterwards is not carried to the source; {otherwise}",
            derived.into
        );
        refuse(found, "no_way_back", text);
        return Ok(());
    }
    let (Some(back), [endpoint]) = (back::plan_back(&job.verify.plan, target).await?, &job.verify.sources[..]) else {
        let text = format!(
            "a plan with several sources has no way back: what is written to the target afterwards is not carried to them; {otherwise}"
        );
        refuse(found, "no_way_back", text);
        return Ok(());
    };
    let mut refuse = |why: String| refuse(found, "way_back", format!("there would be no way back: {why}; {otherwise}"));
    for source in &back.sources {
        let name = capture::slot_name(&back.name, &source.name);
        match capture::slot_state(target, &name).await? {
            None => refuse(format!(
                "slot {name} is not at the target yet: `crossfade run`, or `capture`, makes it and says what is in its way"
            )),
            Some(slot) if slot.wal_status == "lost" => refuse(format!(
                "slot {name} at the target can no longer serve, for the server has removed WAL that it needs: `crossfade run`, or `capture`, begins it anew"
            )),
            Some(slot) if slot.active_pid.is_none() => {
                refuse(format!("nobody reads slot {name} at the target: start `crossfade run`, or `crossfade capture`"))
            }
            Some(_) => {}
        }
    }
    // A rollback closes the target as a cutover closes the source.
    if job.verify.plan.cutover.fence.read_only {
        bolts::lacks(target, "the target").await?.into_iter().for_each(&mut refuse);
    }
    let session = pg::connect_read_only(endpoint, "cutover").await?;
    for finding in
        apply::preflight(&back, &session).await?.into_iter().filter(|finding| finding.severity == Severity::Blocker)
    {
        let Problem { what, why, next, .. } = finding.problem;
        refuse(format!("{what}: {why} ({next})"));
    }
    let tables: Vec<String> =
        apply::back_tables(target, &job.verify.plan.sources[0].name).await?.iter().map(TableName::quoted).collect();
    let query = "SELECT name, current_user::text, array_to_string(ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) p
                        WHERE NOT has_table_privilege(to_regclass(name)::oid, p)), ', ')
                   FROM unnest($1::text[]) name WHERE to_regclass(name) IS NOT NULL";
    for row in &session.query(query, &[&tables]).await? {
        let (table, role, missing): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        if !missing.is_empty() {
            refuse(format!(
                "role {role} lacks {missing} at the source (GRANT {missing} ON {table} TO {})",
                model::quote::ident(&role)
            ));
        }
    }
    Ok(())
}

/// Rows that must not be there.
pub(crate) fn findings(counted: &[Counted], found: &mut Vec<Refusal>) {
    for finding in counted.iter().filter(|finding| finding.is_error()) {
        let next = match finding.count {
            Some(_) => {
                "`crossfade reconcile` shows some; put right at the source what causes them, or let the plan call it a `warning`"
            }
            None => "see to it that it can be counted, or let the plan call it a `warning`",
        };
        refuse(found, "finding", format!("finding {}: {next}", finding.line()));
    }
}

pub(crate) fn refuse(found: &mut Vec<Refusal>, code: &'static str, text: impl Into<String>) {
    found.push(Refusal { code, text: text.into() });
}

/// What the status says.
fn standing(job: &Job, status: &Status, options: &Options, found: &mut Vec<Refusal>) {
    if status.follows != Some(Phase::Following) {
        let phase = status.follows.map_or("unknown".to_owned(), |phase| format!("{phase:?}").to_lowercase());
        refuse(found, "not_following", format!("the phase is {phase}: wait for `following` in `crossfade status`"));
    }
    for source in &status.sources {
        match source.lag.seconds {
            Some(seconds) if seconds <= options.max_lag.as_secs_f64() => {}
            Some(seconds) => refuse(
                found,
                "lag",
                format!(
                    "the {} is {seconds:.1} s behind {}, more than --max-lag: wait until it has caught up",
                    job.opens(),
                    job.leaves(&source.name)
                ),
            ),
            None => refuse(
                found,
                "lag",
                format!(
                    "it is not known how far the {} is behind {}: see `crossfade status`",
                    job.opens(),
                    job.leaves(&source.name)
                ),
            ),
        }
    }
    for warning in &status.warnings {
        let code = match warning.code {
            "capture_down" => "capture_down",
            "apply_down" | "apply_stopped" => "apply_down",
            "slot_lost" | "wal_critical" => "slot_at_risk",
            "source_unreachable" => "source_unreachable",
            "log_unreachable" => "log_unreachable",
            "target_unreachable" => "target_unreachable",
            _ => continue,
        };
        let text = status.sources.iter().fold(warning.text.clone(), |text, source| {
            text.replace(&format!("source {:?}", source.name), &job.leaves(&source.name))
        });
        let text = match warning.code {
            "slot_lost" if job.is_back() => {
                "the slot of the way back at the target is gone, or can no longer serve: there is no way back any more; stay, and end with `crossfade complete`".to_owned()
            }
            "wal_critical" => {
                format!("{text}: see in `crossfade status` what keeps it back, and wait until capture has caught up")
            }
            _ => text,
        };
        refuse(found, code, text);
    }
}

/// The target is closed to everybody but crossfade.
async fn enclosed(target: &Session, plan: &Plan, side: &str, found: &mut Vec<Refusal>) -> Result<(), CutoverError> {
    let there = "SELECT to_regclass('crossfade.fence') IS NOT NULL AND to_regclass('crossfade.tables') IS NOT NULL";
    if !target.query_one(there, &[]).await?.get::<_, bool>(0) {
        refuse(
            found,
            "target_not_fenced",
            "the target has no fence yet: start `crossfade run`, or `crossfade apply`, of this version",
        );
        return Ok(());
    }
    let rows = target
        .query("SELECT DISTINCT into_schema, into_name FROM crossfade.tables WHERE into_schema <> 'crossfade'", &[])
        .await?;
    let tables = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    let tables: Vec<TableName> = tables.chain(plan.derived.iter().map(|derived| derived.into.clone())).collect();
    let bare = pg::fence::bare(target, side, &tables).await?;
    for relation in pg::fence::unguarded(target, side, &tables).await? {
        let next = match bare.contains(&relation) {
            true => format!("GRANT TRIGGER ON {relation} to crossfade's role there, start apply again"),
            false => format!("ALTER TABLE ONLY {relation} ENABLE TRIGGER {}", pg::fence::trigger(side)),
        };
        let text = format!("anybody may write to {relation} at the target: {next}, and `crossfade verify`");
        refuse(found, "target_not_fenced", text);
    }
    Ok(())
}

/// Every table was found to be equal, as a whole, and not long ago. Where nothing is stored of one, that is asked of the derived tables that are streamed from it.
async fn verdicts(target: &Session, options: &Options, found: &mut Vec<Refusal>) -> Result<(), CutoverError> {
    let there = "SELECT to_regclass('crossfade.verdict') IS NOT NULL AND to_regclass('crossfade.tables') IS NOT NULL";
    if !target.query_one(there, &[]).await?.get::<_, bool>(0) {
        refuse(found, "verify_missing", "nothing was ever compared: `crossfade verify`");
        return Ok(());
    }
    let rows = target
        .query(
            "SELECT format('%s.%s', t.into_schema, t.into_name), v.verdict, v.why, v.sample IS NOT NULL, extract(epoch FROM clock_timestamp() - v.at)::float8
               FROM (SELECT DISTINCT source, into_schema, into_name FROM crossfade.tables WHERE NOT (into_schema = 'crossfade' AND starts_with(into_name, 'shape '))) t
               LEFT JOIN crossfade.verdict v ON (v.source, v.schema, v.name) = (t.source, t.into_schema, t.into_name) ORDER BY 1",
            &[],
        )
        .await?;
    for row in &rows {
        let (table, verdict): (String, Option<String>) = (row.get(0), row.get(1));
        match verdict.as_deref() {
            None => refuse(found, "verify_missing", format!("table {table} was never compared: `crossfade verify`")),
            Some("equal") if row.get::<_, bool>(3) => {
                refuse(
                    found,
                    "verify_sample",
                    format!("of table {table} only a sample was compared: `crossfade verify` without --sample"),
                );
            }
            Some("equal") if row.get::<_, f64>(4) > options.max_verify_age.as_secs_f64() => {
                refuse(
                    found,
                    "verify_old",
                    format!(
                        "table {table} was compared {:.1} h ago, longer than --max-verify-age: `crossfade verify`",
                        row.get::<_, f64>(4) / 3600.0
                    ),
                );
            }
            Some("equal") => {}
            Some("different") => {
                refuse(
                    found,
                    "verify_different",
                    format!(
                        "table {table} is not the same on both sides: `crossfade verify` shows the rows, `crossfade recopy` mends them"
                    ),
                );
            }
            Some(_) => {
                let why: Option<String> = row.get(2);
                refuse(
                    found,
                    "verify_inconclusive",
                    format!("nothing could be said of table {table} ({}): `crossfade verify`", why.unwrap_or_default()),
                );
            }
        }
    }
    Ok(())
}

/// What would keep the fence from getting its locks.
async fn at_source(session: &Session, place: &str, found: &mut Vec<Refusal>) -> Result<(), CutoverError> {
    let rows = session
        .query(
            "SELECT pid, coalesce(usename, '?')::text, coalesce(application_name, ''), extract(epoch FROM clock_timestamp() - xact_start)::float8
               FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL
                AND xact_start < clock_timestamp() - make_interval(secs => $1)",
            &[&LONG],
        )
        .await?;
    for row in &rows {
        let (pid, user, name, age): (i32, String, String, f64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let text = format!(
            "at {place} a transaction that writes has been open for {age:.0} s (pid {pid}, {user} {name}): end it, or SELECT pg_terminate_backend({pid})"
        );
        refuse(found, "long_transaction", text);
    }
    let rows = session.query("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()", &[]).await?;
    for row in &rows {
        let gid = model::quote::literal(row.get(0));
        refuse(
            found,
            "prepared_transaction",
            format!("at {place} a transaction is prepared: COMMIT PREPARED {gid}, or ROLLBACK PREPARED {gid}"),
        );
    }
    let query = "SELECT a.pid, left(a.query, 60) FROM pg_stat_activity a
                  WHERE a.datname = current_database() AND a.state = 'active' AND a.pid <> pg_backend_pid()
                    AND (a.backend_type = 'autovacuum worker' AND a.query LIKE '%wraparound%'
                         OR a.backend_type = 'client backend' AND EXISTS (
                            SELECT FROM pg_stat_progress_vacuum p WHERE p.pid = a.pid UNION ALL SELECT FROM pg_stat_progress_create_index p WHERE p.pid = a.pid
                            UNION ALL SELECT FROM pg_stat_progress_cluster p WHERE p.pid = a.pid))";
    for row in &session.query(query, &[]).await? {
        let (pid, what): (i32, String) = (row.get(0), row.get(1));
        refuse(
            found,
            "maintenance",
            format!("at {place} pid {pid} holds locks that the fence needs ({what}): let it end"),
        );
    }
    Ok(())
}

/// A subscription writes without firing statement triggers, so that no fence holds it back.
async fn subscribed(
    session: &Session,
    target: &Session,
    source: &str,
    place: &str,
    found: &mut Vec<Refusal>,
) -> Result<(), CutoverError> {
    let there = "SELECT to_regclass('crossfade.tables') IS NOT NULL";
    if !target.query_one(there, &[]).await?.get::<_, bool>(0) {
        return Ok(());
    }
    let rows = target.query("SELECT schema, name FROM crossfade.tables WHERE source = $1::text", &[&source]).await?;
    let tables: Vec<TableName> =
        rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    // A subscription may name the root of a partition.
    let tables = pg::fence::relations(session, &tables).await?;
    let rows = session
        .query(
            "SELECT DISTINCT s.subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid JOIN pg_subscription_rel r ON r.srsubid = s.oid
              WHERE d.datname = current_database() AND s.subenabled
                AND r.srrelid IN (SELECT to_regclass(name)::oid FROM unnest($1::text[]) name)",
            &[&tables],
        )
        .await?;
    for row in &rows {
        let name: String = row.get(0);
        let text = format!(
            "{place} gets rows of the plan's tables by subscription {name:?}, which no fence holds back: ALTER SUBSCRIPTION {} DISABLE",
            model::quote::ident(&name)
        );
        refuse(found, "subscription", text);
    }
    let sees = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), current_user::text";
    let row = session.query_one(sees, &[]).await?;
    if !row.get::<_, bool>(0) {
        let role = model::quote::ident(row.get(1));
        refuse(
            found,
            "privileges",
            format!(
                "at {place} role {role} does not see which transactions are open: GRANT pg_read_all_stats TO {role}"
            ),
        );
    }
    Ok(())
}

/// The role may make a database's sessions read-only.
async fn may_set(session: &Session, place: &str, found: &mut Vec<Refusal>) -> Result<(), CutoverError> {
    for text in bolts::lacks(session, place).await? {
        refuse(found, "privileges", text);
    }
    Ok(())
}

/// The server can hold as many locks as the fence takes.
async fn fits(
    session: &Session,
    target: &Session,
    source: &str,
    place: &str,
    found: &mut Vec<Refusal>,
) -> Result<(), CutoverError> {
    let room: i64 = session
        .query_one(
            "SELECT current_setting('max_locks_per_transaction')::int8 * (current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8)",
            &[],
        )
        .await?
        .get(0);
    let there = "SELECT to_regclass('crossfade.tables') IS NOT NULL";
    if !target.query_one(there, &[]).await?.get::<_, bool>(0) {
        return Ok(());
    }
    let wanted: i64 =
        target.query_one("SELECT count(*) FROM crossfade.tables WHERE source = $1::text", &[&source]).await?.get(0);
    if wanted * 100 > room * LOCKS {
        let text = format!(
            "{place} has room for some {room} locks, and the fence takes {wanted} at once: raise max_locks_per_transaction and restart it"
        );
        refuse(found, "locks_short", text);
    }
    Ok(())
}
