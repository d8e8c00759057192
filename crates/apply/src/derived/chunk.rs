//! Chunks of a table of which nothing is stored: they go through a temp table into those that are streamed from it.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{SinkExt, pin_mut};
use mapping::SourceTable;
use model::{Code, Problem, TableBegin, TableName, quote};
use pg::Session;
use plan::Plan;

use super::kept::fingerprint;
use super::stored::{Planner, Stored, Stream};
use super::{home, kept};
use crate::ApplyError;

/// What a worker's session has made ready, by table: for which epoch, and how its chunks are written.
#[derive(Default)]
pub(crate) struct Chunks(HashMap<SourceTable, (u32, Way)>);

enum Way {
    /// Straight into the one table that is streamed from it: it has the same columns under other names.
    Straight { copy: String, into: TableName },
    /// By way of a temp table, which is empty again with each transaction's end.
    Through { copy: String, inserts: Vec<(TableName, String)> },
}

impl Chunks {
    /// Writes chunks of a table whose shape is `into`. Says whether that was possible: if not, the copy has begun under a plan that says something else.
    ///
    /// # Errors
    /// The target, or a row that it refuses.
    pub async fn write(
        &mut self,
        session: &Session,
        plan: &Plan,
        source: &str,
        begin: &TableBegin,
        into: &TableName,
        data: Vec<Bytes>,
    ) -> Result<bool, ApplyError> {
        let table = home::origin(source, begin);
        if self.0.get(&table).is_none_or(|(epoch, _)| *epoch != begin.epoch) {
            let Some(way) = ready(session, plan, &table, begin, into).await? else { return Ok(false) };
            self.0.insert(table.clone(), (begin.epoch, way));
        }
        match self.0.get(&table) {
            Some((_, Way::Straight { copy, into })) => {
                copied(session, copy, data).await.map_err(|error| refused(into, error))?;
            }
            Some((_, Way::Through { copy, inserts })) => {
                copied(session, copy, data).await.map_err(|error| refused(into, error))?;
                for (into, insert) in inserts {
                    session.batch_execute(insert).await.map_err(|error| refused(into, error.into()))?;
                }
            }
            None => {}
        }
        Ok(true)
    }
}

/// Finds out how its chunks are written, and makes the temp table.
async fn ready(
    session: &Session,
    plan: &Plan,
    table: &SourceTable,
    begin: &TableBegin,
    into: &TableName,
) -> Result<Option<Way>, ApplyError> {
    let Stored::Results(streams) = Planner::new(session, plan).await?.stored(&table.source, begin).await? else {
        return Ok(None);
    };
    if !noted(session, table, &streams).await? {
        return Ok(None);
    }
    if let [stream] = streams.as_slice()
        && let Some(copy) = straight(session, stream, begin).await?
    {
        return Ok(Some(Way::Straight { copy, into: stream.declared.into.clone() }));
    }
    let temp = quote::ident(&into.name.replacen("shape ", "rows ", 1));
    let column = |column: &model::CopyColumn| format!("{} {}", quote::ident(&column.name), column.type_name);
    let columns: Vec<String> = begin.columns.iter().map(column).collect();
    // Emptied with the transaction's end it needs no new file each time, as it would with TRUNCATE.
    let create = format!(
        "SET LOCAL client_min_messages = warning; DROP TABLE IF EXISTS pg_temp.{temp}; CREATE TEMP TABLE {temp} ({}) ON COMMIT DELETE ROWS",
        columns.join(", ")
    );
    session.batch_execute(&create).await.map_err(|error| refused(into, error.into()))?;
    let names = quote::idents(begin.columns.iter().map(|column| column.name.as_str()));
    let rows = format!("pg_temp.{temp}");
    let insert = |stream: &Stream| (stream.declared.into.clone(), stream.streamed.insert(&rows));
    let copy = format!("COPY {rows} ({names}) FROM STDIN");
    Ok(Some(Way::Through { copy, inserts: streams.iter().map(insert).collect() }))
}

/// Whether the copy has begun under a plan that says the same of what is streamed from the table.
async fn noted(session: &Session, table: &SourceTable, streams: &[Stream]) -> Result<bool, ApplyError> {
    let query = "SELECT into_schema, into_name, declared FROM crossfade.derived WHERE reads = ARRAY[$1::text] AND declared <> ''";
    let rows = session.query(query, &[&table.to_string()]).await?;
    let is_noted = |stream: &Stream| {
        let (into, declared) = (&stream.declared.into, fingerprint(&stream.declared));
        rows.iter().any(|row| {
            row.get::<_, &str>(0) == into.schema
                && row.get::<_, &str>(1) == into.name
                && row.get::<_, &str>(2) == declared
        })
    };
    Ok(rows.len() == streams.len() && streams.iter().all(is_noted))
}

/// COPY into a table that gives each column of the source's as it is, and leaves no row out.
async fn straight(session: &Session, stream: &Stream, begin: &TableBegin) -> Result<Option<String>, ApplyError> {
    let streamed = &stream.streamed;
    if streamed.filter.is_some() || streamed.columns.len() != begin.columns.len() {
        return Ok(None);
    }
    let there = kept::relation(session, &stream.declared.into).await?.columns;
    let mut names = Vec::with_capacity(begin.columns.len());
    for column in &begin.columns {
        let as_is = format!("{}.{}", quote::ident("r"), quote::ident(&column.name));
        let Some(given) = streamed.columns.iter().find(|given| given.sql == as_is) else { return Ok(None) };
        let alike = |target: &&mapping::TargetColumn| {
            target.name == given.name && target.cast.as_ref() == Some(&column.type_name)
        };
        if !there.iter().any(|target| alike(&target)) {
            return Ok(None);
        }
        names.push(given.name.as_str());
    }
    Ok(Some(format!("COPY {} ({}) FROM STDIN", stream.declared.into.quoted(), quote::idents(names))))
}

async fn copied(session: &Session, copy: &str, data: Vec<Bytes>) -> Result<(), ApplyError> {
    let sink = session.copy_in(copy).await?;
    pin_mut!(sink);
    for chunk in data {
        sink.send(chunk).await?;
    }
    sink.finish().await?;
    Ok(())
}

fn refused(into: &TableName, error: ApplyError) -> ApplyError {
    if error.retry() {
        return error;
    }
    Problem::new(
        Code::RowRefused,
        format!("table {into}"),
        format!("the target refuses a row of the copy: {error}"),
        "mend the query, the target's definition (type, length, constraint) or the row at the source, then start again",
    )
    .into()
}
