use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use model::{Problem, quote};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow, SimpleQueryStream};

use super::databases::Visit;
use super::tenant::Tenant;

/// A row, each value as the server prints it; none is null.
pub(super) type Row = Vec<Option<String>>;

/// A statement as it is run for one tenant.
pub(super) struct Statement {
    pub(super) sql: String,
    /// What stands for $1, $2 and so on, as far as the statement has them.
    pub(super) values: Row,
    /// The names of its rows' columns.
    pub(super) columns: Vec<String>,
}

impl Statement {
    /// Looks what the server makes of a check's SQL.
    pub(super) async fn of(visit: &Visit<'_>, sql: &str, tenant: &Tenant) -> Result<Statement, Problem> {
        let sql = tenant.named(sql).map_err(|(why, next)| visit.problem(why, next))?;
        let prepared = visit.transaction.prepare(&sql).await.map_err(|error| visit.refused(error))?;
        let values =
            tenant.values(prepared.params().len()).ok_or_else(|| too_few(visit, prepared.params().len(), tenant))?;
        let columns = prepared.columns().iter().map(|column| column.name().to_owned()).collect();
        Ok(Statement { sql, values, columns })
    }
}

fn too_few(visit: &Visit<'_>, wanted: usize, tenant: &Tenant) -> Problem {
    let next = "let `tenants` return as many columns as the statement uses";
    match tenant.width() {
        0 => visit.problem(format!("it uses ${wanted}, and there is no tenant to take it from"), next),
        width => visit.problem(format!("it uses ${wanted}, and `tenants` returns {width} columns"), next),
    }
}

/// Rows as they come, one in memory.
///
/// Values have to travel as text in both directions, so that Postgres casts what a tenant's column gives to what the statement wants, and
/// every type can be shown. The extended protocol takes one statement and no more, so the statement is prepared there (SQL's PREPARE,
/// which moreover takes only queries and changes of rows: nothing in it can end the transaction), and the simple one,
/// which talks in text, executes it.
pub(super) struct Rows<'v> {
    visit: &'v Visit<'v>,
    columns: Arc<[String]>,
    stream: Pin<Box<SimpleQueryStream>>,
    affected: Option<u64>,
}

impl<'v> Rows<'v> {
    /// Starts a statement.
    pub(super) async fn start(visit: &'v Visit<'v>, sql: &str, values: &[Option<String>]) -> Result<Rows<'v>, Problem> {
        let name = unused_name();
        let prepare = format!("PREPARE {name} AS {sql}");
        visit.transaction.execute(&prepare, &[]).await.map_err(|error| visit.refused(error))?;
        let execute = format!("EXECUTE {name}{}; DEALLOCATE {name}", arguments(values));
        let stream = visit.transaction.client().simple_query_raw(&execute).await;
        let stream = Box::pin(stream.map_err(|error| visit.refused(error))?);
        let mut rows = Rows { visit, columns: Arc::new([]), stream, affected: None };
        // The columns are the first message; a statement that returns nothing has none.
        match rows.message().await? {
            Some(SimpleQueryMessage::RowDescription(columns)) => {
                rows.columns = distinct(columns.iter().map(|column| column.name()));
            }
            Some(SimpleQueryMessage::CommandComplete(affected)) => rows.affected = Some(affected),
            _ => {}
        }
        Ok(rows)
    }

    /// The names of the columns, each another.
    pub(super) fn columns(&self) -> Arc<[String]> {
        Arc::clone(&self.columns)
    }

    /// The next row.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, Problem> {
        while let Some(message) = self.message().await? {
            match message {
                SimpleQueryMessage::Row(row) => return Ok(Some(values(&row))),
                // The second one is that of DEALLOCATE.
                SimpleQueryMessage::CommandComplete(affected) => self.affected = self.affected.or(Some(affected)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Runs it to its end; how many rows it has written, or read.
    pub(super) async fn finish(mut self) -> Result<u64, Problem> {
        while self.next().await?.is_some() {}
        Ok(self.affected.unwrap_or(0))
    }

    async fn message(&mut self) -> Result<Option<SimpleQueryMessage>, Problem> {
        self.stream.try_next().await.map_err(|error| self.visit.refused(error))
    }
}

/// Of a statement that failed nobody knows whether it was prepared, so no name is used twice.
fn unused_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("crossfade_check_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn arguments(values: &[Option<String>]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let literal = |value: &Option<String>| value.as_deref().map_or_else(|| "NULL".to_owned(), quote::literal);
    format!("({})", values.iter().map(literal).collect::<Vec<_>>().join(", "))
}

/// Names that come again get a number: `count`, `count 2`.
fn distinct<'n>(names: impl Iterator<Item = &'n str>) -> Arc<[String]> {
    let mut distinct: Vec<String> = Vec::new();
    for name in names {
        let mut candidate = name.to_owned();
        let mut number = 2;
        while distinct.contains(&candidate) {
            candidate = format!("{name} {number}");
            number += 1;
        }
        distinct.push(candidate);
    }
    distinct.into()
}

fn values(row: &SimpleQueryRow) -> Row {
    (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_literals_and_nulls() {
        assert_eq!(arguments(&[]), "");
        assert_eq!(arguments(&[Some("it's".into()), None]), "('it''s', NULL)");
    }

    #[test]
    fn columns_of_one_name_are_told_apart() {
        let names = ["count", "id", "count", "count"];
        assert_eq!(*distinct(names.into_iter()), ["count", "id", "count 2", "count 3"]);
    }
}
