use std::collections::HashMap;

use pg::Session;
use tokio_postgres::Statement;

/// Statements kept prepared. A table has a handful, and few tables change all the time.
const KEPT: usize = 500;

/// The prepared statements of one session.
#[derive(Default)]
pub(crate) struct Prepared(HashMap<String, Statement>);

impl Prepared {
    /// This one, prepared now if it is not.
    pub async fn get(&mut self, session: &Session, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(prepared) = self.0.get(sql) {
            return Ok(prepared.clone());
        }
        if self.0.len() > KEPT {
            self.0.clear();
        }
        let prepared = session.prepare(sql).await?;
        self.0.insert(sql.to_owned(), prepared.clone());
        Ok(prepared)
    }
}
