//! The two publications of a source: one for everything, one for tables that are only inserted into.

use std::collections::BTreeSet;

use model::{Code, Problem, TableName, quote};
use pg::catalog::Table;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::select::{Published, published};
use crate::{CaptureError, Job};

/// Their names, in this order: whole, insert only. Both always exist, so that the tail can name them.
pub(crate) fn names(plan: &str, source: &str) -> [String; 2] {
    [format!("crossfade_{plan}_{source}"), format!("crossfade_{plan}_{source}_insert_only")]
}

/// Makes the publications publish just these tables. Says whether a table was added: if so, the barrier must be
/// passed again before a snapshot of a table is taken.
///
/// # Errors
/// A table that is `copied` would have to be added: it has left the publication for a while, and nobody knows what was changed meanwhile.
pub(crate) async fn publish(
    client: &Client,
    job: &Job,
    tables: &[Table],
    copied: impl Fn(&TableName) -> bool,
) -> Result<bool, CaptureError> {
    let plan = &job.plan;
    let mut wanted = [BTreeSet::new(), BTreeSet::new()];
    for table in tables {
        match published(plan, table)? {
            Published::Whole => wanted[0].insert(table.name.clone()),
            Published::InsertOnly => wanted[1].insert(table.name.clone()),
        };
    }
    let names = names(&plan.name, &job.source.name);
    // Leaves are named, never roots: with publish_via_partition_root a TRUNCATE of one leaf would be silent.
    let publish = ["insert, update, delete, truncate", "insert, truncate"];
    // All of it before any is changed: a table that moves from one to the other must not be left in neither.
    for (name, wanted) in names.iter().zip(&wanted) {
        let found = published_by(client, name).await?.unwrap_or_default();
        unknown_since(name, wanted.difference(&found).find(|table| copied(table)))?;
    }
    let mut changed = false;
    for ((name, publish), wanted) in names.iter().zip(publish).zip(&wanted) {
        changed |= set(client, name, publish, wanted).await?;
        model::failpoint!("publication_set");
    }
    Ok(changed)
}

async fn set(client: &Client, name: &str, publish: &str, wanted: &BTreeSet<TableName>) -> Result<bool, CaptureError> {
    let found = match published_by(client, name).await? {
        Some(found) => found,
        None => {
            let options = format!("publish = '{publish}', publish_via_partition_root = false");
            let create = format!("CREATE PUBLICATION {} WITH ({options})", quote::ident(name));
            unless_done(client.batch_execute(&create).await)?;
            BTreeSet::new()
        }
    };
    // One by one: who locks several tables can meet the application's TRUNCATE in a deadlock, and either can be the victim.
    for (verb, tables) in [("ADD", wanted.difference(&found)), ("DROP", found.difference(wanted))] {
        for table in tables {
            let table = table.quoted();
            let alter = format!("ALTER PUBLICATION {} {verb} TABLE ONLY {table}", quote::ident(name));
            unless_done(client.batch_execute(&alter).await)?;
            model::failpoint!("publication_altered");
        }
    }
    Ok(!wanted.is_subset(&found))
}

/// Another process of the plan that starts at the same time may have done the same a moment ago, or in the same one: then a catalog's unique index says so. Which of
/// them goes on, slot and log decide.
fn unless_done(result: Result<(), tokio_postgres::Error>) -> Result<(), tokio_postgres::Error> {
    let done = [SqlState::DUPLICATE_OBJECT, SqlState::UNIQUE_VIOLATION];
    result.or_else(|error| if error.code().is_some_and(|code| done.contains(code)) { Ok(()) } else { Err(error) })
}

/// Changes a catalog, and nothing that anybody sees. What a slot knows of the catalogs is from its start and is looked up anew only after a transaction that
/// changes one; a change that was made while the slot was, by a transaction younger than one still open, is not in it until then.
pub(crate) async fn touch(client: &Client, plan: &str, source: &str) -> Result<(), CaptureError> {
    let [whole, _] = names(plan, source);
    let comment = quote::literal("crossfade: changes on their way into another database");
    client.batch_execute(&format!("COMMENT ON PUBLICATION {} IS {comment}", quote::ident(&whole))).await?;
    Ok(())
}

/// The tables of a publication; `None` if there is no such one.
async fn published_by(client: &Client, name: &str) -> Result<Option<BTreeSet<TableName>>, CaptureError> {
    if client.query("SELECT FROM pg_publication WHERE pubname = $1::text", &[&name]).await?.is_empty() {
        return Ok(None);
    }
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
               JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1::text",
            &[&name],
        )
        .await?;
    let tables = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    Ok(Some(tables.collect()))
}

fn unknown_since(publication: &str, table: Option<&TableName>) -> Result<(), Problem> {
    match table {
        None => Ok(()),
        Some(table) => Err(Problem::new(
            Code::Gap,
            format!("table {table}"),
            format!(
                "it has been copied, and was not in publication {publication} for a while: its changes in between are not known"
            ),
            format!("`crossfade recopy {table}` copies it anew, into the same log and target; then start again"),
        )),
    }
}
