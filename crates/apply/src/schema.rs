//! `clone`: the source's schema on the target. What tables need goes before the copy; keys and indexes after their table's copy;
//! foreign keys once copy and tail are joined, for only from there on do the tables agree with each other; triggers and rules are created
//! disabled, for a cutover to enable.

use std::time::Duration;

use model::{Code, Problem, SchemaItem, TableName, quote};
use pg::Session;
use plan::SchemaMode;
use tracing::info;

use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job, tables};

/// When an entry of the dump is run, if it comes after the copy.
fn stage(item: &SchemaItem) -> &'static str {
    match item.kind.as_str() {
        "FK CONSTRAINT" | "POLICY" | "ROW SECURITY" => "foreign",
        "TRIGGER" | "RULE" | "EVENT TRIGGER" => "trigger",
        "CONSTRAINT" | "CHECK CONSTRAINT" | "INDEX" | "STATISTICS" | "TABLE ATTACH" if item.table.is_some() => "table",
        _ => "final",
    }
}

/// Creates what belongs before the copy, in the transaction that `session` is in, and notes the rest.
pub(crate) async fn create(session: &Session, source: &str, items: Vec<SchemaItem>) -> Result<(), ApplyError> {
    session.batch_execute("SET LOCAL check_function_bodies = false; SET LOCAL client_min_messages = warning").await?;
    for item in items {
        if item.post_data {
            let table = item.table.as_ref();
            session
                .execute(
                    "INSERT INTO crossfade.schema_item (source, name, kind, table_schema, table_name, stage, sql)
                     VALUES ($1::text, $2::text, $3::text, $4::text, $5::text, $6::text, $7::text)",
                    &[
                        &source,
                        &item.name,
                        &item.kind,
                        &table.map(|t| &t.schema),
                        &table.map(|t| &t.name),
                        &stage(&item),
                        &item.sql,
                    ],
                )
                .await?;
        } else if !(item.kind == "SCHEMA" && has_schema(session, &item.name).await?) {
            session.batch_execute(&item.sql).await.map_err(|error| failed(&item.kind, &item.name, error.into()))?;
        }
    }
    // An entry may have set the search path for itself.
    session.batch_execute("SET search_path = ''").await?;
    model::failpoint!("schema_created");
    info!("the target has the source's tables");
    Ok(())
}

async fn has_schema(session: &Session, name: &str) -> Result<bool, ApplyError> {
    Ok(session.query_one("SELECT to_regnamespace($1::text) IS NOT NULL", &[&quote::ident(name)]).await?.get(0))
}

fn failed(kind: &str, name: &str, error: ApplyError) -> ApplyError {
    if error.retry() {
        return error;
    }
    Problem::new(
        Code::SchemaFailed,
        format!("{} {name}", kind.to_lowercase()),
        format!("the target refuses it: {error}"),
        "make it possible there (a role, an extension, a privilege), or create the schema yourself and say [target] schema = \"exists\"",
    )
    .into()
}

/// An entry that waits to be run.
pub(crate) struct Item {
    id: i64,
    name: String,
    kind: String,
    table: Option<TableName>,
    sql: String,
}

const ITEM: &str = "i.id, i.name, i.kind, i.table_schema, i.table_name, i.sql";

fn item(row: &tokio_postgres::Row) -> Item {
    let schema: Option<String> = row.get(3);
    Item {
        id: row.get(0),
        name: row.get(1),
        kind: row.get(2),
        table: schema.map(|schema| TableName::new(schema, row.get::<_, String>(4))),
        sql: row.get(5),
    }
}

/// Builds one key or index of a table whose copy is in, if there is one that nobody else builds. Statistics come when the table's others
/// are done.
pub(crate) async fn build_one(session: &Session) -> Result<bool, ApplyError> {
    session.batch_execute("BEGIN").await?;
    let query = format!(
        "SELECT {ITEM} FROM crossfade.schema_item i
           JOIN crossfade.tables t ON (t.source, t.schema, t.name) = (i.source, i.table_schema, i.table_name)
          WHERE i.stage = 'table' AND i.done_at IS NULL AND {} AND (i.kind <> 'ANALYZE' OR {})
            AND (i.kind <> 'TABLE ATTACH' OR NOT EXISTS (SELECT FROM crossfade.schema_item o WHERE (o.source, o.table_schema, o.table_name)
                 = (i.source, i.table_schema, i.table_name) AND o.stage = 'table' AND o.id < i.id AND o.done_at IS NULL))
          ORDER BY i.id LIMIT 1 FOR UPDATE OF i SKIP LOCKED",
        tables::COPIED,
        tables::BUILT
    );
    let Some(row) = session.query_opt(&query, &[]).await? else {
        session.batch_execute("ROLLBACK").await?;
        return Ok(false);
    };
    execute(session, &item(&row)).await?;
    model::failpoint!("index_built");
    session.batch_execute(&format!("NOTIFY {CHANNEL}; COMMIT")).await?;
    model::failpoint!("index_committed");
    Ok(true)
}

async fn execute(session: &Session, item: &Item) -> Result<(), ApplyError> {
    session.batch_execute(&item.sql).await.map_err(|error| failed(&item.kind, &item.name, error.into()))?;
    session.execute("UPDATE crossfade.schema_item SET done_at = clock_timestamp() WHERE id = $1", &[&item.id]).await?;
    Ok(())
}

/// What no copy worker builds: keys of partitioned tables, which have no copy of their own, and then what stands on no single table:
/// attaching a partition's index to its root's, and the like. Run before the tail starts.
pub(crate) async fn finals(session: &Session, lease: Lease) -> Result<(), ApplyError> {
    for (_, item) in waiting(session, &["table", "final"], "true").await? {
        last(session, lease, &item).await?;
    }
    Ok(())
}

async fn last(session: &Session, lease: Lease, item: &Item) -> Result<(), ApplyError> {
    lease.begin(session).await?;
    // A copy worker may be at it, or have done it since.
    let open = "SELECT FROM crossfade.schema_item WHERE id = $1 AND done_at IS NULL FOR UPDATE";
    if session.query_opt(open, &[&item.id]).await?.is_none() {
        session.batch_execute("ROLLBACK").await?;
        return Ok(());
    }
    execute(session, item).await?;
    model::failpoint!("final_built");
    session.batch_execute("COMMIT").await?;
    model::failpoint!("final_committed");
    Ok(())
}

/// The entries of these stages that are still to be run, one stage after the other, if `condition` holds. All by one statement: what is
/// added meanwhile is seen whole, or not at all.
async fn waiting(session: &Session, stages: &[&str], condition: &str) -> Result<Vec<(String, Item)>, ApplyError> {
    let query = format!(
        "SELECT {ITEM}, i.stage FROM crossfade.schema_item i
          WHERE i.stage = ANY ($1::text[]) AND i.kind <> 'ANALYZE' AND i.done_at IS NULL AND {condition}
          ORDER BY array_position($1::text[], i.stage), i.id"
    );
    Ok(session.query(&query, &[&stages]).await?.iter().map(|row| (row.get(6), item(row))).collect())
}

/// How often it is looked whether copy and tail are joined.
const LOOK: Duration = Duration::from_millis(500);

/// Once everything is joined, builds foreign keys and creates triggers and rules, disabled; then rests for ever.
pub(crate) async fn finish(job: &Job, lease: Lease) -> Result<(), ApplyError> {
    if job.plan.target.schema != SchemaMode::Clone {
        return std::future::pending().await;
    }
    let session = pg::connect(&job.endpoint, "apply schema").await?;
    session.batch_execute("SET client_min_messages = warning; SET synchronous_commit = off").await?;
    // A table that is added while the tail runs comes with its entries and takes this back, in one transaction.
    let joined = "(SELECT coalesce(bool_and(joined), false) FROM crossfade.checkpoint)";
    loop {
        for (stage, item) in waiting(&session, &["table", "final", "foreign", "trigger"], joined).await? {
            match stage.as_str() {
                "foreign" => foreign(&session, lease, &item).await?,
                "trigger" => trigger(&session, lease, &item).await?,
                _ => last(&session, lease, &item).await?,
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A foreign key is added unchecked, which is quick, and checked afterwards without keeping the tail from its tables.
async fn foreign(session: &Session, lease: Lease, item: &Item) -> Result<(), ApplyError> {
    let plain: bool = match &item.table {
        Some(table) if item.kind == "FK CONSTRAINT" => {
            let query =
                "SELECT coalesce((SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass($1::text)), false)";
            session.query_one(query, &[&table.quoted()]).await?.get(0)
        }
        _ => false,
    };
    let (Some(table), true) = (&item.table, plain && !item.sql.contains("NOT VALID")) else {
        lease.begin_alone(session).await?;
        execute(session, item).await?;
        session.batch_execute("COMMIT").await?;
        return Ok(());
    };
    let constraint = item.name.strip_prefix(&format!("{} ", table.name)).unwrap_or(&item.name);
    let table = table.quoted();
    let there = session
        .query_opt(
            "SELECT FROM pg_constraint WHERE conrelid = to_regclass($1::text) AND conname = $2::text",
            &[&table, &constraint],
        )
        .await?;
    if there.is_none() {
        let add = format!("{} NOT VALID", item.sql.trim_end().trim_end_matches(';'));
        lease.begin_alone(session).await?;
        session.batch_execute(&add).await.map_err(|error| failed(&item.kind, &item.name, error.into()))?;
        session.batch_execute("COMMIT").await?;
        model::failpoint!("foreign_added");
    }
    lease.begin(session).await?;
    let check = format!("ALTER TABLE {table} VALIDATE CONSTRAINT {}", quote::ident(constraint));
    session.batch_execute(&check).await.map_err(|error| failed(&item.kind, &item.name, error.into()))?;
    session.execute("UPDATE crossfade.schema_item SET done_at = clock_timestamp() WHERE id = $1", &[&item.id]).await?;
    session.batch_execute("COMMIT").await?;
    model::failpoint!("foreign_checked");
    Ok(())
}

async fn trigger(session: &Session, lease: Lease, item: &Item) -> Result<(), ApplyError> {
    let disable = match (&item.table, item.kind.as_str()) {
        (Some(table), kind) => {
            let name = item.name.strip_prefix(&format!("{} ", table.name)).unwrap_or(&item.name);
            format!("ALTER TABLE {} DISABLE {kind} {}", table.quoted(), quote::ident(name))
        }
        (None, _) => format!("ALTER EVENT TRIGGER {} DISABLE", quote::ident(&item.name)),
    };
    lease.begin(session).await?;
    execute(session, item).await?;
    model::failpoint!("trigger_created");
    session.batch_execute(&disable).await.map_err(|error| failed(&item.kind, &item.name, error.into()))?;
    session.batch_execute("COMMIT").await?;
    model::failpoint!("trigger_disabled");
    Ok(())
}
