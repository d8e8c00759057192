//! Derived tables are filled once copy and tail of all sources are joined: from then on the mirrors are the sources as of some commits. One
//! transaction fills all that wait, so that whoever dies in it has done nothing.

use std::time::Duration;

use mapping::{Index, Way};
use model::{Code, Problem, TableName, quote};
use pg::Session;
use plan::Plan;
use tokio::time::Instant;
use tracing::{info, warn};

use super::kept::{Kept, Known, fingerprint};
use super::pass::failed;
use super::{Derivations, home};
use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job, tables};

/// How often it is looked whether copy and tail are joined.
const LOOK: Duration = Duration::from_millis(200);

/// And how seldom, while all that waits reads tables that the log has not told of.
const SELDOM: Duration = Duration::from_secs(2);

/// How often it is said what is waited for.
const SAID: Duration = Duration::from_secs(60);

/// Indexes that crossfade makes on the application's tables have names that begin so.
const INDEX: &str = "crossfade_derived_";

impl<'a> Derivations<'a> {
    /// Compiles what is filled.
    pub async fn open(job: &'a Job, session: &'a Session, lease: Lease) -> Result<Self, ApplyError> {
        let mut derivations = Derivations::new(job, session, lease);
        derivations.reload().await?;
        Ok(derivations)
    }

    /// Looks again which tables are filled: copies may have become void.
    pub async fn reload(&mut self) -> Result<(), ApplyError> {
        self.kept.clear();
        self.waiting.clear();
        self.look = Instant::now();
        if self.job.plan.derived.is_empty() {
            return Ok(());
        }
        let query = "SELECT into_schema, into_name FROM crossfade.derived WHERE filled";
        let rows = self.session.query(query, &[]).await?;
        let filled: Vec<TableName> =
            rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
        let known = Known::load(self.session).await?;
        for derived in &self.job.plan.derived {
            let is_filled = filled.contains(&derived.into);
            // What nothing is stored for comes with the changes from the first one on.
            let compiled = match is_filled || known.streams(derived) {
                true => known.compile(self.session, derived).await?,
                false => None,
            };
            let compiled = compiled
                .filter(|compiled| is_filled || compiled.sources.iter().any(|source| known.is_unstored(source)));
            if compiled.is_none() || !is_filled {
                self.waiting.push(derived.clone());
            }
            if let Some(compiled) = compiled {
                self.kept.push(Kept { declared: derived.clone(), compiled });
            }
        }
        self.homes = known.homes;
        self.reads();
        Ok(())
    }

    fn reads(&mut self) {
        self.read = self.kept.iter().flat_map(|kept| kept.compiled.sources.iter().cloned()).collect();
    }

    /// When it has to be looked next whether tables can be filled; `None` if all are.
    pub fn looks(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.look)
    }

    /// Fills what waits, if copy and tail are joined. Not inside a transaction.
    pub async fn fill(&mut self) -> Result<(), ApplyError> {
        let pause = if self.fill_joined().await? { LOOK } else { SELDOM };
        // From its end: however long it took, the tail has its turn in between.
        self.look = Instant::now() + pause;
        Ok(())
    }

    /// Says whether it is worth while to look again soon.
    async fn fill_joined(&mut self) -> Result<bool, ApplyError> {
        if !joined(self.session).await? {
            return Ok(true);
        }
        let known = Known::load(self.session).await?;
        let (mut ready, mut missing) = (Vec::new(), Vec::new());
        for derived in &self.job.plan.derived {
            if !self.waiting.contains(derived) {
                continue;
            }
            match known.compile(self.session, derived).await? {
                Some(compiled) => ready.push(Kept { declared: derived.clone(), compiled }),
                // A log that is only replayed says no more than it does.
                None if self.job.alone => {
                    return Err(Problem::new(
                        Code::NothingRecorded,
                        format!("derived table {}, line {} of the plan", derived.into, derived.line),
                        "its query reads a table that the log has not copied",
                        "let `crossfade run` copy it first; or correct the query: `crossfade explain` names the table",
                    )
                    .into());
                }
                None => missing.push(derived.clone()),
            }
        }
        if ready.is_empty() {
            self.say();
            return Ok(false);
        }
        // Nobody makes a copy void meanwhile: that, too, is done by who holds the lease.
        self.lease.begin_alone(self.session).await?;
        if !joined(self.session).await? {
            self.session.batch_execute("ROLLBACK").await?;
            return Ok(true);
        }
        self.homes = known.homes;
        for kept in ready {
            let there = self.kept.iter().position(|known| known.declared.into == kept.declared.into);
            let number = there.unwrap_or(self.kept.len());
            if there.is_none() {
                self.kept.push(kept);
            }
            self.one(number).await?;
        }
        model::failpoint!("derived_filled");
        self.session.batch_execute(&format!("NOTIFY {CHANNEL}; COMMIT")).await?;
        model::failpoint!("derived_committed");
        self.waiting = missing;
        self.reads();
        self.say();
        Ok(true)
    }

    /// What is waited for, now and then.
    fn say(&mut self) {
        if self.waiting.is_empty() || self.said.is_some_and(|said| said.elapsed() < SAID) {
            return;
        }
        self.said = Some(Instant::now());
        for derived in &self.waiting {
            warn!("derived table {} waits: its query reads a table that the log has not told of yet", derived.into);
        }
    }

    async fn one(&mut self, number: usize) -> Result<(), ApplyError> {
        let begun = Instant::now();
        let kept = &self.kept[number];
        let (into, derived) = (kept.declared.into.clone(), kept.declared.clone());
        let query =
            "SELECT EXISTS (SELECT FROM crossfade.derived WHERE into_schema = $1::text AND into_name = $2::text)";
        let known: bool = self.session.query_one(query, &[&into.schema, &into.name]).await?.get(0);
        let has_rows = home::has_rows(self.session, &into).await?;
        if has_rows && !known && derived.when_missing == plan::WhenMissing::Delete {
            return Err(home::occupied(&derived));
        }
        tables::enclose(self.session, std::slice::from_ref(&into)).await?;
        for index in wanted(&kept.compiled.way) {
            make(self.session, index).await?;
        }
        let streams = self.unstored(&kept.compiled).is_some();
        match &kept.compiled.way {
            // Its rows came with the copy, and every change since then.
            Way::Streamed(_) if streams => {}
            Way::Maintained(maintained) if !has_rows => {
                self.session
                    .batch_execute(&maintained.fill)
                    .await
                    .map_err(|error| failed(&self.kept[number], error.into()))?;
            }
            Way::Maintained(_) | Way::Streamed(_) => self.whole(number).await?,
        }
        self.session.batch_execute(&format!("ANALYZE {}", into.quoted())).await?;
        let reads: Vec<String> = self.kept[number].compiled.sources.iter().map(ToString::to_string).collect();
        self.session
            .execute(
                "INSERT INTO crossfade.derived (into_schema, into_name, declared, reads, filled, filled_at, at)
                 VALUES ($1::text, $2::text, $3::text, $4::text[], true, clock_timestamp(), (SELECT string_agg(source || ' ' || lsn, ', ' ORDER BY source) FROM crossfade.checkpoint))
                 ON CONFLICT (into_schema, into_name) DO UPDATE SET declared = excluded.declared, reads = excluded.reads, filled = true, why = NULL,
                   filled_at = excluded.filled_at, at = excluded.at",
                &[&into.schema, &into.name, &fingerprint(&derived), &reads],
            )
            .await?;
        info!("derived table {into} is filled, in {} ms", begun.elapsed().as_millis());
        Ok(())
    }
}

/// Takes note of what the plan declares now, as soon as it is known which copies count.
///
/// # Errors
/// The target, or a plan that the copies do not fit to.
pub(crate) async fn look(session: &Session, lease: Lease, plan: &Plan) -> Result<(), ApplyError> {
    if !plan.is_back() {
        home::placed(session, plan).await?;
    }
    note(session, lease, plan).await
}

/// Whether all mirrors are what the sources were at some commits.
async fn joined(session: &Session) -> Result<bool, ApplyError> {
    let query = "SELECT coalesce(bool_and(joined AND asked IS NULL), false) AND NOT EXISTS (
                    SELECT FROM crossfade.tables WHERE epoch <= 0 OR next_epoch IS NOT NULL) FROM crossfade.checkpoint";
    Ok(session.query_one(query, &[]).await?.get(0))
}

/// What the plan declares, and no longer does.
async fn note(session: &Session, lease: Lease, plan: &Plan) -> Result<(), ApplyError> {
    let rows = session.query("SELECT into_schema, into_name, declared, filled FROM crossfade.derived", &[]).await?;
    for row in rows {
        let into = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let sql = match plan.derived.iter().find(|derived| derived.into == into) {
            Some(derived) if fingerprint(derived) == row.get::<_, &str>(2) => continue,
            Some(_) if !row.get::<_, bool>(3) => continue,
            Some(_) => {
                warn!("derived table {into} will be filled anew: the plan declares it another way");
                "UPDATE crossfade.derived SET filled = false, why = 'the plan declares it another way' WHERE into_schema = $1::text AND into_name = $2::text"
            }
            None if row.get::<_, &str>(2).is_empty() => continue,
            // Put back, it is made anew over these rows.
            None => {
                warn!("derived table {into} is in the plan no more: its rows stay as they are");
                "UPDATE crossfade.derived SET declared = '', filled = false, why = 'the plan did without it' WHERE into_schema = $1::text AND into_name = $2::text"
            }
        };
        lease.begin(session).await?;
        session.execute(sql, &[&into.schema, &into.name]).await?;
        session.batch_execute("COMMIT").await?;
        model::failpoint!("declaration_noted");
    }
    Ok(())
}

fn wanted(way: &Way) -> &[Index] {
    match way {
        Way::Maintained(maintained) => &maintained.indexes,
        Way::Streamed(_) => &[],
    }
}

/// Makes an index, unless there is one that begins with these columns, or this role may not.
async fn make(session: &Session, index: &Index) -> Result<(), ApplyError> {
    let there = "SELECT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = to_regclass($1::text) AND i.indisvalid AND i.indpred IS NULL
         AND $2::text[] = (SELECT array_agg(a.attname::text ORDER BY k.place) FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum WHERE k.place <= cardinality($2::text[])))";
    if session.query_one(there, &[&index.table.quoted(), &index.columns]).await?.get(0) {
        return Ok(());
    }
    let columns = quote::idents(index.columns.iter().map(String::as_str));
    let number: i64 = session
        .query_one(
            "SELECT coalesce(max(substr(c.relname, length($2::text) + 1)::int8) + 1, 0) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname = $1::text AND c.relname ~ ('^' || $2::text || '[0-9]{1,9}$')",
            &[&index.table.schema, &INDEX],
        )
        .await?
        .get(0);
    let create =
        format!("CREATE INDEX {} ON {} ({columns})", quote::ident(&format!("{INDEX}{number}")), index.table.quoted());
    let made = session.batch_execute(&format!("SAVEPOINT crossfade_index; {create}; RELEASE crossfade_index")).await;
    match made.map_err(ApplyError::from) {
        Ok(()) => Ok(()),
        Err(error) if error.retry() => Err(error),
        Err(error) => {
            session.batch_execute("ROLLBACK TO crossfade_index; RELEASE crossfade_index").await?;
            warn!(
                "without an index on {} ({columns}) it takes longer to keep derived tables current: {error}",
                index.table
            );
            Ok(())
        }
    }
}

/// What [`make`] made on the application's tables.
pub(crate) async fn indexes(session: &Session) -> Result<Vec<TableName>, ApplyError> {
    let query = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relkind IN ('i', 'I') AND c.relname ~ ('^' || $1::text || '[0-9]+$') AND n.nspname <> 'crossfade'
                    AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid) ORDER BY 1, 2";
    let rows = session.query(query, &[&INDEX]).await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Drops them. The application may be live: nobody queues behind a lock that is not to be had.
pub(crate) async fn drop_indexes(session: &Session, indexes: &[TableName]) -> Result<(), ApplyError> {
    for index in indexes {
        pg::fence::give_up_waiting(session, &format!("DROP INDEX IF EXISTS {}", index.quoted())).await?;
    }
    Ok(())
}
