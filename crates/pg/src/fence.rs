//! What keeps the application from writing to a database: statement triggers that raise.
//!
//! Each side of a migration has a line in `crossfade.fence` of its database. Its triggers carry the epoch for which they were made, and refuse a write unless
//! the line says that the side is open for that epoch or a later one. So opening is an update; closing is DDL, for an update would be passed by a transaction with an older
//! snapshot, to which the side still is open. (Postgres manual, "Overview of Trigger Behavior": a statement trigger of a partitioned table does not fire for
//! statements that name its partitions, so each of them has its own.)

use std::time::Duration;

use model::{TableName, quote};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

/// What the names of the triggers begin with, on every table; the plan's name follows.
pub const TRIGGERS: &str = "crossfade_fence_";

/// The name of a side's triggers, quoted, with the first word of the side's name, the plan: one database may be the target of one plan and a source of another.
#[must_use]
pub fn trigger(side: &str) -> String {
    quote::ident(&format!("{TRIGGERS}{}", side.split(' ').next().unwrap_or_default()))
}

/// The epoch that a side's triggers carry before the first one: it is open to nobody until a cutover opens it.
pub const FROM_THE_START: i64 = 1;

const DDL: &str = "
CREATE SCHEMA IF NOT EXISTS crossfade;

-- A line for each side of a migration that this database is: writes are refused while closed > opened.
CREATE TABLE IF NOT EXISTS crossfade.fence (
    side text PRIMARY KEY,                      -- the plan's name, and 'target', or 'source' and its name there
    epoch bigint NOT NULL DEFAULT 0,            -- of the last cutover or rollback that has taken the lead here
    token bigint NOT NULL DEFAULT 0,            -- counts up with each process that takes the lead
    closed bigint NOT NULL DEFAULT 0,           -- for which epoch its triggers were enabled
    opened bigint NOT NULL DEFAULT 0,           -- up to which epoch they let everything pass
    pid int, backend_start timestamptz,         -- the session of who leads
    deadline timestamptz,                       -- by when that one has decided, or anybody may
    why text NOT NULL);                         -- what somebody is told whose write is refused

-- What a side was closed with besides its triggers, until that is undone.
CREATE TABLE IF NOT EXISTS crossfade.bolt (
    side text, kind text,                       -- read_only, or command
    epoch bigint NOT NULL,                      -- of the cutover or rollback that has closed it
    before text,                                -- read_only: the database's own default_transaction_read_only, if it had one
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    lifted bool NOT NULL DEFAULT false,         -- read_only: it is as before, and sessions from meanwhile may be there still
    lifted_at timestamptz,                      -- those are no younger than this
    PRIMARY KEY (side, kind));

-- Sessions that write nevertheless, because they are crossfade's.
CREATE TABLE IF NOT EXISTS crossfade.exempt (
    pid int, backend_start timestamptz, PRIMARY KEY (pid, backend_start));

CREATE OR REPLACE FUNCTION crossfade.refuse_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fence record;
BEGIN
    SELECT f.opened, f.closed, f.why, f.deadline INTO fence FROM crossfade.fence f WHERE f.side = TG_ARGV[0];
    IF fence.opened >= TG_ARGV[1]::bigint OR EXISTS (
        SELECT FROM crossfade.exempt e, pg_stat_get_activity(pg_backend_pid()) a
         WHERE a.pid = e.pid AND a.backend_start = e.backend_start) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION USING
        ERRCODE = 'read_only_sql_transaction',
        MESSAGE = format('crossfade: %I.%I takes no writes now', TG_TABLE_SCHEMA, TG_TABLE_NAME),
        DETAIL = coalesce(fence.why, 'The fence of this database has lost its state.'),
        HINT = CASE WHEN fence.deadline > clock_timestamp()
                    THEN format('If it is not decided yet, it will be within %s s: try again then.', ceil(extract(epoch FROM fence.deadline - clock_timestamp())))
                    ELSE 'crossfade status shows how it stands.' END;
END $$;
REVOKE ALL ON FUNCTION crossfade.refuse_write() FROM PUBLIC;
";

/// Any number, the same in every version: taken while these are created.
const CREATE_LOCK: i64 = 0x63_66_66_65;

/// Creates what the fence stands on, in the transaction that the session is in, and a side's line; both may be there. `closed` is 0 for a side that is open.
///
/// # Errors
/// The database.
pub async fn create(client: &Client, side: &str, closed: i64, why: &str) -> Result<(), Error> {
    client
        .batch_execute(&format!(
            "SELECT pg_advisory_xact_lock({CREATE_LOCK}); SET LOCAL client_min_messages = warning; {DDL}"
        ))
        .await?;
    client
        .execute(
            "INSERT INTO crossfade.fence (side, closed, why) VALUES ($1::text, $2, $3::text) ON CONFLICT DO NOTHING",
            &[&side, &closed, &why],
        )
        .await?;
    Ok(())
}

/// These tables, and those that they are partitions of or inherit from, quoted: all that a write to their rows can name. Those that do not exist are left out, and foreign tables,
/// which not every server lets have such triggers.
///
/// # Errors
/// The database.
pub async fn relations(client: &Client, tables: &[TableName]) -> Result<Vec<String>, Error> {
    among(client, tables, "").await
}

/// The same, without those that have a trigger of this side.
///
/// # Errors
/// The database.
pub async fn bare(client: &Client, side: &str, tables: &[TableName]) -> Result<Vec<String>, Error> {
    among(client, tables, &without(side, "")).await
}

/// The same, without those that have a trigger of this side that is enabled.
///
/// # Errors
/// The database.
pub async fn unguarded(client: &Client, side: &str, tables: &[TableName]) -> Result<Vec<String>, Error> {
    among(client, tables, &without(side, "AND t.tgenabled IN ('O', 'A')")).await
}

fn without(side: &str, which: &str) -> String {
    let name = quote::literal(&format!("{TRIGGERS}{}", side.split(' ').next().unwrap_or_default()));
    format!("AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = up.oid AND t.tgname = {name} {which})")
}

async fn among(client: &Client, tables: &[TableName], condition: &str) -> Result<Vec<String>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let rows = client
        .query(
            &format!("WITH RECURSIVE up AS (
               SELECT to_regclass(name)::oid AS oid FROM unnest($1::text[]) name WHERE to_regclass(name) IS NOT NULL
               UNION SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid)
             SELECT n.nspname::text, c.relname::text FROM up JOIN pg_class c ON c.oid = up.oid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p') {condition} ORDER BY 1, 2"),
            &[&names],
        )
        .await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)).quoted()).collect())
}

/// Puts a side's triggers on relations, for an epoch; those of an earlier one are replaced. They fire at once, but not for sessions in `replica` role; or, with
/// `idle`, not before [`close`] is run. Locks each relation until the transaction's end against writes.
#[must_use]
pub fn enclose(relations: &[String], side: &str, epoch: i64, idle: bool) -> String {
    let one = |relation: &String| {
        let made = format!(
            "CREATE OR REPLACE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {relation}
             FOR EACH STATEMENT EXECUTE FUNCTION crossfade.refuse_write({}, {});",
            trigger(side),
            quote::literal(side),
            quote::literal(&epoch.to_string())
        );
        match idle {
            true => format!("{made} ALTER TABLE ONLY {relation} DISABLE TRIGGER {};", trigger(side)),
            false => made,
        }
    };
    relations.iter().map(one).collect()
}

/// From the end of the transaction on these refuse every role's writes, those of sessions in `replica` role as well.
#[must_use]
pub fn close(relations: &[String], side: &str) -> String {
    let trigger = trigger(side);
    relations.iter().map(|relation| format!("ALTER TABLE ONLY {relation} ENABLE ALWAYS TRIGGER {trigger};")).collect()
}

/// Lets the triggers rest of a side that is open.
#[must_use]
pub fn rest(relations: &[String], side: &str) -> String {
    let trigger = trigger(side);
    relations.iter().map(|relation| format!("ALTER TABLE ONLY {relation} DISABLE TRIGGER {trigger};")).collect()
}

/// How long the lock may be waited for that taking a trigger off needs: readers and writers queue behind it.
const LOCK: Duration = Duration::from_millis(500);

/// Between two tries, and how many there are.
const BREATH: Duration = Duration::from_millis(200);
const TRIES: u32 = 50;

/// Takes a side's triggers off, one by one.
///
/// # Errors
/// The database; also where somebody holds a table for so long that its lock was not to be had.
pub async fn remove(client: &Client, side: &str) -> Result<(), Error> {
    for relation in enclosed(client, side).await? {
        give_up_waiting(client, &format!("DROP TRIGGER IF EXISTS {} ON {relation}", trigger(side))).await?;
    }
    Ok(())
}

/// Runs a statement that needs a lock which readers and writers queue behind: in a transaction of its own, and again where the lock was not to be had at once.
///
/// # Errors
/// The database; also where somebody holds what it locks for so long that it was not to be had.
pub async fn give_up_waiting(client: &Client, statement: &str) -> Result<(), Error> {
    let statement = format!("BEGIN; SET LOCAL lock_timeout = {}; {statement}; COMMIT", LOCK.as_millis());
    let mut tries = 0;
    while let Err(error) = client.batch_execute(&statement).await {
        client.batch_execute("ROLLBACK").await?;
        tries += 1;
        if tries >= TRIES || error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
            return Err(error);
        }
        tokio::time::sleep(BREATH).await;
    }
    Ok(())
}

/// Lets this session write whatever the fence says; where there is no fence, nothing is to be done. Forgets sessions that are gone.
///
/// # Errors
/// The database.
pub async fn exempt(client: &Client) -> Result<(), Error> {
    let there = "SELECT to_regclass('crossfade.exempt') IS NOT NULL";
    if client.query_one(there, &[]).await?.get(0) {
        client
            .batch_execute(
                "DELETE FROM crossfade.exempt e WHERE NOT EXISTS (
                     SELECT FROM pg_stat_get_activity(NULL) a WHERE a.pid = e.pid AND a.backend_start = e.backend_start);
                 INSERT INTO crossfade.exempt SELECT pid, backend_start FROM pg_stat_get_activity(pg_backend_pid()) ON CONFLICT DO NOTHING",
            )
            .await?;
    }
    Ok(())
}

/// The sides that have a line in this database, besides this one.
///
/// # Errors
/// The database.
pub async fn others(client: &Client, side: &str) -> Result<Vec<String>, Error> {
    if !client.query_one("SELECT to_regclass('crossfade.fence') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let query = "SELECT side FROM crossfade.fence WHERE side <> $1::text ORDER BY 1";
    Ok(client.query(query, &[&side]).await?.iter().map(|row| row.get(0)).collect())
}

/// Every relation with such a trigger of this side, quoted.
///
/// # Errors
/// The database.
pub async fn enclosed(client: &Client, side: &str) -> Result<Vec<String>, Error> {
    // A trigger's arguments end with a zero byte each.
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE starts_with(t.tgname::text, $1::text) AND NOT t.tgisinternal
                AND position(convert_to($2::text, 'UTF8') || '\\000'::bytea IN t.tgargs) = 1 ORDER BY 1, 2",
            &[&TRIGGERS, &side],
        )
        .await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)).quoted()).collect())
}

/// Whether all of these relations refuse every role's writes: none of their triggers was disabled, or enabled otherwise, by somebody else.
///
/// # Errors
/// The database.
pub async fn holds(client: &Client, relations: &[String], side: &str) -> Result<bool, Error> {
    let row = client
        .query_one(
            "SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = ANY ($1::text[]::regclass[]::oid[]) AND t.tgenabled = 'A' AND starts_with(t.tgname::text, $2::text)
                AND position(convert_to($3::text, 'UTF8') || '\\000'::bytea IN t.tgargs) = 1",
            &[&relations, &TRIGGERS, &side],
        )
        .await?;
    Ok(row.get::<_, i64>(0) == relations.len() as i64)
}
