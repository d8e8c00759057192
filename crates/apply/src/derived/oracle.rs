//! What a derived table must be, for those who compare.

use mapping::{Oracle, SourceTable};
use model::TableName;
use pg::Session;
use plan::Plan;

use super::kept::{Known, fingerprint};
use crate::{ApplyError, state};

/// A derived table of the plan.
#[derive(Clone, Debug)]
pub struct Derived {
    /// Where its rows are.
    pub into: TableName,
    /// What tells them apart; empty where nothing does.
    pub key: Vec<String>,
    /// Its query in full; none if it reads a table that no copy is known of.
    pub oracle: Option<Oracle>,
    /// The source tables that it reads.
    pub reads: Vec<SourceTable>,
    /// What these are in the target, and of which source each is; of a partitioned one, its partitions.
    pub mirrors: Vec<(String, TableName)>,
    /// Nothing is stored of the table that it is streamed from: there is no mirror to compare with.
    pub alone: bool,
}

/// The plan's derived tables, as the target's state has it that they are read.
///
/// # Errors
/// The target, or a declaration that is refused.
pub async fn derived(session: &Session, plan: &Plan) -> Result<Vec<Derived>, ApplyError> {
    let mut all = Vec::new();
    if plan.derived.is_empty() || !state::knows(session, &plan.name).await? {
        return Ok(all);
    }
    let known = Known::load(session).await?;
    for derived in &plan.derived {
        let compiled = known.compile(session, derived).await?;
        let reads = compiled.as_ref().map(|compiled| compiled.sources.clone()).unwrap_or_default();
        let mirrors = reads.iter().flat_map(|read| known.mirrors(read)).collect();
        let alone = reads.iter().any(|read| known.is_unstored(read));
        let key = compiled.as_ref().map_or(&derived.key, |compiled| &compiled.key).clone();
        let oracle = compiled.map(|compiled| compiled.oracle);
        all.push(Derived { into: derived.into.clone(), key, oracle, reads, mirrors, alone });
    }
    Ok(all)
}

/// How far a derived table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Which.
    pub into: TableName,
    /// Why it is not filled as the plan declares it, if that is known.
    pub why: String,
}

/// The plan's derived tables that are not filled as it declares them.
///
/// # Errors
/// The target.
pub async fn unfilled(session: &tokio_postgres::Client, plan: &Plan) -> Result<Vec<Filled>, tokio_postgres::Error> {
    if plan.derived.is_empty() {
        return Ok(Vec::new());
    }
    // A target whose state is of an older version has no such table.
    let there = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                                 WHERE n.nspname = 'crossfade' AND c.relname = 'derived')";
    let rows = match session.query_one(there, &[]).await?.get(0) {
        true => {
            session
                .query("SELECT into_schema, into_name, filled, coalesce(why, ''), declared FROM crossfade.derived", &[])
                .await?
        }
        false => Vec::new(),
    };
    let waits = |derived: &plan::Derived| {
        let row = rows
            .iter()
            .find(|row| row.get::<_, &str>(0) == derived.into.schema && row.get::<_, &str>(1) == derived.into.name);
        let why = match row {
            Some(row) if row.get(2) && fingerprint(derived) == row.get::<_, &str>(4) => return None,
            // Apply goes on with the plan that it was started with.
            Some(row) if row.get(2) => {
                "the plan declares it another way than it is filled; restart `crossfade run` or `crossfade apply`"
                    .to_owned()
            }
            Some(row) => row.get::<_, String>(3),
            None => "copy and tail are not joined yet".to_owned(),
        };
        Some(Filled { into: derived.into.clone(), why })
    };
    Ok(plan.derived.iter().filter_map(waits).collect())
}
