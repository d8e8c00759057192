//! The tables of the plan, and the epochs of their copies. A chunk lands only under the current epoch.

use model::{Code, Problem, Record, TableBegin, TableEnd, TableName};
use pg::Session;
use plan::Plan;
use tracing::warn;

use crate::ApplyError;
use crate::derived::home;
use crate::derived::stored::{Planner, Stored, is_shape};

/// Notes that a table's copy has begun in the log. Says whether the one before is void.
pub(crate) async fn announce(
    session: &Session,
    plan: &Plan,
    source: &str,
    begin: TableBegin,
) -> Result<bool, ApplyError> {
    let stored = Planner::new(session, plan).await?.stored(source, &begin).await?;
    let into = match &stored {
        Stored::AsIs => into(session, &begin).await?,
        Stored::Mirror(_) => home::mirror(session, source, &begin, true).await?,
        Stored::Results(_) | Stored::Nothing(_) => home::mirror(session, source, &begin, false).await?,
    };
    let (schema, name, epoch) = (begin.table.schema.clone(), begin.table.name.clone(), begin.epoch as i32);
    let (rows, bytes) = (begin.rows_estimated, begin.bytes_estimated);
    let encoded = Record::TableBegin(begin).encode();
    // Once its copy is void it may go to another place.
    let row = session
        .query_one(
            "INSERT INTO crossfade.tables AS t (source, schema, name, into_schema, into_name, epoch, next_epoch, next_begin, rows_estimated, bytes_estimated)
             VALUES ($1::text, $2::text, $3::text, $4::text, $5::text, 0, $6, $7, $8, $9)
             ON CONFLICT (source, schema, name) DO UPDATE SET next_epoch = excluded.next_epoch, next_begin = excluded.next_begin,
               rows_estimated = excluded.rows_estimated, bytes_estimated = excluded.bytes_estimated, chunks = NULL, rows = NULL,
               into_schema = CASE WHEN t.epoch <= 0 THEN excluded.into_schema ELSE t.into_schema END,
               into_name = CASE WHEN t.epoch <= 0 THEN excluded.into_name ELSE t.into_name END
             RETURNING epoch < 0",
            &[&source, &schema, &name, &into.schema, &into.name, &epoch, &&encoded[..], &rows, &bytes],
        )
        .await?;
    // Nobody but crossfade knows of its mirrors.
    if matches!(stored, Stored::AsIs) {
        enclose(session, &[into]).await?;
    }
    model::failpoint!("epoch_announced");
    Ok(row.get(0))
}

/// From the start nobody else writes to them. Where this role may not make triggers they stay open, which a cutover will refuse.
pub(crate) async fn enclose(session: &Session, into: &[TableName]) -> Result<(), ApplyError> {
    let plan: String = session.query_one("SELECT name FROM crossfade.plan", &[]).await?.get(0);
    let side = plan::target_side(&plan);
    let query = "SELECT greatest(closed, $2) FROM crossfade.fence WHERE side = $1::text";
    let row = session.query_opt(query, &[&side, &pg::fence::FROM_THE_START]).await?;
    let epoch = row.map_or(pg::fence::FROM_THE_START, |row| row.get(0));
    for relation in pg::fence::bare(session, &side, into).await? {
        let may = "SELECT has_table_privilege($1::text, 'TRIGGER')";
        if !session.query_one(may, &[&relation]).await?.get::<_, bool>(0) {
            warn!(
                "anybody may write to {relation} at the target, for this role lacks TRIGGER on it: GRANT TRIGGER ON {relation} TO …"
            );
            continue;
        }
        let made = pg::fence::enclose(&[relation], &side, epoch, false);
        session.batch_execute(&made).await?;
    }
    Ok(())
}

/// The same for tables that were announced before, by a version that did not do it.
pub(crate) async fn enclose_all(session: &Session) -> Result<(), ApplyError> {
    let rows = session
        .query("SELECT DISTINCT into_schema, into_name FROM crossfade.tables WHERE into_schema <> 'crossfade'", &[])
        .await?;
    let tables: Vec<TableName> =
        rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    enclose(session, &tables).await
}

/// Where a table's rows go: to the table of its name, or, a partition's, to that of its root.
async fn into(session: &Session, begin: &TableBegin) -> Result<TableName, ApplyError> {
    for candidate in std::iter::once(&begin.table).chain(&begin.root) {
        let there: bool =
            session.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&candidate.quoted()]).await?.get(0);
        if there {
            return Ok(candidate.clone());
        }
    }
    Err(Problem::new(
        Code::TargetMissing,
        format!("table {}", begin.table),
        "the target has no table of that name, nor of its root's",
        "create it, leave it out of the source's `tables`, or let crossfade create the schema: [target] schema = \"clone\"",
    )
    .into())
}

/// Begins the announced epoch of a table: from now on chunks of earlier ones are void, and their rows are gone. What the plan has against an epoch that is not
/// `live` is no error: a later one may have taken its place, and if none has, that is found once it is known which copies count.
pub(crate) async fn begin(
    session: &Session,
    plan: &Plan,
    source: &str,
    table: &TableName,
    live: bool,
) -> Result<(), ApplyError> {
    // Waits for chunks of the old epoch that are being written: they lock this row.
    let row = session
        .query_opt(
            "UPDATE crossfade.tables t SET epoch = next_epoch, begin = next_begin, next_epoch = NULL, next_begin = NULL
               FROM (SELECT source, schema, name, epoch AS before FROM crossfade.tables
                      WHERE source = $1::text AND schema = $2::text AND name = $3::text AND next_epoch IS NOT NULL FOR UPDATE) old
              WHERE (t.source, t.schema, t.name) = (old.source, old.schema, old.name) RETURNING before, into_schema, into_name, begin",
            &[&source, &table.schema, &table.name],
        )
        .await?;
    model::failpoint!("epoch_begun");
    let Some(row) = row else { return Ok(()) };
    let (before, mut into) = (row.get::<_, i32>(0), TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)));
    let Record::TableBegin(begin) = decode(row.get::<_, &[u8]>(3))? else { return Ok(()) };
    let origin = home::origin(source, &begin).to_string();
    // Of a partition that joins later, too: its first copy brings rows that no change tells of.
    home::unfill(session, &[origin], &format!("table {table} of source {source:?} is copied")).await?;
    if is_shape(&into) {
        match Planner::new(session, plan).await?.stored(source, &begin).await? {
            Stored::Results(streams) => home::stream(session, source, &begin, &streams).await?,
            // The plan is another one than when it was announced. Nothing is there yet that would be in the wrong place.
            Stored::Mirror(_) => into = mirrored_after_all(session, source, &begin).await?,
            Stored::AsIs if live => return Err(home::elsewhere(source, &begin, true)),
            Stored::Nothing(error) if live => return Err(error),
            Stored::AsIs | Stored::Nothing(_) => {}
        }
    }
    if before == 0 {
        return Ok(());
    }
    home::sweep(session).await?;
    // Where nothing is stored of it, there are no rows.
    if !is_shape(&into) {
        empty(session, &into, table, &begin).await?;
    }
    if into.schema == home::SCHEMA {
        home::reshape(session, source, &into, &begin).await?;
    }
    model::failpoint!("epoch_emptied");
    Ok(())
}

/// Takes a table's rows from the relation that they went into.
async fn empty(session: &Session, into: &TableName, table: &TableName, begin: &TableBegin) -> Result<(), ApplyError> {
    let only = pg::catalog::only(session, into).await?;
    let bound = if into == table || begin.partition_bound.is_empty() { "true" } else { &begin.partition_bound };
    // TRUNCATE refuses a table that others refer to, even where they are empty.
    let referred: bool = session
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = to_regclass($1::text))",
            &[&into.quoted()],
        )
        .await?
        .get(0);
    let statement = match bound == "true" && !referred {
        true => format!("TRUNCATE {only}{}", into.quoted()),
        false => format!("DELETE FROM {only}{} WHERE {bound}", into.quoted()),
    };
    Ok(session.batch_execute(&statement).await?)
}

/// Leads a table of which nothing is stored into a mirror.
async fn mirrored_after_all(session: &Session, source: &str, begin: &TableBegin) -> Result<TableName, ApplyError> {
    let mirror = home::mirror(session, source, begin, true).await?;
    session
        .execute(
            "UPDATE crossfade.tables SET into_schema = $4::text, into_name = $5::text WHERE source = $1::text AND schema = $2::text AND name = $3::text",
            &[&source, &begin.table.schema, &begin.table.name, &mirror.schema, &mirror.name],
        )
        .await?;
    Ok(mirror)
}

/// The log's `TableBegin`, as the state keeps it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Record, ApplyError> {
    Record::decode(bytes.to_vec().into()).map_err(|error| log::LogError::Damaged(error).into())
}

/// Notes that a table's copy is complete in the log.
pub(crate) async fn complete(session: &Session, source: &str, end: &TableEnd) -> Result<(), ApplyError> {
    session
        .execute(
            "UPDATE crossfade.tables SET chunks = $5, rows = $6
              WHERE source = $1::text AND schema = $2::text AND name = $3::text AND coalesce(next_epoch, epoch) = $4",
            &[
                &source,
                &end.table.schema,
                &end.table.name,
                &(end.epoch as i32),
                &(end.chunks as i64),
                &(end.rows as i64),
            ],
        )
        .await?;
    session
        .execute(
            "INSERT INTO crossfade.schema_item (source, name, kind, table_schema, table_name, stage, sql)
             SELECT source, name, 'ANALYZE', schema, name, 'table', format('ANALYZE %I.%I', into_schema, into_name)
               FROM crossfade.tables WHERE source = $1::text AND schema = $2::text AND name = $3::text",
            &[&source, &end.table.schema, &end.table.name],
        )
        .await?;
    Ok(())
}

/// True for a row `t` of `crossfade.tables` whose rows are all in.
pub(crate) const COPIED: &str = "(t.next_epoch IS NULL AND t.epoch > 0 AND t.chunks IS NOT NULL AND NOT EXISTS (
    SELECT FROM crossfade.copied c WHERE (c.source, c.schema, c.name, c.epoch) = (t.source, t.schema, t.name, t.epoch) AND c.worker IS NULL)
  AND t.chunks = (SELECT count(*) FROM crossfade.copied c WHERE (c.source, c.schema, c.name, c.epoch) = (t.source, t.schema, t.name, t.epoch)))";

/// True for a row `t` of `crossfade.tables` whose keys and indexes are built.
pub(crate) const BUILT: &str = "(NOT EXISTS (SELECT FROM crossfade.schema_item i
    WHERE (i.source, i.table_schema, i.table_name) = (t.source, t.schema, t.name) AND i.stage = 'table' AND i.kind <> 'ANALYZE' AND i.done_at IS NULL))";
