//! What the plan closes a side with on top of its triggers: sessions that begin [read-only](pg::read_only), and a command of its own.
//!
//! They come behind the triggers, which alone prove that no write is under way, and wait for those that are; a cutover that cannot get there has disturbed nobody. Each stands in `crossfade.bolt` of
//! its side before it has an effect, and until it is undone. So whoever opens the side finds what is to be undone there, whatever his plan says: [`cancel`](crate::cancel), the decision that opens it
//! with [`forward`](crate::forward) behind it, and `crossfade complete`. That the side is open never depends on it: the triggers let everybody pass before.

use std::time::Duration;

use model::{Code, Problem};
use pg::Session;
use plan::{Direction, Plan};
use tracing::{info, warn};

use crate::error::CutoverError;
use crate::hooks::{self, Told};
use crate::old::{self, Old};
use crate::remove::{Removal, Stands};

/// How long a lock may be waited for.
const LOCK: Duration = Duration::from_secs(2);

/// A side, as far as it is closed and opened here.
pub(crate) struct Side<'a> {
    session: &'a Session,
    /// As `crossfade.fence` names it.
    name: String,
    /// True for its line there as long as this process may act; none if nobody else can.
    mine: Option<String>,
    /// `source` or `target`, and the source's name.
    which: (&'static str, &'a str),
    /// Where `complete` finds the application; else it is this side that takes writes, or none.
    stands: Option<Stands>,
}

/// How long the plan's command may take where it is undone, at one side after the other.
pub(crate) fn patience(plan: &Plan) -> Duration {
    plan.cutover
        .fence
        .command
        .as_ref()
        .map_or(Duration::ZERO, |_| plan.cutover.hook_timeout * hooks::TRIES * plan.sources.len() as u32)
}

/// Closes a side whose triggers refuse every write.
pub(crate) async fn close(plan: &Plan, old: &Old, journal: &Session, epoch: i64) -> Result<(), CutoverError> {
    let side = Side::left(plan, old, format!("epoch = {epoch} AND closed = {epoch} AND opened < {epoch}"));
    if plan.cutover.fence.read_only {
        side.begin().await?;
        let set = pg::read_only::set(side.session, &side.name, epoch).await;
        side.end(set).await?;
        model::failpoint!("read_only_set");
        let ended = pg::read_only::send_away(side.session, &side.name, epoch).await?;
        info!(epoch, "new sessions are read-only, and {ended} were ended");
    }
    let Some(command) = &plan.cutover.fence.command else { return Ok(()) };
    let note = "INSERT INTO crossfade.bolt (side, kind, epoch) VALUES ($1::text, 'command', $2)
                    ON CONFLICT (side, kind) DO UPDATE SET epoch = excluded.epoch";
    side.begin().await?;
    let noted = side.session.execute(note, &[&side.name, &epoch]).await;
    side.end(noted).await?;
    model::failpoint!("fence_command_noted");
    let run = side.run(plan, Some(journal), "fence", &command.close, epoch, "fencing").await;
    model::failpoint!("fence_command_run");
    if !side.is_mine().await? {
        // It was stopped meanwhile, and came after who has undone it.
        if side.noted().await?.is_none() {
            side.run(plan, None, "fence_undo", &command.undo, epoch, "cancelled").await?;
        }
        return Err(CutoverError::Overtaken("another process leads".to_owned()));
    }
    run
}

/// Undoes it at a side that a cancelled epoch has closed. What could not be undone is the answer.
pub(crate) async fn reopen(
    plan: &Plan,
    old: &Old,
    journal: &Session,
    epoch: i64,
) -> Result<Vec<Problem>, CutoverError> {
    let side = Side::left(plan, old, "opened >= closed".to_owned());
    side.undo(plan, journal, epoch, "cancelled").await
}

/// Undoes it at the side that an epoch has opened. What could not be undone is the answer.
pub(crate) async fn opened(plan: &Plan, session: &Session, epoch: i64) -> Result<Vec<Problem>, CutoverError> {
    let which = match &plan.direction {
        Direction::Forward => (TARGET, ""),
        Direction::Back { source } => (SOURCE, source.as_str()),
    };
    let mine = Some(format!("opened >= closed AND epoch <= {epoch}"));
    let side = Side { session, name: plan.target_side(), mine, which, stands: None };
    side.undo(plan, session, epoch, "committed").await
}

pub(crate) const SOURCE: &str = "source";
pub(crate) const TARGET: &str = "target";

/// The phase in which a command may be forgotten that nobody can undo.
const COMPLETE: &str = "complete";

/// The plan of this process does not say how to undo what a command has closed.
fn without_undo() -> Problem {
    Problem::new(
        Code::HookFailed,
        "what a [cutover.fence] command has closed",
        "the plan of this process has no such command, and no `undo`",
        "give the plan both again and `crossfade cutover --cancel`, or start again what goes on with it; `true` does for what you have undone by hand",
    )
}

/// What is there of it; with `really` it is undone. `source` is a source's name, or none for the target.
pub(crate) async fn remove(
    session: &Session,
    plan: &Plan,
    source: Option<&str>,
    stands: Stands,
    really: bool,
) -> Result<Vec<Removal>, CutoverError> {
    let (name, which) = match source {
        Some(source) => (plan::source_side(&plan.name, source), (SOURCE, source)),
        None => (plan::target_side(&plan.name), (TARGET, "")),
    };
    let side = Side { session, name, mine: None, which, stands: Some(stands) };
    let mut found = Vec::new();
    for (kind, epoch) in side.bolts().await? {
        found.push(if kind == pg::read_only::KIND { Removal::ReadOnly } else { Removal::Command });
        if really {
            let stay = side.take_off(plan, None, &kind, epoch, COMPLETE).await?;
            if !stay.is_empty() {
                warn!("{}", side.read_only_still(&stay));
            }
        }
    }
    Ok(found)
}

impl<'a> Side<'a> {
    /// The one that the application leaves, by a process that leads there, as long as its fence meets a condition.
    fn left(plan: &'a Plan, old: &'a Old, condition: String) -> Side<'a> {
        let which = if plan.is_back() { (TARGET, "") } else { (SOURCE, old.name.as_str()) };
        let mine = Some(format!("token = {} AND {condition}", old.token));
        Side { session: &old.session, name: old.side.clone(), mine, which, stands: None }
    }

    /// What it is closed with, and by which epoch.
    async fn bolts(&self) -> Result<Vec<(String, i64)>, CutoverError> {
        if !pg::read_only::known(self.session).await? {
            return Ok(Vec::new());
        }
        let query = "SELECT kind, epoch FROM crossfade.bolt WHERE side = $1::text ORDER BY kind DESC";
        Ok(self.session.query(query, &[&self.name]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The epoch for which the command is noted.
    async fn noted(&self) -> Result<Option<i64>, CutoverError> {
        Ok(self.bolts().await?.into_iter().find(|(kind, _)| kind != pg::read_only::KIND).map(|(_, epoch)| epoch))
    }

    /// What could not be undone is the answer.
    async fn undo(
        &self,
        plan: &Plan,
        journal: &Session,
        epoch: i64,
        phase: &'static str,
    ) -> Result<Vec<Problem>, CutoverError> {
        let mut left = Vec::new();
        for (kind, _) in self.bolts().await? {
            match self.take_off(plan, Some(journal), &kind, epoch, phase).await {
                Ok(stay) if stay.is_empty() => {}
                Ok(stay) => left.push(self.read_only_still(&stay)),
                Err(error @ CutoverError::Overtaken(_)) => return Err(error),
                Err(error) => {
                    let Problem { code, why, next, .. } = Problem::from(error);
                    let (which, name) = self.which;
                    let what = match kind == pg::read_only::KIND {
                        true => format!("sessions of the {which} {name} may be read-only still"),
                        false => format!(
                            "what the plan's fence command has closed at the {which} {name} may be closed still"
                        ),
                    };
                    left.push(Problem::new(code, what, why, next));
                }
            }
        }
        for problem in &left {
            warn!(epoch, "{problem}");
        }
        Ok(left)
    }

    async fn take_off(
        &self,
        plan: &Plan,
        journal: Option<&Session>,
        kind: &str,
        epoch: i64,
        phase: &'static str,
    ) -> Result<Vec<i32>, CutoverError> {
        if kind == pg::read_only::KIND {
            self.begin().await?;
            let lifted = pg::read_only::lift(self.session, &self.name).await;
            self.end(lifted).await?;
            pg::read_only::note_lifted(self.session, &self.name).await?;
            model::failpoint!("read_only_lifted");
            return Ok(pg::read_only::settle(self.session, &self.name).await?);
        }
        if !self.is_mine().await? {
            return Err(CutoverError::Overtaken("another process leads".to_owned()));
        }
        match &plan.cutover.fence.command {
            Some(command) => self.run(plan, journal, "fence_undo", &command.undo, epoch, phase).await?,
            None if phase == COMPLETE => {
                warn!("the plan has no [cutover.fence] any more: undo by hand what its command has closed")
            }
            // Another process may have it, or this one next time.
            None => return Err(without_undo().into()),
        }
        model::failpoint!("fence_command_undone");
        let forget = "DELETE FROM crossfade.bolt WHERE side = $1::text AND kind = 'command' AND epoch <= $2";
        self.begin().await?;
        let forgotten = self.session.execute(forget, &[&self.name, &epoch]).await;
        self.end(forgotten).await?;
        Ok(Vec::new())
    }

    /// Nobody tries that again.
    fn read_only_still(&self, stay: &[i32]) -> Problem {
        let (which, name) = self.which;
        Problem::new(
            Code::PrivilegeMissing,
            format!("sessions of the {which} {name} may be read-only still: pids {stay:?}"),
            "they have logged in while it was closed, and a superuser's session only a superuser can end",
            "let them connect again",
        )
    }

    async fn run(
        &self,
        plan: &Plan,
        journal: Option<&Session>,
        name: &str,
        command: &str,
        epoch: i64,
        phase: &'static str,
    ) -> Result<(), CutoverError> {
        let (which, source) = self.which;
        let open = if phase == "fencing" { "none" } else { which };
        let (writable, direction) = match self.stands {
            Some(stands) => (stands.writable, stands.direction),
            None => (open, plan.direction.as_str()),
        };
        let side = [("CROSSFADE_SIDE", which), ("CROSSFADE_SOURCE", source)];
        let told = Told { plan: &plan.name, epoch, direction, phase, lsn: "", writable, side: &side };
        hooks::noted(plan, journal, name, Some(command), &told).await
    }

    /// Whether this process may act here.
    async fn is_mine(&self) -> Result<bool, CutoverError> {
        let Some(mine) = &self.mine else { return Ok(true) };
        let line = format!("SELECT FROM crossfade.fence WHERE side = $1::text AND {mine}");
        Ok(self.session.query_opt(&line, &[&self.name]).await?.is_some())
    }

    /// Begins a transaction that holds the fence's line, if this process may act here.
    async fn begin(&self) -> Result<(), CutoverError> {
        let begun = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
            LOCK.as_millis(),
            old::IDLE.as_millis()
        );
        self.session.batch_execute(&begun).await?;
        let Some(mine) = &self.mine else { return Ok(()) };
        let line = format!("SELECT FROM crossfade.fence WHERE side = $1::text AND {mine} FOR UPDATE");
        let line = self.session.query_opt(&line, &[&self.name]).await;
        if matches!(line, Ok(Some(_))) {
            return Ok(());
        }
        self.session.batch_execute("ROLLBACK").await?;
        line?;
        Err(CutoverError::Overtaken("another process leads".to_owned()))
    }

    /// Ends it: with its effect if what was done in it has succeeded.
    async fn end<T>(&self, done: Result<T, tokio_postgres::Error>) -> Result<(), CutoverError> {
        self.session.batch_execute(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        done?;
        Ok(())
    }
}

/// What the plan's roles lack for it at a database: in the words of a refusal.
pub(crate) async fn lacks(session: &Session, place: &str) -> Result<Vec<String>, CutoverError> {
    let lacks = pg::read_only::lacks(session).await?;
    Ok(lacks.into_iter().map(|(what, mends)| format!("at {place} {what}, as read_only wants it: {mends}")).collect())
}

/// Whether sessions of this side are read-only, by an epoch that was not undone.
pub(crate) async fn is_read_only(session: &Session, side: &str) -> Result<bool, CutoverError> {
    if !pg::read_only::known(session).await? {
        return Ok(false);
    }
    let query =
        "SELECT EXISTS (SELECT FROM crossfade.bolt WHERE side = $1::text AND kind = 'read_only' AND NOT lifted)";
    Ok(session.query_one(query, &[&side]).await?.get(0))
}
