//! The target's sequences begin behind the source's. What is drawn from a sequence is no write that a fence keeps back, and may be drawn until the last moment: hence a margin.

use std::collections::BTreeMap;

use model::{Code, Problem, TableName};
use pg::Session;

use crate::error::CutoverError;

/// What the target's sequences are to be set to.
#[derive(Default)]
pub(crate) struct Values {
    /// The target's, quoted.
    names: Vec<String>,
    values: Vec<i64>,
    called: Vec<bool>,
    /// The source's that belong to a column which the target has, and which has no sequence there.
    pub left: Vec<String>,
}

/// Where a sequence belongs: to a column of a table, both as the catalogs have them.
type Owner = (String, String, String);

/// With the column that each belongs to, if there is one. Partitioned and ordinary tables alike.
const SEQUENCES: &str = "
    SELECT n.nspname::text, c.relname::text, tn.nspname::text, t.relname::text, a.attname::text,
           s.seqstart, s.seqincrement, s.seqmin, s.seqmax,
           has_sequence_privilege(c.oid, 'SELECT') OR has_sequence_privilege(c.oid, 'USAGE') AS readable,
           CASE WHEN has_sequence_privilege(c.oid, 'SELECT') OR has_sequence_privilege(c.oid, 'USAGE') THEN pg_sequence_last_value(c.oid) END
      FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
      LEFT JOIN pg_class t ON t.oid = d.refobjid LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
      LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
     WHERE c.relpersistence <> 't' AND n.nspname <> 'crossfade' ORDER BY 1, 2";

fn owner(row: &tokio_postgres::Row) -> Option<Owner> {
    Some((row.get::<_, Option<String>>(2)?, row.get::<_, Option<String>>(3)?, row.get::<_, Option<String>>(4)?))
}

fn name(row: &tokio_postgres::Row) -> TableName {
    TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))
}

/// Reads what a source has given out; `margin` in steps of each sequence. The target's counterpart has the same name, or belongs to the same column. Those that belong to
/// other tables than these, quoted, are not the plan's.
pub(crate) async fn read(
    source: &Session,
    target: &Session,
    tables: &[String],
    margin: i64,
) -> Result<Values, CutoverError> {
    let there = target.query(SEQUENCES, &[]).await?;
    let by_name: BTreeMap<String, String> = there.iter().map(|row| (name(row).quoted(), name(row).quoted())).collect();
    let by_owner: BTreeMap<Owner, String> =
        there.iter().filter_map(|row| Some((owner(row)?, name(row).quoted()))).collect();
    let mut found = Values::default();
    for row in &source.query(SEQUENCES, &[]).await? {
        let (here, owner) = (name(row), owner(row));
        let of = owner.as_ref().map(|(schema, table, _)| TableName::new(schema.clone(), table.clone()).quoted());
        if of.is_some_and(|of| !tables.contains(&of)) {
            continue;
        }
        let counterpart = by_name.get(&here.quoted()).or_else(|| by_owner.get(owner.as_ref()?));
        let Some(counterpart) = counterpart else {
            if let Some((schema, table, _)) = owner
                && exists(target, &TableName::new(schema, table)).await?
            {
                found.left.push(here.to_string());
            }
            continue;
        };
        if !row.get::<_, bool>(9) {
            let next = format!("GRANT SELECT ON SEQUENCE {} TO …", here.quoted());
            let why = "its value cannot be read, and the target would give it out again";
            return Err(Problem::new(Code::PrivilegeMissing, format!("sequence {here}"), why, next).into());
        }
        let bounds = (row.get(7), row.get(8));
        let (value, called) = ahead(row.get(10), row.get(5), row.get(6), bounds, margin);
        found.names.push(counterpart.clone());
        found.values.push(value);
        found.called.push(called);
    }
    Ok(found)
}

/// Sequences that give a column of one of the tables its values: its own, or that of its default. With the column's type, and the sequence's step and bounds.
const DRAWN: &str = "
    SELECT DISTINCT tn.nspname::text, t.relname::text, a.attname::text, n.nspname::text, c.relname::text, a.atttypid IN (20, 21, 23, 1700), s.seqincrement, s.seqmin, s.seqmax
      FROM unnest($1::text[]) AS w(name) JOIN pg_class t ON t.oid = to_regclass(w.name) JOIN pg_namespace tn ON tn.oid = t.relnamespace
      JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
      JOIN (SELECT d.refobjid AS relation, d.refobjsubid::int2 AS column, d.objid AS sequence FROM pg_depend d
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
            UNION ALL
            SELECT f.adrelid, f.adnum, d.refobjid FROM pg_attrdef f JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
             WHERE d.refclassid = 'pg_class'::regclass) o ON o.relation = t.oid AND o.column = a.attnum
      JOIN pg_sequence s ON s.seqrelid = o.sequence JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     ORDER BY 1, 2, 3";

fn names(tables: &[TableName]) -> Vec<String> {
    tables.iter().map(TableName::quoted).collect()
}

/// Behind what derived tables hold: no source's sequence stands for theirs.
pub(crate) async fn of_derived(target: &Session, tables: &[TableName], margin: i64) -> Result<Values, CutoverError> {
    let mut found = Values::default();
    for row in &target.query(DRAWN, &[&names(tables)]).await? {
        if !row.get::<_, bool>(5) {
            continue;
        }
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let sequence = TableName::new(row.get::<_, String>(3), row.get::<_, String>(4));
        let step: i64 = row.get(6);
        let (end, column) = (if step < 0 { "min" } else { "max" }, model::quote::ident(row.get(2)));
        let query = format!("SELECT {end}({column})::int8 FROM {}", table.quoted());
        let Some(last): Option<i64> = target.query_one(&query, &[]).await?.get(0) else { continue };
        let (min, max): (i64, i64) = (row.get(7), row.get(8));
        let (value, called) = ahead(Some(last.clamp(min, max)), min, step, (min, max), margin);
        found.names.push(sequence.quoted());
        found.values.push(value);
        found.called.push(called);
    }
    Ok(found)
}

/// Sequences of derived tables of which nothing tells where they are to go on, each with its column.
pub(crate) async fn unknown(target: &Session, tables: &[TableName]) -> Result<Vec<(String, String)>, CutoverError> {
    let rows = target.query(DRAWN, &[&names(tables)]).await?;
    let unknown = rows.iter().filter(|row| !row.get::<_, bool>(5)).map(|row| {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let sequence = TableName::new(row.get::<_, String>(3), row.get::<_, String>(4));
        (sequence.to_string(), format!("{} of {table}", row.get::<_, &str>(2)))
    });
    Ok(unknown.collect())
}

async fn exists(target: &Session, table: &TableName) -> Result<bool, CutoverError> {
    Ok(target.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&table.quoted()]).await?.get(0))
}

/// The value that the target's sequence is set to, and whether it counts as given out. One that would come to its end by the margin goes without.
fn ahead(last: Option<i64>, start: i64, step: i64, (min, max): (i64, i64), margin: i64) -> (i64, bool) {
    let fits = |value: &i64| (min..=max).contains(value);
    match last {
        Some(last) => {
            (step.checked_mul(margin).and_then(|far| last.checked_add(far)).filter(fits).unwrap_or(last), true)
        }
        None if margin == 0 => (start, false),
        // It may be drawn from by the time that this is read.
        None => match step.checked_mul(margin - 1).and_then(|far| start.checked_add(far)).filter(fits) {
            Some(value) => (value, true),
            None => (start, false),
        },
    }
}

/// Sets them.
pub(crate) async fn set(target: &Session, values: &Values) -> Result<(), CutoverError> {
    // Never backwards: another source may have set it, or it is the target's own as well.
    let query = "SELECT count(CASE WHEN last IS NULL OR (value - last) * sign(s.seqincrement) > 0 THEN setval(oid, value, called) END)
                   FROM (SELECT to_regclass(name)::oid AS oid, value, called FROM unnest($1::text[], $2::int8[], $3::bool[]) v(name, value, called)) v
                   JOIN pg_sequence s ON s.seqrelid = oid CROSS JOIN LATERAL (SELECT pg_sequence_last_value(oid)::numeric AS last) l";
    target.query_one(query, &[&values.names, &values.values, &values.called]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::ahead;

    #[test]
    fn a_sequence_goes_on_behind_what_was_given_out() {
        let all = (1, i64::MAX);
        assert_eq!(ahead(Some(41), 1, 1, all, 1000), (1041, true));
        assert_eq!(ahead(Some(-40), -1, -2, (i64::MIN, -1), 10), (-60, true));
        assert_eq!(ahead(None, 1, 1, all, 1000), (1000, true));
        assert_eq!(ahead(None, 7, 1, all, 0), (7, false));
        // Neither is exhausted by the margin.
        assert_eq!(ahead(Some(32_000), 1, 1, (1, 32_767), 1000), (32_000, true));
        assert_eq!(ahead(None, 1, 1, (1, 100), 1000), (1, false));
        assert_eq!(ahead(Some(i64::MAX - 5), 1, 1, all, 1000), (i64::MAX - 5, true));
    }
}
