//! Rows that somebody else has written to the target while only apply may: capture of the way back logs them, for their transactions carry no origin of ours.
//! Who leads looks through that log, counts them, and notes the markers that it meets: all that was committed here before one has been looked at then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use log::{LogError, RecordReader, StreamKind};
use model::{Cell, Change, Lsn, MarkerKind, Oid, Record, Relation, Seq, TableName, Tuple};
use pg::Session;

use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job};

/// Between two looks for a log that is not there yet, or cannot be read now.
const LATER: Duration = Duration::from_secs(1);

/// Of a row's key, in bytes, what is kept for people.
const KEPT: usize = 200;

/// Watches for ever. `source` is the target's name as the source of the way back.
///
/// # Errors
/// The target, or somebody else leads. What is wrong with the log is waited out: the tail does not depend on this.
pub(crate) async fn watch(job: Arc<Job>, lease: Lease, source: String) -> Result<(), ApplyError> {
    let session = pg::connect(&job.endpoint, "apply watch").await?;
    session.batch_execute("SET synchronous_commit = off").await?;
    session
        .execute("INSERT INTO crossfade.watched (source) VALUES ($1::text) ON CONFLICT DO NOTHING", &[&source])
        .await?;
    let mut said = String::new();
    loop {
        match follow(&job, &session, lease, &source).await {
            ApplyError::Log(error) => {
                if !matches!(error, LogError::NoStream) && said != error.to_string() {
                    said = error.to_string();
                    tracing::warn!("rows that others write to the target are not looked for now: {error}");
                }
            }
            error => return Err(error),
        }
        tokio::time::sleep(LATER).await;
    }
}

async fn follow(job: &Job, session: &Session, lease: Lease, source: &str) -> ApplyError {
    let read = async {
        let stream = job.stream(source, StreamKind::Tail);
        let state = job.log.state(&stream).await?.ok_or(LogError::NoStream)?;
        let query = "SELECT (lsn - '0/0')::int8, seq FROM crossfade.watched WHERE source = $1::text";
        let row = session.query_one(query, &[&source]).await?;
        let (lsn, seq) = (Lsn(row.get::<_, i64>(0) as u64), Seq(row.get::<_, i64>(1) as u64));
        // Made anew since, it is read from its beginning; what was looked at before is passed over.
        let from = if seq < state.first || seq > state.last { state.first.max(Seq(1)) } else { seq };
        let reader = RecordReader::open(Arc::clone(&job.log), stream, from).await?;
        Ok::<_, ApplyError>((reader, Look { lsn, relations: BTreeMap::new(), open: Found::default() }))
    };
    let (mut reader, mut look) = match read.await {
        Ok(read) => read,
        Err(error) => return error,
    };
    loop {
        let looked = async {
            let (seq, record) = reader.next().await?;
            let whole = look.take(record).into_iter();
            for found in whole.filter(|found| !found.rows.is_empty() || !found.markers.is_empty()) {
                note(session, lease, source, seq, &found).await?;
            }
            Ok::<_, ApplyError>(())
        };
        if let Err(error) = looked.await {
            return error;
        }
    }
}

/// A transaction of others.
#[derive(Default)]
struct Found {
    end: Lsn,
    /// Microseconds since 1970.
    time: i64,
    /// Rows by table, and the last one's key.
    rows: BTreeMap<TableName, (i64, String)>,
    markers: Vec<String>,
}

struct Look {
    /// Up to here it has been looked through.
    lsn: Lsn,
    relations: BTreeMap<Oid, Relation>,
    /// The transaction that is coming in.
    open: Found,
}

impl Look {
    /// The transactions that end with this record.
    fn take(&mut self, record: Record) -> Vec<Found> {
        let mut whole = Vec::new();
        match record {
            Record::Batch(batch) => {
                for relation in batch.relations {
                    self.relations.insert(relation.id, relation);
                }
                let lsn = self.lsn;
                for part in batch.parts.into_iter().filter(|part| part.commit_lsn >= lsn) {
                    if part.first {
                        self.open = Found::default();
                    }
                    for change in &part.changes {
                        self.change(change);
                    }
                    if let Some(end) = part.end_lsn {
                        let found = std::mem::take(&mut self.open);
                        whole.push(Found { end, time: part.commit_time, ..found });
                    }
                }
            }
            // What the one before had not logged to its end comes again.
            Record::Writer(_) => self.open = Found::default(),
            _ => {}
        }
        whole
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Insert { relation, new } | Change::Update { relation, new, .. } => self.row(*relation, Some(new)),
            Change::Delete { relation, old } => self.row(*relation, Some(old.tuple())),
            Change::Truncate { relations, .. } => relations.iter().for_each(|relation| self.row(*relation, None)),
            Change::Marker(marker) if marker.kind == MarkerKind::Fence => self.open.markers.push(marker.id.clone()),
            Change::Marker(_) => {}
        }
    }

    /// Counts a row, or a table that was emptied.
    fn row(&mut self, relation: Oid, row: Option<&Tuple>) {
        let Some(relation) = self.relations.get(&relation) else { return };
        let (rows, last) = self.open.rows.entry(relation.table.clone()).or_default();
        *rows += 1;
        *last = row.map_or_else(|| "TRUNCATE".to_owned(), |row| key(relation, row));
    }
}

/// The row's key, for people; of a table without one, what its first columns hold.
fn key(relation: &Relation, row: &Tuple) -> String {
    let keyed = relation.columns.iter().any(|column| column.key);
    let cells = row.cells().zip(&relation.columns).filter(|(_, column)| column.key || !keyed).take(3);
    let named = cells.filter_map(|(cell, column)| match cell {
        Cell::Text(text) => {
            Some(format!("{} = {}", column.name, String::from_utf8_lossy(&text[..text.len().min(KEPT)])))
        }
        Cell::Null => Some(format!("{} is null", column.name)),
        Cell::Unchanged => None,
    });
    named.collect::<Vec<_>>().join(", ")
}

async fn note(session: &Session, lease: Lease, source: &str, seq: Seq, found: &Found) -> Result<(), ApplyError> {
    lease.begin(session).await?;
    let lsn = found.end.0 as i64;
    for (table, (rows, key)) in &found.rows {
        tracing::warn!(%table, rows, key, "somebody else has written to the target");
        session
            .execute(
                "INSERT INTO crossfade.rogue AS r (source, schema, name, rows, key, lsn, at)
                 VALUES ($1::text, $2::text, $3::text, $4, $5::text, '0/0'::pg_lsn + $6::int8::numeric,
                         to_timestamp($7::int8 / 1000000) + make_interval(secs => ($7::int8 % 1000000) / 1000000.0::float8))
                 ON CONFLICT (source, schema, name) DO UPDATE SET rows = r.rows + excluded.rows, key = excluded.key, lsn = excluded.lsn, at = excluded.at",
                &[&source, &table.schema, &table.name, rows, key, &lsn, &found.time],
            )
            .await?;
    }
    for id in &found.markers {
        session
            .execute(
                "INSERT INTO crossfade.marker (source, id, lsn) VALUES ($1::text, $2::text, '0/0'::pg_lsn + $3::int8::numeric) ON CONFLICT DO NOTHING",
                &[&source, id, &lsn],
            )
            .await?;
    }
    session
        .execute(
            "UPDATE crossfade.watched SET lsn = '0/0'::pg_lsn + $2::int8::numeric, seq = $3 WHERE source = $1::text",
            &[&source, &lsn, &(seq.0 as i64)],
        )
        .await?;
    let end = if found.markers.is_empty() { "COMMIT".to_owned() } else { format!("NOTIFY {CHANNEL}; COMMIT") };
    session.batch_execute(&end).await?;
    model::failpoint!("rogue_noted");
    Ok(())
}
