//! The tables that the application has left, put where nobody writes to them by mistake: as SQL for a person, which no command runs.

use std::collections::BTreeSet;

use model::{Problem, TableName, quote};
use pg::Session;
use plan::{Plan, Source};

use crate::error::CutoverError;

/// The schema that they go into; where they come from several, what the names of theirs begin with.
const ARCHIVE: &str = "legacy";

/// The bytes that Postgres keeps of an identifier (`NAMEDATALEN - 1`).
const NAME: usize = 63;

/// The statements for a source, in their order. None unless a cutover is decided: until then the application writes there.
///
/// # Errors
/// Source or target.
pub async fn archive(
    plan: &Plan,
    source: &Source,
    session: &Session,
    target: &Session,
) -> Result<Vec<String>, Problem> {
    Ok(statements(plan, source, session, target).await?)
}

async fn statements(
    plan: &Plan,
    source: &Source,
    session: &Session,
    target: &Session,
) -> Result<Vec<String>, CutoverError> {
    if !apply::knows(target, &plan.name).await? || !apply::is_barred(target).await? {
        return Ok(Vec::new());
    }
    let tables = pg::catalog::tables(session).await?;
    let names = tables.iter().flat_map(|table| table.root.iter().chain([&table.name]));
    let selects = |name: &&TableName| source.tables.selects(name) && !source.shared.selects(name);
    let roots: BTreeSet<&TableName> = names.filter(selects).collect();
    // A partition stays one wherever it is.
    let leaves = tables.iter().filter(|table| table.root.as_ref().is_some_and(|root| roots.contains(root)));
    let all: BTreeSet<&TableName> = roots.iter().copied().chain(leaves.map(|leaf| &leaf.name)).collect();
    // A schema for each that they come from: the names of their indexes are no more unique than that.
    let schemas: BTreeSet<&str> = all.iter().map(|table| table.schema.as_str()).collect();
    let archive = |schema: &str| match schemas.len() {
        1 => quote::ident(ARCHIVE),
        _ => quote::ident(&fitting(&format!("{ARCHIVE}_"), schema, "")),
    };
    let mut statements: Vec<String> =
        schemas.iter().map(|schema| format!("CREATE SCHEMA IF NOT EXISTS {};", archive(schema))).collect();
    for table in &all {
        let renamed = TableName::new(table.schema.clone(), fitting("", &table.name, "_legacy"));
        statements.push(format!("ALTER TABLE {} RENAME TO {};", table.quoted(), quote::ident(&renamed.name)));
        statements.push(format!("ALTER TABLE {} SET SCHEMA {};", renamed.quoted(), archive(&table.schema)));
    }
    Ok(statements)
}

/// A name between these two, cut where Postgres would cut the whole.
fn fitting(before: &str, name: &str, behind: &str) -> String {
    let mut name = name.to_owned();
    while before.len() + name.len() + behind.len() > NAME {
        name.pop();
    }
    format!("{before}{name}{behind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit() {
        assert_eq!(fitting("", "orders", "_legacy"), "orders_legacy");
        assert_eq!(fitting("", &"ü".repeat(31), "_legacy"), "ü".repeat(28) + "_legacy");
    }
}
