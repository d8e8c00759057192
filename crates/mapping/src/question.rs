use std::collections::BTreeSet;

use plan::Sql;

use crate::catalog::{Catalog, Places, SourceTable};
use crate::print::Printer;
use crate::query::Read;
use crate::read::read_question;
use crate::trouble::{Trouble, TroubleKind};

/// A query over source tables as it is asked at the target. Nothing is kept of what it gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Over the mirrors.
    pub sql: String,
    /// The columns of the result; two may have one name.
    pub columns: Vec<String>,
    /// The source tables that it reads, each once.
    pub sources: Vec<SourceTable>,
}

/// Reads a query as that of a derived table is read, and says where its rows are to be asked for. Neither [`Catalog::target`] nor a key has a part in it.
///
/// # Errors
/// What is wrong with it, the first thing that is found.
pub fn question(sql: &Sql, catalog: &Catalog, places: &dyn Places) -> Result<Question, Trouble> {
    let reading = read_question(sql, catalog).map_err(|trouble| match trouble.kind {
        TroubleKind::Unsupported => Trouble { why: "crossfade does not know how to read it".to_owned(), ..trouble },
        _ => trouble,
    })?;
    let source = |table: usize| &catalog.tables[table].name;
    let table = |table: usize, _: Read| places.mirror(source(table)).quoted();
    let sources: BTreeSet<&SourceTable> = reading.mentions.iter().map(|mention| source(mention.table)).collect();
    Ok(Question {
        sql: Printer { aliases: &reading.aliases, table: &table }.query(&reading.query),
        columns: reading.query.names().into_iter().map(str::to_owned).collect(),
        sources: sources.into_iter().cloned().collect(),
    })
}
