use std::collections::BTreeMap;

use model::{Code, Problem, quote};
use pg::{Endpoint, Session};
use plan::{Check, Plan, Side};
use tokio_postgres::{IsolationLevel, Transaction};

use super::refused::refused;

/// The plan's databases. Each is connected to when the first check looks at it, and where it cannot be, only its checks fail.
pub struct Databases {
    target: Place,
    sources: BTreeMap<String, Place>,
}

impl Databases {
    /// The target, and the sources with their names. Only with `fix`, the plan's name, is there ever a session that could write, and on the
    /// target alone.
    pub fn new(
        target: Endpoint,
        sources: impl IntoIterator<Item = (String, Endpoint)>,
        fix: Option<String>,
    ) -> Databases {
        let source = |(name, endpoint): (String, Endpoint)| {
            (name.clone(), Place::new(format!("source {name:?}"), endpoint, None))
        };
        Databases {
            target: Place::new("the target".to_owned(), target, fix),
            sources: sources.into_iter().map(source).collect(),
        }
    }

    /// The findings of a plan that has some, counted at the target.
    pub(crate) async fn findings(&self, plan: &Plan) -> Vec<apply::Counted> {
        match plan.findings.is_empty() {
            true => Vec::new(),
            false => apply::findings(&self.target.endpoint, plan).await,
        }
    }

    /// Begins a transaction that cannot write.
    pub(super) async fn read(&mut self, side: &Side, check: &Check) -> Result<Visit<'_>, Problem> {
        let place = match side {
            Side::Target => &mut self.target,
            Side::Source(name) => known(&mut self.sources, name)?,
        };
        place.begin(check, true).await
    }

    /// Begins one on a source and one on the target.
    pub(super) async fn read_both(&mut self, source: &str, check: &Check) -> Result<(Visit<'_>, Visit<'_>), Problem> {
        let source = known(&mut self.sources, source)?.begin(check, true).await?;
        Ok((source, self.target.begin(check, true).await?))
    }

    /// Begins a transaction on the target that may write.
    pub(super) async fn write(&mut self, check: &Check) -> Result<Visit<'_>, Problem> {
        self.target.begin(check, false).await
    }
}

fn known<'p>(sources: &'p mut BTreeMap<String, Place>, name: &str) -> Result<&'p mut Place, Problem> {
    sources.get_mut(name).ok_or_else(|| {
        Problem::new(
            Code::Internal,
            format!("source {name:?}"),
            "the plan has no such source",
            "report this as a defect",
        )
    })
}

/// One database.
struct Place {
    /// As people are told.
    name: String,
    endpoint: Endpoint,
    /// For which plan it may be written to.
    writes: Option<String>,
    session: Option<Session>,
    /// Why it could not be connected to: not tried again for every check.
    refused: Option<Problem>,
}

impl Place {
    fn new(name: String, endpoint: Endpoint, writes: Option<String>) -> Place {
        Place { name, endpoint, writes, session: None, refused: None }
    }

    async fn begin(&mut self, check: &Check, read_only: bool) -> Result<Visit<'_>, Problem> {
        let place = self.name.clone();
        let begin = self.session().await?.build_transaction().isolation_level(IsolationLevel::ReadCommitted);
        let transaction = begin.read_only(read_only).start().await.map_err(|error| refused(&place, error))?;
        transaction.batch_execute(&settings(check)).await.map_err(|error| refused(&place, error))?;
        Ok(Visit { transaction, place })
    }

    async fn session(&mut self) -> Result<&mut Session, Problem> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let open = match self.session.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.connect().await.map_err(|error| self.give_up(error))?,
        };
        Ok(self.session.insert(open))
    }

    async fn connect(&self) -> Result<Session, Problem> {
        match &self.writes {
            Some(plan) => {
                let session = pg::connect(&self.endpoint, "reconcile").await?;
                // What it puts right is no stranger's doing.
                apply::join_in(&session, plan).await?;
                Ok(session)
            }
            None => Ok(pg::connect_read_only(&self.endpoint, "reconcile").await?),
        }
    }

    fn give_up(&mut self, problem: Problem) -> Problem {
        let problem = Problem { what: format!("{}, {}", self.name, problem.what), ..problem };
        self.refused.insert(problem).clone()
    }
}

/// What holds in a check's transactions, over the session's pinned settings.
fn settings(check: &Check) -> String {
    // 0 would mean no limit, and what is larger than a signed 32-bit number is refused.
    let milliseconds = check.timeout.as_millis().clamp(1, i32::MAX as u128);
    let mut settings = format!("SET LOCAL statement_timeout = {milliseconds}");
    if !check.search_path.is_empty() {
        let schemas = quote::idents(check.search_path.iter().map(String::as_str));
        settings += &format!("; SET LOCAL search_path = {schemas}");
    }
    settings
}

/// A transaction in one of the databases. Rolled back when dropped.
pub(super) struct Visit<'s> {
    pub(super) transaction: Transaction<'s>,
    place: String,
}

impl Visit<'_> {
    /// What the server said here, for people.
    pub(super) fn refused(&self, error: tokio_postgres::Error) -> Problem {
        refused(&self.place, error)
    }

    /// A problem with what a check asks here.
    pub(super) fn problem(&self, why: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem::new(Code::CheckFailed, &self.place, why, next)
    }

    /// Keeps what was written.
    /// Deferred constraints and their triggers are not left to the commit.
    pub(super) async fn immediately(&self) -> Result<(), Problem> {
        let set = self.transaction.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await;
        set.map_err(|error| self.refused(error))
    }

    pub(super) async fn commit(self) -> Result<(), Problem> {
        let Visit { transaction, place } = self;
        transaction.commit().await.map_err(|error| refused(&place, error))
    }
}
