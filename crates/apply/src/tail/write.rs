use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::{SinkExt, pin_mut};
use log::LogError;
use model::{Cell, Code, Lsn, MarkerKind, Old, Problem, Tuple};
use pg::Session;
use tokio::sync::{mpsc, watch};
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::checkpoint::{Advance, Checkpoint};
use super::copy_text::lines;
use super::fold::{Folded, Op, Run};
use super::gather::{Group, Passed, Step, copied_table};
use super::hold::Hold;
use super::mend;
use super::sets::{Statement, present, shifted};
use super::target::{Identity, Target};
use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job, tables};

#[cfg(test)]
mod one_by_one;

/// Statements kept prepared. A table has a handful, and few tables change all the time.
const PREPARED: usize = 500;

/// From so many rows on, inserts go through COPY: one more round trip, and about a third of the time per row.
const COPIED: usize = 64;

pub(super) struct Writer<'a> {
    session: &'a Session,
    prepared: HashMap<String, tokio_postgres::Statement>,
    /// The open transaction's constraints are deferred.
    deferred: bool,
}

/// Writes groups as they come. Each transaction holds the lease and moves the checkpoint from where it was.
pub(super) async fn run(
    job: &Job,
    session: &Session,
    lease: Lease,
    mut checkpoints: BTreeMap<String, Checkpoint>,
    mut ready: mpsc::Receiver<Group>,
    passed: watch::Sender<Passed>,
    stop: &CancellationToken,
) -> Result<(), ApplyError> {
    let mut writer = Writer { session, prepared: HashMap::new(), deferred: false };
    let mut open = false;
    let mut markers = Vec::new();
    let mut held: Option<Hold> = None;
    mend::apply(&mut writer, session, lease).await?;
    loop {
        let group = tokio::select! {
            biased;
            () = stop.cancelled() => {
                if open {
                    session.batch_execute("ROLLBACK").await?;
                }
                return Ok(());
            }
            group = ready.recv() => match group {
                Some(group) => group,
                // The gathering has ended; its own result says why.
                None => return std::future::pending().await,
            },
        };
        if !open {
            lease.begin(session).await?;
            writer.deferred = false;
            if matches!(group.steps.first(), Some(Step::Truncate { .. })) {
                // A transaction that is streamed has the origin of its first change; what a TRUNCATE writes first has none.
                session.batch_execute("UPDATE crossfade.checkpoint SET rows = rows").await?;
            }
        }
        for step in &group.steps {
            writer.step(step).await?;
        }
        model::failpoint!("batch_written");
        for (source, advance) in &group.advances {
            writer.advance(source, advance, &mut checkpoints, group.partial).await?;
        }
        model::failpoint!("checkpoint_moved");
        markers.extend(group.markers.iter().cloned());
        open = group.partial;
        if open {
            model::failpoint!("piece_written");
            continue;
        }
        let markers = std::mem::take(&mut markers);
        for (source, lsn, marker) in markers.iter().filter(|(_, _, marker)| is_awaited(marker.kind)) {
            writer.reached(source, *lsn, &marker.id, marker.kind).await?;
            model::failpoint!("marker_noted");
        }
        let end = if markers.is_empty() { "COMMIT".to_owned() } else { format!("NOTIFY {CHANNEL}; COMMIT") };
        session.batch_execute(&end).await.map_err(|error| at_commit(error.into(), &group))?;
        model::failpoint!("batch_committed");
        for (source, _, marker) in markers.iter().filter(|(_, _, marker)| marker.kind == MarkerKind::Copy) {
            gate(job, session, lease, source, &marker.id).await?;
        }
        if let Some((source, _, marker)) = markers.iter().find(|(_, _, marker)| marker.kind == MarkerKind::Hold) {
            held = Some(Hold::new(source, &marker.id));
        }
        if group.pauses() {
            let mut through = None;
            if let Some(hold) = &held {
                let at = checkpoints.get(&*hold.source).map_or(Lsn(0), |checkpoint| checkpoint.lsn);
                through =
                    hold.stand(&job.endpoint, session, at, stop).await?.map(|lsn| (Arc::clone(&hold.source), lsn));
            }
            held = held.filter(|_| through.is_some());
            mend::apply(&mut writer, session, lease).await?;
            let mut stands = mend::next(session).await?;
            if let Some((source, through)) = through {
                let stand = stands.entry(source).or_insert(through);
                *stand = through.min(*stand);
            }
            passed.send_modify(|passed| {
                passed.pauses += 1;
                passed.stands = stands;
            });
        }
    }
}

/// Whether somebody looks for it in the target.
fn is_awaited(kind: MarkerKind) -> bool {
    match kind {
        MarkerKind::Copy | MarkerKind::Joined | MarkerKind::Fence | MarkerKind::Hold => true,
        MarkerKind::Catalog | MarkerKind::Verified => false,
    }
}

/// Deferred constraints speak up at the commit.
fn at_commit(error: ApplyError, group: &Group) -> ApplyError {
    if !error.is_constraint() {
        return error;
    }
    let lsn = group.advances.values().map(|advance| advance.lsn).max().unwrap_or_default();
    Problem::new(
        Code::Divergence,
        format!("the transactions up to {lsn}"),
        format!("the target refuses them: {error}"),
        LOOK_AT_TARGET,
    )
    .into()
}

const LOOK_AT_TARGET: &str = "somebody else wrote to the target, or it lacks rows: find out who, mend the row, or copy the table again (`crossfade recopy TABLE`), and start again; nothing was skipped";

/// Waits at the gates that the tail is past by its checkpoint: who stood there died before the copy was in. Behind them the tail must not go
/// on: changes of a table whose epoch has not begun would be dropped, and others would not find their rows.
pub(super) async fn gates(job: &Job, session: &Session, lease: Lease) -> Result<(), ApplyError> {
    let query = format!(
        "SELECT m.source, m.id FROM crossfade.marker m WHERE m.id ~ '^[0-9]+ ' AND NOT EXISTS (
            SELECT FROM crossfade.tables t WHERE t.source = m.source AND t.schema || '.' || t.name = substr(m.id, strpos(m.id, ' ') + 1)
               AND t.epoch >= split_part(m.id, ' ', 1)::int AND {} AND {}) ORDER BY m.lsn",
        tables::COPIED,
        tables::BUILT
    );
    for row in session.query(&query, &[]).await? {
        gate(job, session, lease, row.get(0), row.get(1)).await?;
    }
    Ok(())
}

/// How often those who watch are told what the tail waits for: a copy takes its time, so it is nothing to hurry about.
const SAID: std::time::Duration = std::time::Duration::from_secs(60);

/// Waits until the copy that `marker` announced, or a later one of the same table, is in.
async fn gate(job: &Job, session: &Session, lease: Lease, source: &str, marker: &str) -> Result<(), ApplyError> {
    model::failpoint!("gate_reached");
    let (epoch, table) = copied_table(marker);
    let query = format!(
        "SELECT schema, name, epoch, next_epoch, {} AND {} FROM crossfade.tables t WHERE source = $1::text AND schema || '.' || name = $2::text",
        tables::COPIED,
        tables::BUILT
    );
    let mut news: Option<Session> = None;
    let mut said = tokio::time::Instant::now();
    loop {
        if said.elapsed() > SAID {
            said = tokio::time::Instant::now();
            tracing::warn!(
                source,
                table,
                "the tail waits for this table's copy; if the plan has it no more, put it back until the copy is in"
            );
        }
        let row = session.query_opt(&query, &[&source, &table]).await?;
        if let Some(row) = row {
            let (now, next, done): (i32, Option<i32>, bool) = (row.get(2), row.get(3), row.get(4));
            if next.is_some() {
                lease.begin(session).await?;
                tables::begin(
                    session,
                    source,
                    &model::TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
                )
                .await?;
                session.batch_execute(&format!("NOTIFY {CHANNEL}; COMMIT")).await?;
                model::failpoint!("gated_epoch_begun");
                continue;
            }
            if now >= epoch && done {
                model::failpoint!("gate_passed");
                return Ok(());
            }
        }
        let news = match &mut news {
            Some(news) => news,
            none => {
                let session = pg::connect(&job.endpoint, "apply news").await?;
                session.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
                none.insert(session)
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), news.notification()).await;
    }
}

impl Writer<'_> {
    async fn step(&mut self, step: &Step) -> Result<(), ApplyError> {
        match step {
            Step::Rows(run) => self.rows(run).await,
            Step::Move { target, old, new } => self.shift(target, old.tuple(), new).await,
            Step::Truncate { targets, restart_identity } => {
                // All in one statement: tables that reference each other can only be emptied together.
                let (whole, parts): (Vec<_>, Vec<_>) = targets.iter().partition(|target| target.bound.is_none());
                if !whole.is_empty() {
                    let names: Vec<_> =
                        whole.iter().map(|target| format!("{}{}", target.only, target.into.quoted())).collect();
                    let restart = if *restart_identity { " RESTART IDENTITY" } else { "" };
                    self.session.batch_execute(&format!("TRUNCATE {}{restart}", names.join(", "))).await?;
                }
                model::failpoint!("tables_emptied");
                for target in parts {
                    let bound = target.bound.as_deref().filter(|bound| !bound.is_empty()).unwrap_or("true");
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
    async fn folded(&mut self, target: &Target, folded: &Folded) -> Result<bool, ApplyError> {
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
        let statement = self.prepared(copy).await?;
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

    async fn shift(&mut self, target: &Target, old: &Tuple, new: &Tuple) -> Result<(), ApplyError> {
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
        self.write(&target.delete(), &keys.iter().collect::<Vec<_>>()).await?;
        if !rows.is_empty() {
            self.write(&target.insert(), &rows.iter().collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// One change, as the source made it. Constraints are deferred, as they may have been there.
    async fn one(&mut self, target: &Target, op: &Op) -> Result<(), ApplyError> {
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
                let new = super::fold::filled(new, old);
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

    async fn prepared(&mut self, sql: &str) -> Result<tokio_postgres::Statement, ApplyError> {
        if let Some(prepared) = self.prepared.get(sql) {
            return Ok(prepared.clone());
        }
        if self.prepared.len() > PREPARED {
            self.prepared.clear();
        }
        let prepared = self.session.prepare(sql).await?;
        self.prepared.insert(sql.to_owned(), prepared.clone());
        Ok(prepared)
    }

    /// Runs a statement over rows; says whether it touched as many.
    async fn write(&mut self, statement: &Statement, rows: &[&Tuple]) -> Result<bool, ApplyError> {
        let prepared = self.prepared(&statement.sql).await?;
        let arrays = statement.arrays(rows);
        let parameters: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
        Ok(self.session.execute(&prepared, &parameters).await? == rows.len() as u64)
    }

    async fn advance(
        &mut self,
        source: &str,
        advance: &Advance,
        checkpoints: &mut BTreeMap<String, Checkpoint>,
        partial: bool,
    ) -> Result<(), ApplyError> {
        let Some(checkpoint) = checkpoints.get_mut(source) else { return Ok(()) };
        if advance.transactions == 0 && partial {
            // Nothing is complete yet; the rows are counted all the same.
            self.session
                .execute(
                    "UPDATE crossfade.checkpoint SET rows = rows + $2 WHERE source = $1::text",
                    &[&source, &advance.rows],
                )
                .await?;
            return Ok(());
        }
        let moved = self
            .session
            .execute(
                "UPDATE crossfade.checkpoint SET lsn = '0/0'::pg_lsn + $3::int8::numeric, seq = $4, transactions = transactions + $6, rows = rows + $7,
                        commit_time = to_timestamp($5::int8 / 1000000) + make_interval(secs => ($5::int8 % 1000000) / 1000000.0::float8),
                        applied_at = clock_timestamp()
                  WHERE source = $1::text AND lsn = '0/0'::pg_lsn + $2::int8::numeric AND seq = $8",
                &[
                    &source,
                    &(checkpoint.lsn.0 as i64),
                    &(advance.lsn.0 as i64),
                    &(advance.seq.0 as i64),
                    &advance.commit_time,
                    &advance.transactions,
                    &advance.rows,
                    &(checkpoint.seq.0 as i64),
                ],
            )
            .await?;
        if moved != 1 {
            let why =
                format!("the checkpoint of source {source:?} is not at {}, where this process left it", checkpoint.lsn);
            return Err(LogError::Unavailable(why).into());
        }
        checkpoint.lsn = advance.lsn;
        checkpoint.seq = advance.seq;
        Ok(())
    }

    async fn reached(&mut self, source: &str, lsn: Lsn, id: &str, kind: MarkerKind) -> Result<(), ApplyError> {
        self.session
            .execute(
                "INSERT INTO crossfade.marker (source, id, lsn) VALUES ($1::text, $2::text, '0/0'::pg_lsn + $3::int8::numeric) ON CONFLICT DO NOTHING",
                &[&source, &id, &(lsn.0 as i64)],
            )
            .await?;
        if kind == MarkerKind::Joined {
            self.session
                .execute(
                    "UPDATE crossfade.checkpoint SET joined = true WHERE source = $1::text AND join_marker = $2::text",
                    &[&source, &id],
                )
                .await?;
        }
        Ok(())
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
