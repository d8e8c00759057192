//! A derived table and its query on the source itself, at one instant: no mirror is trusted. The tail is held only while the snapshots are taken; the query runs afterwards, in the transaction
//! that sees the source's.

use model::{Marker, MarkerKind, TableName};
use pg::{PgError, Session};

use super::{Compared, rows, waits};
use crate::comparison::{Comparison, LOCK};
use crate::error::VerifyError;
use crate::fence::{self, Ends, Fence};
use crate::idle::{self, Idle};
use crate::pair::{self, At, Pair};
use crate::queries::Asked;
use crate::recorded;
use crate::round::give_way;
use crate::run::nonce;
use crate::state::{self, HeldPart};
use crate::sums::{Hash, Sum};

/// What came of it.
pub(super) enum Tried {
    Compared(Compared),
    /// The source cannot be asked, for this reason.
    Impossible(String),
}

/// Nothing can be said, for this reason.
fn open(why: String) -> Tried {
    Tried::Compared(Compared { why: Some(why), ..Compared::default() })
}

impl Comparison<'_> {
    /// Compares with the query on its source, if that is one, and knows what stands in the query.
    pub(super) async fn at_source(&self, notes: &Session, derived: &apply::Derived) -> Result<Tried, VerifyError> {
        let plan = &self.job.plan;
        let Some(oracle) = &derived.oracle else {
            return Ok(open("it reads a table that the log has not told of".to_owned()));
        };
        let [name] = oracle.sources.as_slice() else {
            return Ok(Tried::Impossible(format!("its tables are in {} sources", oracle.sources.len())));
        };
        let ends = plan.sources.iter().zip(&self.job.sources).find(|(source, _)| source.name == *name);
        let Some((source, endpoint)) = ends else {
            return Ok(Tried::Impossible(format!("the plan has no source {name:?}")));
        };
        let session = pg::connect_read_only(endpoint, "verify").await?;
        session.batch_execute(&format!("SET lock_timeout = {LOCK}")).await?;
        let reads: Vec<TableName> = derived.reads.iter().map(|read| read.table.clone()).collect();
        let loaded = pair::load(&session, notes, source, &reads).await?;
        if let Some((table, why)) = loaded.inconclusive.into_iter().next() {
            return Ok(open(format!("it is made of {table}: {why}")));
        }
        let mut pairs = loaded.pairs;
        if let Some(leaf) = not_copied(&session, &reads, &pairs).await? {
            return Ok(open(format!(
                "its query reads partition {leaf} at the source, and no copy of that has begun; `crossfade run`, or `crossfade capture`, copies it when it is started again"
            )));
        }
        let columns: Vec<String> = match session.prepare(&oracle.over_sources).await.map_err(PgError::from) {
            Ok(statement) => statement.columns().iter().map(|column| column.name().to_owned()).collect(),
            // What it calls may be at the target only.
            Err(error @ PgError::Server(_)) if pg::policy(&error) != pg::Policy::Retry => {
                return Ok(Tried::Impossible(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(Idle { why, next }) = idle::idle(&session, notes, &plan.name, name).await? {
            return Ok(open(format!("{why}; {next}")));
        }
        match Pair::alone(notes, &derived.into, &columns, None).await? {
            Ok(into) => pairs.push(into),
            Err(why) => return Ok(open(why)),
        }
        drop(session);
        let (nonce, purpose) = (nonce(self.job, name).await?, format!("verify {}", &self.id[..8]));
        let ends = Ends {
            plan: &plan.name,
            source: name,
            nonce: &nonce,
            endpoints: [endpoint, &self.job.target],
            log: &self.job.log,
            // Who adds up what it holds.
            readers: usize::from(derived.alone),
            hold: plan.verify.hold,
            purpose: &purpose,
        };
        let [at_source, at_target] = ends.endpoints;
        tokio::select! {
            biased;
            given = give_way(at_source, &purpose, plan.limits.lock_timeout) => given.and_then(|()| nobody_looks()),
            given = give_way(at_target, &purpose, plan.limits.lock_timeout) => given.and_then(|()| nobody_looks()),
            compared = self.together(&ends, &pairs, derived, [&oracle.over_sources, &oracle.target]) => compared.map(Tried::Compared),
        }
    }

    /// Brings both sides together, and compares.
    async fn together(
        &self,
        ends: &Ends<'_>,
        pairs: &[Pair],
        derived: &apply::Derived,
        [want, have]: [&str; 2],
    ) -> Result<Compared, VerifyError> {
        let pairs: Vec<&Pair> = pairs.iter().collect();
        let fence = fence::take(ends, &pairs).await?;
        // What a query gives of rows that only one side has cannot be told from the log.
        if !fence.between.changes.is_empty() {
            return Err(VerifyError::Again("what the source showed was no prefix of its commits".to_owned()));
        }
        let (source, target) = (&fence.source.leader, &fence.target.leader);
        let mut compared = Compared::at(target, derived).await?;
        (compared.lsn, compared.seq) = (fence.lsn.to_string(), fence.seq.0 as i64);
        compared.query = Some(format!("on source {}", ends.source));
        compared.why = waits(target, &self.job.plan, derived).await?;
        if compared.why.is_some() {
            return Ok(compared);
        }
        // As long as snapshots may keep what is dead from being cleared away.
        let bound = format!("SET LOCAL statement_timeout = {}", self.job.plan.verify.renew.as_millis());
        source.batch_execute(&bound).await?;
        target.batch_execute(&bound).await?;
        let (want, have) = (Asked { session: source, query: want }, Asked { session: target, query: have });
        match rows(compared, derived, want, have, self.options.mask).await {
            Ok(compared) => {
                if derived.alone && compared.is_equal() {
                    self.say_alone(ends, &fence, derived, pairs.last().copied()).await?;
                }
                Ok(compared)
            }
            Err(VerifyError::Pg(error)) if error.sqlstate() == Some("57014") => Err(VerifyError::Still(format!(
                "its query took longer than {} s at the source or the target; the plan's verify.renew may be longer",
                self.job.plan.verify.renew.as_secs()
            ))),
            Err(error) => Err(error),
        }
    }

    /// Puts what the table holds into the log, as for one that goes over as it is: a replay has no mirror to ask the query of.
    async fn say_alone(
        &self,
        ends: &Ends<'_>,
        fence: &Fence,
        derived: &apply::Derived,
        pair: Option<&Pair>,
    ) -> Result<(), VerifyError> {
        let notes = self.notes.session().await?;
        let copies = state::epochs(&notes, ends.source).await?.remove(&derived.into);
        let (Some(pair), Some(copies), false) = (pair, copies, state::was_cut_over(&notes).await?) else {
            return Ok(());
        };
        let hash = Hash::of(&fence.source.leader, &fence.target.leader).await?;
        let sum = Sum::of(&fence.target, At::Target, pair, hash, "true").await?;
        let held = HeldPart {
            table: derived.into.clone(),
            number: 0,
            low: None,
            high: None,
            lsn: fence.lsn.to_string(),
            seq: fence.seq.0 as i64,
            copies,
            rows: sum.rows,
            sum: sum.hex(),
            equal: true,
        };
        let session = pg::connect(ends.endpoints[0], "verify").await?;
        for data in recorded::messages(&[held], &[pair], hash, &hash.probe(&notes).await?) {
            let marker = Marker { data, ..Marker::new(ends.nonce, MarkerKind::Verified, self.id) };
            capture::emit_marker(&session, &marker).await?;
        }
        Ok(())
    }
}

fn nobody_looks() -> Result<Tried, VerifyError> {
    Err(VerifyError::Again("nobody looks who waits any more".to_owned()))
}

/// A partition of what is read that no copy leads into the mirrors.
async fn not_copied(session: &Session, reads: &[TableName], pairs: &[Pair]) -> Result<Option<String>, VerifyError> {
    let names = |tables: &mut dyn Iterator<Item = &TableName>| tables.map(TableName::quoted).collect::<Vec<String>>();
    let copied = names(&mut pairs.iter().flat_map(|pair| &pair.sources));
    let query = "SELECT t.relid::regclass::text FROM unnest($1::text[]) AS name, pg_partition_tree(to_regclass(name)) AS t
                  WHERE t.isleaf AND t.relid <> ALL (SELECT to_regclass(copied) FROM unnest($2::text[]) AS copied WHERE to_regclass(copied) IS NOT NULL)
                  ORDER BY 1 LIMIT 1";
    let row = session.query_opt(query, &[&names(&mut reads.iter()), &copied]).await?;
    Ok(row.map(|row| row.get(0)))
}
