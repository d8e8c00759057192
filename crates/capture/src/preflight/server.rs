use model::{Code, Finding, quote};
use pg::Session;
use plan::{Plan, SchemaMode, Source};

use crate::{CaptureError, schema, slot};

/// Logical messages in pgoutput, and streaming of transactions in progress.
const OLDEST: u32 = 140_000;

/// The role that crossfade logs in as.
pub(super) struct Role {
    pub name: String,
}

const FACTS: &str = "
SELECT current_setting('wal_level') AS wal_level, current_setting('max_replication_slots')::int4 AS max_slots,
       (SELECT count(*) FROM pg_replication_slots)::int4 AS slots,
       current_setting('max_wal_senders')::int4 AS max_senders, (SELECT count(*) FROM pg_stat_replication)::int4 AS senders,
       r.rolname::text AS role,
       r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication' AND pg_has_role(m.oid, 'MEMBER'))
         AS may_replicate,
       has_database_privilege(current_database(), 'CREATE') AS may_create, current_database()::text AS database,
       pg_is_in_recovery() AS standby, current_setting('server_encoding') AS encoding,
       current_setting('max_slot_wal_keep_size') AS keep,
       (SELECT count(*) FROM pg_publication WHERE pubname = ANY ($1)) = 2 AS published
  FROM pg_roles r WHERE r.rolname = current_user";

/// Looks at the server's settings and the role's rights.
pub(super) async fn look(
    plan: &Plan,
    source: &Source,
    session: &Session,
    own: Option<&slot::SlotState>,
) -> Result<(Vec<Finding>, Role), CaptureError> {
    let place = format!("source {:?} ({})", source.name, session.place());
    let version = session.server_version();
    let publications = crate::publication::names(&plan.name, &source.name).to_vec();
    let row = session.query_one(FACTS, &[&publications]).await?;
    let role = Role { name: row.get("role") };
    let quoted = quote::ident(&role.name);
    let mut findings = Vec::new();
    if version < OLDEST {
        let why = format!("it runs Postgres {}, crossfade reads 14 and newer", version / 10_000);
        findings.push(Finding::blocker(
            Code::ServerTooOld,
            &place,
            why,
            "upgrade the server, or capture from a newer replica",
        ));
    }
    if row.get("standby") {
        findings.push(Finding::blocker(
            Code::ConnectionFailed,
            &place,
            "it is a standby, where no publication can be made",
            "name the primary in the source's url",
        ));
    }
    let wal_level: String = row.get("wal_level");
    if wal_level != "logical" {
        let why = format!("wal_level is {wal_level:?}, and must be logical");
        findings.push(Finding::blocker(
            Code::WalLevel,
            &place,
            why,
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
        ));
    }
    let (max, used): (i32, i32) = (row.get("max_slots"), row.get("slots"));
    if own.is_none() && used >= max {
        let why = format!("all {max} replication slots are taken (max_replication_slots)");
        let next = format!(
            "ALTER SYSTEM SET max_replication_slots = {}; then restart the server, or drop a slot that nobody needs: SELECT slot_name FROM pg_replication_slots WHERE NOT active",
            max + 4
        );
        findings.push(Finding::blocker(Code::SlotsExhausted, &place, why, next));
    }
    let (max, used): (i32, i32) = (row.get("max_senders"), row.get("senders"));
    if own.is_none_or(|slot| slot.active_pid.is_none()) && used >= max {
        let why = format!("all {max} WAL senders are in use (max_wal_senders)");
        let next = format!("ALTER SYSTEM SET max_wal_senders = {}; then restart the server", max + 4);
        findings.push(Finding::blocker(Code::SlotsExhausted, &place, why, next));
    }
    if !row.get::<_, bool>("may_replicate") {
        let why = format!("role {} may not replicate: it lacks REPLICATION", role.name);
        findings.push(Finding::blocker(
            Code::PrivilegeMissing,
            &place,
            why,
            format!("ALTER ROLE {quoted} REPLICATION;"),
        ));
    }
    if !row.get::<_, bool>("may_create") && !row.get::<_, bool>("published") {
        let database: String = row.get("database");
        let why = format!("role {} may not create publications in database {database}", role.name);
        let next = format!("GRANT CREATE ON DATABASE {} TO {quoted};", quote::ident(&database));
        findings.push(Finding::blocker(Code::PrivilegeMissing, &place, why, next));
    }
    if plan.target.schema == SchemaMode::Clone && own.is_none() {
        findings.extend(schema::pg_dump((version / 10_000) as i32).err().map(Finding::from));
    }
    if row.get::<_, &str>("encoding") == "SQL_ASCII" {
        let why =
            "its encoding is SQL_ASCII: text in it may be of any encoding, and what is no UTF-8 cannot be carried";
        let next = "see that all text is UTF-8, or convert it before the copy";
        findings.push(Finding::warning(Code::NotCarried, &place, why, next));
    }
    let keep: String = row.get("keep");
    if keep != "-1" {
        let why = format!(
            "max_slot_wal_keep_size is {keep}: a backlog larger than that loses the slot, and the migration with it"
        );
        let next = "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf(); (limits.wal_warn and wal_critical watch the disk)";
        findings.push(Finding::warning(Code::SlotLost, &place, why, next));
    }
    findings.extend(transactions(session, own.is_some()).await?);
    Ok((findings, role))
}

/// Those that the slot and the barrier would wait for.
async fn transactions(session: &Session, begun: bool) -> Result<Vec<Finding>, CaptureError> {
    if begun {
        return Ok(Vec::new());
    }
    let long = session
        .query(
            "SELECT pid, coalesce(usename::text, ''), coalesce(datname::text, ''), date_trunc('second', clock_timestamp() - xact_start)::text
               FROM pg_stat_activity WHERE xact_start < clock_timestamp() - interval '5 minutes' AND backend_type = 'client backend'
              ORDER BY xact_start",
            &[],
        )
        .await?;
    let prepared = session
        .query("SELECT gid, owner::text, database::text, date_trunc('second', clock_timestamp() - prepared)::text FROM pg_prepared_xacts ORDER BY prepared", &[])
        .await?;
    let long = long.iter().map(|row| {
        let (pid, user, database, age): (i32, &str, &str, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let what = format!("transaction of pid {pid} (user {user}, database {database})");
        let why = format!("it is open for {age}; if it has written, slot and copy wait for its end");
        Finding::warning(Code::LongTransaction, what, why, format!("end it, or SELECT pg_terminate_backend({pid});"))
    });
    let prepared = prepared.iter().map(|row| {
        let (gid, owner, database, age): (&str, &str, &str, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let what = format!("prepared transaction {gid:?} (user {owner}, database {database})");
        let why = format!("it waits for {age}; slot and copy wait for its end");
        let gid = quote::literal(gid);
        Finding::warning(
            Code::LongTransaction,
            what,
            why,
            format!("COMMIT PREPARED {gid}; or ROLLBACK PREPARED {gid};"),
        )
    });
    Ok(long.chain(prepared).collect())
}
