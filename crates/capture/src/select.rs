//! Which tables of the source belong to the plan.

use model::{Code, Problem, TableName};
use pg::catalog::{self, Table};
use plan::{Identity, Plan, Source};

use crate::CaptureError;

/// The tables that `source`'s patterns select, by name. A partition is selected by its own name or by its root's.
pub(crate) async fn tables(client: &tokio_postgres::Client, source: &Source) -> Result<Vec<Table>, CaptureError> {
    let mut tables = catalog::tables(client).await?;
    tables.retain(|table| selects(source, &table.name, table.root.as_ref()));
    Ok(tables)
}

/// Those of them that go into the target as they are.
pub(crate) async fn as_is(client: &tokio_postgres::Client, source: &Source) -> Result<Vec<Table>, CaptureError> {
    let mut tables = catalog::tables(client).await?;
    tables.retain(|table| goes_as_is(source, &table.name, table.root.as_ref()));
    Ok(tables)
}

/// Whether this table goes into the target as it is.
pub(crate) fn goes_as_is(source: &Source, name: &TableName, root: Option<&TableName>) -> bool {
    source.as_is.selects(name) || root.is_some_and(|root| source.as_is.selects(root))
}

/// Whether the plan takes this table.
pub(crate) fn selects(source: &Source, name: &TableName, root: Option<&TableName>) -> bool {
    source.tables.selects(name) || root.is_some_and(|root| source.tables.selects(root))
}

/// How a table is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// Inserts, updates, deletes, truncates.
    Whole,
    /// Inserts and truncates.
    InsertOnly,
}

/// How `table` may be published without making the application's updates and deletes fail.
///
/// # Errors
/// It has no replica identity and the plan does not say what to do about that.
pub(crate) fn published(plan: &Plan, table: &Table) -> Result<Published, Problem> {
    let choice =
        plan.identity.get(&table.name).or_else(|| table.root.as_ref().and_then(|root| plan.identity.get(root)));
    match choice {
        Some(Identity::InsertOnly) => Ok(Published::InsertOnly),
        _ if table.has_identity() => Ok(Published::Whole),
        Some(Identity::Full) => Err(Problem::new(
            Code::IdentityMissing,
            format!("table {}", table.name),
            "the plan says `full`, but its replica identity is another one",
            format!("ALTER TABLE {} REPLICA IDENTITY FULL;", table.name.quoted()),
        )),
        None => Err(Problem::new(
            Code::IdentityMissing,
            format!("table {}", table.name),
            if table.key_deferrable {
                "its primary key is deferrable, which replication cannot use, so its UPDATE and DELETE would fail once it is published"
            } else {
                "it has neither primary key nor replica identity, so its UPDATE and DELETE would fail once it is published"
            },
            format!(
                "add a primary key, or ALTER TABLE {} REPLICA IDENTITY FULL, or say under [identity] \"{}\" = \"insert_only\" if its rows never change",
                table.name.quoted(),
                table.name
            ),
        )),
    }
}
