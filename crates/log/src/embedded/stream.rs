//! The streams of a folder, as the process has them in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::Seq;
use tokio::sync::watch;

use super::keys::StreamId;
use crate::{LogError, StreamState};

/// One stream. Only the writer changes it.
pub(super) struct Stream {
    pub(super) id: StreamId,
    /// Its subject.
    pub(super) name: String,
    /// What is stored; readers at the end wait for it to change.
    state: watch::Sender<StreamState>,
    removed: AtomicBool,
    synced: AtomicU64,
}

impl Stream {
    pub(super) fn new(id: StreamId, name: String, state: StreamState) -> Arc<Stream> {
        // Opening syncs what an earlier process left in the WAL.
        let synced = AtomicU64::new(state.last.0);
        Arc::new(Stream { id, name, state: watch::channel(state).0, removed: AtomicBool::new(false), synced })
    }

    pub(super) fn state(&self) -> StreamState {
        *self.state.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<StreamState> {
        self.state.subscribe()
    }

    pub(super) fn stored(&self, state: StreamState) {
        self.state.send_replace(state);
    }

    /// Lets readers wake up to find it gone.
    pub(super) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.state.send_modify(|_| {});
    }

    pub(super) fn there(&self) -> Result<(), LogError> {
        match self.removed.load(Ordering::Acquire) {
            true => Err(LogError::NoStream),
            false => Ok(()),
        }
    }

    pub(super) fn synced(&self) -> Seq {
        Seq(self.synced.load(Ordering::Acquire))
    }

    pub(super) fn sync_reached(&self, seq: Seq) {
        self.synced.fetch_max(seq.0, Ordering::AcqRel);
    }
}

/// All of them, by their subjects.
#[derive(Default)]
pub(super) struct Streams(Mutex<HashMap<String, Arc<Stream>>>);

impl Streams {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Stream>>> {
        // A map is whole whatever a thread that panicked was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Stream>> {
        self.lock().get(name).cloned()
    }

    pub(super) fn insert(&self, stream: Arc<Stream>) {
        self.lock().insert(stream.name.clone(), stream);
    }

    pub(super) fn remove(&self, name: &str) -> Option<Arc<Stream>> {
        self.lock().remove(name)
    }

    pub(super) fn all(&self) -> Vec<Arc<Stream>> {
        self.lock().values().cloned().collect()
    }
}
