//! A database whose sessions begin read-only: clients are told at once, and before any lock, that nothing is written there now.
//!
//! A session can undo it for itself (`BEGIN READ WRITE`), so it is no fence without [another](crate::fence). What the database had before stands in `crossfade.bolt`, written by the transaction
//! that changes it. A session takes the default as it is when it logs in, and keeps it: those from before are sent away when it is set, and those from meanwhile when it is [settled](settle).
//! (Postgres manual, "Setting Parameters": ALTER DATABASE.)

use std::time::Duration;

use model::quote;
use tokio_postgres::{Client, Error};

/// What it is called in `crossfade.bolt`.
pub const KIND: &str = "read_only";

const SETTING: &str = "default_transaction_read_only";

/// What the database has as its default, if anything; of all roles.
const NOW: &str = "(SELECT substr(c, strpos(c, '=') + 1) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c
    WHERE d.datname = current_database() AND s.setrole = 0 AND starts_with(c, 'default_transaction_read_only='))";

/// One of several sides that this database is may have set it first: what was there before that is what counts.
const OTHERS: &str = "FROM crossfade.bolt b WHERE b.kind = 'read_only' AND b.side <> $1::text AND NOT b.lifted";

/// Whether there is anything to look at in this database.
///
/// # Errors
/// The database.
pub async fn known(client: &Client) -> Result<bool, Error> {
    Ok(client.query_one("SELECT to_regclass('crossfade.bolt') IS NOT NULL", &[]).await?.get(0))
}

/// Makes it the default for sessions to come, in the transaction that the client is in; once more changes nothing. Needs the database's owner.
///
/// # Errors
/// The database.
pub async fn set(client: &Client, side: &str, epoch: i64) -> Result<(), Error> {
    client.batch_execute("LOCK TABLE crossfade.bolt IN EXCLUSIVE MODE").await?;
    let note = format!(
        "INSERT INTO crossfade.bolt AS b (side, kind, epoch, before)
         SELECT $1::text, 'read_only', $2, CASE WHEN EXISTS (SELECT {OTHERS}) THEN (SELECT b.before {OTHERS} LIMIT 1) ELSE {NOW} END
             ON CONFLICT (side, kind) DO UPDATE SET epoch = excluded.epoch, lifted = false, lifted_at = NULL, before = CASE WHEN b.lifted THEN excluded.before ELSE b.before END"
    );
    client.execute(&note, &[&side, &epoch]).await?;
    client.batch_execute(&format!("ALTER DATABASE {} SET {SETTING} = on", database(client).await?)).await
}

/// Makes the default what it was before, in the transaction that the client is in; once more changes nothing. Says whether it did.
///
/// # Errors
/// The database.
pub async fn lift(client: &Client, side: &str) -> Result<bool, Error> {
    if !known(client).await? {
        return Ok(false);
    }
    client.batch_execute("LOCK TABLE crossfade.bolt IN EXCLUSIVE MODE").await?;
    let lifted = "UPDATE crossfade.bolt SET lifted = true WHERE side = $1::text AND kind = 'read_only' AND NOT lifted RETURNING before";
    let Some(row) = client.query_opt(lifted, &[&side]).await? else { return Ok(false) };
    if client.query_opt(&format!("SELECT {OTHERS} LIMIT 1"), &[&side]).await?.is_none() {
        let database = database(client).await?;
        let statement = match row.get::<_, Option<String>>(0) {
            Some(before) => format!("ALTER DATABASE {database} SET {SETTING} = {}", quote::literal(&before)),
            None => format!("ALTER DATABASE {database} RESET {SETTING}"),
        };
        client.batch_execute(&statement).await?;
    }
    Ok(true)
}

/// Notes by when it was [lifted](lift), once that is committed: who begins to log in from here on is not read-only.
///
/// # Errors
/// The database.
pub async fn note_lifted(client: &Client, side: &str) -> Result<(), Error> {
    if known(client).await? {
        let note = "UPDATE crossfade.bolt SET lifted_at = clock_timestamp()
                     WHERE side = $1::text AND kind = 'read_only' AND lifted AND lifted_at IS NULL";
        client.execute(note, &[&side]).await?;
    }
    Ok(())
}

/// Sends away who has logged in since it was set, where it is [noted](note_lifted) as lifted: those sessions would be read-only for ever. Then it is forgotten. Says who had to stay: superusers.
///
/// # Errors
/// The database.
pub async fn settle(client: &Client, side: &str) -> Result<Vec<i32>, Error> {
    if !known(client).await? {
        return Ok(Vec::new());
    }
    seen(client).await?;
    let lifted = "FROM crossfade.bolt b WHERE b.side = $1::text AND b.kind = 'read_only' AND b.lifted AND b.lifted_at IS NOT NULL";
    let query = format!(
        "SELECT a.pid, CASE WHEN {ENDS} THEN pg_terminate_backend(a.pid) IS NOT NULL ELSE false END {SESSIONS}
            AND a.backend_start > (SELECT b.since - current_setting('authentication_timeout')::interval {lifted}) AND a.backend_start <= (SELECT b.lifted_at {lifted})"
    );
    let rows = client.query(&query, &[&side]).await?;
    client.execute(&format!("DELETE {lifted}"), &[&side]).await?;
    Ok(rows.iter().filter(|row| !row.get::<_, bool>(1)).map(|row| row.get(0)).collect())
}

/// Whose login is under way, and may have read the default already: it holds this lock on the database until it stands in pg_stat_activity.
const LOGINS: &str = "SELECT coalesce(array_agg(l.virtualtransaction), '{}') FROM pg_locks l JOIN pg_database d ON d.oid = l.objid
    WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND d.datname = current_database() AND l.mode = 'RowExclusiveLock' AND l.granted";

/// How often it is looked for them, and how long after the one before: a login takes some milliseconds from there on.
const LOOKS: (u32, Duration) = (200, Duration::from_millis(10));

/// Waits until those can be seen who were about to be.
async fn seen(client: &Client) -> Result<(), Error> {
    let mut unseen: Vec<String> = client.query_one(LOGINS, &[]).await?.get(0);
    for _ in 0..LOOKS.0 {
        if unseen.is_empty() {
            break;
        }
        tokio::time::sleep(LOOKS.1).await;
        let now: Vec<String> = client.query_one(LOGINS, &[]).await?.get(0);
        unseen.retain(|login| now.contains(login));
    }
    Ok(())
}

/// Ends the sessions of this database that are not crossfade's, so that their pools connect again, as long as it is read-only by this epoch. Neither walsenders nor workers are sessions. Says how many.
///
/// # Errors
/// The database.
pub async fn send_away(client: &Client, side: &str, epoch: i64) -> Result<i64, Error> {
    let query = format!(
        "SELECT count(pg_terminate_backend(a.pid)) {SESSIONS} AND {ENDS}
            AND EXISTS (SELECT FROM crossfade.bolt b WHERE b.side = $1::text AND b.kind = 'read_only' AND b.epoch = $2 AND NOT b.lifted)"
    );
    Ok(client.query_one(&query, &[&side, &epoch]).await?.get(0))
}

/// Ours are known by what their `application_name` begins with; the last word is what each is for.
const SESSIONS: &str = "FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
    WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
      AND NOT starts_with(a.application_name, 'crossfade ')
      AND NOT starts_with(a.application_name, regexp_replace(current_setting('application_name'), '[^ ]+$', ''))";

/// The sessions of superusers only a superuser can end.
const ENDS: &str = "(NOT r.rolsuper OR (SELECT o.rolsuper FROM pg_roles o WHERE o.rolname = current_user))";

async fn database(client: &Client) -> Result<String, Error> {
    let name: String = client.query_one("SELECT current_database()::text", &[]).await?.get(0);
    Ok(quote::ident(&name))
}

/// What the session's role lacks for it: each with the statement that gives it. An owner may change the database, and `pg_signal_backend` end sessions.
///
/// # Errors
/// The database.
pub async fn lacks(client: &Client) -> Result<Vec<(String, String)>, Error> {
    let row = client
        .query_one(
            "SELECT current_user::text, d.datname::text, pg_get_userbyid(d.datdba)::text, pg_has_role(current_user, d.datdba, 'USAGE'),
                    pg_has_role(current_user, 'pg_signal_backend', 'USAGE'),
                    (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = d.datdba) FROM pg_database d WHERE d.datname = current_database()",
            &[],
        )
        .await?;
    let (role, owner) = (quote::ident(row.get(0)), quote::ident(row.get(2)));
    let mut lacks = Vec::new();
    if !row.get::<_, bool>(3) {
        let database = quote::ident(row.get(1));
        // Who is a member of a superuser is one.
        let mends = match row.get::<_, bool>(5) {
            true => {
                format!("ALTER DATABASE {database} OWNER TO a role that is no superuser, and GRANT that one TO {role}")
            }
            false => format!("GRANT {owner} TO {role}"),
        };
        lacks.push((format!("role {role} may not ALTER DATABASE {database}, whose owner is {owner}"), mends));
    }
    if !row.get::<_, bool>(4) {
        lacks.push((
            format!("role {role} may not end the sessions of others"),
            format!("GRANT pg_signal_backend TO {role}"),
        ));
    }
    Ok(lacks)
}
