use std::sync::Arc;

use log::{Log, LogError, Reader, StreamName};
use model::{Record, Seq};

/// The records of a stream that are there, up to some message; unlike a follower it never waits for one.
pub(crate) struct Walk {
    log: Arc<dyn Log>,
    stream: StreamName,
    reader: Option<Box<dyn Reader>>,
    next: Seq,
    last: Seq,
}

impl Walk {
    /// From message `from` on, through message `last`.
    pub fn new(log: &Arc<dyn Log>, stream: &StreamName, from: Seq, last: Seq) -> Walk {
        Walk { log: Arc::clone(log), stream: stream.clone(), reader: None, next: from.max(Seq(1)), last }
    }

    /// The next record, and the message that completes it; `None` behind the last one.
    pub async fn next(&mut self) -> Result<Option<(Seq, Record)>, LogError> {
        while self.next <= self.last {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(self.log.read(&self.stream, self.next).await?),
            };
            let message = reader.next().await?;
            self.next = message.seq.next();
            match Record::decode(message.payload)? {
                Record::Blob(_) | Record::Unknown => {}
                Record::Joined(_) => {
                    let record = log::get_record(&*self.log, &self.stream, message.seq).await?;
                    return Ok(Some((message.seq, record)));
                }
                record => return Ok(Some((message.seq, record))),
            }
        }
        Ok(None)
    }
}
