use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use log::{Log, LogError, StreamName};
use model::{Chunk, ChunkLogged, Record, Seq, TableName};
use tokio::task::JoinSet;
use tracing::warn;

use crate::{CaptureError, Streams};

/// The chunks of one table's epoch; shared by all who read it.
pub(super) struct Chunks {
    pub log: Arc<dyn Log>,
    pub streams: Streams,
    pub table: TableName,
    pub epoch: u32,
    /// Id of the writer.
    pub writer: String,
    /// Bytes that a chunk should not exceed; one row may.
    pub size: usize,
    next: AtomicU64,
    rows: AtomicU64,
}

impl Chunks {
    pub fn new(log: Arc<dyn Log>, streams: Streams, table: TableName, epoch: u32, writer: String) -> Self {
        // Room for the record's other fields: two names of at most 63 bytes, five numbers.
        let size = log.max_message().min(MAX_CHUNK) - 1024;
        Chunks { log, streams, table, epoch, writer, size, next: AtomicU64::new(0), rows: AtomicU64::new(0) }
    }

    /// How many chunks there are, and rows in them.
    pub fn counts(&self) -> (u64, u64) {
        (self.next.load(Ordering::Relaxed), self.rows.load(Ordering::Relaxed))
    }

    async fn append(self: Arc<Self>, data: Bytes, rows: u64) -> Result<(), CaptureError> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
        let bytes = data.len() as u64;
        let chunk = Chunk { table: self.table.clone(), epoch: self.epoch, index, rows, data };
        let sequence = self.append_when_there_is_room(&self.streams.chunks, Record::Chunk(chunk)).await?;
        model::failpoint!("chunk_appended");
        let (table, writer) = (self.table.clone(), self.writer.clone());
        let logged = ChunkLogged { table, epoch: self.epoch, index, rows, bytes, sequence, writer };
        self.append_when_there_is_room(&self.streams.copy, Record::ChunkLogged(logged)).await?;
        model::failpoint!("chunk_logged");
        Ok(())
    }

    /// A full log makes the copy wait: starting over would fill it with the same rows once more.
    async fn append_when_there_is_room(&self, stream: &StreamName, record: Record) -> Result<Seq, LogError> {
        loop {
            match log::append_record(&*self.log, stream, record.clone()).await {
                Err(LogError::Full) => {
                    warn!(%stream, "the log is full; the copy waits until there is room");
                    tokio::time::sleep(FULL).await;
                }
                other => return other,
            }
        }
    }
}

/// How often a full log is tried again.
const FULL: Duration = Duration::from_secs(2);

/// About what a nats-server takes by default; larger chunks gain nothing.
const MAX_CHUNK: usize = 1 << 20;

/// Chunks of one reader that are on their way to the log: enough to hide its latency, 4 MiB at most.
const IN_FLIGHT: usize = 4;

/// Puts rows together to chunks.
pub(super) struct Writer {
    chunks: Arc<Chunks>,
    buffer: BytesMut,
    rows: u64,
    sent: JoinSet<Result<(), CaptureError>>,
}

impl Writer {
    pub fn new(chunks: Arc<Chunks>) -> Self {
        Writer { chunks, buffer: BytesMut::new(), rows: 0, sent: JoinSet::new() }
    }

    /// Takes a row, its line end included.
    pub async fn row(&mut self, row: &[u8]) -> Result<(), CaptureError> {
        if !self.buffer.is_empty() && self.buffer.len() + row.len() > self.chunks.size {
            self.flush().await?;
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(self.chunks.size.max(row.len()));
        }
        self.buffer.extend_from_slice(row);
        self.rows += 1;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), CaptureError> {
        while self.sent.len() >= IN_FLIGHT {
            self.settle().await?;
        }
        let data = std::mem::take(&mut self.buffer).freeze();
        let rows = std::mem::take(&mut self.rows);
        self.sent.spawn(Arc::clone(&self.chunks).append(data, rows));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), CaptureError> {
        match self.sent.join_next().await {
            Some(result) => result.map_err(super::panicked)?,
            None => Ok(()),
        }
    }

    /// Returns once everything is in the log.
    pub async fn finish(mut self) -> Result<(), CaptureError> {
        if self.rows > 0 {
            self.flush().await?;
        }
        while !self.sent.is_empty() {
            self.settle().await?;
        }
        Ok(())
    }
}
