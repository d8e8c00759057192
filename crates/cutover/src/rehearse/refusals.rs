//! Which databases are not rehearsed into: those of the plan, and those in which there is something.

use std::collections::BTreeSet;

use model::{Code, Header, Identity, Problem, TableName};
use pg::{PgError, Session};
use plan::SchemaMode;

/// Looks at a database that is to be filled with these tables, which `option` names. `headers` tell which databases are the plan's own.
///
/// # Errors
/// Why it is refused; or it cannot be asked.
pub(crate) async fn look(
    session: &Session,
    option: &str,
    mode: SchemaMode,
    me: &Identity,
    headers: &[Header],
    tables: &BTreeSet<TableName>,
) -> Result<(), Problem> {
    let place = format!("{option} ({})", session.place());
    for header in headers {
        let whose = match me {
            me if *me == header.target_identity => "the plan's target".to_owned(),
            me if *me == header.source_identity => format!("source {:?} of the plan", header.source),
            _ => continue,
        };
        let next = "name an empty database that nobody needs";
        return Err(Problem::new(Code::TargetNotEmpty, place, format!("it is {whose}"), next));
    }
    let schema = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'crossfade')";
    if session.query_one(schema, &[]).await.map_err(PgError::from)?.get(0) {
        return Err(Problem::new(
            Code::TargetNotEmpty,
            place,
            "it has a schema crossfade: it is part of a migration, or a rehearsal has been here",
            "rehearse into an empty database; one that a rehearsal has filled can be dropped and created again",
        ));
    }
    match there(session, mode, tables).await.map_err(PgError::from)?.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
            let (why, next) = match mode {
                SchemaMode::Clone => ("there already", "rehearse into an empty database"),
                SchemaMode::Exists => ("not empty", "rehearse into a database with the tables and no rows in them"),
            };
            Err(Problem::new(Code::TargetNotEmpty, place, format!("table {first} is {why}{more}"), next))
        }
    }
}

/// The tables that are in the way: those that are there, or where they have to be, those with rows.
async fn there(
    session: &Session,
    mode: SchemaMode,
    tables: &BTreeSet<TableName>,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN unnest($1::text[], $2::text[]) w(schema, name) ON (w.schema, w.name) = (n.nspname, c.relname) ORDER BY 1, 2",
            &[&schemas, &names],
        )
        .await?;
    let mut found = Vec::new();
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let full = format!("SELECT EXISTS (SELECT FROM {})", table.quoted());
        if mode == SchemaMode::Clone || session.query_one(&full, &[]).await?.get(0) {
            found.push(table.to_string());
        }
    }
    Ok(found)
}
