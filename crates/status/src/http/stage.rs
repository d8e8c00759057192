use std::time::Duration;

use ::log::{Bucket, Entry, LogError};
use ::model::{Backoff, Code, Problem, Seq};
use hyper::StatusCode;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Answer, document, failed, refused};
use crate::metrics::Stage;

/// The longest that one may ask to wait: proxies in between close what is silent for much longer.
const LONGEST: u64 = 300;

/// How long is waited where `after` is given and `wait` is not: below the minute that proxies commonly allow.
const USUAL: u64 = 30;

/// A process that has just started answers once it has asked the log.
const FIRST: Duration = Duration::from_secs(5);

/// Follows the stage for all who ask.
pub(super) struct Follower {
    known: watch::Receiver<Known>,
    task: AbortHandle,
}

/// What is known of the stage.
#[derive(Clone)]
enum Known {
    /// Nothing was heard of the log yet.
    Nothing,
    /// It could not be asked, and never could.
    Failed(LogError),
    /// What was there when it was asked last; nothing if no stage is set.
    Entry(Option<Entry>),
}

impl Known {
    fn revision(&self) -> Seq {
        match self {
            Known::Entry(Some(entry)) => entry.revision,
            Known::Entry(None) | Known::Nothing | Known::Failed(_) => Seq::ZERO,
        }
    }
}

impl Follower {
    /// Begins to follow; ends when it is dropped.
    pub(super) fn start(bucket: Bucket) -> Follower {
        let (tell, known) = watch::channel(Known::Nothing);
        let task = tokio::spawn(follow(bucket, tell)).abort_handle();
        Follower { known, task }
    }

    /// The stage for the metrics, if one is known to be set.
    pub(super) fn now(&self) -> Option<Stage> {
        let Known::Entry(Some(entry)) = self.known.borrow().clone() else { return None };
        let name = object(&entry)?.get("stage")?.as_str()?.to_owned();
        // Others can write to the bucket; a label is to be no more than a name.
        let right = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        right.then_some(Stage { name, revision: entry.revision })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(bucket: Bucket, tell: watch::Sender<Known>) {
    let mut watch = bucket.watch();
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        match watch.next().await {
            Ok(entry) => {
                tell.send_if_modified(|known| {
                    let same = matches!(known, Known::Entry(old) if *old == entry);
                    *known = Known::Entry(entry);
                    !same
                });
            }
            Err(error) => {
                tracing::warn!("the stage is not followed now: {error}");
                // What was known is better than nothing: applications go on as they were told.
                tell.send_if_modified(|known| {
                    let first = !matches!(known, Known::Entry(_));
                    if first {
                        *known = Known::Failed(error);
                    }
                    first
                });
                tokio::time::sleep(backoff.after(begun.elapsed())).await;
            }
        }
    }
}

/// The stage: at once, or with `after=REVISION` once there is a newer one, after `wait=SECONDS` at the latest.
pub(super) async fn answer(follower: &Follower, query: &str) -> Answer {
    let (after, wait) = match asked(query) {
        Ok(asked) => asked,
        Err((why, next)) => return refused(StatusCode::BAD_REQUEST, &why, next),
    };
    let mut known = follower.known.clone();
    let newer = |known: &Known| known.revision() > after;
    // The process may be stopping; then the connection goes with it.
    let _ = tokio::time::timeout(wait, known.wait_for(newer)).await;
    let _ = tokio::time::timeout(FIRST, known.wait_for(|known| !matches!(known, Known::Nothing))).await;
    let now = known.borrow().clone();
    let (status, problem) = match now {
        Known::Entry(Some(entry)) if !entry.value.is_empty() => match object(&entry) {
            Some(mut value) => {
                value["revision"] = entry.revision.0.into();
                return document(StatusCode::OK, &value);
            }
            None => {
                let why = format!("revision {} is nothing that crossfade has written", entry.revision);
                let next = "see who else writes to the bucket; `crossfade stage show`";
                (StatusCode::SERVICE_UNAVAILABLE, Problem::new(Code::LogDamaged, "the stage", why, next))
            }
        },
        Known::Entry(_) => {
            let next = "begin with the plan's first one: `crossfade stage set NAME`";
            (StatusCode::NOT_FOUND, Problem::new(Code::NoStage, "the stage", "none is set yet", next))
        }
        Known::Failed(error) => (StatusCode::SERVICE_UNAVAILABLE, error.into()),
        Known::Nothing => {
            let error = LogError::Unavailable("it has not answered yet".to_owned());
            (StatusCode::SERVICE_UNAVAILABLE, error.into())
        }
    };
    failed(status, &problem)
}

fn object(entry: &Entry) -> Option<Value> {
    serde_json::from_slice(&entry.value).ok().filter(Value::is_object)
}

/// What is asked for: the revision that is known, and how long to wait for another one; or why that makes no sense, and what does.
fn asked(query: &str) -> Result<(Seq, Duration), (String, &'static str)> {
    const NEXT: &str = "ask for /stage, or /stage?after=REVISION&wait=SECONDS";
    let (mut after, mut wait) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number: Option<u64> = value.parse().ok();
        match (key, number) {
            ("after", Some(revision)) => after = Some(Seq(revision)),
            ("wait", Some(seconds)) if seconds <= LONGEST => wait = Some(seconds),
            ("after", None) => return Err((format!("after={value:?} is no revision"), NEXT)),
            ("wait", _) => return Err((format!("wait={value:?} is no number of seconds from 0 to {LONGEST}"), NEXT)),
            _ => return Err((format!("there is no parameter {key:?}"), NEXT)),
        }
    }
    let wait = match (after, wait) {
        (_, Some(seconds)) => seconds,
        (Some(_), None) => USUAL,
        (None, None) => 0,
    };
    Ok((after.unwrap_or(Seq::ZERO), Duration::from_secs(wait)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_only_where_one_says_what_is_known() {
        let seconds = Duration::from_secs;
        for (query, right) in [
            ("", Some((0, 0))),
            ("after=3", Some((3, USUAL))),
            ("after=3&wait=5", Some((3, 5))),
            ("wait=5", Some((0, 5))),
            ("wait=300&after=0", Some((0, 300))),
            ("wait=301", None),
            ("wait=-1", None),
            ("after=", None),
            ("after=x", None),
            ("since=3", None),
        ] {
            let right = right.map(|(after, wait)| (Seq(after), seconds(wait)));
            assert_eq!(asked(query).ok(), right, "{query}");
        }
    }
}
