use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use log::{Log, LogError, StreamName};
use model::{Code, Problem, Record, Seq};

use super::resume::record;
use crate::CaptureError;

/// The writers of the tail that this process has been, one for each connection: what tells whether another process has taken its place.
#[derive(Clone, Default)]
pub(crate) struct Writers(Arc<Mutex<Own>>);

#[derive(Default)]
struct Own {
    ids: HashSet<String>,
    /// Where the last of them said that it begins.
    seq: Seq,
}

impl Writers {
    /// This process is about to write as `id`.
    pub(super) fn add(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ids.insert(id.to_owned());
    }

    /// It has said so in message `seq`.
    pub(super) fn begun(&self, seq: Seq) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).seq = seq;
    }

    fn is_own(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ids.contains(id)
    }

    /// Nobody has written behind this process.
    ///
    /// # Errors
    /// Another process has: this one was thought to be gone, and its place is taken.
    pub(crate) async fn check(&self, log: &dyn Log, tail: &StreamName) -> Result<(), CaptureError> {
        let begun = self.0.lock().unwrap_or_else(PoisonError::into_inner).seq;
        if begun == Seq::ZERO {
            return Ok(());
        }
        match self.other(log, tail, begun).await? {
            None => Ok(()),
            Some(name) => Err(Problem::new(
                Code::WriterRefused,
                format!("stream {tail}"),
                format!("another capture writes it now: {name}"),
                "nothing: that one goes on; stop this one, or the other one if it should be this",
            )
            .into()),
        }
    }

    /// Who writes the tail now, if it is not this process. A tail that ends before message `begun` has lost its end, and says nothing.
    async fn other(&self, log: &dyn Log, tail: &StreamName, begun: Seq) -> Result<Option<String>, LogError> {
        let Some(state) = log.state(tail).await? else { return Ok(None) };
        let mut seq = state.last;
        let mut other = None;
        // The last message says who wrote it, unless it is a piece of a large one; the name stands where that one began.
        while seq >= begun {
            match record(log, tail, seq).await? {
                Some(Record::Writer(writer)) if !self.is_own(&writer.id) => return Ok(Some(writer.name)),
                Some(Record::Writer(_)) => return Ok(other),
                Some(
                    Record::Batch(model::Batch { writer, .. }) | Record::Heartbeat(model::Heartbeat { writer, .. }),
                ) => {
                    if self.is_own(&writer) {
                        return Ok(None);
                    }
                    other = Some(writer).filter(|writer| !writer.is_empty());
                }
                _ => {}
            }
            seq = Seq(seq.0 - 1);
        }
        Ok(other)
    }
}
