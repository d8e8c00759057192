//! Runs beside everything else in each process of a plan: a source that was closed by a cutover which died is opened again, if nothing was decided.

use std::sync::Arc;
use std::time::Duration;

use pg::{Endpoint, Session};
use plan::Plan;
use tokio::time::Instant;

use crate::bouncer;
use crate::cancel::{self, cancel};
use crate::error::CutoverError;
use crate::journal::{self, State};
use crate::old::{self, Old};

/// Between two looks at the sources.
const LOOK: Duration = Duration::from_millis(500);

/// Where a server cannot be reached.
const LATER: Duration = Duration::from_secs(2);

/// Where it is decided, or only people can go on.
const SELDOM: Duration = Duration::from_secs(30);

/// Looks for ever, for cutovers and rollbacks. Nothing that fails here stops the process that it runs in: it is tried again.
pub async fn guard(plan: Arc<Plan>, sources: Vec<Endpoint>, target: Endpoint) {
    let back = async {
        if let (Some(back), [source]) = (plan.back(), &sources[..]) {
            one_way(Arc::new(back), vec![target.clone()], source.clone()).await;
        }
    };
    tokio::join!(one_way(Arc::clone(&plan), sources.clone(), target.clone()), back);
}

async fn one_way(plan: Arc<Plan>, sources: Vec<Endpoint>, target: Endpoint) {
    let sessions = sources.iter().map(|_| None).collect();
    let mut guard = Guard { plan, sessions, sources, target, said: String::new(), paused: false, bolted: None };
    loop {
        let pause = match guard.look().await {
            Ok(pause) => pause,
            Err(error @ CutoverError::Stop(_)) => {
                guard.say(error.to_string());
                SELDOM
            }
            // Somebody else is at it.
            Err(CutoverError::Overtaken(_)) => LOOK,
            Err(error) => {
                guard.say(format!(
                    "a side is closed by a cutover or a rollback, and it cannot be told whether that was decided: {error}"
                ));
                LATER
            }
        };
        tokio::time::sleep(pause).await;
    }
}

struct Guard {
    plan: Arc<Plan>,
    sources: Vec<Endpoint>,
    target: Endpoint,
    sessions: Vec<Option<Session>>,
    said: String,
    /// A PgBouncer is to be resumed.
    paused: bool,
    /// Of this epoch something could not be undone, the last time then.
    bolted: Option<(i64, Instant)>,
}

impl Guard {
    /// Once.
    fn say(&mut self, what: String) {
        if self.said != what {
            tracing::warn!("{what}");
            self.said = what;
        }
    }

    /// Says when to look again.
    async fn look(&mut self) -> Result<Duration, CutoverError> {
        let (mut abandoned, mut closed, mut away, mut epoch) = (false, false, false, 0);
        for at in 0..self.sources.len() {
            match self.line(at).await {
                Ok(Some(line)) => {
                    closed |= line.closed;
                    epoch = line.epoch.max(epoch);
                    abandoned |= (line.closed || line.taken) && line.led.is_none();
                }
                Ok(None) => {}
                // Those that can be reached are looked after meanwhile.
                Err(_) => away = true,
            }
        }
        if !abandoned {
            if self.paused && bouncer::resume(&self.plan).await.is_err() {
                return Ok(LATER);
            }
            self.paused = false;
            self.said.clear();
            return Ok(if away { LATER } else { LOOK });
        }
        // Perhaps another machine can; a later cutover does not wait for it.
        if self.bolted.is_some_and(|(bolted, at)| bolted == epoch && at.elapsed() < SELDOM) {
            return Ok(LOOK);
        }
        self.settle(closed).await
    }

    async fn line(&mut self, at: usize) -> Result<Option<old::Line>, CutoverError> {
        let session = match self.sessions[at].take() {
            Some(session) if !session.is_closed() => session,
            _ => pg::connect_read_only(&self.sources[at], "guard").await?,
        };
        let line = old::look(&session, &self.plan.source_side(&self.plan.sources[at])).await?;
        self.sessions[at] = Some(session);
        Ok(line)
    }

    /// Nobody acts any more who has begun to, and a source may be closed.
    async fn settle(&mut self, closed: bool) -> Result<Duration, CutoverError> {
        let target = pg::connect(&self.target, "guard").await?;
        let last = journal::last(&target).await?;
        if last.as_ref().is_some_and(|entry| entry.state > State::Cancelled) {
            return Ok(SELDOM);
        }
        let mut olds = Vec::new();
        for (source, endpoint) in self.plan.sources.iter().zip(&self.sources) {
            match Old::open(&self.plan, source, endpoint).await {
                Ok(old) => olds.push(old),
                // Its turn comes when it can be reached: what is decided here stands in the journal. The first one's token is the journal's.
                Err(error) if !olds.is_empty() => tracing::info!(source = source.name, "not opened yet: {error}"),
                Err(error) => return Err(error),
            }
        }
        match last {
            Some(entry) => {
                let why = "the process that ran it is gone, or was out of time";
                let undone = cancel(&self.plan, &mut olds, &target, entry.epoch, false, why).await?;
                self.paused = undone.paused.is_some();
                self.bolted = (!undone.bolted.is_empty()).then(|| (entry.epoch, Instant::now()));
                Ok(LOOK)
            }
            // It died before it had begun.
            None if !closed => {
                for old in &mut olds {
                    old.lead(cancel::LIMIT, false, 0).await?;
                    old.leave().await;
                }
                Ok(LOOK)
            }
            None => {
                let epoch = match olds.first() {
                    Some(old) => old.look().await?.map_or(0, |line| line.epoch),
                    None => 0,
                };
                Err(old::unknown(olds.first().map_or("", |old| &old.name), epoch, 0))
            }
        }
    }
}
