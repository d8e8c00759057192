//! `exists`: whether the target's tables fit the source's.

use std::collections::{BTreeMap, BTreeSet};

use model::{Code, Finding, TableName, quote};
use pg::Session;
use pg::catalog::{Table, target_columns};

use crate::ApplyError;

pub(super) async fn look(session: &Session, tables: &[Table]) -> Result<Vec<Finding>, ApplyError> {
    let mut findings = Vec::new();
    let mut counterparts: BTreeMap<TableName, Counterpart> = BTreeMap::new();
    for table in tables {
        let found = match counterpart(session, table).await? {
            Some(found) => found,
            None => {
                let next = "create it, leave it out of the source's `tables`, or let crossfade create the schema: [target] schema = \"clone\"";
                let what = format!("table {}", table.name);
                findings.push(Finding::blocker(
                    Code::TargetMissing,
                    what,
                    "the target has no table of that name, nor of its root's",
                    next,
                ));
                continue;
            }
        };
        findings.extend(columns(session, table, &found).await?);
        counterparts.insert(found.name.clone(), found);
    }
    for found in counterparts.values() {
        findings.extend(rights(found));
        if found.readable && has_rows(session, &found.name).await? {
            let next = format!("if they are of no use, TRUNCATE {};", found.name.quoted());
            let what = format!("table {} of the target", found.name);
            findings.push(Finding::blocker(
                Code::TargetNotEmpty,
                what,
                "it has rows, and the copy's would come on top of them",
                next,
            ));
        }
    }
    let oids: Vec<u32> = counterparts.values().map(|found| found.oid).collect();
    findings.extend(triggers(session, &oids).await?);
    findings.extend(referencing(session, &oids).await?);
    Ok(findings)
}

struct Counterpart {
    oid: u32,
    name: TableName,
    role: String,
    readable: bool,
    missing: Vec<String>,
}

/// The table of that name, or that of the root's.
async fn counterpart(session: &Session, table: &Table) -> Result<Option<Counterpart>, ApplyError> {
    for name in std::iter::once(&table.name).chain(&table.root) {
        let row = session
            .query_opt(
                "SELECT c.oid, current_user::text, has_table_privilege(c.oid, 'SELECT'),
                        ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) p WHERE NOT has_table_privilege(c.oid, p))
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = $1::text AND c.relname = $2::text AND c.relkind IN ('r', 'p', 'f')",
                &[&name.schema, &name.name],
            )
            .await?;
        if let Some(row) = row {
            let (oid, role, readable, missing) = (row.get(0), row.get(1), row.get(2), row.get(3));
            return Ok(Some(Counterpart { oid, name: name.clone(), role, readable, missing }));
        }
    }
    Ok(None)
}

async fn columns(session: &Session, table: &Table, found: &Counterpart) -> Result<Vec<Finding>, ApplyError> {
    let there = target_columns(session, &found.name).await?;
    let finding = |column: &model::CopyColumn| {
        let add = format!(
            "ALTER TABLE {} ADD COLUMN {} {};",
            found.name.quoted(),
            quote::ident(&column.name),
            column.type_name
        );
        let (why, next) = match there.iter().find(|candidate| candidate.name == column.name) {
            None => ("the target has no such column", add),
            Some(column) if column.generated => (
                "the target generates it",
                format!(
                    "ALTER TABLE {} ALTER COLUMN {} DROP EXPRESSION;",
                    found.name.quoted(),
                    quote::ident(&column.name)
                ),
            ),
            Some(_) => return None,
        };
        Some(Finding::blocker(
            Code::TargetMissing,
            format!("column {} of table {}", column.name, found.name),
            why,
            next,
        ))
    };
    Ok(table.columns.iter().filter_map(finding).collect())
}

fn rights(found: &Counterpart) -> Option<Finding> {
    if found.missing.is_empty() {
        return None;
    }
    let rights = found.missing.join(", ");
    let why = format!("role {} lacks {rights}", found.role);
    let next = format!("GRANT {rights} ON {} TO {};", found.name.quoted(), quote::ident(&found.role));
    Some(Finding::blocker(Code::PrivilegeMissing, format!("table {} of the target", found.name), why, next))
}

pub(super) async fn has_rows(session: &Session, table: &TableName) -> Result<bool, ApplyError> {
    Ok(session.query_one(&format!("SELECT EXISTS (SELECT FROM {})", table.quoted()), &[]).await?.get(0))
}

/// Those that fire although the rows' triggers have fired at the source already.
pub(super) async fn triggers(session: &Session, oids: &[u32]) -> Result<Vec<Finding>, ApplyError> {
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text, t.tgname::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal AND c.oid = ANY ($1) ORDER BY 1, 2, 3",
            &[&oids],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let name: &str = row.get(2);
            let why =
                "it fires for replicated rows too (ENABLE ALWAYS or REPLICA), which has happened at the source already";
            let next =
                format!("until the cutover: ALTER TABLE {} DISABLE TRIGGER {};", table.quoted(), quote::ident(name));
            Finding::blocker(Code::TargetNotEmpty, format!("trigger {name} of table {table} of the target"), why, next)
        })
        .collect())
}

/// Tables outside of the plan whose foreign keys lead to one of the plan's: a TRUNCATE of that one would fail.
async fn referencing(session: &Session, oids: &[u32]) -> Result<Vec<Finding>, ApplyError> {
    let rows = session
        .query(
            "SELECT k.conname::text, n.nspname::text, c.relname::text, k.confrelid::regclass::text
               FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE k.contype = 'f' AND k.confrelid = ANY ($1) AND NOT k.conrelid = ANY ($1) ORDER BY 1",
            &[&oids],
        )
        .await?;
    let mut seen = BTreeSet::new();
    Ok(rows
        .iter()
        .filter(|row| seen.insert(row.get::<_, String>(0)))
        .map(|row| {
            let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            let (name, referenced): (&str, &str) = (row.get(0), row.get(3));
            let why = format!("it leads to {referenced} from outside of the plan: a TRUNCATE of that at the source could not be applied");
            let next = format!("until the cutover: ALTER TABLE {} DROP CONSTRAINT {};", table.quoted(), quote::ident(name));
            Finding::warning(Code::TargetNotEmpty, format!("foreign key {name} of table {table} of the target"), why, next)
        })
        .collect())
}
