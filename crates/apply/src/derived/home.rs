//! Where the tables that queries read are in the target, and what the target knows of each derived table.

use mapping::{Places, Side, SourceTable, Usual};
use model::{Code, Problem, Record, TableBegin, TableName, quote};
use pg::Session;
use plan::Plan;
use tracing::warn;

use crate::{ApplyError, tables};

/// The schema of crossfade's own tables, mirrors among them.
pub(crate) const SCHEMA: &str = "crossfade";

/// The table of a source that rows of a copy are of: a partition's are those of the table at its top.
pub(crate) fn origin(source: &str, begin: &TableBegin) -> SourceTable {
    SourceTable::new(source, begin.root.clone().unwrap_or_else(|| begin.table.clone()))
}

/// Whether its rows go into a mirror of crossfade's own, and not into the application's table.
pub(crate) fn is_mirrored(plan: &Plan, source: &str, begin: &TableBegin) -> bool {
    let as_is = |table: &TableName| plan.source(source).is_none_or(|source| source.as_is.selects(table));
    !as_is(&begin.table) && !begin.root.as_ref().is_some_and(as_is)
}

/// Looks whether the rows of all copies went where the plan wants them.
///
/// # Errors
/// [`Code::PlanInvalid`]: the plan says another place for a table than it did when it was copied.
pub(crate) async fn placed(session: &Session, plan: &Plan) -> Result<(), ApplyError> {
    let query = "SELECT source, into_schema, begin FROM crossfade.tables WHERE epoch > 0 AND begin IS NOT NULL ORDER BY source, schema, name";
    for row in session.query(query, &[]).await? {
        let (source, into): (&str, &str) = (row.get(0), row.get(1));
        let Record::TableBegin(begin) = tables::decode(row.get(2))? else { continue };
        let captured = |table: &TableName| plan.source(source).is_some_and(|source| source.tables.selects(table));
        let mirrored = into == SCHEMA;
        if !(captured(&begin.table) || begin.root.as_ref().is_some_and(captured))
            || mirrored == is_mirrored(plan, source, &begin)
        {
            continue;
        }
        let table = origin(source, &begin).table;
        let why = match mirrored {
            true => {
                "its rows went into a mirror for the plan's queries, and the plan says now that it goes into the target as it is"
            }
            false => "its rows went into the target as they are, and the plan says now that only queries read it",
        };
        let next = format!(
            "change `mirror` back to what it was, or let it be copied to its new place: `crossfade recopy {table}`, and start again"
        );
        let what = format!("table {} of source {source:?}", begin.table);
        return Err(Problem::new(Code::PlanInvalid, what, why, next).into());
    }
    Ok(())
}

/// Creates the mirror, if it is not there, in the transaction that `session` is in. Its key is built behind its copy.
pub(crate) async fn mirror(session: &Session, source: &str, begin: &TableBegin) -> Result<TableName, ApplyError> {
    let origin = origin(source, begin);
    let mirror = Usual.mirror(&origin);
    let there = "SELECT to_regclass($1::text) IS NOT NULL";
    if session.query_one(there, &[&mirror.quoted()]).await?.get(0) {
        return Ok(mirror);
    }
    let columns: Vec<String> =
        begin.columns.iter().map(|column| format!("{} {}", quote::ident(&column.name), column.type_name)).collect();
    let create = format!(
        "CREATE TABLE {0} ({1}); COMMENT ON TABLE {0} IS {2}",
        mirror.quoted(),
        columns.join(", "),
        quote::literal(&format!("table {origin}, as the plan's queries read it; removed by `crossfade complete`"))
    );
    session.batch_execute(&create).await.map_err(|error| refused(&origin, error.into()))?;
    if let Some(key) = key(&mirror, begin) {
        note(session, source, &mirror, begin, "CONSTRAINT", &key).await?;
    }
    model::failpoint!("mirror_created");
    Ok(mirror)
}

fn key(mirror: &TableName, begin: &TableBegin) -> Option<String> {
    let key = quote::idents(begin.key.iter().map(String::as_str));
    (!begin.key.is_empty()).then(|| format!("ALTER TABLE {} ADD PRIMARY KEY ({key})", mirror.quoted()))
}

/// Notes what is to be built behind a copy.
async fn note(
    session: &Session,
    source: &str,
    mirror: &TableName,
    begin: &TableBegin,
    kind: &str,
    sql: &str,
) -> Result<(), ApplyError> {
    session
        .execute(
            "INSERT INTO crossfade.schema_item (source, name, kind, table_schema, table_name, stage, sql)
             VALUES ($1::text, $2::text, $3::text, $4::text, $5::text, 'table', $6::text)",
            &[&source, &mirror.name, &kind, &begin.table.schema, &begin.table.name, &sql],
        )
        .await?;
    Ok(())
}

/// Takes the key from a mirror whose rows are told apart by other columns from now on. The new one is built behind the copy; over the partitions of a table,
/// which are copied one after the other, an index has to do.
async fn rekey(session: &Session, source: &str, mirror: &TableName, begin: &TableBegin) -> Result<(), ApplyError> {
    let query = "SELECT c.conname::text, array_agg(a.attname::text ORDER BY k.place)
                   FROM pg_constraint c, unnest(c.conkey) WITH ORDINALITY AS k(attnum, place), pg_attribute a
                  WHERE c.conrelid = to_regclass($1::text) AND c.contype = 'p' AND a.attrelid = c.conrelid AND a.attnum = k.attnum GROUP BY 1";
    let had = session.query_opt(query, &[&mirror.quoted()]).await?;
    if had.as_ref().is_some_and(|had| had.get::<_, Vec<String>>(1) == begin.key) {
        return Ok(());
    }
    if let Some(had) = had {
        let mut changes = vec![format!("DROP CONSTRAINT {}", quote::ident(had.get(0)))];
        let names: Vec<String> = had.get(1);
        changes.extend(names.iter().map(|name| format!("ALTER COLUMN {} DROP NOT NULL", quote::ident(name))));
        session.batch_execute(&format!("ALTER TABLE {} {}", mirror.quoted(), changes.join(", "))).await?;
    }
    let wanted = key(mirror, begin);
    let (kind, sql) = match (&begin.root, wanted) {
        (None, Some(key)) => ("CONSTRAINT", Some(key)),
        (Some(_), Some(_)) => {
            let key = quote::idents(begin.key.iter().map(String::as_str));
            ("INDEX", Some(format!("CREATE INDEX ON {} ({key})", mirror.quoted())))
        }
        (_, None) => ("", None),
    };
    let others = "DELETE FROM crossfade.schema_item WHERE source = $1::text AND name = $2::text AND kind = 'CONSTRAINT' AND done_at IS NULL";
    session.execute(others, &[&source, &mirror.name]).await?;
    let Some(sql) = sql else { return Ok(()) };
    let noted = "SELECT EXISTS (SELECT FROM crossfade.schema_item WHERE source = $1::text AND name = $2::text AND kind = 'INDEX' AND sql = $3::text)";
    if !session.query_one(noted, &[&source, &mirror.name, &sql]).await?.get::<_, bool>(0) {
        note(session, source, mirror, begin, kind, &sql).await?;
    }
    Ok(())
}

/// Gives an emptied mirror the columns and the key of the copy to come. A column that is gone stays, and is null.
pub(crate) async fn reshape(
    session: &Session,
    source: &str,
    mirror: &TableName,
    begin: &TableBegin,
) -> Result<(), ApplyError> {
    let query = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
                  WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = session.query(query, &[&mirror.quoted()]).await?;
    for column in &begin.columns {
        let name = quote::ident(&column.name);
        let there = rows.iter().find(|row| row.get::<_, &str>(0) == column.name).map(|row| row.get::<_, &str>(1));
        let change = match there {
            None => format!("ADD COLUMN {name} {}", column.type_name),
            Some(type_name) if type_name != column.type_name => {
                format!("ALTER COLUMN {name} TYPE {0} USING {name}::text::{0}", column.type_name)
            }
            Some(_) => continue,
        };
        let alter = format!("ALTER TABLE {} {change}", mirror.quoted());
        session.batch_execute(&alter).await.map_err(|error| refused(&origin("", begin), error.into()))?;
    }
    rekey(session, source, mirror, begin).await
}

fn refused(origin: &SourceTable, error: ApplyError) -> ApplyError {
    if error.retry() {
        return error;
    }
    Problem::new(
        Code::SchemaFailed,
        format!("the mirror of table {origin}"),
        format!("the target refuses it: {error}"),
        "make it possible there: the table's types and extensions must be there under the same names",
    )
    .into()
}

/// Derived tables that read one of these are no longer what their queries give, and are filled anew once copy and tail are joined again.
pub(crate) async fn unfill(session: &Session, origins: &[String], why: &str) -> Result<(), ApplyError> {
    let rows = session
        .query(
            "UPDATE crossfade.derived SET filled = false, why = $2::text WHERE filled AND reads && $1::text[] RETURNING into_schema, into_name",
            &[&origins, &why],
        )
        .await?;
    for row in rows {
        let into = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        warn!("derived table {into} will be filled anew: {why}");
    }
    Ok(())
}

/// Where the tables that queries read are, and the temp tables of their changed rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Homes(pub std::collections::BTreeMap<SourceTable, TableName>);

impl Places for Homes {
    fn mirror(&self, table: &SourceTable) -> TableName {
        self.0.get(table).cloned().unwrap_or_else(|| Usual.mirror(table))
    }

    fn changed(&self, table: &SourceTable, side: Side) -> TableName {
        Usual.changed(table, side)
    }

    fn scratch(&self, into: &TableName, name: &str) -> TableName {
        Usual.scratch(into, name)
    }
}
