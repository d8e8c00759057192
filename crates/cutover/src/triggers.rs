//! The application's own triggers and rules: at the target of a clone they are there and disabled until the cutover, which sets them as they are at the source.

use apply::Quiet;
use model::{TableName, quote};
use pg::Session;

use crate::error::CutoverError;

/// A trigger, a rule or an event trigger, and whether it fires.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Firing {
    /// Quoted; none of an event trigger.
    table: Option<String>,
    kind: String,
    name: String,
    /// O, D, R or A, as pg_trigger.tgenabled has it.
    enabled: String,
}

/// Of the tables in these schemas, ours left out.
const FIRING: &str = "
    SELECT n.nspname::text, c.relname::text, 'TRIGGER', t.tgname::text, t.tgenabled::text FROM pg_trigger t
      JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE NOT t.tgisinternal AND NOT starts_with(t.tgname::text, $2::text) AND n.nspname = ANY ($1)
    UNION ALL
    SELECT n.nspname::text, c.relname::text, 'RULE', r.rulename::text, r.ev_enabled::text FROM pg_rewrite r
      JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE r.rulename <> '_RETURN' AND n.nspname = ANY ($1)
    UNION ALL
    SELECT NULL, NULL, 'EVENT TRIGGER', e.evtname::text, e.evtenabled::text FROM pg_event_trigger e
     WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e')
    ORDER BY 1, 2, 3, 4";

async fn firing(session: &Session, schemas: &[String]) -> Result<Vec<Firing>, CutoverError> {
    let rows = session.query(FIRING, &[&schemas, &pg::fence::TRIGGERS]).await?;
    let one = |row: &tokio_postgres::Row| Firing {
        table: row.get::<_, Option<String>>(0).map(|schema| TableName::new(schema, row.get::<_, String>(1)).quoted()),
        kind: row.get(2),
        name: row.get(3),
        enabled: row.get(4),
    };
    Ok(rows.iter().map(one).collect())
}

/// Those that fire for apply's rows as well, where it begins to write.
pub(crate) async fn quiet(session: &Session) -> Result<Quiet, CutoverError> {
    let rows = session
        .query("SELECT DISTINCT into_schema, into_name FROM crossfade.tables WHERE into_schema <> 'crossfade'", &[])
        .await?;
    let tables: Vec<TableName> =
        rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    let relations = pg::fence::relations(session, &tables).await?;
    let schemas: Vec<String> = tables.into_iter().map(|table| table.schema).collect();
    let found = firing(session, &schemas).await?;
    let loud = |firing: &&Firing| {
        let of_the_plan = firing.table.as_ref().is_some_and(|table| relations.contains(table));
        matches!(firing.enabled.as_str(), "A" | "R") && of_the_plan
    };
    let both = |firing: &Firing| (statement(firing, "DISABLE"), statement(firing, how(&firing.enabled)));
    Ok(found.iter().filter(loud).map(both).collect())
}

/// How pg_trigger.tgenabled is said in SQL.
fn how(enabled: &str) -> &'static str {
    match enabled {
        "D" => "DISABLE",
        "R" => "ENABLE REPLICA",
        "A" => "ENABLE ALWAYS",
        _ => "ENABLE",
    }
}

fn statement(firing: &Firing, how: &str) -> String {
    let name = quote::ident(&firing.name);
    match &firing.table {
        Some(table) => format!("ALTER TABLE {table} {how} {} {name};", firing.kind),
        None => format!("ALTER EVENT TRIGGER {name} {how};"),
    }
}

/// Statements that make the target's fire as the source's do.
pub(crate) async fn switch(source: &Session, target: &Session, schemas: &[String]) -> Result<String, CutoverError> {
    let (ours, theirs) = (firing(source, schemas).await?, firing(target, schemas).await?);
    let mut statements = String::new();
    for there in theirs {
        let same = |here: &&Firing| here.table == there.table && here.kind == there.kind && here.name == there.name;
        let Some(here) = ours.iter().find(same).filter(|here| here.enabled != there.enabled) else { continue };
        statements += &statement(&there, how(&here.enabled));
    }
    Ok(statements)
}
