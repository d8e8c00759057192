use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log::{Embedded, Log, LogError, RecordReader, StreamName};
use model::{Problem, Record, Seq};

use crate::error::VerifyError;

/// How to get at the log.
#[derive(Clone)]
pub enum LogAccess {
    /// It shows what is appended.
    Live(Arc<dyn Log>),
    /// The embedded one, in this folder, which another process writes: it shows what was in it when it was opened.
    Embedded(PathBuf),
}

impl LogAccess {
    /// The log as it is now.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub async fn open(&self) -> Result<Arc<dyn Log>, Problem> {
        match self {
            LogAccess::Live(log) => Ok(Arc::clone(log)),
            LogAccess::Embedded(folder) => {
                let folder = folder.clone();
                let open = tokio::task::spawn_blocking(move || Embedded::open_read_only(folder));
                let log = open.await.map_err(|error| LogError::Other(error.to_string()))??;
                Ok(Arc::new(log))
            }
        }
    }

    /// It has to be opened again to see more.
    pub(crate) fn frozen(&self) -> bool {
        matches!(self, LogAccess::Embedded(_))
    }
}

/// After how long without a message an embedded log is opened again: it shows what was in it then.
const REOPEN: Duration = Duration::from_millis(20);

/// How long nothing may come where something must: a marker was written, and a heartbeat comes every few seconds.
const SILENT: Duration = Duration::from_secs(30);

/// A stream's records, from some message on, as they come.
pub(crate) struct Records<'a> {
    open: &'a LogAccess,
    stream: StreamName,
    next: Seq,
    reader: Option<RecordReader>,
}

impl<'a> Records<'a> {
    pub fn new(open: &'a LogAccess, stream: StreamName, from: Seq) -> Self {
        Records { open, stream, next: from, reader: None }
    }

    /// The next one; waits for it, half a minute at most. May be cancelled and called again.
    pub async fn next(&mut self) -> Result<(Seq, Record), VerifyError> {
        let silent = || {
            VerifyError::Still(format!(
                "the log tells nothing new for {} s; `crossfade status` says whether capture runs",
                SILENT.as_secs()
            ))
        };
        tokio::time::timeout(SILENT, self.wait()).await.map_err(|_| silent())?
    }

    async fn wait(&mut self) -> Result<(Seq, Record), VerifyError> {
        loop {
            let reader = match self.reader.take() {
                Some(reader) => self.reader.insert(reader),
                None => {
                    let log = self.open.open().await?;
                    match RecordReader::open(log, self.stream.clone(), self.next).await {
                        Ok(reader) => self.reader.insert(reader),
                        // What is next is not there yet.
                        Err(LogError::Missing { first, .. }) if first <= self.next => {
                            tokio::time::sleep(REOPEN).await;
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            let (seq, record) = if self.open.frozen() {
                match tokio::time::timeout(REOPEN, reader.next()).await {
                    Ok(record) => record?,
                    Err(_) => {
                        self.reader = None;
                        continue;
                    }
                }
            } else {
                reader.next().await?
            };
            self.next = seq.next();
            return Ok((seq, record));
        }
    }
}
