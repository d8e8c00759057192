//! What was touched since the tables were found to be equal, compared where both sides stand still: for a cutover, in the time in which nobody can write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use log::{StreamKind, StreamName};
use model::{Code, Problem, Seq, TableName};
use pg::{Session, catalog};

use crate::error::VerifyError;
use crate::pair::{self, At, Pair};
use crate::side::{Row, Side, rows};
use crate::sums::{Hash, Sum};
use crate::touched::Touched;
use crate::{Difference, Job, state};

/// Rows that are looked up with one statement.
const AT_ONCE: usize = 1000;

/// A table that has to be compared as a whole is, up to this size at the target: nobody can write meanwhile.
const WHOLE: i64 = 64 << 20;

/// What is to be compared. Everything slow is done when it is made: catalogs are read, sessions are open, and the log is read as far as it goes.
pub struct Remainder<'a> {
    sources: Vec<Origin<'a>>,
}

struct Origin<'a> {
    plan: &'a plan::Source,
    source: Side,
    target: Side,
    pairs: Vec<Arc<Pair>>,
    touched: Touched<'a>,
    known: Vec<catalog::Table>,
    hash: Hash,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    /// Rows that were compared one by one.
    pub rows: u64,
    /// Rows that are not the same: the source, the table, the row.
    pub different: Vec<(String, TableName, Difference)>,
    /// Tables that are not what they were when they were copied, or can not be compared, and why.
    pub drifted: Vec<(TableName, String)>,
    /// Tables without key, or that were emptied, too large to be compared again as a whole: equal when they were last compared.
    pub left_out: Vec<TableName>,
}

impl<'a> Remainder<'a> {
    /// Gets ready.
    ///
    /// # Errors
    /// A server; or a table was never found to be equal as a whole.
    pub async fn prepare(job: &'a Job) -> Result<Remainder<'a>, Problem> {
        Ok(Self::open(job).await?)
    }

    async fn open(job: &'a Job) -> Result<Remainder<'a>, VerifyError> {
        let mut sources = Vec::new();
        for (plan, endpoint) in job.plan.sources.iter().zip(&job.sources) {
            let source = Side::open_idle(endpoint, "cutover", 1).await?;
            let target = Side::open_idle(&job.target, "cutover", 1).await?;
            let found = pair::load(&source.leader, &target.leader, plan, &[]).await?;
            if let Some((table, why)) = found.inconclusive.into_iter().next() {
                return Err(VerifyError::Table(table, why));
            }
            let copies = state::copies(&target.leader, &plan.name).await?;
            let (mut equal, mut from) = (Vec::new(), Seq(u64::MAX));
            let pairs: Vec<Arc<Pair>> = found.pairs.into_iter().map(Arc::new).collect();
            for pair in pairs.iter().filter(|pair| is_stored(pair)) {
                let last = state::last_equal(&target.leader, &plan.name, &pair.table, copies.get(&pair.table)).await?;
                let Some((lsn, seq)) = last else {
                    return Err(Problem::new(
                        Code::CutoverRefused,
                        format!("table {}", pair.table),
                        "no verify has found it equal since it was copied",
                        "`crossfade verify`",
                    )
                    .into());
                };
                equal.push((Arc::clone(pair), lsn));
                from = from.min(seq);
            }
            let hash = Hash::of(&source.leader, &target.leader).await?;
            let known = catalog::tables(&source.leader).await?;
            let stream = StreamName::new(&*job.plan.name, &*plan.name, StreamKind::Tail);
            let now = applied(&target.leader, &plan.name).await?;
            let mut touched = Touched::new(&job.log, stream, from.min(now), equal);
            touched.until(now).await?;
            sources.push(Origin { plan, source, target, pairs, touched, known, hash });
        }
        Ok(Remainder { sources })
    }

    /// How many rows are to be compared, of tables where that is known.
    #[must_use]
    pub fn rows(&self) -> usize {
        let of = |origin: &Origin<'_>| -> usize {
            origin.pairs.iter().filter_map(|pair| origin.touched.keys(&pair.table)).map(BTreeSet::len).sum()
        };
        self.sources.iter().map(of).sum()
    }

    /// Reads the log as far as the target is, so that little is left.
    ///
    /// # Errors
    /// The target, or the log.
    pub async fn read_on(&mut self) -> Result<(), Problem> {
        for origin in &mut self.sources {
            let now = applied(&origin.target.leader, &origin.plan.name).await?;
            origin.touched.until(now).await?;
        }
        Ok(())
    }

    /// The tables that are not what they were when they were copied, and why.
    ///
    /// # Errors
    /// A source.
    pub async fn drifted(&self) -> Result<Vec<(TableName, String)>, Problem> {
        let mut rest = Rest::default();
        for origin in &self.sources {
            origin.drift(&mut rest).await?;
        }
        Ok(rest.drifted)
    }

    /// Compares. Nobody may write to either side from before this until its end, and the target must have everything.
    ///
    /// # Errors
    /// A server, or the log.
    pub async fn compare(&mut self) -> Result<Rest, Problem> {
        let mut rest = Rest::default();
        for origin in &mut self.sources {
            origin.compare(&mut rest).await?;
        }
        Ok(rest)
    }
}

/// Whether it is compared: of some tables nothing is stored but what is streamed from them.
fn is_stored(pair: &Pair) -> bool {
    !apply::is_shape(&pair.table)
}

async fn applied(target: &Session, source: &str) -> Result<Seq, VerifyError> {
    let query = "SELECT seq FROM crossfade.checkpoint WHERE source = $1::text";
    Ok(Seq(target.query_one(query, &[&source]).await?.get::<_, i64>(0) as u64))
}

impl Origin<'_> {
    async fn compare(&mut self, rest: &mut Rest) -> Result<(), VerifyError> {
        self.drift(rest).await?;
        self.touched.until(applied(&self.target.leader, &self.plan.name).await?).await?;
        // What both versions share goes on being written.
        let shared = |pair: &&Arc<Pair>| pair.sources.iter().any(|table| self.plan.shared.selects(table));
        for pair in self.pairs.iter().filter(|pair| is_stored(pair) && !shared(pair)) {
            match self.touched.keys(&pair.table) {
                Some(keys) => self.rows(pair, keys, rest).await?,
                None => self.whole(pair, rest).await?,
            }
        }
        Ok(())
    }

    /// Whether the source's tables are what they were a moment ago.
    async fn drift(&self, rest: &mut Rest) -> Result<(), VerifyError> {
        let now: BTreeMap<TableName, catalog::Table> =
            catalog::tables(&self.source.leader).await?.into_iter().map(|table| (table.name.clone(), table)).collect();
        let compared: BTreeSet<&TableName> = self.pairs.iter().flat_map(|pair| &pair.sources).collect();
        let selects = |table: &catalog::Table| {
            self.plan.tables.selects(&table.name)
                || table.root.as_ref().is_some_and(|root| self.plan.tables.selects(root))
        };
        for before in self.known.iter().filter(|table| selects(table)) {
            match now.get(&before.name) {
                None => rest.drifted.push((before.name.clone(), "it is not at the source any more".to_owned())),
                Some(table) if table.oid != before.oid || table.shape != before.shape => {
                    let why = "its columns, constraints, replica identity or inheritance have just changed";
                    rest.drifted.push((before.name.clone(), why.to_owned()));
                }
                Some(_) => {}
            }
        }
        let new = now.values().filter(|table| selects(table) && !compared.contains(&table.name));
        rest.drifted.extend(new.map(|table| {
            (table.name.clone(), "the plan selects it, and it is not among the tables that were compared".to_owned())
        }));
        Ok(())
    }

    async fn rows(&self, pair: &Pair, keys: &BTreeSet<Vec<String>>, rest: &mut Rest) -> Result<(), VerifyError> {
        let keys: Vec<&[String]> = keys.iter().map(Vec::as_slice).collect();
        rest.rows += keys.len() as u64;
        for some in keys.chunks(AT_ONCE) {
            let query = |at: At| {
                format!(
                    "SELECT {} FROM {} WHERE {}",
                    pair.each_cell().join(", "),
                    pair.from(at),
                    pair.among(at, some.iter().copied())
                )
            };
            let (ours, theirs) = (query(At::Source), query(At::Target));
            let (ours, theirs) =
                tokio::try_join!(rows(&self.source.leader, &ours), rows(&self.target.leader, &theirs))?;
            let differences = between(pair, ours, theirs);
            rest.different.extend(differences.into_iter().map(|one| (self.plan.name.clone(), pair.table.clone(), one)));
        }
        Ok(())
    }

    async fn whole(&self, pair: &Pair, rest: &mut Rest) -> Result<(), VerifyError> {
        let query = "SELECT coalesce(sum(pg_table_size(relid)), 0)::int8 FROM (SELECT to_regclass($1::text)::oid AS relid UNION SELECT relid FROM pg_partition_tree(to_regclass($1::text))) t";
        let size: i64 = self.target.leader.query_one(query, &[&pair.table.quoted()]).await?.get(0);
        if size > WHOLE {
            rest.left_out.push(pair.table.clone());
            return Ok(());
        }
        let sum = |side, at| Sum::of(side, at, pair, self.hash, "true");
        let (ours, theirs) = tokio::try_join!(sum(&self.source, At::Source), sum(&self.target, At::Target))?;
        rest.rows += ours.rows.unsigned_abs();
        if ours != theirs {
            let why = format!("its rows are not the same: {} at the source, {} at the target", ours.rows, theirs.rows);
            rest.drifted.push((pair.table.clone(), why));
        }
        Ok(())
    }
}

fn between(pair: &Pair, ours: Vec<Row>, theirs: Vec<Row>) -> Vec<Difference> {
    let key = |row: &Row| -> Vec<Option<String>> { pair.key.iter().map(|at| row[*at].clone()).collect() };
    let mut found = Vec::new();
    let mut there: BTreeMap<Vec<Option<String>>, Row> = BTreeMap::new();
    for row in theirs {
        if let Some(again) = there.insert(key(&row), row) {
            found.push(Difference::whole(pair, crate::Kind::Extra, &again));
        }
    }
    for row in ours {
        match there.remove(&key(&row)) {
            Some(other) => found.extend(Difference::between(pair, &row, &other)),
            None => found.push(Difference::whole(pair, crate::Kind::Missing, &row)),
        }
    }
    found.extend(there.values().map(|row| Difference::whole(pair, crate::Kind::Extra, row)));
    found
}
