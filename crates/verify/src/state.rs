//! What a comparison has done so far, and the verdicts, in the target's schema `crossfade`: it goes on from anywhere, and a cutover reads it.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{Lsn, Seq, TableName};
use pg::Session;

use crate::error::VerifyError;
use crate::pair::{NOT_JOINED, Pair};
use crate::parts::Part;
use crate::report::{Difference, Kind, TableReport, Verdict};
use crate::sums::Sum;

const DDL: &str = "
-- Comparisons of both sides.
CREATE TABLE IF NOT EXISTS crossfade.verify (
    id text PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(), ended_at timestamptz,
    tables text[] NOT NULL,                     -- those that were named; none for all
    recheck bool NOT NULL,                      -- only of rows that were touched since the last one
    sample float8);                             -- per cent of the parts of large tables; null for all

-- Their parts, each with what was found.
CREATE TABLE IF NOT EXISTS crossfade.verify_part (
    verify text REFERENCES crossfade.verify ON DELETE CASCADE,
    source text, schema text, name text, part int,
    low text, high text,                        -- range of the leading key column
    done_at timestamptz,
    lsn pg_lsn, seq bigint,                     -- the commit, and the tail's message
    copies text,                                -- the epochs of the copies that were compared
    rows bigint,                                -- the source's
    target_rows bigint, sum text,               -- the target's, at that commit
    missing bigint, extra bigint, different bigint, more bool, rechecked bigint, held_ms bigint,
    found text,                                 -- some of the rows that differ, as JSON
    PRIMARY KEY (verify, source, schema, name, part));

-- The last word on each table.
CREATE TABLE IF NOT EXISTS crossfade.verdict (
    source text, schema text, name text,
    verify text NOT NULL, verdict text NOT NULL, why text, sample float8,
    lsn pg_lsn NOT NULL, seq bigint NOT NULL,   -- what was committed since then was not compared
    rows bigint NOT NULL, missing bigint NOT NULL, extra bigint NOT NULL, different bigint NOT NULL, rechecked bigint NOT NULL,
    copies text NOT NULL,                       -- the epochs of the copies that were compared
    at timestamptz NOT NULL DEFAULT clock_timestamp(), seconds float8 NOT NULL,
    PRIMARY KEY (source, schema, name));

-- Into how many parts the table is divided: a sample has fewer lines. It came later, and is looked up first, since ALTER TABLE would wait for who reads
-- the table at length.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'crossfade.verify_part'::regclass AND attname = 'divided' AND NOT attisdropped) THEN
        ALTER TABLE crossfade.verify_part ADD COLUMN IF NOT EXISTS divided int;
    END IF;
END $$;
";

/// Any number, the same in every version: taken while the tables are created.
const CREATE_LOCK: i64 = 0x63_66_76_66;

/// Comparisons that are kept, the last ones.
const KEPT: i64 = 20;

/// Makes room for them.
pub(crate) async fn open(session: &Session) -> Result<(), VerifyError> {
    session
        .batch_execute(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock({CREATE_LOCK}); SET LOCAL client_min_messages = warning; {DDL} COMMIT"
        ))
        .await?;
    Ok(())
}

/// Begins a comparison.
pub(crate) async fn begin(
    session: &Session,
    tables: &[TableName],
    sample: Option<f64>,
    recheck: bool,
) -> Result<String, VerifyError> {
    let id = uuid::Uuid::new_v4().to_string();
    let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
    session
        .execute(
            "INSERT INTO crossfade.verify (id, tables, sample, recheck) VALUES ($1::text, $2::text[], $3, $4)",
            &[&id, &names, &sample, &recheck],
        )
        .await?;
    session
        .execute(
            "DELETE FROM crossfade.verify WHERE id IN (SELECT id FROM crossfade.verify ORDER BY started_at DESC OFFSET $1)
                AND (ended_at IS NOT NULL OR pg_try_advisory_xact_lock($2::int4, hashtext(id)))",
            &[&KEPT, &RUNNING],
        )
        .await?;
    Ok(id)
}

/// Takes a comparison for this session, for as long as it lives; says whether no other one has it.
pub(crate) async fn take(session: &Session, id: &str) -> Result<bool, VerifyError> {
    let query = "SELECT pg_try_advisory_lock($1::int4, hashtext($2::text))";
    Ok(session.query_one(query, &[&RUNNING, &id]).await?.get(0))
}

/// Any number, the same in every version: who runs a comparison holds a lock of this kind.
const RUNNING: i32 = 0x63_66_76_72;

/// A comparison that was cut off.
pub(crate) struct Unfinished {
    pub id: String,
    pub tables: Vec<String>,
    pub sample: Option<f64>,
}

/// The last one, if it was cut off.
pub(crate) async fn unfinished(session: &Session) -> Result<Option<Unfinished>, VerifyError> {
    let query = "SELECT id, tables, sample FROM (SELECT * FROM crossfade.verify WHERE NOT recheck ORDER BY started_at DESC LIMIT 1) v WHERE ended_at IS NULL";
    let row = session.query_opt(query, &[]).await?;
    Ok(row.map(|row| Unfinished { id: row.get(0), tables: row.get(1), sample: row.get(2) }))
}

/// Notes the parts that a table is compared in, all of them or none, of so many that it has.
pub(crate) async fn add(
    session: &Session,
    id: &str,
    source: &str,
    parts: &[Part],
    divided: usize,
) -> Result<(), VerifyError> {
    let Some(first) = parts.first() else { return Ok(()) };
    let numbers: Vec<i32> = parts.iter().map(|part| part.number).collect();
    let low: Vec<Option<&str>> = parts.iter().map(|part| part.from.as_deref()).collect();
    let high: Vec<Option<&str>> = parts.iter().map(|part| part.to.as_deref()).collect();
    let table = &first.pair.table;
    session
        .execute(
            "INSERT INTO crossfade.verify_part (verify, source, schema, name, divided, part, low, high)
             SELECT $1::text, $2::text, $3::text, $4::text, $8, * FROM unnest($5::int4[], $6::text[], $7::text[])",
            &[&id, &source, &table.schema, &table.name, &numbers, &low, &high, &(divided as i32)],
        )
        .await?;
    Ok(())
}

/// The parts of a table, if they were noted, and whether each is done: of the copies that there are now.
pub(crate) async fn parts(
    session: &Session,
    id: &str,
    source: &str,
    pair: &Arc<Pair>,
    copies: Option<&String>,
) -> Result<Vec<(Part, bool)>, VerifyError> {
    let rows = session
        .query(
            "SELECT part, low, high, done_at IS NOT NULL AND copies IS NOT DISTINCT FROM $5::text FROM crossfade.verify_part
              WHERE verify = $1::text AND source = $2::text AND schema = $3::text AND name = $4::text ORDER BY part",
            &[&id, &source, &pair.table.schema, &pair.table.name, &copies],
        )
        .await?;
    let part = |row: &tokio_postgres::Row| {
        let part =
            Part { pair: Arc::clone(pair), number: row.get(0), from: row.get(1), to: row.get(2), touched: false };
        (part, row.get(3))
    };
    Ok(rows.iter().map(part).collect())
}

/// What was found in a part.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub lsn: Lsn,
    pub seq: Seq,
    pub copies: String,
    pub rows: i64,
    /// The target's, of a whole part.
    pub sum: Option<Sum>,
    pub found: Vec<Difference>,
    pub more: bool,
    pub rechecked: u64,
    pub held_ms: u64,
}

/// Differences that the state keeps of a part.
const SAMPLES: usize = 20;

/// Notes that a part is done.
pub(crate) async fn done(
    session: &Session,
    id: &str,
    source: &str,
    part: &Part,
    done: &Done,
) -> Result<(), VerifyError> {
    let count = |kind: Kind| done.found.iter().filter(|found| found.kind == kind).count() as i64;
    let samples: Vec<&Difference> = done.found.iter().take(SAMPLES).collect();
    let samples = serde_json::to_string(&samples).map_err(|error| VerifyError::Again(error.to_string()))?;
    let table = &part.pair.table;
    let noted = session
        .execute(
            "UPDATE crossfade.verify_part SET done_at = clock_timestamp(), lsn = '0/0'::pg_lsn + $6::int8::numeric, seq = $7, rows = $8, sum = $9::text,
                    missing = $10, extra = $11, different = $12, more = $13, rechecked = $14, held_ms = $15, found = $16::text, target_rows = $17, copies = $18::text
              WHERE verify = $1::text AND source = $2::text AND schema = $3::text AND name = $4::text AND part = $5",
            &[
                &id,
                &source,
                &table.schema,
                &table.name,
                &part.number,
                &(done.lsn.0 as i64),
                &(done.seq.0 as i64),
                &done.rows,
                &done.sum.map(Sum::hex),
                &count(Kind::Missing),
                &count(Kind::Extra),
                &count(Kind::Different),
                &done.more,
                &(done.rechecked as i64),
                &(done.held_ms as i64),
                &samples,
                &done.sum.map(|sum| sum.rows),
                &done.copies,
            ],
        )
        .await?;
    match noted {
        1 => Ok(()),
        _ => Err(VerifyError::Still("the target does not know of this comparison any more".to_owned())),
    }
}

/// What was found of a table in all of its parts that are done.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Parts, and those that are not done of the copies that there are now.
    pub parts: i64,
    pub open: i64,
    /// Into how many the table was divided.
    pub divided: i64,
    pub lsn: String,
    pub seq: i64,
    pub rows: i64,
    pub missing: i64,
    pub extra: i64,
    pub different: i64,
    pub more: bool,
    pub rechecked: i64,
    pub held_ms: i64,
    pub samples: Vec<Difference>,
}

/// Sums up a table.
pub(crate) async fn found(
    session: &Session,
    id: &str,
    source: &str,
    table: &TableName,
    copies: Option<&String>,
) -> Result<Found, VerifyError> {
    let row = session
        .query_one(
            "SELECT count(*) FILTER (WHERE NOT now), coalesce(min(lsn) FILTER (WHERE now), '0/0')::text, coalesce(min(seq) FILTER (WHERE now), 0),
                    coalesce(sum(rows) FILTER (WHERE now), 0)::int8, coalesce(sum(missing) FILTER (WHERE now), 0)::int8,
                    coalesce(sum(extra) FILTER (WHERE now), 0)::int8, coalesce(sum(different) FILTER (WHERE now), 0)::int8,
                    coalesce(bool_or(more) FILTER (WHERE now), false), coalesce(sum(rechecked) FILTER (WHERE now), 0)::int8, coalesce(max(held_ms), 0),
                    coalesce(array_agg(found ORDER BY part) FILTER (WHERE now AND found <> '[]'), '{}'), count(*), coalesce(max(divided)::int8, count(*))
               FROM (SELECT *, done_at IS NOT NULL AND copies IS NOT DISTINCT FROM $5::text AS now FROM crossfade.verify_part
                      WHERE verify = $1::text AND source = $2::text AND schema = $3::text AND name = $4::text) p",
            &[&id, &source, &table.schema, &table.name, &copies],
        )
        .await?;
    let lists: Vec<String> = row.get(10);
    let samples = lists.iter().flat_map(|list| serde_json::from_str::<Vec<Difference>>(list).unwrap_or_default());
    Ok(Found {
        parts: row.get(11),
        open: row.get(0),
        divided: row.get(12),
        lsn: row.get(1),
        seq: row.get(2),
        rows: row.get(3),
        missing: row.get(4),
        extra: row.get(5),
        different: row.get(6),
        more: row.get(7),
        rechecked: row.get(8),
        held_ms: row.get(9),
        samples: samples.take(SAMPLES).collect(),
    })
}

/// The last word on a table; `seq` is the tail's message from which on nothing was compared.
pub(crate) async fn judge(
    session: &Session,
    id: &str,
    sample: Option<f64>,
    table: &TableName,
    seq: i64,
    copies: Option<&String>,
    report: &TableReport,
) -> Result<(), VerifyError> {
    let count = |number: u64| number as i64;
    session
        .execute(
            "INSERT INTO crossfade.verdict (source, schema, name, verify, verdict, why, sample, lsn, seq, rows, missing, extra, different, rechecked, copies, seconds)
             SELECT $1::text, $2::text, $3::text, v.id, $5::text, $6::text, $7, $8::text::pg_lsn, $9, $10, $11, $12, $13, $14, coalesce($15::text, ''),
                    extract(epoch FROM clock_timestamp() - v.started_at)::float8 FROM crossfade.verify v WHERE v.id = $4::text
             ON CONFLICT (source, schema, name) DO UPDATE SET verify = excluded.verify, verdict = excluded.verdict, why = excluded.why, sample = excluded.sample,
               lsn = excluded.lsn, seq = excluded.seq, rows = excluded.rows, missing = excluded.missing, extra = excluded.extra,
               different = excluded.different, rechecked = excluded.rechecked, copies = excluded.copies, at = excluded.at, seconds = excluded.seconds",
            &[
                &report.source,
                &table.schema,
                &table.name,
                &id,
                &report.verdict.as_str(),
                &report.why,
                &sample,
                &report.lsn,
                &seq,
                &report.rows,
                &count(report.missing),
                &count(report.extra),
                &count(report.different),
                &count(report.rechecked),
                &copies,
            ],
        )
        .await?;
    if report.verdict == Verdict::Equal && sample.is_none() {
        forgive(session, id, table).await?;
    }
    Ok(())
}

/// Both sides are the same in full: what others had written to the table before that was looked at does no harm.
async fn forgive(session: &Session, id: &str, table: &TableName) -> Result<(), VerifyError> {
    if !session.query_one("SELECT to_regclass('crossfade.rogue') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(());
    }
    // It may have been a partition.
    let query = "DELETE FROM crossfade.rogue r USING crossfade.verify v
                  WHERE v.id = $1::text AND NOT v.recheck AND r.at < v.started_at AND ((r.schema, r.name) = ($2::text, $3::text)
                     OR to_regclass(format('%I.%I', r.schema, r.name)) IN (SELECT relid FROM pg_partition_tree(to_regclass($4::text))))";
    session.execute(query, &[&id, &table.schema, &table.name, &table.quoted()]).await?;
    Ok(())
}

/// Both sides are the same at a commit, all tables of `source`: it was decided upon that.
pub(crate) async fn seed(session: &Session, source: &str, id: &str, lsn: Lsn, seq: Seq) -> Result<(), VerifyError> {
    let copies = copies(session, source).await?;
    for (table, copies) in &copies {
        session
            .execute(
                "INSERT INTO crossfade.verdict (source, schema, name, verify, verdict, lsn, seq, rows, missing, extra, different, rechecked, copies, seconds)
                 VALUES ($1::text, $2::text, $3::text, $4::text, 'equal', '0/0'::pg_lsn + $5::int8::numeric, $6, 0, 0, 0, 0, 0, $7::text, 0)
                 ON CONFLICT (source, schema, name) DO UPDATE SET verify = excluded.verify, verdict = excluded.verdict, why = NULL, sample = NULL, lsn = excluded.lsn,
                   seq = excluded.seq, copies = excluded.copies, at = excluded.at, rows = 0, missing = 0, extra = 0, different = 0
                 WHERE crossfade.verdict.lsn < excluded.lsn",
                &[&source, &table.schema, &table.name, &id, &(lsn.0 as i64), &(seq.0 as i64), copies],
            )
            .await?;
    }
    Ok(())
}

/// Of each table of the target the copies that lead into it: the log that they came by, and their epochs. Another copy is something else to compare.
///
/// # Errors
/// The target; or copy and tail of the source are not joined.
pub(crate) async fn copies(session: &Session, source: &str) -> Result<BTreeMap<TableName, String>, VerifyError> {
    let joined = "SELECT coalesce(bool_and(joined), false) FROM crossfade.checkpoint WHERE source = $1::text";
    if !session.query_one(joined, &[&source]).await?.get::<_, bool>(0) {
        return Err(VerifyError::Still(NOT_JOINED.to_owned()));
    }
    epochs(session, source).await
}

/// The same, whether or not copy and tail are joined. Where nothing is stored of a table, its copy leads into those that are streamed from it.
pub(crate) async fn epochs(session: &Session, source: &str) -> Result<BTreeMap<TableName, String>, VerifyError> {
    let rows = session
        .query(
            "SELECT into_schema, into_name, (SELECT nonce FROM crossfade.plan) || string_agg(format(' %s.%s %s', schema, name, epoch), ',' ORDER BY schema, name),
                    array_agg(format('%s.%s.%s', source, schema, name))
               FROM crossfade.tables WHERE source = $1::text GROUP BY 1, 2",
            &[&source],
        )
        .await?;
    let mut copies = BTreeMap::new();
    for row in &rows {
        let (into, copy) = (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get::<_, String>(2));
        if !apply::is_shape(&into) {
            copies.insert(into, copy);
            continue;
        }
        let streamed =
            "SELECT into_schema, into_name FROM crossfade.derived WHERE reads = $1::text[] AND declared <> ''";
        for row in session.query(streamed, &[&row.get::<_, Vec<String>>(3)]).await? {
            copies.insert(TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), copy.clone());
        }
    }
    Ok(copies)
}

/// The commit and the message up to which a table was last compared, and equal as a whole, with these copies.
pub(crate) async fn last_equal(
    session: &Session,
    source: &str,
    table: &TableName,
    copies: Option<&String>,
) -> Result<Option<(Lsn, Seq)>, VerifyError> {
    let query = "SELECT (lsn - '0/0')::int8, seq FROM crossfade.verdict WHERE source = $1::text AND schema = $2::text AND name = $3::text
                    AND verdict = 'equal' AND sample IS NULL AND copies = $4::text";
    let row = session.query_opt(query, &[&source, &table.schema, &table.name, &copies]).await?;
    Ok(row.map(|row| (Lsn(row.get::<_, i64>(0) as u64), Seq(row.get::<_, i64>(1) as u64))))
}

/// What the target held in a part of a table.
#[derive(Debug)]
pub(crate) struct HeldPart {
    pub table: TableName,
    pub number: i32,
    pub low: Option<String>,
    pub high: Option<String>,
    pub lsn: String,
    pub seq: i64,
    pub copies: String,
    pub rows: i64,
    pub sum: String,
    /// No row differed that was found with this part.
    pub equal: bool,
}

/// Whether a cutover of this plan was ever decided.
pub(crate) async fn was_cut_over(session: &Session) -> Result<bool, VerifyError> {
    if !session.query_one("SELECT to_regclass('crossfade.journal') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let query = "SELECT EXISTS (SELECT FROM crossfade.journal WHERE state IN ('committed', 'routed', 'reversing'))";
    Ok(session.query_one(query, &[]).await?.get(0))
}

/// What the target held, by table and part, of parts that were compared whole.
pub(crate) async fn held(session: &Session, id: &str, source: &str) -> Result<Vec<HeldPart>, VerifyError> {
    let rows = session
        .query(
            "SELECT schema, name, part, low, high, lsn::text, seq, coalesce(copies, ''), target_rows, sum, missing + extra + different = 0
               FROM crossfade.verify_part WHERE verify = $1::text AND source = $2::text AND sum IS NOT NULL ORDER BY schema, name, part",
            &[&id, &source],
        )
        .await?;
    let part = |row: &tokio_postgres::Row| HeldPart {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        number: row.get(2),
        low: row.get(3),
        high: row.get(4),
        lsn: row.get(5),
        seq: row.get(6),
        copies: row.get(7),
        rows: row.get(8),
        sum: row.get(9),
        equal: row.get(10),
    };
    Ok(rows.iter().map(part).collect())
}

/// A comparison is over.
pub(crate) async fn end(session: &Session, id: &str) -> Result<(), VerifyError> {
    session.execute("UPDATE crossfade.verify SET ended_at = clock_timestamp() WHERE id = $1::text", &[&id]).await?;
    Ok(())
}
