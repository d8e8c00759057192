//! Runs beside everything else in each process of a plan: a source that was closed by a cutover which died is opened again, if nothing was decided.

use std::sync::Arc;
use std::time::Duration;

use pg::{Endpoint, Session};
use plan::Plan;

use crate::cancel::cancel;
use crate::error::CutoverError;
use crate::journal::{self, State};
use crate::old::{self, Old};

/// Between two looks at the sources.
const LOOK: Duration = Duration::from_millis(500);

/// Where a server cannot be reached, or there is nothing that could be done.
const LATER: Duration = Duration::from_secs(2);

/// Looks for ever. Nothing that fails here stops the process that it runs in: it is tried again.
pub async fn guard(plan: Arc<Plan>, sources: Vec<Endpoint>, target: Endpoint) {
    let mut guard =
        Guard { plan, sessions: sources.iter().map(|_| None).collect(), sources, target, said: String::new() };
    loop {
        let pause = match guard.look().await {
            Ok(true) => LOOK,
            Ok(false) => LATER,
            Err(error) => {
                guard.say(format!(
                    "the source is closed by a cutover, and it cannot be told whether that was decided: {error}"
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
}

impl Guard {
    /// Once.
    fn say(&mut self, what: String) {
        if self.said != what {
            tracing::warn!("{what}");
            self.said = what;
        }
    }

    /// Says whether there is something to be looked at often. A source that cannot be reached is not closed by us, as far as can be done anything about it.
    async fn look(&mut self) -> Result<bool, CutoverError> {
        let (mut abandoned, mut closed) = (false, false);
        for at in 0..self.sources.len() {
            match self.line(at).await {
                Ok(line) => {
                    closed |= line.as_ref().is_some_and(|line| line.closed);
                    abandoned |= line.is_some_and(|line| (line.closed || line.taken) && line.led.is_none());
                }
                Err(_) => {
                    self.sessions[at] = None;
                    return Ok(false);
                }
            }
        }
        if !abandoned {
            self.said.clear();
            return Ok(true);
        }
        self.settle(closed).await
    }

    async fn line(&mut self, at: usize) -> Result<Option<old::Line>, CutoverError> {
        let session = match self.sessions[at].take() {
            Some(session) if !session.is_closed() => session,
            _ => pg::connect_read_only(&self.sources[at], "guard").await?,
        };
        let line = old::look(&session, &self.plan.sources[at].name).await?;
        self.sessions[at] = Some(session);
        Ok(line)
    }

    /// Nobody acts any more who has begun to, and a source may be closed.
    async fn settle(&mut self, closed: bool) -> Result<bool, CutoverError> {
        let target = pg::connect(&self.target, "guard").await?;
        let last = if journal::exists(&target).await? { journal::last(&target).await? } else { None };
        let Some(entry) = last else {
            if !closed {
                return Ok(false);
            }
            self.say("the source is closed by a cutover of which the target knows nothing: it stays closed".to_owned());
            return Ok(false);
        };
        if entry.state > State::Cancelled {
            return Ok(false);
        }
        let mut olds = Vec::new();
        for (source, endpoint) in self.plan.sources.iter().zip(&self.sources) {
            olds.push(Old::open(&self.plan.name, &source.name, endpoint).await?);
        }
        let why = "the process that ran it is gone, or was out of time";
        match cancel(&mut olds, &target, entry.epoch, false, why).await {
            Ok(_) => Ok(true),
            // Somebody else is at it.
            Err(CutoverError::Overtaken(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
