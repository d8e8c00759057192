//! The log in a local folder, for a migration that runs on one machine as one process.
//!
//! The folder is a RocksDB ([`store`], its [`keys`]). One thread writes it and one syncs it ([`writer`]); both live as long
//! as the last [`Embedded`], chain or reader of it. Stored means in the operating system's hands: it survives the process,
//! and a power loss once synced, a tenth of a second later.

mod keys;
mod reader;
mod store;
mod stream;
mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use model::Seq;
use tokio::sync::oneshot;

use crate::window::{Ack, Link, Window};
use crate::{Chain, Log, LogError, Message, Reader, StreamName, StreamState};
use store::Store;
use stream::{Stream, Streams};
use writer::{After, Command, Links, Writer};

/// Far above the usual 256 KiB, and a chain's whole window.
const MAX_MESSAGE: usize = 8 << 20;

/// A log in a folder. Clones share it.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

struct Shared {
    // Before the store: its threads end first.
    writer: Option<Writer>,
    streams: Arc<Streams>,
    store: Arc<Store>,
}

impl Embedded {
    /// Opens the folder, or creates it. Only one process can have it open like this.
    ///
    /// # Errors
    /// [`LogError::StateNotWritable`] if it cannot be written, or another process has it open.
    pub fn open(path: impl AsRef<Path>) -> Result<Embedded, LogError> {
        let (store, streams) = load(Store::open(path.as_ref())?)?;
        let writer = Some(Writer::start(&store, &streams)?);
        Ok(Embedded { shared: Arc::new(Shared { writer, streams, store }) })
    }

    /// Opens what is in the folder now, whether or not a process writes it. What is written later is seen by the next one
    /// that is opened; a reader waits at the end for ever, and every kind of writing is refused.
    ///
    /// # Errors
    /// [`LogError::StateNotWritable`] if there is no log or it cannot be read.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Embedded, LogError> {
        let (store, streams) = load(Store::open_read_only(path.as_ref())?)?;
        Ok(Embedded { shared: Arc::new(Shared { writer: None, streams, store }) })
    }
}

fn load(store: Store) -> Result<(Arc<Store>, Arc<Streams>), LogError> {
    let streams = Streams::default();
    for (name, id, state) in store.streams()? {
        streams.insert(Stream::new(id, name, state));
    }
    Ok((Arc::new(store), Arc::new(streams)))
}

impl Shared {
    fn stream(&self, name: &StreamName) -> Result<Arc<Stream>, LogError> {
        self.streams.get(&name.checked_subject()?).ok_or(LogError::NoStream)
    }

    async fn send(&self, command: Command) -> Result<(), LogError> {
        match &self.writer {
            Some(writer) => writer.send(command).await,
            None => Err(LogError::StateNotWritable {
                path: self.store.path().to_owned(),
                why: "it is open for reading only".to_owned(),
            }),
        }
    }

    /// Sends an append; the future it returns resolves when it is stored.
    async fn append(&self, stream: Arc<Stream>, payload: Bytes, after: After) -> Result<Ack, LogError> {
        if payload.len() > MAX_MESSAGE {
            return Err(LogError::TooLarge);
        }
        let (done, stored) = oneshot::channel();
        self.send(Command::Append { stream, payload, after, done }).await?;
        Ok(Box::pin(async move { stored.await.unwrap_or_else(|_| Err(writer::ended())) }))
    }

    async fn get(&self, stream: Arc<Stream>, seq: Seq) -> Result<Message, LogError> {
        let store = self.store.clone();
        let id = stream.id;
        match blocking(move || store.get(id, seq)).await? {
            Some(payload) => Ok(Message { seq, payload }),
            None => Err(LogError::Missing { seq, first: stream.state().first }),
        }
    }
}

/// Runs what may wait for the disk where it holds nobody up.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    match tokio::task::spawn_blocking(run).await {
        Ok(result) => result,
        Err(error) => Err(LogError::Other(format!("reading the embedded log: {error}"))),
    }
}

#[async_trait]
impl Log for Embedded {
    async fn create(&self, stream: &StreamName) -> Result<(), LogError> {
        let (done, created) = oneshot::channel();
        self.shared.send(Command::Create { name: stream.checked_subject()?, done }).await?;
        created.await.unwrap_or_else(|_| Err(writer::ended()))
    }

    async fn state(&self, stream: &StreamName) -> Result<Option<StreamState>, LogError> {
        Ok(self.shared.streams.get(&stream.checked_subject()?).map(|stream| stream.state()))
    }

    async fn get(&self, stream: &StreamName, seq: Seq) -> Result<Message, LogError> {
        self.shared.get(self.shared.stream(stream)?, seq).await
    }

    async fn last(&self, stream: &StreamName) -> Result<Option<Message>, LogError> {
        let stream = self.shared.stream(stream)?;
        match stream.state() {
            StreamState { messages: 0, .. } => Ok(None),
            StreamState { last, .. } => self.shared.get(stream, last).await.map(Some),
        }
    }

    async fn append(&self, stream: &StreamName, payload: Bytes) -> Result<Seq, LogError> {
        self.shared.append(self.shared.stream(stream)?, payload, After::Any).await?.await
    }

    async fn append_first(&self, stream: &StreamName, payload: Bytes) -> Result<Seq, LogError> {
        self.shared.append(self.shared.stream(stream)?, payload, After::Seq(Seq::ZERO)).await?.await
    }

    async fn chain(&self, stream: &StreamName, after: Seq) -> Result<Box<dyn Chain>, LogError> {
        let stream = self.shared.stream(stream)?;
        Ok(Box::new(Window::new(EmbeddedLink { shared: self.shared.clone(), stream, links: Links::default() }, after)))
    }

    async fn read(&self, stream: &StreamName, from: Seq) -> Result<Box<dyn Reader>, LogError> {
        let stream = self.shared.stream(stream)?;
        Ok(Box::new(reader::EmbeddedReader::open(self.shared.store.clone(), stream, from)?))
    }

    async fn remove(&self, stream: &StreamName) -> Result<(), LogError> {
        let (done, removed) = oneshot::channel();
        self.shared.send(Command::Remove { name: stream.checked_subject()?, done }).await?;
        removed.await.unwrap_or_else(|_| Err(writer::ended()))
    }

    fn max_message(&self) -> usize {
        MAX_MESSAGE
    }

    fn describe(&self) -> String {
        self.shared.store.path().display().to_string()
    }
}

struct EmbeddedLink {
    shared: Arc<Shared>,
    stream: Arc<Stream>,
    links: Links,
}

#[async_trait]
impl Link for EmbeddedLink {
    async fn send(&mut self, payload: Bytes, after: Seq, _: bool) -> Result<Ack, LogError> {
        self.shared.append(self.stream.clone(), payload, After::Link(after, self.links.clone())).await
    }

    fn max_message(&self) -> usize {
        MAX_MESSAGE
    }

    fn acked(&mut self, _: Seq) {}

    fn durable(&mut self) -> Result<Seq, LogError> {
        self.stream.there()?;
        Ok(self.stream.synced())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::StreamKind;

    fn tail() -> StreamName {
        StreamName::new("shop", "main", StreamKind::Tail)
    }

    #[tokio::test]
    async fn a_message_taken_out_of_the_folder_is_missing_and_not_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let log = Embedded::open(folder.path()).unwrap();
        log.create(&tail()).await.unwrap();
        for text in ["one", "two", "three"] {
            log.append(&tail(), Bytes::from(text)).await.unwrap();
        }
        log.shared.store.damage(log.shared.stream(&tail()).unwrap().id, Seq(2)).unwrap();
        let mut reader = log.read(&tail(), Seq(1)).await.unwrap();
        assert_eq!(reader.next().await.unwrap().seq, Seq(1));
        for _ in 0..2 {
            assert!(matches!(reader.next().await, Err(LogError::Missing { seq: Seq(2), .. })));
        }
        assert!(matches!(log.get(&tail(), Seq(2)).await, Err(LogError::Missing { seq: Seq(2), .. })));
        let mut reader = log.read(&tail(), Seq(3)).await.unwrap();
        assert_eq!(reader.next().await.unwrap().payload, "three");
    }

    #[tokio::test]
    async fn a_disk_that_runs_full_says_full_and_accepts_again_after_room() {
        let folder = tempfile::tempdir().unwrap();
        let log = Embedded::open(folder.path()).unwrap();
        log.create(&tail()).await.unwrap();
        let writer = log.shared.writer.as_ref().unwrap();
        writer.set_reserve(u64::MAX);
        let mut chain = log.chain(&tail(), Seq::ZERO).await.unwrap();
        chain.push(Bytes::from("one")).await.unwrap();
        assert!(matches!(chain.settle().await, Err(LogError::Full)));
        writer.set_reserve(0);
        let mut chain = log.chain(&tail(), Seq::ZERO).await.unwrap();
        chain.push(Bytes::from("one")).await.unwrap();
        assert_eq!(chain.settle().await.unwrap(), Seq(1));
    }

    #[tokio::test]
    async fn a_folder_in_use_or_no_folder_at_all_is_told_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let _log = Embedded::open(folder.path()).unwrap();
        let Err(LogError::StateNotWritable { why, .. }) = Embedded::open(folder.path()) else { panic!("opened twice") };
        assert!(why.contains("another process"), "{why}");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Embedded::open(file.join("log")), Err(LogError::StateNotWritable { .. })));
        assert!(matches!(Embedded::open_read_only(&file), Err(LogError::StateNotWritable { .. })));
    }

    #[tokio::test]
    async fn status_sees_what_was_written_before_it_opened_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let log = Embedded::open(folder.path()).unwrap();
        log.create(&tail()).await.unwrap();
        for n in 1..=3u64 {
            log.append(&tail(), Bytes::from(vec![n as u8; 1 << 20])).await.unwrap();
            let status = Embedded::open_read_only(folder.path()).unwrap();
            assert_eq!(status.state(&tail()).await.unwrap().unwrap().last, Seq(n));
            assert_eq!(status.last(&tail()).await.unwrap().unwrap().payload.len(), 1 << 20);
            let refused = status.append(&tail(), Bytes::from("no")).await;
            assert!(matches!(refused, Err(LogError::StateNotWritable { .. })));
        }
    }
}
