//! `clone`: whether the source's schema can be created here.

use std::collections::BTreeSet;

use model::{Code, Finding, TableName, quote};
use pg::Session;

use super::Needed;
use crate::ApplyError;

pub(super) async fn look(session: &Session, needed: Needed<'_>) -> Result<Vec<Finding>, ApplyError> {
    let mut findings: Vec<Finding> = empty(session, needed).await?.into_iter().collect();
    findings.extend(schemas(session, needed).await?);
    findings.extend(roles(session, needed).await?);
    findings.extend(owned(session, needed).await?);
    findings.extend(extensions(session, needed.extensions).await?);
    Ok(findings)
}

/// None of the tables is there.
async fn empty(session: &Session, needed: Needed<'_>) -> Result<Option<Finding>, ApplyError> {
    let wanted: BTreeSet<&TableName> =
        needed.tables.iter().flat_map(|table| [Some(&table.name), table.root.as_ref()]).flatten().collect();
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        wanted.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN unnest($1::text[], $2::text[]) w(schema, name) ON (w.schema, w.name) = (n.nspname, c.relname) ORDER BY 1, 2",
            &[&schemas, &names],
        )
        .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let found: Vec<TableName> =
        rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    let drop = found.iter().map(TableName::quoted).collect::<Vec<_>>().join(", ");
    Ok(Some(Finding::blocker(
        Code::TargetNotEmpty,
        format!("the target ({})", session.place()),
        format!("it already has what `clone` would create: {}", list(&found)),
        format!(
            "if the application writes there, because this plan was completed after a cutover, there is nothing to run; if nobody needs them, DROP TABLE {drop}; else use an empty database, or say [target] schema = \"exists\""
        ),
    )))
}

/// At most a handful of names: the error is one line.
fn list(names: &[TableName]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(TableName::to_string).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// Tables can be created in schemas that are there already.
async fn schemas(session: &Session, needed: Needed<'_>) -> Result<Vec<Finding>, ApplyError> {
    let wanted: BTreeSet<&str> = needed.tables.iter().map(|table| table.name.schema.as_str()).collect();
    let wanted: Vec<&str> = wanted.into_iter().collect();
    let rows = session
        .query(
            "SELECT nspname::text, current_user::text FROM pg_namespace WHERE nspname = ANY ($1) AND NOT has_schema_privilege(oid, 'CREATE') ORDER BY 1",
            &[&wanted],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (schema, role): (&str, &str) = (row.get(0), row.get(1));
            let next = format!("GRANT CREATE, USAGE ON SCHEMA {} TO {};", quote::ident(schema), quote::ident(role));
            Finding::blocker(
                Code::PrivilegeMissing,
                format!("schema {schema} of the target"),
                format!("role {role} may not create tables in it"),
                next,
            )
        })
        .collect())
}

/// The dump names owners and whom something is granted to.
async fn roles(session: &Session, needed: Needed<'_>) -> Result<Vec<Finding>, ApplyError> {
    let rows = session
        .query(
            "SELECT w.name, w.owns, r.oid IS NOT NULL, current_user::text
               FROM (SELECT name, bool_or(owns) AS owns FROM
                     (SELECT unnest($1::text[]) AS name, true AS owns UNION ALL SELECT unnest($2::text[]), false) x GROUP BY name) w
               LEFT JOIN pg_roles r ON r.rolname = w.name
              WHERE r.oid IS NULL OR (w.owns AND NOT pg_has_role(r.oid, 'MEMBER')) ORDER BY 1",
            &[&needed.owners, &needed.grantees],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (name, owns, there, me): (&str, bool, bool, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
            let (what, role) = (format!("role {name}"), quote::ident(name));
            if !there {
                let why = if owns { "it owns objects at the source and is missing on the target" } else { "it has privileges at the source and is missing on the target" };
                return Finding::blocker(Code::TargetLacks, what, why, format!("CREATE ROLE {role};"));
            }
            let why = format!("it owns objects at the source, and role {me} is no member of it on the target, so it cannot be made their owner");
            Finding::blocker(Code::PrivilegeMissing, what, why, format!("GRANT {role} TO {};", quote::ident(me)))
        })
        .collect())
}

/// Who is made the owner of something has to be allowed to create it there, unless a superuser says so.
async fn owned(session: &Session, needed: Needed<'_>) -> Result<Vec<Finding>, ApplyError> {
    let (owners, schemas): (Vec<&str>, Vec<&str>) =
        needed.owned.iter().map(|(owner, schema)| (owner.as_str(), schema.as_str())).unzip();
    let rows = session
        .query(
            "SELECT w.owner, w.schema FROM unnest($1::text[], $2::text[]) w(owner, schema)
               JOIN pg_roles r ON r.rolname = w.owner JOIN pg_namespace n ON n.nspname = w.schema
              WHERE r.rolname <> current_user AND NOT has_schema_privilege(r.oid, n.oid, 'CREATE')
                AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) ORDER BY 1, 2",
            &[&owners, &schemas],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (owner, schema): (&str, &str) = (row.get(0), row.get(1));
            let next = format!("GRANT CREATE ON SCHEMA {} TO {};", quote::ident(schema), quote::ident(owner));
            Finding::blocker(
                Code::PrivilegeMissing,
                format!("schema {schema} of the target"),
                format!("role {owner} owns objects in it at the source, and may not create any here, so it cannot be made their owner"),
                next,
            )
        })
        .collect())
}

async fn extensions(session: &Session, wanted: &[String]) -> Result<Vec<Finding>, ApplyError> {
    let rows = session
        .query(
            "SELECT w.name, a.name IS NOT NULL, current_user::text FROM unnest($1::text[]) AS w(name) LEFT JOIN pg_available_extensions a ON a.name = w.name
              WHERE a.name IS NULL OR (a.installed_version IS NULL AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
                AND EXISTS (SELECT FROM pg_available_extension_versions v WHERE v.name = a.name AND v.version = a.default_version AND v.superuser AND NOT v.trusted))
              ORDER BY 1",
            &[&wanted],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (name, available, me): (&str, bool, &str) = (row.get(0), row.get(1), row.get(2));
            let create = format!("CREATE EXTENSION {};", quote::ident(name));
            if available {
                let why = format!("the source uses it, and role {me} may not create it on the target");
                return Finding::blocker(
                    Code::PrivilegeMissing,
                    format!("extension {name}"),
                    why,
                    format!("as a superuser on the target: {create}"),
                );
            }
            let next = format!("install its package on the target's server, so that it can do {create}");
            Finding::blocker(
                Code::TargetLacks,
                format!("extension {name}"),
                "the source uses it, and the target's server does not have it",
                next,
            )
        })
        .collect())
}
