//! Where the tables that queries read are in the target, and what the target knows of each derived table.

use mapping::{Places, Side, SourceTable, Usual};
use model::{Code, Problem, Record, TableBegin, TableName, quote};
use pg::Session;
use plan::Plan;
use tracing::warn;

use super::kept::fingerprint;
use super::stored::{self, Planner, Stored, Stream, is_shape};
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
/// [`Code::PlanInvalid`]: the plan says another place for a table than it did when it was copied; or of what is streamed from a table of which nothing is stored, something else than
/// it did then.
pub(crate) async fn placed(session: &Session, plan: &Plan) -> Result<(), ApplyError> {
    let planner = Planner::new(session, plan).await?;
    let query = "SELECT source, into_schema, into_name, begin FROM crossfade.tables WHERE epoch > 0 AND begin IS NOT NULL ORDER BY source, schema, name";
    for row in session.query(query, &[]).await? {
        let (source, into) = (row.get::<_, &str>(0), TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)));
        let Record::TableBegin(begin) = tables::decode(row.get(3))? else { continue };
        let captured = |table: &TableName| plan.source(source).is_some_and(|source| source.tables.selects(table));
        if !(captured(&begin.table) || begin.root.as_ref().is_some_and(captured)) {
            continue;
        }
        let origin = origin(source, &begin);
        if (into.schema == SCHEMA) != is_mirrored(plan, source, &begin) {
            return Err(elsewhere(source, &begin, into.schema == SCHEMA));
        }
        if into.schema != SCHEMA {
            continue;
        }
        match (is_shape(&into), planner.stored(source, &begin).await?) {
            (true, Stored::Results(streams)) => {
                for stream in streams {
                    declared_as_copied(session, &origin, &stream.declared).await?;
                }
            }
            (true, Stored::Mirror(why)) => return Err(unstored(&origin, &why)),
            (_, Stored::Nothing(error)) => return Err(error),
            (false, Stored::Results(_)) => warn!(
                "table {origin} has a mirror that no query needs any more, as all that read it are streamed: `crossfade recopy {}` copies it without one",
                origin.table
            ),
            (_, Stored::AsIs) | (false, Stored::Mirror(_)) => {}
        }
    }
    Ok(())
}

pub(crate) fn elsewhere(source: &str, begin: &TableBegin, mirrored: bool) -> ApplyError {
    let table = origin(source, begin).table;
    let why = match mirrored {
        true => {
            "its rows went where the plan's queries read them, and the plan says now that it goes into the target as it is"
        }
        false => "its rows went into the target as they are, and the plan says now that only queries read it",
    };
    let next = format!(
        "change `mirror` back to what it was, or let it be copied to its new place: `crossfade recopy {table}`, and start again"
    );
    let what = format!("table {} of source {source:?}", begin.table);
    Problem::new(Code::PlanInvalid, what, why, next).into()
}

/// Nothing is stored of a table, and now the plan wants a mirror of it.
pub(super) fn unstored(origin: &SourceTable, why: &str) -> ApplyError {
    Problem::new(
        Code::PlanInvalid,
        format!("table {origin}"),
        format!("when it was copied all that read it was streamed, so nothing else is stored of it; now it needs a mirror: {why}"),
        format!(
            "change the plan back to what it was, or let it be copied into a mirror: `crossfade recopy {}`, and start again",
            origin.table
        ),
    )
    .into()
}

/// The rows that are streamed from a table of which nothing is stored are of its copy: another declaration wants another copy.
async fn declared_as_copied(
    session: &Session,
    origin: &SourceTable,
    declared: &plan::Derived,
) -> Result<(), ApplyError> {
    let into = &declared.into;
    let query = "SELECT declared FROM crossfade.derived WHERE into_schema = $1::text AND into_name = $2::text";
    let row = session.query_opt(query, &[&into.schema, &into.name]).await?;
    let why = match row.as_ref().map(|row| row.get::<_, &str>(0)) {
        Some(before) if before == fingerprint(declared) => return Ok(()),
        Some("") | None => "the plan did not have it",
        Some(_) => "the plan declared it another way",
    };
    let table = &origin.table;
    Err(Problem::new(
        Code::PlanInvalid,
        format!("derived table {into}, line {} of the plan", declared.line),
        format!("it is streamed from {origin}, of which nothing else is stored, and {why} when that was copied"),
        format!(
            "change it back to what it was, or let {table} be copied again: `crossfade recopy {table}`, and start again"
        ),
    )
    .into())
}

/// The rows of these begin with an epoch of the table that they are streamed from, of which nothing else is stored: those of earlier ones are void.
pub(crate) async fn stream(
    session: &Session,
    source: &str,
    begin: &TableBegin,
    streams: &[Stream],
) -> Result<(), ApplyError> {
    let origin = origin(source, begin);
    let (name, why) = (origin.to_string(), format!("table {} of source {source:?} is copied", begin.table));
    for Stream { declared, .. } in streams {
        let into = &declared.into;
        let query =
            "SELECT EXISTS (SELECT FROM crossfade.derived WHERE into_schema = $1::text AND into_name = $2::text)";
        let known: bool = session.query_one(query, &[&into.schema, &into.name]).await?.get(0);
        if has_rows(session, into).await? {
            if !known {
                return Err(occupied(declared));
            }
            empty(session, into).await?;
            model::failpoint!("streamed_emptied");
        }
        tables::enclose(session, std::slice::from_ref(into)).await?;
        session
            .execute(
                "INSERT INTO crossfade.derived (into_schema, into_name, declared, reads, filled, why)
                 VALUES ($1::text, $2::text, $3::text, ARRAY[$4::text], false, $5::text)
                 ON CONFLICT (into_schema, into_name) DO UPDATE SET declared = excluded.declared, reads = excluded.reads, filled = false, why = excluded.why",
                &[&into.schema, &into.name, &fingerprint(declared), &name, &why],
            )
            .await?;
    }
    let names: Vec<String> = streams.iter().map(|stream| stream.declared.into.to_string()).collect();
    session
        .execute(
            "UPDATE crossfade.derived SET declared = '', filled = false WHERE reads = ARRAY[$1::text] AND into_schema || '.' || into_name <> ALL ($2::text[])",
            &[&name, &names],
        )
        .await?;
    Ok(())
}

/// Whether a table of the target has rows.
pub(super) async fn has_rows(session: &Session, into: &TableName) -> Result<bool, ApplyError> {
    let query = format!("SELECT EXISTS (SELECT FROM {})", into.quoted());
    Ok(session.query_one(&query, &[]).await?.get(0))
}

/// Its rows are not crossfade's.
pub(super) fn occupied(declared: &plan::Derived) -> ApplyError {
    let into = &declared.into;
    Problem::new(
        Code::TargetNotEmpty,
        format!("table {into} of the target"),
        format!("it has rows, and the [[table]] in line {} of the plan is to fill it", declared.line),
        format!("if they are of no use, TRUNCATE {};", into.quoted()),
    )
    .into()
}

/// Drops mirrors and shapes that no table leads into any more.
pub(crate) async fn sweep(session: &Session) -> Result<(), ApplyError> {
    let query = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = $1::text AND c.relkind = 'r' AND (starts_with(c.relname::text, 'mirror ') OR starts_with(c.relname::text, 'shape '))
                    AND NOT EXISTS (SELECT FROM crossfade.tables t WHERE t.into_schema = $1::text AND t.into_name = c.relname)";
    for row in session.query(query, &[&SCHEMA]).await? {
        let left = TableName::new(SCHEMA, row.get::<_, String>(0));
        session.batch_execute(&format!("DROP TABLE {}", left.quoted())).await?;
    }
    Ok(())
}

/// Creates the mirror, if it is not there, in the transaction that `session` is in. Its key is built behind its copy. Without `rows` it only has the columns.
pub(crate) async fn mirror(
    session: &Session,
    source: &str,
    begin: &TableBegin,
    rows: bool,
) -> Result<TableName, ApplyError> {
    let origin = origin(source, begin);
    let mirror = if rows { Usual.mirror(&origin) } else { stored::shape(&origin) };
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
        quote::literal(&match rows {
            true => format!("table {origin}, as the plan's queries read it; removed by `crossfade complete`"),
            false =>
                format!("the columns of table {origin}, whose rows are only streamed; removed by `crossfade complete`"),
        })
    );
    session.batch_execute(&create).await.map_err(|error| refused(&origin, error.into()))?;
    if let Some(key) = key(&mirror, begin).filter(|_| rows) {
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
    if is_shape(mirror) {
        return Ok(());
    }
    rekey(session, source, mirror, begin).await
}

/// Takes all rows from a table of the target.
pub(crate) async fn empty(session: &Session, into: &TableName) -> Result<(), ApplyError> {
    // TRUNCATE refuses a table that others refer to, even where they are empty, and is a right of its own.
    let query = "SELECT has_table_privilege($1::text, 'TRUNCATE') AND NOT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = to_regclass($1::text))";
    let sql = match session.query_one(query, &[&into.quoted()]).await?.get(0) {
        true => format!("TRUNCATE {}", into.quoted()),
        false => format!("DELETE FROM {}", into.quoted()),
    };
    Ok(session.batch_execute(&sql).await?)
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
