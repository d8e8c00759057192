//! Rows into the target: set-wise, and one by one where that fails.

use std::collections::HashMap;

use futures::{SinkExt, pin_mut};
use model::{Cell, Code, Old, Problem, Tuple};
use pg::Session;
use tokio_postgres::types::ToSql;

use super::super::copy_text::lines;
use super::super::fold::{Folded, Op, Run, filled};
use super::super::gather::Step;
use super::super::prepared::Prepared;
use super::super::sets::{Statement, present, shifted};
use super::super::target::{Identity, Target};
use super::LOOK_AT_TARGET;
use crate::ApplyError;

/// From so many rows on, inserts go through COPY: one more round trip, and about a third of the time per row.
const COPIED: usize = 64;

pub(in crate::tail) struct Writer<'a> {
    session: &'a Session,
    prepared: Prepared,
    /// The open transaction's constraints are deferred.
    deferred: bool,
}

impl<'a> Writer<'a> {
    pub fn new(session: &'a Session) -> Self {
        Writer { session, prepared: Prepared::default(), deferred: false }
    }

    /// A transaction begins.
    pub fn begins(&mut self) {
        self.deferred = false;
    }

    /// What is written to tables of which nothing is stored is none of its business.
    pub async fn step(&mut self, step: &Step) -> Result<(), ApplyError> {
        match step {
            Step::Rows(run) if !run.target.stored => Ok(()),
            Step::Move { target, .. } if !target.stored => Ok(()),
            Step::Rows(run) => self.rows(run).await,
            Step::Move { target, old, new } => self.shift(target, old.tuple(), new).await,
            Step::Truncate { targets, restart_identity } => {
                // All in one statement: tables that reference each other can only be emptied together.
                let stored = targets.iter().filter(|target| target.stored);
                let (whole, parts): (Vec<_>, Vec<_>) = stored.partition(|target| target.bound.is_none());
                if !whole.is_empty() {
                    let names: Vec<_> =
                        whole.iter().map(|target| format!("{}{}", target.only, target.into.quoted())).collect();
                    let restart = if *restart_identity { " RESTART IDENTITY" } else { "" };
                    self.session.batch_execute(&format!("TRUNCATE {}{restart}", names.join(", "))).await?;
                }
                model::failpoint!("tables_emptied");
                for target in parts {
                    let bound = target.bound.as_deref().unwrap_or("true");
                    self.session.batch_execute(&format!("DELETE FROM {} WHERE {bound}", target.into.quoted())).await?;
                }
                Ok(())
            }
        }
    }

    /// Set-wise; where that meets a constraint, or does not find what it should, one by one in order.
    async fn rows(&mut self, run: &Run) -> Result<(), ApplyError> {
        if !run.broken {
            self.session.batch_execute("SAVEPOINT crossfade_set").await?;
            match self.folded(&run.target, &run.folded()).await {
                Ok(true) => return Ok(self.session.batch_execute("RELEASE crossfade_set").await?),
                Ok(false) => {}
                // Row by row shows which one it is.
                Err(error) if error.is_row() => {}
                Err(error) => return Err(refused(&run.target, error)),
            }
            self.session.batch_execute("ROLLBACK TO crossfade_set; RELEASE crossfade_set").await?;
            model::failpoint!("set_undone");
        }
        self.defer().await?;
        for op in &run.ops {
            self.one(&run.target, op).await?;
        }
        Ok(())
    }

    /// Says whether every row was where it had to be.
    pub(super) async fn folded(&mut self, target: &Target, folded: &Folded) -> Result<bool, ApplyError> {
        if !folded.deletes.is_empty() {
            let rows: Vec<&Tuple> = folded.deletes.iter().collect();
            if !self.write(&target.delete(), &rows).await? {
                return Ok(false);
            }
        }
        let mut updates: HashMap<Vec<usize>, Vec<&Tuple>> = HashMap::new();
        for row in &folded.updates {
            updates.entry(present(row)).or_default().push(row);
        }
        for (present, rows) in &updates {
            if !self.update(target, present, rows).await? {
                return Ok(false);
            }
        }
        if !folded.inserts.is_empty() {
            let rows: Vec<&Tuple> = folded.inserts.iter().collect();
            return match target.copy().filter(|_| rows.len() >= COPIED) {
                Some(copy) => self.copy(&copy, &rows).await,
                None => self.write(&target.insert(), &rows).await,
            };
        }
        Ok(true)
    }

    /// As [`write`](Self::write), through COPY.
    async fn copy(&mut self, copy: &str, rows: &[&Tuple]) -> Result<bool, ApplyError> {
        let statement = self.prepared.get(self.session, copy).await?;
        let sink = self.session.copy_in(&statement).await?;
        pin_mut!(sink);
        sink.send(lines(rows)).await?;
        Ok(sink.finish().await? == rows.len() as u64)
    }

    async fn update(&mut self, target: &Target, present: &[usize], rows: &[&Tuple]) -> Result<bool, ApplyError> {
        if !target.identity_columns(present).is_empty() {
            let rows: Vec<Tuple> = rows.iter().map(|row| shifted(row, row)).collect();
            return self.write(&target.shift(present), &rows.iter().collect::<Vec<_>>()).await;
        }
        match target.update(present) {
            Some(statement) => self.write(&statement, rows).await,
            None => Ok(true),
        }
    }

    /// Deferrable constraints are looked at when the transaction ends: in between they may be broken at the source, too.
    async fn defer(&mut self) -> Result<(), ApplyError> {
        if !std::mem::replace(&mut self.deferred, true) {
            self.session.batch_execute("SET CONSTRAINTS ALL DEFERRED").await?;
        }
        Ok(())
    }

    pub(super) async fn shift(&mut self, target: &Target, old: &Tuple, new: &Tuple) -> Result<(), ApplyError> {
        self.defer().await?;
        let row = shifted(old, new);
        match self.write(&target.shift(&present(new)), &[&row]).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(diverged(target, old, "an update that changes the key meets no such row")),
            Err(error) => Err(row_refused(target, old, error)),
        }
    }

    /// Takes away the rows with these keys, whichever are there, and puts others in their place.
    pub async fn replace(&mut self, target: &Target, keys: &[Tuple], rows: &[Tuple]) -> Result<(), ApplyError> {
        if !target.stored {
            return Ok(());
        }
        self.write(&target.delete(), &keys.iter().collect::<Vec<_>>()).await?;
        if !rows.is_empty() {
            self.write(&target.insert(), &rows.iter().collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// One change, as the source made it. Constraints are deferred, as they may have been there.
    pub(super) async fn one(&mut self, target: &Target, op: &Op) -> Result<(), ApplyError> {
        match op {
            Op::Insert(new) => match self.write(&target.insert(), &[new]).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(diverged(target, new, "an insert is swallowed by the target")),
                Err(error) => Err(row_refused(target, new, error)),
            },
            Op::Delete(old) => match self.write(&target.delete(), &[old.tuple()]).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(diverged(target, old.tuple(), "a delete meets no such row")),
                Err(error) => Err(row_refused(target, old.tuple(), error)),
            },
            Op::Update { old, new } => self.one_update(target, old.as_ref(), new).await,
        }
    }

    async fn one_update(&mut self, target: &Target, old: Option<&Old>, new: &Tuple) -> Result<(), ApplyError> {
        let missing = "an update meets no such row";
        let written = match (&target.identity, old) {
            (Identity::Key(_), _) => self.update(target, &present(new), &[new]).await,
            (Identity::WholeRow, Some(Old::Full(old))) => {
                let new = filled(new, old);
                match self.write(&target.delete(), &[old]).await {
                    Ok(true) => self.write(&target.insert(), &[&new]).await,
                    other => other,
                }
            }
            (Identity::WholeRow | Identity::None, _) => Ok(false),
        };
        match written {
            Ok(true) => Ok(()),
            Ok(false) => Err(diverged(target, new, missing)),
            Err(error) => Err(row_refused(target, new, error)),
        }
    }

    /// Runs a statement over rows; says whether it touched as many.
    async fn write(&mut self, statement: &Statement, rows: &[&Tuple]) -> Result<bool, ApplyError> {
        let prepared = self.prepared.get(self.session, &statement.sql).await?;
        let arrays = statement.arrays(rows);
        let parameters: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
        Ok(self.session.execute(&prepared, &parameters).await? == rows.len() as u64)
    }
}

fn diverged(target: &Target, row: &Tuple, why: &str) -> ApplyError {
    Problem::new(Code::Divergence, format!("table {}, {}", target.into, describe(target, row)), why, LOOK_AT_TARGET)
        .into()
}

fn row_refused(target: &Target, row: &Tuple, error: ApplyError) -> ApplyError {
    if error.retry() {
        return error;
    }
    let what = format!("table {}, {}", target.into, describe(target, row));
    if error.is_constraint() {
        return Problem::new(Code::Divergence, what, format!("the target refuses the row: {error}"), LOOK_AT_TARGET)
            .into();
    }
    let next = "mend the target's definition (type, length, constraint) and start again; nothing was skipped";
    Problem::new(Code::RowRefused, what, format!("the target cannot take the row: {error}"), next).into()
}

fn refused(target: &Target, error: ApplyError) -> ApplyError {
    if error.retry() {
        return error;
    }
    let next = "mend the target's definition (type, length, constraint) and start again; nothing was skipped";
    Problem::new(
        Code::RowRefused,
        format!("table {}", target.into),
        format!("the target cannot take a batch of rows: {error}"),
        next,
    )
    .into()
}

/// The row's key, for people; of a table without one, its first columns.
fn describe(target: &Target, row: &Tuple) -> String {
    let cells: Vec<Cell<'_>> = row.cells().collect();
    let columns: Vec<usize> = match &target.identity {
        Identity::Key(key) => key.clone(),
        Identity::WholeRow | Identity::None => (0..cells.len().min(3)).collect(),
    };
    let named = columns.iter().filter_map(|column| {
        let value = match cells.get(*column)? {
            Cell::Text(text) => String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned(),
            Cell::Null => "null".to_owned(),
            Cell::Unchanged => return None,
        };
        Some(format!("{} = {value}", target.columns.get(*column)?.name))
    });
    format!("row {}", named.collect::<Vec<_>>().join(", "))
}
