//! The target's sequences begin behind the source's. What is drawn from a sequence is no write that a fence keeps back, and may be drawn until the last moment: hence a margin.

use model::{Code, Problem, TableName};
use pg::Session;

use crate::error::CutoverError;

/// What a source has given out.
pub(crate) struct Values {
    names: Vec<String>,
    values: Vec<i64>,
    called: Vec<bool>,
}

/// Reads the source's sequences, of the schemas of the plan's tables; `margin` in steps of each.
pub(crate) async fn read(source: &Session, schemas: &[String], margin: i64) -> Result<Values, CutoverError> {
    let rows = source
        .query(
            "SELECT n.nspname::text, c.relname::text, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, pg_sequence_last_value(c.oid),
                    has_sequence_privilege(c.oid, 'SELECT') OR has_sequence_privilege(c.oid, 'USAGE')
               FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relpersistence <> 't' AND n.nspname = ANY ($1) ORDER BY 1, 2",
            &[&schemas],
        )
        .await?;
    let mut found = Values { names: Vec::new(), values: Vec::new(), called: Vec::new() };
    for row in &rows {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !row.get::<_, bool>(7) {
            let next = format!("GRANT SELECT ON SEQUENCE {} TO …", name.quoted());
            let why = "its value cannot be read, and the target would give it out again";
            return Err(Problem::new(Code::PrivilegeMissing, format!("sequence {name}"), why, next).into());
        }
        let (start, step, min, max): (i64, i64, i64, i64) = (row.get(2), row.get(3), row.get(4), row.get(5));
        let last: Option<i64> = row.get(6);
        // One that was never used may be by the time that it is read.
        let from = last.unwrap_or_else(|| start.saturating_sub(step));
        found.names.push(name.quoted());
        found.values.push(from.saturating_add(step.saturating_mul(margin)).clamp(min, max));
        found.called.push(last.is_some() || margin > 0);
    }
    Ok(found)
}

/// Sets those that the target has. Says how many.
pub(crate) async fn set(target: &Session, values: &Values) -> Result<u64, CutoverError> {
    let query = "SELECT count(setval(to_regclass(name), value, called))
                   FROM unnest($1::text[], $2::int8[], $3::bool[]) v(name, value, called) JOIN pg_class c ON c.oid = to_regclass(name) AND c.relkind = 'S'";
    let set: i64 = target.query_one(query, &[&values.names, &values.values, &values.called]).await?.get(0);
    Ok(set.unsigned_abs())
}
