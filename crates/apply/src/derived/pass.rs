//! What becomes of derived tables within a transaction of the tail.
//!
//! Around what is written to the mirrors: the rows that are touched, as they were, lead to units over the mirrors as they were; as they are, over the
//! mirrors as they are. A transaction that comes in pieces does so for each; the units add up, as each step from one state to the next is complete by itself. Once all is written
//! the units' rows are made anew, and what is gone, new or different goes into the target.
//!
//! Where nothing is stored of a table, there is no such before and after: what becomes of its rows in a group goes from the changes themselves into the tables that are streamed from it.

use std::collections::{BTreeMap, BTreeSet};

use mapping::{Places, Side, SourceTable, Step, Way};
use model::{Code, Problem, TableName, quote};
use pg::Session;
use tokio::time::Instant;
use tracing::warn;

use super::home::{self, Homes};
use super::kept::Kept;
use super::stored::is_shape;
use crate::lease::Lease;
use crate::tail::{Changed, Prepared, Touched};
use crate::{ApplyError, Job};

/// The derived tables of a plan, as long as the tail runs.
pub(crate) struct Derivations<'a> {
    pub(super) job: &'a Job,
    pub(super) session: &'a Session,
    pub(super) lease: Lease,
    pub(super) homes: Homes,
    /// Those that are filled.
    pub(super) kept: Vec<Kept>,
    /// Those that are not.
    pub(super) waiting: Vec<plan::Derived>,
    /// When it is looked next whether these can be.
    pub(super) look: Instant,
    /// When it was last said what they wait for.
    pub(super) said: Option<Instant>,
    /// The tables that those which are filled read.
    pub(super) read: BTreeSet<SourceTable>,
    /// Tables that have temp tables for their changed rows.
    changed: BTreeSet<SourceTable>,
    /// Derived tables that have their temp tables.
    prepared: BTreeSet<TableName>,
    /// What the open transaction affects.
    due: BTreeMap<TableName, Due>,
    statements: Prepared,
}

/// What of a derived table is to be made anew.
#[derive(Debug)]
enum Due {
    /// The units that were found.
    Units,
    /// All of it, for this reason.
    Whole(String),
}

impl<'a> Derivations<'a> {
    pub(super) fn new(job: &'a Job, session: &'a Session, lease: Lease) -> Self {
        Derivations {
            job,
            session,
            lease,
            homes: Homes::default(),
            kept: Vec::new(),
            waiting: Vec::new(),
            look: Instant::now(),
            said: None,
            read: BTreeSet::new(),
            changed: BTreeSet::new(),
            prepared: BTreeSet::new(),
            due: BTreeMap::new(),
            statements: Prepared::default(),
        }
    }

    /// The table that it is streamed from, if nothing is stored of that.
    pub(super) fn unstored(&self, compiled: &mapping::Compiled) -> Option<SourceTable> {
        let Way::Streamed(streamed) = &compiled.way else { return None };
        is_shape(&self.homes.mirror(&streamed.source)).then(|| streamed.source.clone())
    }

    /// The tables whose touched rows have to be known.
    pub fn read(&self) -> &BTreeSet<SourceTable> {
        &self.read
    }

    /// A transaction begins.
    pub fn begins(&mut self) {
        self.due.clear();
    }

    /// What the open transaction did for derived tables since its savepoint is undone, temp tables that it made included.
    pub fn undone(&mut self) {
        self.due.clear();
        self.changed.clear();
        self.prepared.clear();
    }

    /// Before rows of mirrors change.
    pub async fn before(&mut self, touched: &Touched<'_>) -> Result<(), ApplyError> {
        let tables: Vec<SourceTable> = touched.tables().cloned().collect();
        if tables.is_empty() && touched.emptied().is_empty() {
            return Ok(());
        }
        self.load(touched, &tables, Side::Old).await?;
        for number in 0..self.kept.len() {
            let Kept { declared, compiled } = &self.kept[number];
            let into = declared.into.clone();
            let reads = |table: &&SourceTable| compiled.sources.contains(table);
            if let Some(emptied) = touched.emptied().iter().find(reads) {
                self.due.insert(into.clone(), Due::Whole(format!("table {emptied} was emptied by a TRUNCATE")));
            }
            if !tables.iter().any(|table| compiled.sources.contains(table)) {
                continue;
            }
            let mut sql = Vec::new();
            if let Way::Maintained(maintained) = &compiled.way {
                if self.prepared.insert(into.clone()) {
                    sql.extend(maintained.prepare.iter().cloned());
                }
                if !self.due.contains_key(&into) {
                    sql.extend(maintained.clear.iter().cloned());
                }
                sql.extend(of(&maintained.before, &tables));
            }
            self.due.entry(into).or_insert(Due::Units);
            self.run(&self.kept[number], &sql).await?;
        }
        model::failpoint!("units_found");
        Ok(())
    }

    /// Once they have changed.
    pub async fn after(&mut self, touched: &Touched<'_>) -> Result<(), ApplyError> {
        for number in 0..self.kept.len() {
            let source = self.unstored(&self.kept[number].compiled);
            if let Some(changed) = source.and_then(|source| touched.of_rows(&source)) {
                self.stream(number, changed).await?;
                model::failpoint!("streamed_written");
            }
        }
        let tables: Vec<SourceTable> = touched.tables().cloned().collect();
        if tables.is_empty() {
            return Ok(());
        }
        self.load(touched, &tables, Side::New).await?;
        for kept in &self.kept {
            if !matches!(self.due.get(&kept.declared.into), Some(Due::Units)) {
                continue;
            }
            match &kept.compiled.way {
                Way::Maintained(maintained) => self.run(kept, &of(&maintained.after, &tables)).await?,
                Way::Streamed(streamed) if tables.contains(&streamed.source) => {
                    let steps: Vec<String> = streamed.steps.iter().map(|step| step.sql.clone()).collect();
                    let new = self.homes.changed(&streamed.source, Side::New).quoted();
                    self.write(kept, &steps, &streamed.made(&new)).await?;
                }
                Way::Streamed(_) => {}
            }
        }
        model::failpoint!("units_found_again");
        Ok(())
    }

    /// Writes what becomes of the rows of a table of which nothing is stored. In the order of the steps it may meet a unique value that another row is about
    /// to give up: then all of them leave before any comes.
    async fn stream(&mut self, number: usize, changed: &Changed<'_>) -> Result<(), ApplyError> {
        let Derivations { session, kept, statements: prepared, homes, .. } = self;
        let (session, kept): (&Session, &Kept) = (session, &kept[number]);
        let Way::Streamed(streamed) = &kept.compiled.way else { return Ok(()) };
        if changed.is_emptied() {
            home::empty(session, &kept.declared.into).await?;
        }
        if changed.is_empty() {
            return Ok(());
        }
        session.batch_execute("SAVEPOINT crossfade_streamed").await?;
        let written = changed.write(session, prepared, streamed).await;
        if let Ok(true) = written {
            return Ok(session.batch_execute("RELEASE crossfade_streamed").await?);
        }
        if let Err(error) = &written
            && error.retry()
        {
            return written.map(drop);
        }
        session.batch_execute("ROLLBACK TO crossfade_streamed; RELEASE crossfade_streamed").await?;
        match written {
            Ok(_) => Err(changed.missing(session, streamed).await?),
            Err(error) if error.is_constraint() => {
                model::failpoint!("streamed_undone");
                session.batch_execute("SET CONSTRAINTS ALL DEFERRED").await?;
                let made = changed.apart(session, prepared, streamed).await.map_err(|error| failed(kept, error))?;
                let Some(made) = made else { return Err(changed.missing(session, streamed).await?) };
                let gone = format!(
                    "DELETE FROM {} AS t USING {} AS o WHERE {} AND NOT EXISTS (SELECT FROM {} AS n WHERE {})",
                    streamed.into.quoted(),
                    made.keys,
                    equal("t", "o", &streamed.key),
                    made.made,
                    equal("n", "o", &streamed.key)
                );
                let statements = [gone, streamed.upsert_made(&made.made)];
                let stay = homes.scratch(&kept.declared.into, "stay");
                let mut sql = apart(session, kept, &stay, &statements, &made.made).await?;
                sql.push(format!("DROP TABLE {}, {}", made.made, made.keys));
                session.batch_execute(&sql.join(";\n")).await.map_err(|error| failed(kept, error.into()))
            }
            // It says by itself what is to be done.
            Err(error @ ApplyError::Stop(_)) => Err(error),
            Err(error) => Err(failed(kept, error)),
        }
    }

    /// Makes anew what the transaction affects, once all of it is written.
    pub async fn finish(&mut self) -> Result<(), ApplyError> {
        let due = std::mem::take(&mut self.due);
        for number in 0..self.kept.len() {
            let into = self.kept[number].declared.into.clone();
            match due.get(&into) {
                None => {}
                Some(Due::Whole(why)) => {
                    warn!("derived table {into} is made anew as a whole: {why}");
                    self.whole(number).await?;
                    model::failpoint!("made_whole");
                }
                Some(Due::Units) => {
                    let kept = &self.kept[number];
                    if let Way::Maintained(maintained) = &kept.compiled.way {
                        self.run(kept, &maintained.recompute).await?;
                        model::failpoint!("units_made");
                        self.write(kept, &maintained.write, &self.result(kept)).await?;
                    }
                    model::failpoint!("units_written");
                }
            }
        }
        Ok(())
    }

    /// Makes a derived table what its query gives of the mirrors, whatever it was.
    pub(super) async fn whole(&mut self, number: usize) -> Result<(), ApplyError> {
        let kept = &self.kept[number];
        match &kept.compiled.way {
            Way::Maintained(maintained) => {
                let mut sql = Vec::new();
                if self.prepared.insert(kept.declared.into.clone()) {
                    sql.extend(maintained.prepare.iter().cloned());
                }
                sql.extend(maintained.clear.iter().chain(&maintained.refill).cloned());
                self.run(kept, &sql).await?;
                self.write(kept, &maintained.write, &self.result(kept)).await
            }
            Way::Streamed(streamed) => {
                let mirror = self.homes.mirror(&streamed.source).quoted();
                self.write(kept, &streamed.refill, &streamed.made(&mirror)).await
            }
        }
    }

    /// The temp table that a maintained table's rows are made in.
    fn result(&self, kept: &Kept) -> String {
        self.homes.scratch(&kept.declared.into, "result").quoted()
    }

    /// Puts the touched rows, as they are now, into their temp tables.
    async fn load(&mut self, touched: &Touched<'_>, tables: &[SourceTable], side: Side) -> Result<(), ApplyError> {
        for table in tables {
            let home = self.homes.mirror(table);
            let temps = [Side::Old, Side::New].map(|side| self.homes.changed(table, side));
            if self.changed.insert(table.clone()) {
                let create = |temp: &TableName| {
                    format!(
                        "CREATE TEMP TABLE IF NOT EXISTS {} AS SELECT * FROM {} WITH NO DATA",
                        quote::ident(&temp.name),
                        home.quoted()
                    )
                };
                self.session.batch_execute(&temps.each_ref().map(create).join(";")).await?;
            }
            if side == Side::Old {
                let clear = format!("TRUNCATE {}, {}", temps[0].quoted(), temps[1].quoted());
                self.session.batch_execute(&clear).await?;
            }
            let temp = &temps[usize::from(side == Side::New)];
            touched.load(self.session, table, &home, side, temp).await?;
            // Without it a derivation of one row can take a hundred times as long.
            self.session.batch_execute(&format!("ANALYZE {}", temp.quoted())).await?;
        }
        Ok(())
    }

    pub(super) async fn run(&self, kept: &Kept, sql: &[String]) -> Result<(), ApplyError> {
        if sql.is_empty() {
            return Ok(());
        }
        self.session.batch_execute(&sql.join(";\n")).await.map_err(|error| failed(kept, error.into()))
    }

    /// Writes rows that were made, `result`. Where they meet a unique value that another row of them is about to give up, all of them leave before any comes.
    async fn write(&self, kept: &Kept, statements: &[String], result: &str) -> Result<(), ApplyError> {
        let sql = format!("SAVEPOINT crossfade_derived; {}; RELEASE crossfade_derived", statements.join(";\n"));
        match self.session.batch_execute(&sql).await.map_err(ApplyError::from) {
            Ok(()) => Ok(()),
            Err(error) if error.is_constraint() && !kept.compiled.key.is_empty() => {
                self.session.batch_execute("ROLLBACK TO crossfade_derived; RELEASE crossfade_derived").await?;
                model::failpoint!("derived_undone");
                self.session.batch_execute("SET CONSTRAINTS ALL DEFERRED").await?;
                let stay = self.homes.scratch(&kept.declared.into, "stay");
                let apart = apart(self.session, kept, &stay, statements, result).await?;
                self.run(kept, &apart).await
            }
            Err(error) => Err(failed(kept, error)),
        }
    }
}

/// The same in another order: rows that stay are taken out and put back as they are to be, all at once. What the query does not give of them stays.
async fn apart(
    session: &Session,
    kept: &Kept,
    stay: &TableName,
    statements: &[String],
    result: &str,
) -> Result<Vec<String>, ApplyError> {
    let derived = &kept.declared;
    let into = derived.into.quoted();
    let target = super::kept::relation(session, &derived.into).await?;
    let equal = |one: &str, other: &str| equal(one, other, &kept.compiled.key);
    let mut set = Vec::new();
    for name in kept.compiled.columns.iter().filter(|name| !kept.compiled.key.contains(name)) {
        if target.columns.iter().any(|column| column.name == *name && column.identity_always) {
            continue;
        }
        let column = quote::ident(name);
        match derived.on_conflict.get(name) {
            Some(plan::OnConflict::Keep) => {}
            None | Some(plan::OnConflict::Overwrite) => set.push(format!("{column} = r.{column}")),
            Some(plan::OnConflict::Greatest) => set.push(format!("{column} = GREATEST(s.{column}, r.{column})")),
            Some(plan::OnConflict::Least) => set.push(format!("{column} = LEAST(s.{column}, r.{column})")),
        }
    }
    let columns: Vec<&str> =
        target.columns.iter().filter(|column| !column.generated).map(|column| column.name.as_str()).collect();
    let (columns, stay) = (quote::idents(columns), quote::ident(&stay.name));
    let mut sql = vec![
        format!("DROP TABLE IF EXISTS pg_temp.{stay}"),
        format!(
            "CREATE TEMP TABLE {stay} AS SELECT {columns} FROM {into} AS t WHERE EXISTS (SELECT FROM {result} AS r WHERE {})",
            equal("r", "t")
        ),
        format!("DELETE FROM {into} AS t USING pg_temp.{stay} AS s WHERE {}", equal("s", "t")),
    ];
    if !set.is_empty() {
        sql.push(format!(
            "UPDATE pg_temp.{stay} AS s SET {} FROM {result} AS r WHERE {}",
            set.join(", "),
            equal("r", "s")
        ));
    }
    let (last, gone) = statements.split_last().map_or((None, statements), |(last, gone)| (Some(last), gone));
    sql.extend(gone.iter().cloned());
    sql.push(format!("INSERT INTO {into} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM pg_temp.{stay}"));
    sql.extend(last.cloned());
    sql.push(format!("DROP TABLE pg_temp.{stay}"));
    Ok(sql)
}

/// The condition that the columns of `one` and `other` are equal.
fn equal(one: &str, other: &str, columns: &[String]) -> String {
    let each = columns.iter().map(|name| format!("{one}.{0} = {other}.{0}", quote::ident(name)));
    each.collect::<Vec<_>>().join(" AND ")
}

/// The steps that are due where rows of these tables are touched.
fn of(steps: &[Step], tables: &[SourceTable]) -> Vec<String> {
    let due = steps.iter().filter(|step| step.tables.iter().any(|table| tables.contains(table)));
    due.map(|step| step.sql.clone()).collect()
}

/// A derived table could not be made.
pub(super) fn failed(kept: &Kept, error: ApplyError) -> ApplyError {
    if error.retry() {
        return error;
    }
    let what = format!("derived table {}, line {} of the plan", kept.declared.into, kept.declared.line);
    let next = "mend the query, the target's definition or the row at the source, and start again; nothing was skipped";
    let why = format!("the rows that its query gives cannot be had, or the target refuses them: {error}");
    Problem::new(if error.is_constraint() { Code::Divergence } else { Code::RowRefused }, what, why, next).into()
}
