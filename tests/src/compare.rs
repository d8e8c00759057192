//! The oracle: whether two databases hold the same. Knows nothing of how crossfade works.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::Pin;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use model::{TableName, quote};
use tokio_postgres::{Client, RowStream};

use crate::connect;

/// How many differing rows are kept to be shown.
const SAMPLES: usize = 10;

/// How much of a row, in characters.
const SAMPLE_LENGTH: usize = 200;

/// Values print the same on both sides, and so that floats keep all their digits.
const PINNED: &str = "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; \
     SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET search_path = ''; \
     SET row_security = off; SET synchronize_seqscans = off; SET work_mem = '128MB'; SET max_parallel_workers_per_gather = 0";

const USER_SCHEMA: &str = "n.nspname NOT IN ('information_schema', 'crossfade') AND n.nspname NOT LIKE 'pg\\_%'";

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Tables compared.
    pub tables: usize,
    /// Rows of the source in them.
    pub rows: u64,
    /// Rows that only one side has, and tables that do.
    pub differences: u64,
    /// The first of them, for a person.
    pub samples: Vec<String>,
}

impl Comparison {
    /// An error that shows the first differences, if there is any, or if there was nothing to compare.
    pub fn expect_equal(&self) -> Result<()> {
        anyhow::ensure!(self.tables > 0, "no table to compare");
        anyhow::ensure!(self.differences == 0, "{self}");
        Ok(())
    }

    fn differs(&mut self, sample: impl FnOnce() -> String) {
        self.differences += 1;
        if self.samples.len() < SAMPLES {
            let sample = sample();
            let cut = sample.char_indices().nth(SAMPLE_LENGTH).map_or(sample.len(), |(at, _)| at);
            self.samples.push(sample[..cut].to_owned());
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tables, {} rows, {} differences", self.tables, self.rows, self.differences)?;
        self.samples.iter().try_for_each(|sample| write!(f, "\n  {sample}"))
    }
}

/// Compares every table of two databases (URLs): all columns of all rows as text, as multisets. Partitions and heirs
/// are compared one by one.
pub async fn databases(source: &str, target: &str) -> Result<Comparison> {
    let (ours, theirs) = (connect(source).await?, connect(target).await?);
    let (ours, theirs) = (tables(&ours).await?, tables(&theirs).await?);
    let mut result = Comparison::default();
    for name in ours.symmetric_difference(&theirs) {
        result.differs(|| format!("{name}: only in the {}", if ours.contains(name) { "source" } else { "target" }));
    }
    let both: Vec<TableName> = ours.intersection(&theirs).cloned().collect();
    compare_tables(source, target, &both, &mut result).await?;
    Ok(result)
}

/// Compares these tables only.
pub async fn some_tables(source: &str, target: &str, names: &[TableName]) -> Result<Comparison> {
    let mut result = Comparison::default();
    compare_tables(source, target, names, &mut result).await?;
    Ok(result)
}

async fn compare_tables(source: &str, target: &str, names: &[TableName], result: &mut Comparison) -> Result<()> {
    let (source, target) = (connect(source).await?, connect(target).await?);
    source.batch_execute(PINNED).await?;
    target.batch_execute(PINNED).await?;
    for name in names {
        compare_table(&source, &target, name, result).await.with_context(|| format!("compare {name}"))?;
        result.tables += 1;
    }
    Ok(())
}

async fn compare_table(source: &Client, target: &Client, name: &TableName, result: &mut Comparison) -> Result<()> {
    let (ours, theirs) = (columns(source, name).await?, columns(target, name).await?);
    if ours != theirs {
        result.differs(|| format!("{name}: columns {ours:?} in the source, {theirs:?} in the target"));
        return Ok(());
    }
    let casts: Vec<String> = ours.keys().map(|column| format!("{}::text", quote::ident(column))).collect();
    // A row's text form quotes what needs it and tells null from empty: equal text is equal rows. In the C collation
    // it sorts by bytes, as the merge below compares.
    let sql = format!(
        "SELECT r FROM (SELECT ROW({})::text COLLATE \"C\" AS r FROM ONLY {}) AS rows ORDER BY r",
        casts.join(", "),
        name.quoted()
    );
    let (mut left, mut right) = tokio::try_join!(Rows::start(source, &sql), Rows::start(target, &sql))?;
    loop {
        let order = match (&left.head, &right.head) {
            (None, None) => return Ok(()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(ours), Some(theirs)) => ours.as_bytes().cmp(theirs.as_bytes()),
        };
        if order.is_lt() {
            result.differs(|| format!("{name}: only in the source: {}", left.head.as_deref().unwrap_or_default()));
        }
        if order.is_gt() {
            result.differs(|| format!("{name}: only in the target: {}", right.head.as_deref().unwrap_or_default()));
        }
        if order.is_le() {
            result.rows += 1;
            left.advance().await?;
        }
        if order.is_ge() {
            right.advance().await?;
        }
    }
}

/// Sorted rows as they come, one in memory.
struct Rows {
    stream: Pin<Box<RowStream>>,
    head: Option<String>,
}

impl Rows {
    async fn start(client: &Client, sql: &str) -> Result<Rows> {
        let stream = client.query_raw(sql, std::iter::empty::<&str>()).await?;
        let mut rows = Rows { stream: Box::pin(stream), head: None };
        rows.advance().await?;
        Ok(rows)
    }

    async fn advance(&mut self) -> Result<()> {
        self.head = self.stream.try_next().await?.map(|row| row.try_get(0)).transpose()?;
        Ok(())
    }
}

/// The tables that hold rows themselves: ordinary ones, partitions and heirs.
async fn tables(client: &Client) -> Result<BTreeSet<TableName>> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND {USER_SCHEMA}"
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

async fn columns(client: &Client, name: &TableName) -> Result<BTreeMap<String, String>> {
    let sql = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
         JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = client.query(sql, &[&name.schema, &name.name]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Compares the definitions of two databases: columns with defaults, constraints, indexes, triggers, views. Returns one
/// line for each that only one side has.
pub async fn schemas(source: &str, target: &str) -> Result<Vec<String>> {
    let (source, target) = (connect(source).await?, connect(target).await?);
    let (ours, theirs) = (definitions(&source).await?, definitions(&target).await?);
    let only = |side: &'static str, line: &String| format!("only in the {side}: {line}");
    let missing = ours.difference(&theirs).map(|line| only("source", line));
    let extra = theirs.difference(&ours).map(|line| only("target", line));
    Ok(missing.chain(extra).collect())
}

async fn definitions(client: &Client) -> Result<BTreeSet<String>> {
    // With an empty search_path every name prints with its schema.
    client.batch_execute("SET search_path = ''").await?;
    let sql = format!(
        "SELECT 'column ' || c.oid::regclass || ' ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
                || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END || ' identity:' || a.attidentity::text
                || ' generated:' || a.attgenerated::text || ' default:' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
          WHERE c.relkind IN ('r', 'p', 'v', 'm', 'c') AND {USER_SCHEMA}
         UNION ALL
         SELECT 'constraint ' || coalesce(k.conrelid::regclass::text, '') || ' ' || k.conname || ' '
                || pg_get_constraintdef(k.oid)
           FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace WHERE {USER_SCHEMA}
         UNION ALL
         SELECT 'index ' || pg_get_indexdef(i.indexrelid) || ' valid:' || i.indisvalid || ' cluster:' || i.indisclustered
           FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind <> 't' AND {USER_SCHEMA}
         UNION ALL
         SELECT 'trigger ' || pg_get_triggerdef(t.oid)
           FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE NOT t.tgisinternal AND t.tgname NOT LIKE 'crossfade%' AND {USER_SCHEMA}
         UNION ALL
         SELECT 'view ' || c.oid::regclass || ' ' || pg_get_viewdef(c.oid)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm') AND {USER_SCHEMA}"
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
