//! What the tail does not say: new columns, other constraints, attached partitions, tables written anew. The catalogs are
//! looked at every now and then, and what is not as it was stops the pipeline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::{Code, MarkerKind, Oid, Problem, TableName};
use pg::Session;
use pg::catalog::Table;

use crate::run::Running;
use crate::{CaptureError, marker, select};

/// A look costs some milliseconds at the source; what it finds later than this is found by verify and cutover.
const EVERY: Duration = Duration::from_secs(30);

/// What is known of a table.
struct Known {
    oid: Oid,
    shape: String,
    filenode: u32,
    truncates: u64,
}

/// Looks for ever; ends with an error at the first change.
pub(crate) async fn run(running: &Arc<Running>) -> Result<(), CaptureError> {
    let session = pg::connect(&running.job.endpoint, "catalog watch").await?;
    let mut known = look(running, &session).await?;
    loop {
        tokio::time::sleep(EVERY).await;
        let now = look(running, &session).await?;
        compare(&known, &now)?;
        let near: String = session.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?.get(0);
        running.near.fetch_max(near.parse().unwrap_or_default(), Ordering::Relaxed);
        known = now;
    }
}

/// The catalogs, and the number of TRUNCATEs that the tail had seen of each table when it got to where they were read.
async fn look(running: &Arc<Running>, session: &Session) -> Result<BTreeMap<TableName, Known>, CaptureError> {
    let tables: Vec<Table> = select::tables(session, &running.job.source).await?;
    let id = uuid::Uuid::new_v4().to_string();
    let mut seen = running.catalog.subscribe();
    marker::emit(session, &running.header.nonce, MarkerKind::Catalog, &id).await?;
    // The tail runs beside this; if it has ended, so has everything.
    if seen.wait_for(|last| *last == id).await.is_err() {
        return Ok(BTreeMap::new());
    }
    let known = |table: Table| {
        let truncates = running.truncates(table.oid);
        (table.name, Known { oid: table.oid, shape: table.shape, filenode: table.filenode, truncates })
    };
    Ok(tables.into_iter().map(known).collect())
}

fn compare(before: &BTreeMap<TableName, Known>, now: &BTreeMap<TableName, Known>) -> Result<(), Problem> {
    for (name, old) in before {
        match now.get(name) {
            None => return Err(changed(name, "it was dropped, renamed or became a partitioned table")),
            Some(new) if new.oid != old.oid => return Err(changed(name, "it was dropped and created again")),
            Some(new) if new.shape != old.shape => {
                return Err(changed(name, "its columns, constraints, replica identity or inheritance changed"));
            }
            Some(new) if new.filenode != old.filenode && new.truncates == old.truncates => {
                return Err(changed(name, "it was written anew (ALTER TYPE … USING, CLUSTER, VACUUM FULL), which the tail does not show"));
            }
            Some(_) => {}
        }
    }
    match now.keys().find(|name| !before.contains_key(*name)) {
        Some(name) => Err(changed(name, "it is new, or was attached, and the plan's patterns select it")),
        None => Ok(()),
    }
}

pub(crate) fn changed(table: &TableName, why: &str) -> Problem {
    Problem::new(
        Code::SchemaChanged,
        format!("table {table}"),
        why,
        "if only a table was added or attached, start again: it is copied and joined; else end the plan with `crossfade complete`, empty the target, and start anew",
    )
}
