//! The side that the application leaves: its fence, and who leads there.

use std::time::Duration;

use model::{Code, Problem, TableName};
use pg::{Endpoint, Session};
use plan::{Plan, Source};
use tokio::time::Instant;

use crate::error::CutoverError;

/// How long a lock on one table may be waited for while its trigger is made: writers queue behind it.
const PREPARE: Duration = Duration::from_millis(200);

/// How long the locks on all tables may be waited for at most: writers queue behind them. Less than half of `deadlock_timeout` in any case, or the application would be the
/// victim of a deadlock that is ours.
const CLOSE: Duration = Duration::from_millis(400);

/// How long a transaction of ours may stand still that holds what others need: its process was stopped.
pub(crate) const IDLE: Duration = Duration::from_secs(5);

/// Between two tries: the application goes on meanwhile.
const BREATH: Duration = Duration::from_millis(100);

/// A source.
pub(crate) struct Old {
    pub name: String,
    /// As `crossfade.fence` names it.
    pub side: String,
    endpoint: Endpoint,
    pub session: Session,
    selects: Vec<TableName>,
    relations: Vec<String>,
    pub token: i64,
}

/// The line of a source, where there is one.
pub(crate) struct Line {
    /// By a cutover or a rollback, or something of what it was closed with is left: the target is closed from the start by neither.
    pub closed: bool,
    /// Somebody has taken the lead and not given it up.
    pub taken: bool,
    /// Somebody leads: for so long at most, in seconds.
    pub led: Option<f64>,
    /// The last epoch that this side has taken part in.
    pub epoch: i64,
}

/// Looks at it without changing anything.
pub(crate) async fn look(session: &Session, side: &str) -> Result<Option<Line>, CutoverError> {
    if !session.query_one("SELECT to_regclass('crossfade.fence') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let bolted = match pg::read_only::known(session).await? {
        true => "EXISTS (SELECT FROM crossfade.bolt b WHERE b.side = f.side)",
        false => "false",
    };
    let query = format!(
        "SELECT (closed > opened OR {bolted}) AND epoch > 0, pid IS NOT NULL, CASE WHEN {LED} THEN extract(epoch FROM deadline - clock_timestamp())::float8 END,
                CASE WHEN epoch > 0 THEN greatest(epoch, closed, opened) ELSE 0 END FROM crossfade.fence f WHERE side = $1::text"
    );
    let row = session.query_opt(&query, &[&side]).await?;
    Ok(row.map(|row| Line { closed: row.get(0), taken: row.get(1), led: row.get(2), epoch: row.get(3) }))
}

/// True for a line whose leader lives and has not run out of time.
const LED: &str = "(f.pid IS NOT NULL AND f.deadline > clock_timestamp()
    AND EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = f.pid AND a.backend_start = f.backend_start))";

impl Old {
    /// Opens it; the fence's tables are made where they are not there.
    pub async fn open(plan: &Plan, source: &Source, endpoint: &Endpoint) -> Result<Old, CutoverError> {
        let session = pg::connect(endpoint, "cutover").await?;
        let side = plan.source_side(source);
        session.batch_execute("BEGIN").await?;
        let made = pg::fence::create(&session, &side, 0, "Nothing is in the way of writes.").await;
        session.batch_execute(if made.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        made?;
        Ok(Old {
            name: source.name.clone(),
            side,
            endpoint: endpoint.clone(),
            session,
            selects: Vec::new(),
            relations: Vec::new(),
            token: 0,
        })
    }

    /// Another session, with what this one knows: what the one before has under way comes to nothing.
    pub async fn again(&mut self) -> Result<(), CutoverError> {
        self.session = pg::connect(&self.endpoint, "cutover").await?;
        Ok(())
    }

    /// Takes the lead for this long, if nobody else has it; `force` takes it from whoever has. Every statement of an earlier leader that closes or opens this side comes to
    /// nothing from now on. `seen` is the highest epoch that this process knows: if this side has got further, what it is about to do is outdated.
    pub async fn lead(&mut self, limit: Duration, force: bool, seen: i64) -> Result<(), CutoverError> {
        let query = format!(
            "UPDATE crossfade.fence f SET token = token + 1, pid = pg_backend_pid(), deadline = clock_timestamp() + make_interval(secs => $2),
                    backend_start = (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid()))
              WHERE side = $1::text AND ($3 OR token = $4 OR NOT {LED}) AND epoch <= $5 RETURNING token"
        );
        let row =
            self.session.query_opt(&query, &[&self.side, &limit.as_secs_f64(), &force, &self.token, &seen]).await?;
        if let Some(row) = row {
            self.token = row.get(0);
            return Ok(());
        }
        match self.look().await? {
            Some(line) if line.epoch > seen => Err(unknown(&self.name, line.epoch, seen)),
            _ => Err(CutoverError::Overtaken("another process is at it".to_owned())),
        }
    }

    /// What its fence is on, quoted.
    pub fn relations(&self) -> &[String] {
        &self.relations
    }

    /// How it stands.
    pub async fn look(&self) -> Result<Option<Line>, CutoverError> {
        look(&self.session, &self.side).await
    }

    /// This side takes part in an epoch, which the journal has.
    pub async fn enter(&self, epoch: i64) -> Result<(), CutoverError> {
        let query = "UPDATE crossfade.fence SET epoch = $3 WHERE side = $1::text AND token = $2 AND epoch < $3 AND closed <= opened AND opened < $3";
        match self.session.execute(query, &[&self.side, &self.token, &epoch]).await? {
            1 => Ok(()),
            _ => Err(CutoverError::Overtaken("another process leads".to_owned())),
        }
    }

    /// Tidies up: what is not done here costs little, and nothing depends on it.
    pub async fn leave(&self) {
        let left = async {
            self.rest().await?;
            self.release().await
        };
        if let Err(error) = left.await {
            tracing::info!(source = self.name, "left as it is: {error}");
        }
    }

    /// Gives the lead up.
    pub async fn release(&self) -> Result<(), CutoverError> {
        let query = "UPDATE crossfade.fence SET pid = NULL, backend_start = NULL, deadline = NULL WHERE side = $1::text AND token = $2";
        self.session.execute(query, &[&self.side, &self.token]).await?;
        Ok(())
    }

    /// Makes the triggers for an epoch, which do nothing yet.
    pub async fn prepare(&mut self, epoch: i64, tables: Vec<TableName>, until: Instant) -> Result<(), CutoverError> {
        self.relations = pg::fence::relations(&self.session, &tables).await?;
        self.selects = tables;
        for relation in &self.relations {
            let made = pg::fence::enclose(std::slice::from_ref(relation), &self.side, epoch, true);
            let what = |why: &str| format!("a trigger cannot be made on {relation}: {why}");
            self.tries(&format!("epoch = {epoch} AND closed <= opened AND opened < {epoch}"), &made, until, what)
                .await?;
        }
        Ok(())
    }

    /// Refuses all writes from now on; none is under way then.
    pub async fn close(&self, epoch: i64, why: &str, until: Instant) -> Result<(), CutoverError> {
        let patience: String = self
            .session
            .query_one("SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout'", &[])
            .await?
            .get(0);
        let patience =
            Duration::from_millis(patience.parse::<u64>().unwrap_or(1000) / 2).min(CLOSE).max(Duration::from_millis(1));
        loop {
            let error = match self.close_once(epoch, why, patience).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // Nobody is to wait for what comes to nothing.
            self.session.batch_execute("ROLLBACK").await?;
            match error {
                CutoverError::Pg(error) if waited(&error) => {
                    if Instant::now() + BREATH >= until {
                        return Err(CutoverError::GivenUp(format!(
                            "the tables of source {:?} could not be locked in time: transactions that write hold them ({error})",
                            self.name
                        )));
                    }
                    tracing::info!(
                        source = self.name,
                        "the tables could not be locked in {} ms; trying again",
                        patience.as_millis()
                    );
                    tokio::time::sleep(BREATH).await;
                }
                error => return Err(error),
            }
        }
    }

    async fn close_once(&self, epoch: i64, why: &str, patience: Duration) -> Result<(), CutoverError> {
        let session = &self.session;
        // Those give way to a lock by themselves, but a second later.
        let vacuums = "SELECT pg_cancel_backend(a.pid) FROM pg_stat_activity a
              WHERE a.backend_type = 'autovacuum worker' AND a.datname = current_database() AND a.query NOT LIKE '%wraparound%'
                AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.relation = ANY ($1::text[]::regclass[]::oid[]))";
        let _ = session.execute(vacuums, &[&self.relations]).await;
        session
            .batch_execute(&format!(
                "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
                patience.as_millis(),
                2 * patience.as_millis(),
                IDLE.as_millis()
            ))
            .await?;
        let lead = "SELECT FROM crossfade.fence WHERE side = $1::text AND token = $2 FOR UPDATE";
        if session.query_opt(lead, &[&self.side, &self.token]).await?.is_none() {
            return Err(CutoverError::Overtaken("another process leads".to_owned()));
        }
        let only: Vec<String> = self.relations.iter().map(|relation| format!("ONLY {relation}")).collect();
        if !only.is_empty() {
            session.batch_execute(&format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", only.join(", "))).await?;
        }
        if pg::fence::relations(session, &self.selects).await? != self.relations {
            return Err(CutoverError::GivenUp(format!(
                "tables of source {:?} were attached or dropped meanwhile",
                self.name
            )));
        }
        session
            .batch_execute(&format!(
                "SET LOCAL statement_timeout = 0; {}",
                pg::fence::close(&self.relations, &self.side)
            ))
            .await?;
        let closed = session
            .execute(
                "UPDATE crossfade.fence SET closed = $3, why = $4::text WHERE side = $1::text AND token = $2 AND epoch = $3 AND opened < $3",
                &[&self.side, &self.token, &epoch, &why],
            )
            .await?;
        if closed != 1 {
            return Err(CutoverError::Overtaken("another process leads".to_owned()));
        }
        model::failpoint!("fence_written");
        session.batch_execute("COMMIT").await?;
        model::failpoint!("fence_closed");
        Ok(())
    }

    /// Lets the application write again. Only once the journal says `cancelled`, durably.
    pub async fn reopen(&self, epoch: i64) -> Result<(), CutoverError> {
        let query = "UPDATE crossfade.fence SET opened = greatest(opened, $3) WHERE side = $1::text AND token = $2";
        if self.session.execute(query, &[&self.side, &self.token, &epoch]).await? != 1 {
            return Err(CutoverError::Overtaken("another process leads".to_owned()));
        }
        model::failpoint!("source_reopened");
        Ok(())
    }

    /// Disables the triggers of this side, which is open; those that cannot be locked now cost a look at the fence for each statement, and nothing else.
    async fn rest(&self) -> Result<(), CutoverError> {
        let lead = "SELECT FROM crossfade.fence WHERE side = $1::text AND token = $2 AND opened >= closed FOR UPDATE";
        for relation in pg::fence::enclosed(&self.session, &self.side).await? {
            self.session
                .batch_execute(&format!(
                    "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
                    PREPARE.as_millis(),
                    IDLE.as_millis()
                ))
                .await?;
            let rested = async {
                if self.session.query_opt(lead, &[&self.side, &self.token]).await?.is_some() {
                    self.session.batch_execute(&pg::fence::rest(std::slice::from_ref(&relation), &self.side)).await?;
                }
                self.session.batch_execute("COMMIT").await
            };
            if let Err(error) = rested.await {
                tracing::info!("the trigger of {relation} stays enabled: {error}");
                self.session.batch_execute("ROLLBACK").await?;
            }
        }
        Ok(())
    }

    /// What the fence tells a client whose write it refuses.
    pub async fn tell(&self, why: &str) -> Result<(), CutoverError> {
        let query = "UPDATE crossfade.fence SET why = $3::text WHERE side = $1::text AND token = $2";
        self.session.execute(query, &[&self.side, &self.token, &why]).await?;
        Ok(())
    }

    /// Whether all of it is closed as it was closed: nobody has enabled or disabled our triggers since.
    ///
    /// # Errors
    /// Another process has opened it, or leads.
    pub async fn holds(&self) -> Result<bool, CutoverError> {
        let lead = "SELECT FROM crossfade.fence WHERE side = $1::text AND token = $2 AND closed > opened";
        if self.session.query_opt(lead, &[&self.side, &self.token]).await?.is_none() {
            return Err(CutoverError::Overtaken("another process has cancelled it, or leads".to_owned()));
        }
        Ok(pg::fence::holds(&self.session, &self.relations, &self.side).await?)
    }

    /// Runs statements in a transaction as often as locks are not to be had, each time only while this process leads and its side meets `condition`.
    async fn tries(
        &self,
        condition: &str,
        statements: &str,
        until: Instant,
        what: impl Fn(&str) -> String,
    ) -> Result<(), CutoverError> {
        let lead =
            format!("SELECT FROM crossfade.fence WHERE side = $1::text AND token = $2 AND {condition} FOR UPDATE");
        loop {
            self.session
                .batch_execute(&format!(
                    "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
                    PREPARE.as_millis(),
                    IDLE.as_millis()
                ))
                .await?;
            let done = async {
                if self.session.query_opt(&lead, &[&self.side, &self.token]).await?.is_none() {
                    return Err(CutoverError::Overtaken("another process leads".to_owned()));
                }
                self.session.batch_execute(statements).await?;
                Ok(self.session.batch_execute("COMMIT").await?)
            };
            let error = match done.await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.session.batch_execute("ROLLBACK").await?;
            match error {
                CutoverError::Pg(error) if waited(&error) => {
                    if Instant::now() + BREATH >= until {
                        return Err(CutoverError::GivenUp(what(&error.to_string())));
                    }
                    tokio::time::sleep(BREATH).await;
                }
                error => return Err(error),
            }
        }
    }
}

/// A side has seen an epoch that is in no journal: the other side is an older one, another, or cannot be asked.
pub(crate) fn unknown(name: &str, there: i64, known: i64) -> CutoverError {
    Problem::new(
        Code::OutcomeUnknown,
        format!("{name:?}"),
        format!("it has taken part in epoch {there}, and the journals that can be read end with {known}: the other side cannot be reached, was made anew, or restored from a backup"),
        "if the application does not write to another target: `crossfade complete --yes` opens the source again; then begin anew",
    )
    .into()
}

/// A lock was not to be had in time, or there was a deadlock.
fn waited(error: &pg::PgError) -> bool {
    // lock_not_available, query_canceled (statement_timeout), deadlock_detected
    matches!(error.sqlstate(), Some("55P03" | "57014" | "40P01"))
}
