use model::{TableName, quote};
use pg::catalog::{Table, TargetColumn};
use pg::{PgError, Session};
use plan::{Identity, Plan};

use crate::rehearse::drill::load::SCHEMA;

/// Rows of each table that are written again and again: few enough for statements on them to be made beforehand, of any number of tables.
const ROWS: usize = 40;

/// And so many of all tables together, but one of each in any case: a statement has some hundred bytes, or some thousand where keys are long.
const ALL: usize = 10_000;

/// A statement that leaves a row as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub table: TableName,
    /// One statement.
    pub sql: String,
}

/// A row that the writers leave alone, so that it is written anew on the other side by apply and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Witness {
    pub table: TableName,
    /// SQL that is true of the row only.
    pub condition: String,
    /// Deletes it and inserts it again.
    pub sql: String,
}

/// What can be written again.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Of all tables in turn.
    pub changes: Vec<Change>,
    /// One of each table that can be written to.
    pub witnesses: Vec<Witness>,
    /// Tables of which nothing can be, and why.
    pub left_out: Vec<(TableName, String)>,
}

impl Rows {
    /// Every table of the plan, whether it can be written to or not.
    pub fn tables(&self) -> impl Iterator<Item = &TableName> {
        self.witnesses.iter().map(|witness| &witness.table).chain(self.left_out.iter().map(|(table, _)| table))
    }
}

/// Looks for rows in the plan's tables.
///
/// # Errors
/// The database.
pub(crate) async fn find(plan: &Plan, session: &Session) -> Result<Rows, PgError> {
    let mut rows = Rows::default();
    let mut of_tables = Vec::new();
    let mut tables = pg::catalog::tables(session).await?;
    let selects = |name: &TableName| plan.sources.iter().any(|source| source.tables.selects(name));
    let ours = |table: &Table| selects(&table.name) || table.root.as_ref().is_some_and(selects);
    tables.retain(|table| ours(table) && table.name.schema != SCHEMA);
    let most = (ALL / tables.len().max(1)).clamp(1, ROWS);
    for table in tables {
        let identity = plan.identity.get(&table.name).or(table.root.as_ref().and_then(|root| plan.identity.get(root)));
        let why = match identity {
            Some(Identity::InsertOnly) => Some("the plan says that it is only inserted into"),
            Some(Identity::Full) | None if table.key.is_empty() => Some("it has no key to name its rows by"),
            Some(Identity::Full) | None => None,
        };
        let (witness, changes) = match why {
            Some(_) => (None, Vec::new()),
            None => changes(session, &table, most).await?,
        };
        if witness.is_none() {
            rows.left_out.push((table.name, why.unwrap_or("it has no rows").to_owned()));
        }
        rows.witnesses.extend(witness);
        of_tables.push(changes.into_iter());
    }
    // In turn: a writer does not stay with one table.
    while !of_tables.is_empty() {
        of_tables.retain_mut(|changes| {
            let next = changes.next();
            let more = next.is_some();
            rows.changes.extend(next);
            more
        });
    }
    Ok(rows)
}

/// The witness, if there is a row, and for some of the others one statement each: every other one is updated, and every other one deleted and inserted again.
async fn changes(session: &Session, table: &Table, most: usize) -> Result<(Option<Witness>, Vec<Change>), PgError> {
    let columns = pg::catalog::target_columns(session, &table.name).await?;
    let condition: Vec<String> =
        columns.iter().filter(|column| table.key.contains(&column.name)).map(condition).collect();
    let name = table.name.quoted();
    let query = format!("SELECT {} FROM ONLY {name} LIMIT {}", condition.join(" || ' AND ' || "), most + 1);
    let rows = session.query(&query, &[]).await?;
    let mut conditions = rows.iter().map(|row| row.get::<_, String>(0));
    let sql = |condition: &str, update| statement(&name, &columns, &table.key, condition, update);
    let witness = conditions.next().map(|condition| Witness {
        table: table.name.clone(),
        sql: sql(&condition, false),
        condition,
    });
    let change =
        |(at, condition): (usize, String)| Change { table: table.name.clone(), sql: sql(&condition, at % 2 == 0) };
    Ok((witness, conditions.enumerate().map(change).collect()))
}

/// An expression whose value is SQL that is true of the row only.
fn condition(column: &TargetColumn) -> String {
    let name = quote::ident(&column.name);
    let (before, behind) = (format!("{name} {} ", column.equals), format!("::{}", column.cast));
    format!("{} || quote_literal({name}::text) || {}", quote::literal(&before), quote::literal(&behind))
}

fn statement(table: &str, columns: &[TargetColumn], key: &[String], condition: &str, update: bool) -> String {
    let written = columns.iter().filter(|column| !column.generated);
    // What the key is stays untouched if there is anything else.
    let free = written.clone().filter(|column| !column.identity_always);
    if let Some(column) = free.min_by_key(|column| key.contains(&column.name)).filter(|_| update) {
        let name = quote::ident(&column.name);
        return format!("UPDATE ONLY {table} SET {name} = {name} WHERE {condition}");
    }
    let names = quote::idents(written.map(|column| column.name.as_str()));
    format!(
        "WITH gone AS (DELETE FROM ONLY {table} WHERE {condition} RETURNING {names}) INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM gone"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, identity_always: bool, generated: bool) -> TargetColumn {
        let (cast, equals) = ("\"pg_catalog\".\"int8\"".to_owned(), "OPERATOR(\"pg_catalog\".=)".to_owned());
        TargetColumn { name: name.to_owned(), cast, equals, identity_always, generated }
    }

    #[test]
    fn what_cannot_be_written_is_left_alone() {
        let key = ["id".to_owned()];
        let columns = [column("id", true, false), column("twice", false, true), column("n", false, false)];
        assert_eq!(statement("t", &columns, &key, "c", true), "UPDATE ONLY t SET \"n\" = \"n\" WHERE c");
        let again = "WITH gone AS (DELETE FROM ONLY t WHERE c RETURNING \"id\", \"n\") INSERT INTO t (\"id\", \"n\") OVERRIDING SYSTEM VALUE SELECT \"id\", \"n\" FROM gone";
        assert_eq!(statement("t", &columns, &key, "c", false), again);
        // There is nothing that could be updated.
        assert!(statement("t", &columns[..2], &key, "c", true).starts_with("WITH gone AS (DELETE FROM ONLY t"));
        let only_a_key = [column("id", false, false)];
        assert_eq!(statement("t", &only_a_key, &key, "c", true), "UPDATE ONLY t SET \"id\" = \"id\" WHERE c");
    }
}
