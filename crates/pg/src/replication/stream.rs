//! The task that owns the socket of a started slot, and what its owner holds of it.
//!
//! Frames go through a channel that is bounded by bytes. When it is full the task reads no more, so the server waits;
//! but it goes on reporting, at an interval that the server never has to ask within.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, BytesMut};
use model::Lsn;
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::frame::{self, Cut, Frame};
use super::wire::Wire;
use crate::error::PgError;
use crate::pgoutput::POSTGRES_EPOCH;

/// What may wait between socket and reader: enough to keep both busy, little beside a process's budget of 256 MiB.
const WAITING_BYTES: usize = 16 << 20;

/// What one read may bring: large enough that a system call is rare, small enough to be handed on quickly.
const READ_BYTES: usize = 256 << 10;

/// How long reading rests after a read that brought little. The server sends every change by itself; read as they come, each costs
/// both sides a system call and a wake-up, which under load is more than all other work on it.
const REST: Duration = Duration::from_millis(3);

/// What may wake us while reading rests; the system takes it for a request to make room for as much, so it is not larger.
const WAKE_AT: i32 = 64 << 10;

/// What is little: less than a server near to us has ready when it sends faster than we read.
const LITTLE: usize = 16 << 10;

/// A server that is about to stop asks again as soon as it has been answered, until all of its WAL is confirmed: so a log
/// that confirms minutes later would keep it from stopping. Running, it asks at most once between two of our reports, as
/// they come more often than it asks; this many times between two of them is the stop, and by then everything has been sent.
const ASKS_OF_A_STOPPING_SERVER: u32 = 3;

/// How long the server may take to let go of the slot when we leave.
const FAREWELL: Duration = Duration::from_secs(5);

/// A started slot. It ends when this is dropped; [`close`](Self::close) waits for that.
pub struct ReplicationStream {
    batches: mpsc::UnboundedReceiver<Result<Batch, PgError>>,
    current: std::vec::IntoIter<Frame>,
    /// The current batch's room in the channel, given back with its last frame.
    held: Option<OwnedSemaphorePermit>,
    positions: watch::Sender<Positions>,
    passes_over: Arc<AtomicBool>,
    task: JoinHandle<()>,
    place: String,
}

/// What one read brought.
struct Batch {
    frames: Vec<Frame>,
    room: OwnedSemaphorePermit,
}

/// What the server is told. Zero confirms nothing.
#[derive(Clone, Copy, Default)]
struct Positions {
    write: Lsn,
    flush: Lsn,
    /// The server shall answer.
    ask: bool,
}

impl ReplicationStream {
    /// The next frame, in the server's order. Cancel-safe.
    ///
    /// # Errors
    /// Why there will be no more: the connection broke, the server refused or ended it. After that only
    /// [`PgError::Closed`].
    pub async fn next(&mut self) -> Result<Frame, PgError> {
        loop {
            if let Some(frame) = self.current.next() {
                return Ok(frame);
            }
            self.held = None;
            match self.batches.recv().await {
                Some(Ok(Batch { frames, room })) => {
                    self.current = frames.into_iter();
                    self.held = Some(room);
                }
                Some(Err(error)) => return Err(error),
                None => return Err(self.ended()),
            }
        }
    }

    /// Sets what the server is told from now on, and tells it at once: `write` has been received, `flush` will never be
    /// asked for again, so the server may recycle the WAL before it. Neither goes backwards. With `reply_requested` the
    /// server answers with a keepalive.
    ///
    /// # Errors
    /// [`PgError::Closed`]; [`next`](Self::next) says why.
    pub async fn status(&mut self, write: Lsn, flush: Lsn, reply_requested: bool) -> Result<(), PgError> {
        if self.positions.is_closed() {
            return Err(self.ended());
        }
        self.positions.send_modify(|positions| {
            positions.write = positions.write.max(write);
            positions.flush = positions.flush.max(flush);
            positions.ask = reply_requested;
        });
        Ok(())
    }

    /// Whether changes of rows that come behind the last frame are of no interest: those of more than 16 MiB are not held in memory then, and [`next`](Self::next)
    /// does not return them.
    pub fn pass_over(&self, of_no_interest: bool) {
        self.passes_over.store(of_no_interest, Ordering::Release);
    }

    /// Reports once more, leaves, and waits (at most 5 s) until the server has let go of the slot.
    pub async fn close(self) {
        let ReplicationStream { batches, current, held, positions, passes_over: _, task, place: _ } = self;
        drop((batches, current, held, positions));
        // It only fails where the task panicked, and then the socket is closed as well.
        let _ = task.await;
    }

    fn ended(&self) -> PgError {
        PgError::closed("the replication connection has ended").at(&self.place)
    }
}

/// Hands the connection over to a task.
pub(super) fn start(wire: Wire, every: Duration, place: String, slot: String) -> ReplicationStream {
    let (sender, batches) = mpsc::unbounded_channel();
    let (positions, told) = watch::channel(Positions::default());
    let room = Arc::new(Semaphore::new(WAITING_BYTES));
    let passes_over = Arc::new(AtomicBool::new(false));
    let pump = Pump {
        wire,
        batches: sender,
        room,
        positions: told,
        passes_over: Arc::clone(&passes_over),
        large: None,
        every,
        asked: 0,
        asked_since: Instant::now(),
    };
    let task = tokio::spawn(pump.run(place.clone(), slot));
    ReplicationStream { batches, current: Vec::new().into_iter(), held: None, positions, passes_over, task, place }
}

async fn rest(until: Option<Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until.into()).await;
    }
}

/// A change of a row that is [large](frame::LARGE), of which only the beginning has come.
enum Large {
    /// What the owner does with the frames before it tells whether it is of interest. So many bytes are missing.
    Waits(usize),
    /// It is read.
    Wanted,
    /// So many bytes of it are still to be thrown away.
    PassedOver(usize),
}

struct Pump {
    wire: Wire,
    batches: mpsc::UnboundedSender<Result<Batch, PgError>>,
    room: Arc<Semaphore>,
    positions: watch::Receiver<Positions>,
    passes_over: Arc<AtomicBool>,
    /// The large change at the front.
    large: Option<Large>,
    /// The interval of the reports.
    every: Duration,
    /// How often the server has asked for an answer.
    asked: u32,
    /// Since when.
    asked_since: Instant,
}

impl Pump {
    async fn run(mut self, place: String, slot: String) {
        if let Err(error) = self.pump().await {
            let _ = self.batches.send(Err(frame::slot_error(error.at(&place), &slot)));
        }
        // What the server still has to say no longer matters to anybody.
        let _ = timeout(FAREWELL, self.leave()).await;
    }

    /// Until the owner is gone.
    async fn pump(&mut self) -> Result<(), PgError> {
        let mut report = interval(self.every);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What came together with the answer to START_REPLICATION.
        let mut waiting = self.take().await?;
        let mut rest_until: Option<Instant> = None;
        loop {
            let (room, all_room) = (Arc::clone(&self.room), Arc::clone(&self.room));
            // A batch that is larger than all the room takes all of it, and so passes alone.
            let needed = waiting.as_ref().map_or(0, |cut| cut.bytes.min(WAITING_BYTES) as u32);
            tokio::select! {
                biased;
                // 1. Nobody listens any more.
                () = self.batches.closed() => return Ok(()),
                // 2. The owner has something to report.
                changed = self.positions.changed() => match changed {
                    Ok(()) => {
                        let ask = self.positions.borrow().ask;
                        self.report(ask).await?;
                    }
                    Err(_) => return Ok(()),
                },
                // 3. It is time to report anyway.
                _ = report.tick() => self.report(false).await?,
                // 4. There is room for what has been read; only then more is read.
                room = room.acquire_many_owned(needed), if waiting.is_some() => match (room, waiting.take()) {
                    (Ok(room), Some(cut)) => self.deliver(cut, room)?,
                    _ => return Ok(()),
                },
                // 5. The owner has taken everything before a large change: there is all the room.
                room = all_room.acquire_many_owned(WAITING_BYTES as u32), if waiting.is_none() && self.is_undecided() => match room {
                    Ok(_) => self.decide(),
                    Err(_) => return Ok(()),
                },
                // 6. Reading has rested.
                () = rest(rest_until), if rest_until.is_some() && waiting.is_none() && !self.is_undecided() => {
                    rest_until = None;
                    self.wire.transport.wake_at(1);
                }
                // 7. There is something to read.
                read = self.wire.transport.read_buf(&mut self.wire.incoming),
                    if waiting.is_none() && rest_until.is_none() && !self.is_undecided() =>
                {
                    let read = read?;
                    if read == 0 {
                        return Err(PgError::closed("the server closed the connection"));
                    }
                    if read < LITTLE {
                        rest_until = Some(Instant::now() + REST);
                        self.wire.transport.wake_at(WAKE_AT);
                    }
                    waiting = self.take().await?;
                }
            }
        }
    }

    /// Cuts what has been read, and answers it if that is wanted: before it waits for room.
    async fn take(&mut self) -> Result<Option<Cut>, PgError> {
        if let Some(Large::PassedOver(left)) = &mut self.large {
            let thrown_away = self.wire.incoming.len().min(*left);
            self.wire.incoming.advance(thrown_away);
            *left -= thrown_away;
            if *left == 0 {
                self.large = None;
            }
        }
        let mut cut = match self.large {
            Some(Large::PassedOver(_)) => Cut::default(),
            _ => frame::cut(&mut self.wire.incoming, matches!(self.large, Some(Large::Wanted))),
        };
        if let Some(missing) = cut.large {
            self.large = Some(Large::Waits(missing));
        } else if !cut.frames.is_empty() {
            self.large = None;
        }
        if self.wire.incoming.capacity() - self.wire.incoming.len() < READ_BYTES / 4 {
            self.wire.incoming.reserve(READ_BYTES);
        }
        if cut.reply {
            self.report(false).await?;
            if self.server_stops() {
                cut.end.get_or_insert_with(|| PgError::closed("the server is stopping"));
            }
        }
        Ok((!cut.frames.is_empty() || cut.end.is_some()).then_some(cut))
    }

    fn is_undecided(&self) -> bool {
        matches!(self.large, Some(Large::Waits(_)))
    }

    /// Whether the change at the front is read.
    fn decide(&mut self) {
        let Some(Large::Waits(missing)) = self.large else { return };
        self.large = Some(match self.passes_over.load(Ordering::Acquire) {
            true => {
                self.wire.incoming.clear();
                Large::PassedOver(missing)
            }
            false => {
                self.wire.incoming.reserve(missing);
                Large::Wanted
            }
        });
    }

    fn server_stops(&mut self) -> bool {
        if self.asked_since.elapsed() > self.every {
            (self.asked, self.asked_since) = (0, Instant::now());
        }
        self.asked += 1;
        self.asked >= ASKS_OF_A_STOPPING_SERVER
    }

    fn deliver(&self, cut: Cut, room: OwnedSemaphorePermit) -> Result<(), PgError> {
        // The owner may have gone in this moment; the loop notices.
        let _ = self.batches.send(Ok(Batch { frames: cut.frames, room }));
        cut.end.map_or(Ok(()), Err)
    }

    /// Standby status update (Postgres manual, "Streaming Replication Protocol").
    async fn report(&mut self, ask: bool) -> Result<(), PgError> {
        let Positions { write, flush, .. } = *self.positions.borrow_and_update();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        let mut message = BytesMut::with_capacity(39);
        message.put_u8(b'd');
        message.put_u32(38);
        message.put_u8(b'r');
        message.put_u64(write.0);
        message.put_u64(flush.0);
        // Applied: nothing is for the server to wait for beyond flushed.
        message.put_u64(flush.0);
        message.put_i64(now - POSTGRES_EPOCH);
        message.put_u8(u8::from(ask));
        self.wire.send(&message).await
    }

    async fn leave(&mut self) -> Result<(), PgError> {
        self.report(false).await?;
        self.wire.send(&[b'X', 0, 0, 0, 4]).await?;
        // The server closes when the slot is free. It may be in the middle of sending: that has to go somewhere.
        while self.wire.transport.read_buf(&mut self.wire.incoming).await? > 0 {
            self.wire.incoming.clear();
        }
        Ok(())
    }
}
