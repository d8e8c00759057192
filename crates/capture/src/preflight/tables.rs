use std::collections::BTreeSet;

use model::{Code, Finding, TableName, quote};
use pg::Session;
use pg::catalog::Table;
use plan::{Plan, SchemaMode, Source};

use super::server::Role;
use crate::left_out::LeftOut;
use crate::{CaptureError, select};

/// Looks at the tables that the plan selects, and at what it selects and cannot carry.
pub(super) async fn look(
    plan: &Plan,
    source: &Source,
    session: &Session,
    role: &Role,
    selected: &[Table],
    publications: &[String],
) -> Result<Vec<Finding>, CaptureError> {
    let mut findings = Vec::new();
    if selected.is_empty() {
        let why = format!("no table of it is selected by {:?}", source.tables.written());
        let next = "correct the source's `tables`; `*` stands for any text: [\"public.*\"]";
        findings.push(Finding::blocker(
            Code::NoTables,
            format!("source {:?} ({})", source.name, session.place()),
            why,
            next,
        ));
    }
    findings.extend(rights(session, role, selected, publications).await?);
    for table in selected {
        findings.extend(select::published(plan, table).err().map(Finding::from));
        if !table.logged {
            let why = "it is unlogged, so its changes never reach the WAL";
            let next = format!(
                "ALTER TABLE {} SET LOGGED; or leave it out: \"!{}\" in the source's `tables`",
                table.name.quoted(),
                table.name
            );
            findings.push(Finding::blocker(Code::NotCarried, format!("table {}", table.name), why, next));
        }
    }
    findings.extend(indexes(session, selected).await?);
    findings.extend(not_carried(source, session).await?);
    if plan.target.schema == SchemaMode::Clone {
        findings.extend(LeftOut::find(session, source).await?.findings());
    }
    Ok(findings)
}

/// What the role must be allowed to do with each table.
async fn rights(
    session: &Session,
    role: &Role,
    selected: &[Table],
    publications: &[String],
) -> Result<Vec<Finding>, CaptureError> {
    let oids: Vec<u32> = selected.iter().map(|table| table.oid.0).collect();
    let rows = session
        .query(
            "SELECT n.nspname::text AS schema, c.relname::text AS name, has_schema_privilege(n.oid, 'USAGE') AS usage,
                    has_table_privilege(c.oid, 'SELECT') AS readable, row_security_active(c.oid) AS hidden,
                    pg_has_role(c.relowner, 'USAGE') OR EXISTS (
                      SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                       WHERE p.pubname = ANY ($2) AND r.prrelid = c.oid) AS publishable,
                    pg_get_userbyid(c.relowner)::text AS owner
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1) ORDER BY 1, 2",
            &[&oids, &publications.to_vec()],
        )
        .await?;
    let me = quote::ident(&role.name);
    let missing = |what: String, why: String, next: String| Finding::blocker(Code::PrivilegeMissing, what, why, next);
    let mut findings = Vec::new();
    let (mut schemas, mut owners) = (BTreeSet::new(), BTreeSet::new());
    for row in &rows {
        let table = TableName::new(row.get::<_, String>("schema"), row.get::<_, String>("name"));
        if !row.get::<_, bool>("usage") && schemas.insert(table.schema.clone()) {
            let why = format!("role {} may not use it", role.name);
            let next = format!("GRANT USAGE ON SCHEMA {} TO {me};", quote::ident(&table.schema));
            findings.push(missing(format!("schema {}", table.schema), why, next));
        }
        if !row.get::<_, bool>("readable") {
            let why = format!("role {} may not read it", role.name);
            findings.push(missing(
                format!("table {table}"),
                why,
                format!("GRANT SELECT ON {} TO {me};", table.quoted()),
            ));
        }
        if row.get("hidden") {
            let why = format!("row security hides rows of it from role {}", role.name);
            findings.push(missing(format!("table {table}"), why, format!("ALTER ROLE {me} BYPASSRLS;")));
        }
        let owner: String = row.get("owner");
        if !row.get::<_, bool>("publishable") && owners.insert(owner.clone()) {
            let why =
                format!("only its owner {owner} may publish it, and role {} is no member of that role", role.name);
            findings.push(missing(format!("table {table}"), why, format!("GRANT {} TO {me};", quote::ident(&owner))));
        }
    }
    Ok(findings)
}

async fn indexes(session: &Session, selected: &[Table]) -> Result<Vec<Finding>, CaptureError> {
    let oids: Vec<u32> = selected.iter().map(|table| table.oid.0).collect();
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND c.relkind = 'i' AND i.indrelid = ANY ($1) ORDER BY 1, 2",
            &[&oids],
        )
        .await?;
    let finding = |row: &tokio_postgres::Row| {
        let index = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let why = "it is invalid: its build failed or is under way; on the target it would be built as a valid one, and may fail";
        let next = format!("REINDEX INDEX CONCURRENTLY {}; or DROP INDEX {};", index.quoted(), index.quoted());
        Finding::warning(Code::IndexInvalid, format!("index {index}"), why, next)
    };
    Ok(rows.iter().map(finding).collect())
}

/// What lies in the database and does not go over.
async fn not_carried(source: &Source, session: &Session) -> Result<Vec<Finding>, CaptureError> {
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('f', 'm', 'S') AND c.relpersistence <> 't' ORDER BY 1, 2",
            &[],
        )
        .await?;
    let of_kind = |kind: &str| {
        rows.iter()
            .filter(|row| row.get::<_, &str>(2) == kind)
            .map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)))
            .filter(|name| source.tables.selects(name))
            .collect::<Vec<_>>()
    };
    let mut findings = Vec::new();
    let mut note =
        |what: String, why: &str, next: String| findings.push(Finding::warning(Code::NotCarried, what, why, next));
    for table in of_kind("f") {
        let next = format!("copy what is behind it yourself, or leave it out: \"!{table}\" in the source's `tables`");
        note(format!("foreign table {table}"), "its rows are elsewhere and do not go over", next);
    }
    for view in of_kind("m") {
        let next =
            format!("at the target, once copy and tail are joined: REFRESH MATERIALIZED VIEW {};", view.quoted());
        note(format!("materialized view {view}"), "its rows do not go over", next);
    }
    if let sequences @ 1.. = of_kind("S").len() {
        let next = "`crossfade cutover` sets them, with a margin; without it: SELECT setval(…) there before the application writes".to_owned();
        note(format!("{sequences} sequences"), "their values do not go over with the rows", next);
    }
    let large: i64 = session.query_one("SELECT count(*) FROM pg_largeobject_metadata", &[]).await?.get(0);
    if large > 0 {
        let next = "carry them with pg_dump --large-objects, or keep them as bytea in a table".to_owned();
        note(format!("{large} large objects"), "logical replication does not carry them", next);
    }
    Ok(findings)
}
