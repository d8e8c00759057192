//! The two threads behind an open folder. The writer takes what waits, up to [`BATCH`], and stores it at once; it is the
//! only one that writes, so sequences need no lock. The syncer makes what is stored survive a power loss, and nobody
//! waits for it but [`Chain::durable`](crate::Chain::durable).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use model::Seq;
use tokio::sync::{mpsc, oneshot};

use super::keys::StreamId;
use super::store::Store;
use super::stream::{Stream, Streams};
use crate::{LogError, StreamState};

/// Commands that wait; chains bound their bytes.
const WAITING: usize = 64;

/// What is written at once.
const BATCH: usize = 4 << 20;

/// Between two syncs: ten a second are little for a disk, and the slot at the source waits no longer.
const SYNC: Duration = Duration::from_millis(100);

/// Left free on the disk: compactions need room, and RocksDB does not recover from a full disk without being reopened.
pub(super) const RESERVE: u64 = 256 << 20;

/// Written between two looks at the room that is left.
const LOOK: u64 = 16 << 20;

pub(super) enum Command {
    Append { stream: Arc<Stream>, payload: Bytes, after: After, done: oneshot::Sender<Result<Seq, LogError>> },
    Create { name: String, done: oneshot::Sender<Result<(), LogError>> },
    Remove { name: String, done: oneshot::Sender<Result<(), LogError>> },
}

/// What an append is to follow.
pub(super) enum After {
    /// Whatever is there.
    Any,
    /// This message.
    Seq(Seq),
    /// This message, in a chain that must be whole: a number alone would let an append follow somebody else's message
    /// that took its predecessor's place.
    Link(Seq, Links),
}

/// Whether something of a chain was refused.
#[derive(Clone, Default)]
pub(super) struct Links(Arc<AtomicBool>);

impl After {
    fn allows(&self, last: Seq) -> bool {
        match self {
            After::Any => true,
            After::Seq(after) => *after == last,
            After::Link(after, links) => *after == last && !links.0.load(Ordering::Acquire),
        }
    }

    fn refuse(&self) {
        match self {
            After::Any | After::Seq(_) => {}
            After::Link(_, links) => links.0.store(true, Ordering::Release),
        }
    }
}

/// Both threads; they end when it is dropped, what was sent being stored and synced.
pub(super) struct Writer {
    commands: Option<mpsc::Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
    reserve: Arc<AtomicU64>,
}

impl Writer {
    pub(super) fn start(store: &Arc<Store>, streams: &Arc<Streams>) -> Result<Writer, LogError> {
        let (commands, waiting) = mpsc::channel(WAITING);
        let (dirty, wakes) = sync_channel(1);
        let reserve = Arc::new(AtomicU64::new(RESERVE));
        let task =
            Task { store: store.clone(), streams: streams.clone(), dirty, reserve: reserve.clone(), unchecked: LOOK };
        let (store, streams) = (store.clone(), streams.clone());
        let threads = vec![
            spawn("log-writer", move || task.run(waiting))?,
            spawn("log-sync", move || sync(&store, &streams, &wakes))?,
        ];
        Ok(Writer { commands: Some(commands), threads, reserve })
    }

    pub(super) async fn send(&self, command: Command) -> Result<(), LogError> {
        let commands = self.commands.as_ref().ok_or_else(ended)?;
        commands.send(command).await.map_err(|_| ended())
    }

    /// Changes how much room is left free.
    #[cfg(test)]
    pub(super) fn set_reserve(&self, bytes: u64) {
        self.reserve.store(bytes, Ordering::Release);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.commands = None;
        self.reserve.store(0, Ordering::Release);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the embedded log panicked");
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LogError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map_err(|error| LogError::Other(format!("no thread for the embedded log: {error}")))
}

pub(super) fn ended() -> LogError {
    LogError::Other("the embedded log's writer has ended".to_owned())
}

struct Task {
    store: Arc<Store>,
    streams: Arc<Streams>,
    dirty: SyncSender<()>,
    reserve: Arc<AtomicU64>,
    /// Written since the last look at the room that is left.
    unchecked: u64,
}

/// Appends that are stored together.
#[derive(Default)]
struct Batch {
    messages: Vec<(StreamId, Seq, Bytes)>,
    bytes: usize,
    streams: HashMap<StreamId, (Arc<Stream>, StreamState)>,
    asked: Vec<Asked>,
}

/// Who waits for an append that is in a [`Batch`].
struct Asked {
    done: oneshot::Sender<Result<Seq, LogError>>,
    seq: Seq,
    after: After,
}

impl Task {
    fn run(mut self, mut waiting: mpsc::Receiver<Command>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut batch = Batch::default();
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Append { stream, payload, after, done } => batch.add(stream, payload, after, done),
                    Command::Create { name, done } => {
                        self.store(std::mem::take(&mut batch));
                        done.send(self.create(name)).ok();
                    }
                    Command::Remove { name, done } => {
                        self.store(std::mem::take(&mut batch));
                        done.send(self.remove(&name)).ok();
                    }
                }
                next = if batch.bytes < BATCH { waiting.try_recv().ok() } else { None };
            }
            self.store(batch);
        }
    }

    fn store(&mut self, batch: Batch) {
        if batch.messages.is_empty() {
            return;
        }
        let written = self.room(batch.bytes as u64).and_then(|()| {
            let states = batch.streams.values().map(|(stream, state)| (stream.name.as_str(), stream.id, *state));
            self.store.append(batch.messages.iter().map(|(id, seq, payload)| (*id, *seq, payload)), states)
        });
        match written {
            Ok(()) => {
                model::failpoint!("log_stored");
                for (stream, state) in batch.streams.into_values() {
                    stream.stored(state);
                }
                // One wake-up waiting is enough.
                self.dirty.try_send(()).ok();
                for asked in batch.asked {
                    asked.done.send(Ok(asked.seq)).ok();
                }
            }
            Err(error) => {
                for asked in batch.asked {
                    asked.after.refuse();
                    asked.done.send(Err(error.clone())).ok();
                }
            }
        }
    }

    fn room(&mut self, bytes: u64) -> Result<(), LogError> {
        self.unchecked += bytes;
        if self.unchecked < LOOK {
            return Ok(());
        }
        if self.store.room()? < self.reserve.load(Ordering::Acquire) {
            return Err(LogError::Full);
        }
        self.unchecked = 0;
        Ok(())
    }

    fn create(&self, name: String) -> Result<(), LogError> {
        if self.streams.get(&name).is_some() {
            return Ok(());
        }
        let state = StreamState { first: Seq(1), ..StreamState::default() };
        let id = self.store.create(&name, &state)?;
        self.streams.insert(Stream::new(id, name, state));
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), LogError> {
        let Some(stream) = self.streams.get(name) else { return Ok(()) };
        self.store.remove(name, stream.id)?;
        self.streams.remove(name);
        stream.remove();
        Ok(())
    }
}

impl Batch {
    fn add(&mut self, stream: Arc<Stream>, payload: Bytes, after: After, done: oneshot::Sender<Result<Seq, LogError>>) {
        let there = stream.there();
        let (_, state) = self.streams.entry(stream.id).or_insert_with(|| (stream.clone(), stream.state()));
        let allowed = match after.allows(state.last) {
            true => there,
            false => there.and(Err(LogError::Conflict { last: state.last })),
        };
        if let Err(error) = allowed {
            after.refuse();
            done.send(Err(error)).ok();
            return;
        }
        state.last = state.last.next();
        state.messages += 1;
        state.bytes += payload.len() as u64;
        self.bytes += payload.len();
        self.asked.push(Asked { done, seq: state.last, after });
        self.messages.push((stream.id, state.last, payload));
    }
}

/// Syncs at most every [`SYNC`] while something is written, and once more at the end.
fn sync(store: &Store, streams: &Streams, wakes: &Receiver<()>) {
    let mut on = true;
    while on {
        on = wakes.recv().is_ok();
        let until = Instant::now() + SYNC;
        while on {
            match wakes.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => on = false,
            }
        }
        let stored: Vec<_> = streams.all().into_iter().map(|stream| (stream.state().last, stream)).collect();
        match store.sync() {
            Ok(()) => {
                model::failpoint!("log_synced");
                stored.iter().for_each(|(last, stream)| stream.sync_reached(*last));
            }
            // Nothing becomes durable any more, so the source keeps its WAL; the next append fails and says why.
            Err(error) => tracing::error!(%error, "the embedded log cannot be synced"),
        }
    }
}
