//! What `crossfade verify` has left in the target: the verdicts, and a comparison that is under way or was cut off.

use model::TableName;
use pg::{PgError, Session};
use plan::Plan;

use crate::model::{NotEqual, Oldest, Unfinished, Verified};

/// Who runs a comparison holds an advisory lock of this kind; the same number as in `verify/state.rs`.
const RUNNING: i64 = 0x63_66_76_72;

/// Each table with its last verdict; nothing is compared with a relation that only has a table's columns. One on an earlier copy says nothing of this one, unless it said nothing anyway;
/// nor does one on a derived table that was filled again since. `$1` to `$3` are the plan's derived tables: schema, name, and when each was filled.
const VERDICTS: &str = "
    SELECT coalesce(v.source, c.source), coalesce(v.schema, c.schema), coalesce(v.name, c.name),
           CASE WHEN v.verdict = 'inconclusive' OR v.copies = c.copies THEN v.verdict END, v.why, v.sample IS NOT NULL, v.lsn::text,
           to_char(v.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), extract(epoch FROM clock_timestamp() - v.at)::float8
      FROM crossfade.verdict v
      FULL JOIN (SELECT source, into_schema AS schema, into_name AS name,
                        (SELECT nonce FROM crossfade.plan) || string_agg(format(' %s.%s %s', t.schema, t.name, epoch), ',' ORDER BY t.schema, t.name) AS copies
                   FROM crossfade.tables t WHERE NOT (t.into_schema = 'crossfade' AND starts_with(t.into_name, 'shape ')) GROUP BY 1, 2, 3
                 UNION ALL
                 SELECT '', d.schema, d.name, d.filled_at FROM unnest($1::text[], $2::text[], $3::text[]) AS d(schema, name, filled_at)) c USING (source, schema, name)
     WHERE c.copies IS NOT NULL OR v.verdict = 'inconclusive'
     ORDER BY 1, 2, 3";

/// As a verdict names what it was given on.
const FILLED: &str =
    "SELECT into_schema, into_name, filled_at::text FROM crossfade.derived WHERE filled AND filled_at IS NOT NULL";

const TABLES: &str = "SELECT count(*) FROM (SELECT DISTINCT source, into_schema, into_name FROM crossfade.tables
                        WHERE NOT (into_schema = 'crossfade' AND starts_with(into_name, 'shape '))) t";

const UNFINISHED: &str = "
    SELECT v.id, to_char(v.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), v.recheck,
           EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                    WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.objsubid = 2
                      AND l.classid::int8 = $1 AND l.objid::int8 = hashtext(v.id)::int8 & 4294967295),
           (SELECT count(*) FROM crossfade.verify_part p WHERE p.verify = v.id),
           (SELECT count(done_at) FROM crossfade.verify_part p WHERE p.verify = v.id)
      FROM (SELECT * FROM crossfade.verify ORDER BY started_at DESC LIMIT 1) v WHERE v.ended_at IS NULL";

/// Reads them, in a transaction that is open.
pub(crate) async fn read(session: &Session, plan: &Plan) -> Result<Verified, PgError> {
    let there =
        "SELECT to_regclass('crossfade.verdict') IS NOT NULL AND to_regclass('crossfade.verify_part') IS NOT NULL,
                        to_regclass('crossfade.derived') IS NOT NULL";
    let mut verified = Verified::default();
    let there = session.query_one(there, &[]).await?;
    if !there.get::<_, bool>(0) {
        let tables: i64 = session.query_one(TABLES, &[]).await?.get(0);
        return Ok(Verified { unverified: tables.unsigned_abs() + plan.derived.len() as u64, ..verified });
    }
    let filled = match there.get(1) {
        true => session.query(FILLED, &[]).await?,
        // A state of an older version has no derived tables.
        false => Vec::new(),
    };
    let (mut schemas, mut names, mut since) = (Vec::new(), Vec::new(), Vec::new());
    for into in plan.derived.iter().map(|derived| &derived.into) {
        let row = filled.iter().find(|row| row.get::<_, &str>(0) == into.schema && row.get::<_, &str>(1) == into.name);
        schemas.push(into.schema.as_str());
        names.push(into.name.as_str());
        since.push(row.map_or("", |row| row.get(2)));
    }
    for row in session.query(VERDICTS, &[&schemas, &names, &since]).await? {
        let (verdict, sampled): (Option<String>, bool) = (row.get(3), row.get(5));
        let Some(verdict) = verdict else {
            verified.unverified += 1;
            continue;
        };
        let compared = match verdict.as_str() {
            "equal" => &mut verified.equal,
            "different" => &mut verified.different,
            _ => &mut verified.inconclusive,
        };
        *compared += 1;
        if verdict != "equal" {
            let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)).to_string();
            let (source, verdict) = (row.get(0), verdict.clone());
            verified.not_equal.push(NotEqual { source, table, verdict, why: row.get(4) });
        }
        let (lsn, at, age): (String, String, f64) = (row.get(6), row.get(7), row.get(8));
        if verdict != "inconclusive" {
            verified.sampled += u64::from(sampled);
            if verified.oldest.as_ref().is_none_or(|oldest| oldest.age < age) {
                verified.oldest = Some(Oldest { lsn, at, age });
            }
        }
    }
    verified.unfinished = session.query_opt(UNFINISHED, &[&RUNNING]).await?.map(|row| Unfinished {
        id: row.get(0),
        started_at: row.get(1),
        recheck: row.get(2),
        running: row.get(3),
        parts: row.get::<_, i64>(4).unsigned_abs(),
        done: row.get::<_, i64>(5).unsigned_abs(),
    });
    Ok(verified)
}
