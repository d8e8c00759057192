//! Tables in parts: each is compared under one pair of snapshots, and is done for good.

use std::sync::Arc;

use model::TableName;
use pg::Session;

use crate::error::VerifyError;
use crate::pair::{At, Pair};
use crate::side::rows;

/// What a part of a table takes on disk, at most and about: some seconds of work, so that little is lost by a stop.
const PART: i64 = 32 << 20;

/// Parts of a table at most.
const MOST: i64 = 20_000;

/// Blocks that are looked at to find the bound of a part.
const LOOKED_AT: i64 = 30;

/// A range of a table's key, or all of a table whose key cannot be divided in the same way on both sides.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub pair: Arc<Pair>,
    pub number: i32,
    /// The first value of the leading key column; open where there is none.
    pub from: Option<String>,
    /// The first one after it.
    pub to: Option<String>,
    /// Only the rows that were touched since the table was compared, where it is known which.
    pub touched: bool,
}

impl Part {
    /// The condition for its rows at a side.
    pub fn rows(&self, at: At) -> String {
        self.pair.between(at, self.from.as_deref(), self.to.as_deref())
    }
}

/// Divides a table. `session` is one at the source.
pub(crate) async fn divide(session: &Session, pair: &Arc<Pair>) -> Result<Vec<Part>, VerifyError> {
    let mut bounds = Vec::new();
    if let Some(column) = pair.divisible() {
        let tables: Vec<String> = pair.sources.iter().map(TableName::quoted).collect();
        // With what is stored out of line.
        let query = "SELECT sum(pg_table_size(to_regclass(name)))::int8, sum(pg_relation_size(to_regclass(name)))::int8 FROM unnest($1::text[]) name";
        let size = session.query_one(query, &[&tables]).await?;
        let (all, heap) = (size.get::<_, Option<i64>>(0).unwrap_or(0), size.get::<_, Option<i64>>(1).unwrap_or(0));
        let wanted = (all / PART + 1).min(MOST);
        if wanted == 1 {
            return Ok(vec![whole(pair)]);
        }
        let fractions: Vec<String> = (1..wanted).map(|n| (n as f64 / wanted as f64).to_string()).collect();
        let blocks = (heap / BLOCK).max(1);
        let percent = (100.0 * (wanted * LOOKED_AT) as f64 / blocks as f64).min(100.0);
        let query = format!(
            "SELECT DISTINCT b FROM unnest((SELECT percentile_disc(ARRAY[{}]::float8[]) WITHIN GROUP (ORDER BY {column})
               FROM ONLY {} TABLESAMPLE SYSTEM ({percent}))) b WHERE b IS NOT NULL ORDER BY b",
            fractions.join(","),
            tables.join(", ")
        );
        bounds = rows(session, &query).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    }
    let starts = std::iter::once(None).chain(bounds.iter().cloned().map(Some));
    let ends = bounds.iter().cloned().map(Some).chain(std::iter::once(None));
    let part = |(number, (from, to))| Part { pair: Arc::clone(pair), number: number as i32, from, to, touched: false };
    Ok(starts.zip(ends).enumerate().map(part).collect())
}

fn whole(pair: &Arc<Pair>) -> Part {
    Part { pair: Arc::clone(pair), number: 0, from: None, to: None, touched: false }
}

/// The rows of a table that were touched since it was compared, as a part.
pub(crate) fn touched(pair: &Arc<Pair>) -> Part {
    Part { touched: true, ..whole(pair) }
}

/// A server's block, unless it was built for another size; only a guess depends on it.
const BLOCK: i64 = 8192;

/// Some of them, evenly: `percent` of a table's, and one at least.
pub(crate) fn sample(parts: Vec<Part>, percent: f64) -> Vec<Part> {
    let step = 100.0 / percent.clamp(0.01, 100.0);
    let chosen = |part: &Part| {
        let number = f64::from(part.number);
        (number / step).floor() != ((number - 1.0) / step).floor()
    };
    parts.into_iter().filter(chosen).collect()
}
