//! What the tail does not say: new columns, other constraints, attached partitions, tables written anew, updates of tables that are only
//! inserted into. The catalogs are looked at every now and then, and what is not as it was stops the pipeline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::{Code, Marker, MarkerKind, Oid, Problem, TableName};
use pg::Session;
use pg::catalog::Table;

use crate::run::Running;
use crate::select::{Published, published};
use crate::{CaptureError, marker, select};

/// Between two looks, where they are cheap. What they find comes this late at worst, or is found by verify and cutover.
const OFTEN: Duration = Duration::from_secs(5);

/// Between two looks, where there are so many tables that a look is felt.
const SELDOM: Duration = Duration::from_secs(30);

/// A look of some milliseconds takes a thousandth of the time; one of more than [`OFTEN`] by this comes less often.
const COST: u32 = 50;

/// A look is repeated if a table was emptied under it: it could not say whether the heap read is the one before or after.
const LOOKS: usize = 5;

/// What is known of a table.
struct Known {
    oid: Oid,
    shape: String,
    filenode: u32,
    /// How often the tail had seen it emptied before, and after, the catalogs were read.
    truncates: (u64, u64),
    /// If there must be no updates and deletes.
    rewritten: Option<Rewritten>,
}

/// Updates and deletes, as the statistics count them.
#[derive(Clone)]
struct Rewritten {
    rows: i64,
    /// When the database's statistics were reset.
    since: String,
}

impl Rewritten {
    /// How many there were after `old`.
    fn new_since(&self, old: &Rewritten) -> i64 {
        // Somebody has reset them, or they were lost in a crash: what they count is new.
        let known = if self.since == old.since && self.rows >= old.rows { old.rows } else { 0 };
        self.rows - known
    }
}

type Catalog = BTreeMap<TableName, Known>;

/// Looks for ever; ends with an error at the first change.
pub(crate) async fn run(running: &Arc<Running>) -> Result<(), CaptureError> {
    let session = pg::connect(&running.job.endpoint, "catalog watch").await?;
    // Compared with what was published, so that nothing falls between that and the first look.
    let mut known = catalog(running, &session, running.tables.clone()).await?;
    loop {
        let begun = tokio::time::Instant::now();
        let now = look(running, &session).await?;
        compare(&known, &now)?;
        let near: String = session.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?.get(0);
        running.near.fetch_max(near.parse().unwrap_or_default(), Ordering::Relaxed);
        known = now;
        tokio::time::sleep((begun.elapsed() * COST).clamp(OFTEN, SELDOM)).await;
    }
}

/// The catalogs as they are.
async fn look(running: &Arc<Running>, session: &Session) -> Result<Catalog, CaptureError> {
    let mut tries = 1;
    loop {
        let before = seen_truncates(running, session).await?;
        let tables = select::tables(session, &running.job.source).await?;
        let mut catalog = catalog(running, session, tables).await?;
        let after = seen_truncates(running, session).await?;
        for known in catalog.values_mut() {
            let count = |seen: &Truncates| seen.get(&known.oid).copied().unwrap_or_default();
            known.truncates = (count(&before), count(&after));
        }
        if tries >= LOOKS || catalog.values().all(|known| known.truncates.0 == known.truncates.1) {
            return Ok(catalog);
        }
        tries += 1;
    }
}

/// Per table how often it was emptied.
type Truncates = std::collections::HashMap<Oid, u64>;

/// What the tail has seen once it has got to where the source is now.
async fn seen_truncates(running: &Arc<Running>, session: &Session) -> Result<Truncates, CaptureError> {
    let id = uuid::Uuid::new_v4().to_string();
    let mut seen = running.catalog.subscribe();
    marker::emit(session, &Marker::new(&running.header.nonce, MarkerKind::Catalog, &id)).await?;
    // The tail runs beside this; if it has ended, so has everything.
    if seen.wait_for(|last| *last == id).await.is_err() {
        std::future::pending::<()>().await;
    }
    Ok(running.truncates())
}

async fn catalog(running: &Arc<Running>, session: &Session, tables: Vec<Table>) -> Result<Catalog, CaptureError> {
    let plan = &running.job.plan;
    let guarded = |table: &Table| matches!(published(plan, table), Ok(Published::InsertOnly));
    let oids: Vec<u32> = tables.iter().filter(|table| guarded(table)).map(|table| table.oid.0).collect();
    let mut rewritten = BTreeMap::new();
    if !oids.is_empty() {
        let rows = session
            .query(
                "SELECT relid, n_tup_upd + n_tup_del, (SELECT coalesce(stats_reset::text, '') FROM pg_stat_database WHERE datname = current_database())
                   FROM pg_stat_user_tables WHERE relid = ANY ($1)",
                &[&oids],
            )
            .await?;
        rewritten.extend(rows.iter().map(|row| (Oid(row.get(0)), Rewritten { rows: row.get(1), since: row.get(2) })));
    }
    let known = |table: Table| {
        let rewritten = rewritten.get(&table.oid).cloned();
        (
            table.name,
            Known { oid: table.oid, shape: table.shape, filenode: table.filenode, truncates: (0, 0), rewritten },
        )
    };
    Ok(tables.into_iter().map(known).collect())
}

fn compare(before: &Catalog, now: &Catalog) -> Result<(), Problem> {
    for (name, old) in before {
        let Some(new) = now.get(name) else {
            return Err(changed(name, "it was dropped, renamed or became a partitioned table"));
        };
        if new.oid != old.oid {
            return Err(changed(name, "it was dropped and created again"));
        }
        if new.shape != old.shape {
            return Err(changed(name, "its columns, constraints, replica identity or inheritance changed"));
        }
        if new.filenode != old.filenode && new.truncates.1 == old.truncates.0 {
            return Err(changed(
                name,
                "it was written anew (ALTER TYPE … USING, CLUSTER, VACUUM FULL), which the tail does not show",
            ));
        }
        if let (Some(old), Some(new)) = (&old.rewritten, &new.rewritten)
            && new.new_since(old) > 0
        {
            return Err(violated(name, new.new_since(old)));
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

fn violated(table: &TableName, rows: i64) -> Problem {
    Problem::new(
        Code::InsertOnlyViolated,
        format!("table {table}"),
        format!(
            "[identity] says `insert_only`, and {rows} of its rows were updated or deleted, which the tail does not show: the target has them as they were"
        ),
        "give it a primary key or REPLICA IDENTITY FULL, correct [identity], end the plan with `crossfade complete`, empty the target, and start anew",
    )
}
