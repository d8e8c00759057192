//! Committed transactions, in commit order, from the slot to the log.
//!
//! [`resume`] finds where the log ends, [`assemble`] turns pgoutput's messages into parts of transactions ([`streamed`] keeps
//! those still in progress, [`outcome`] asks what of them rolled back), [`batch`] packs parts into records, [`confirm`] remembers what of it is safe, [`writers`] whether another
//! process has taken this one's place. One run of this module is one replication connection and one chain of appends; when either
//! breaks, everything starts again from what the log has.

mod assemble;
mod batch;
mod confirm;
mod outcome;
mod resume;
mod streamed;
mod writers;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use log::{Chain, LogError, StreamName};
use model::{Heartbeat, Lsn, Record, TailBegin, Writer};
use offsets::TailPosition;
use pg::{Frame, Replication, ReplicationStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use assemble::Assembler;
use batch::Packer;
use confirm::Confirm;
use outcome::Outcomes;
pub(crate) use resume::{Resume, resume_point};
pub(crate) use writers::Writers;

use crate::run::Running;
use crate::{CaptureError, claim, publication, slot};

/// How often acknowledgements are looked at and the server is told: well under its `wal_sender_timeout`, and what is
/// kept back at the source grows by no more than this.
const TICK: Duration = Duration::from_millis(250);

/// How long a transaction may wait for others to share its message: some milliseconds are nothing to those who watch lag, and save nine
/// tenths of the messages under load.
const LINGER: Duration = Duration::from_millis(5);

/// After how much idle time the log is told that there is nothing new, so that the source may recycle WAL that is not ours. Less than the time between two
/// looks at the catalogs, each of which writes a transaction of its own.
const IDLE: Duration = Duration::from_secs(3);

/// How long a walsender of an earlier connection may take to notice that it is alone.
const SLOT_BUSY: Duration = Duration::from_secs(1);

/// Runs until `stop`, or an error. Sets `begun` once it holds the slot and the log's end.
pub(crate) async fn run(
    running: Arc<Running>,
    from: Resume,
    begun: &watch::Sender<bool>,
    stop: &CancellationToken,
) -> Result<(), CaptureError> {
    let start = from.lsn.unwrap_or(Lsn::ZERO);
    let Some(stream) = connect(&running, start, stop).await? else { return Ok(()) };
    let mut tail = match Tail::begin(&running, stream, from).await {
        // Who had the slot before wrote on while we waited for it: look again where the log ends.
        Err(CaptureError::Log(LogError::Conflict { .. })) => {
            return Err(LogError::Unavailable("the log has grown since it was looked at".to_owned()).into());
        }
        other => other?,
    };
    begun.send_replace(true);
    let result = tail.follow(stop).await;
    match result {
        Err(CaptureError::Log(LogError::Conflict { .. })) => Err(tail.conflict().await),
        other => other,
    }
}

/// Gets hold of the slot. While another walsender has it, waits and says so.
async fn connect(
    running: &Running,
    start: Lsn,
    stop: &CancellationToken,
) -> Result<Option<ReplicationStream>, CaptureError> {
    let job = &running.job;
    let name = slot::slot_name(&job.plan.name, &job.source.name);
    let publications = publication::names(&job.plan.name, &job.source.name);
    let tail = claim::streams(&job.plan.name, &job.source.name).tail;
    let mut said = false;
    loop {
        // Whoever has the slot may be there in this process's place.
        running.writers.check(&*job.log, &tail).await?;
        let replication = Replication::connect(&job.endpoint, &format!("tail {}", job.plan.name)).await?;
        let error = match replication.start(&name, start, &publications, pg::ProtocolVersion::V2).await {
            Ok(stream) => return Ok(Some(stream)),
            Err(error) => error,
        };
        if error.sqlstate() != Some("55006") {
            return Err(error.into());
        }
        if !said {
            said = true;
            warn!(slot = name, "another connection reads the slot: {error}; waiting for it to end");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(SLOT_BUSY) => {}
        }
    }
}

struct Tail {
    running: Arc<Running>,
    name: StreamName,
    writer: String,
    stream: ReplicationStream,
    chain: Box<dyn Chain>,
    assembler: Assembler,
    packer: Packer,
    confirm: Confirm,
    outcomes: Outcomes,
    /// When something was last appended.
    appended: tokio::time::Instant,
}

impl Tail {
    async fn begin(running: &Arc<Running>, stream: ReplicationStream, from: Resume) -> Result<Tail, CaptureError> {
        let job = &running.job;
        let name = claim::streams(&job.plan.name, &job.source.name).tail;
        let start = from.lsn.unwrap_or(Lsn::ZERO);
        let writer = uuid::Uuid::new_v4().to_string();
        let mut chain = job.log.chain(&name, from.last).await?;
        let max = job.log.max_message();
        running.writers.add(&writer);
        let anew = running.anew();
        let hello = Writer { id: writer.clone(), name: job.worker.clone(), anew: anew.is_some() };
        let begun = log::push_record(&mut *chain, max, Record::Writer(hello)).await?;
        // Says where the tail begins: from here on the slot must never be ahead of the log.
        let seq = log::push_record(&mut *chain, max, beat(start, &writer)).await?;
        chain.settle().await?;
        model::failpoint!("tail_begun");
        running.writers.begun(begun);
        if let Some(recopy) = anew {
            // Until this is logged, everything of the recopy is to be done; apply waits at the hello for it.
            let record = Record::TailBegin(TailBegin { recopy, lsn: start, sequence: begun });
            log::append_record(&*job.log, &claim::streams(&job.plan.name, &job.source.name).copy, record).await?;
            running.begun_anew();
        }
        info!(source = job.source.name, from = %start, "tail starts");
        let mut confirm = Confirm::new(start);
        confirm.pushed(seq, start);
        Ok(Tail {
            assembler: Assembler::new(running, start, job.offsets.spill(&job.source.name)?),
            packer: Packer::new(writer.clone(), max),
            running: Arc::clone(running),
            name,
            writer,
            stream,
            chain,
            confirm,
            outcomes: Outcomes::default(),
            appended: tokio::time::Instant::now(),
        })
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Result<(), CaptureError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.finish().await,
                _ = tick.tick() => self.report().await?,
                frame = self.stream.next() => self.take(frame?).await?,
            }
        }
    }

    /// Takes a frame and what comes in behind it, then hands on what is complete: many small transactions share a record, and none
    /// waits for others longer than [`LINGER`]. A marker does not wait at all, for somebody waits for it.
    async fn take(&mut self, frame: Frame) -> Result<(), CaptureError> {
        let until = tokio::time::Instant::now() + LINGER;
        let mut next = Some(frame);
        while let Some(frame) = next {
            match frame {
                Frame::Data { payload, .. } => {
                    if let Some(committed) = self.assembler.take(payload, &mut self.packer)? {
                        let rolled_back =
                            self.outcomes.rolled_back(&self.running.job, &committed.subtransactions).await?;
                        self.assembler.settle(&committed, &rolled_back, &mut self.packer)?;
                    }
                }
                Frame::Keepalive { end, reply } => self.keepalive(end, reply).await?,
            }
            if self.packer.full() {
                break;
            }
            next = match self.stream.next().now_or_never() {
                Some(frame) => Some(frame?),
                None if !self.packer.may_wait() => None,
                None => tokio::time::timeout_at(until, self.stream.next()).await.ok().transpose()?,
            };
        }
        self.append().await?;
        if self.assembler.between_transactions() {
            self.confirm.seen(self.assembler.passed());
        }
        Ok(())
    }

    async fn append(&mut self) -> Result<(), CaptureError> {
        let max = self.running.job.log.max_message();
        loop {
            self.packer.close();
            while let Some((batch, complete)) = self.packer.pop() {
                let seq = log::push_record(&mut *self.chain, max, Record::Batch(batch)).await?;
                model::failpoint!("batch_sent");
                self.appended = tokio::time::Instant::now();
                if let Some(lsn) = complete {
                    self.confirm.pushed(seq, lsn);
                }
            }
            // A large transaction that was streamed is read back piece by piece.
            if !self.assembler.replay(&mut self.packer)? {
                return Ok(());
            }
        }
    }

    async fn keepalive(&mut self, end: Lsn, reply: bool) -> Result<(), CaptureError> {
        if self.assembler.between_transactions() {
            // What waits for company comes before it.
            self.append().await?;
            self.confirm.seen(end);
        }
        if reply { self.report().await } else { Ok(()) }
    }

    /// Tells the server how far the log is, and the log when nothing happens.
    async fn report(&mut self) -> Result<(), CaptureError> {
        let idle = self.appended.elapsed() > IDLE;
        if let Some(lsn) = self.confirm.news().filter(|_| idle && self.assembler.between_transactions()) {
            let max = self.running.job.log.max_message();
            let seq = log::push_record(&mut *self.chain, max, beat(lsn, &self.writer)).await?;
            model::failpoint!("heartbeat_sent");
            self.confirm.pushed(seq, lsn);
            self.appended = tokio::time::Instant::now();
        }
        let acked = self.chain.acked()?;
        let durable = self.chain.durable()?;
        if let Some((seq, lsn)) = self.confirm.acknowledged(acked) {
            model::failpoint!("log_acknowledged");
            self.running.job.offsets.set_tail(&self.running.job.source.name, TailPosition { seq, lsn })?;
            model::failpoint!("offset_saved");
        }
        let (write, flush) = (self.confirm.written(), self.confirm.durable(durable));
        self.stream.status(write, flush, false).await?;
        model::failpoint!("wal_acknowledged");
        Ok(())
    }

    /// Stops between transactions: what is unfinished is sent again next time.
    async fn finish(&mut self) -> Result<(), CaptureError> {
        self.append().await?;
        self.chain.settle().await?;
        self.report().await
    }

    /// An append was refused. If somebody else wrote behind our back, we are not the writer any more; else an acknowledgement was
    /// lost, or the log has lost its end, and it goes on from what is there.
    async fn conflict(&mut self) -> CaptureError {
        match self.running.writers.check(&*self.running.job.log, &self.name).await {
            Err(error) => error,
            Ok(()) => LogError::Unavailable("its tail is not where this process left it".to_owned()).into(),
        }
    }
}

/// The tail is complete up to `lsn`.
fn beat(lsn: Lsn, writer: &str) -> Record {
    Record::Heartbeat(Heartbeat { lsn, time: now(), writer: writer.to_owned() })
}

/// Microseconds since 1970.
fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
