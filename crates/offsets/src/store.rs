use std::path::{Path, PathBuf};
use std::sync::Arc;

use bincode::{Decode, Encode};
use model::{Code, Lsn, Problem, Seq};
use rocksdb::{DB, Direction, IteratorMode, Options};
use tracing::warn;

use crate::{Spill, codec, keys};

/// The store of one process. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Arc<DB>,
}

/// Where a source's tail ends in the log, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailPosition {
    /// The last message known to hold a commit or a heartbeat.
    pub seq: Seq,
    /// The LSN up to which the log is complete with it.
    pub lsn: Lsn,
}

#[derive(Encode, Decode)]
struct StoredPosition {
    seq: u64,
    lsn: u64,
}

/// The store failed.
#[derive(Debug, thiserror::Error)]
pub enum OffsetsError {
    /// The folder cannot be opened, or another process has it.
    #[error("cannot open the offset store in {}: {source}", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// RocksDB's reason.
        source: rocksdb::Error,
    },
    /// Reading or writing failed: disk full, damaged file.
    #[error("the offset store failed: {0}")]
    Access(#[from] rocksdb::Error),
    /// A value could not be encoded.
    #[error("the offset store cannot hold a value: {0}")]
    Value(String),
}

impl From<OffsetsError> for Problem {
    fn from(error: OffsetsError) -> Self {
        Problem::new(
            Code::StateNotWritable,
            "the offset store",
            error.to_string(),
            "give the folder [state] dir room and write permission, let one process use it, or delete its offsets folder: it is rebuilt",
        )
    }
}

impl Store {
    /// Opens or creates the store in `dir`. One that is damaged is made anew: what it held is elsewhere, too.
    ///
    /// # Errors
    /// The folder cannot be written, or another process holds it.
    pub fn open(dir: &Path) -> Result<Store, OffsetsError> {
        let damage = match Store::open_as_it_is(dir) {
            Ok(store) => match store.read_all() {
                Ok(()) => return Ok(store),
                Err(error) => error,
            },
            Err(error) if is_elsewhere(&error) => return Err(failed(dir, error)),
            Err(error) => error,
        };
        warn!("the offset store in {} is damaged and is made anew: {damage}", dir.display());
        // What cannot be removed shows when it is opened.
        let _ = std::fs::remove_dir_all(dir);
        Store::open_as_it_is(dir).map_err(|error| failed(dir, error))
    }

    /// Damaged blocks show when they are read. Not what a killed process has spilled: nobody will read that.
    fn read_all(&self) -> Result<(), rocksdb::Error> {
        let positions = keys::tail("");
        self.db.iterator(IteratorMode::From(&positions, Direction::Forward)).try_for_each(|entry| entry.map(drop))
    }

    fn open_as_it_is(dir: &Path) -> Result<Store, rocksdb::Error> {
        let mut options = Options::default();
        options.create_if_missing(true);
        // Spilled transactions are written once, read once and dropped: small buffers, no cache to speak of.
        options.set_write_buffer_size(8 << 20);
        options.set_max_write_buffer_number(2);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(2);
        Ok(Store { db: Arc::new(DB::open(&options, dir)?) })
    }

    /// Where the tail of `source` stood when it was last noted.
    ///
    /// # Errors
    /// The disk.
    pub fn tail(&self, source: &str) -> Result<Option<TailPosition>, OffsetsError> {
        let value = self.db.get_pinned(keys::tail(source))?;
        Ok(value
            .and_then(|bytes| codec::decode::<StoredPosition>(&bytes))
            .map(|stored| TailPosition { seq: Seq(stored.seq), lsn: Lsn(stored.lsn) }))
    }

    /// Notes where the tail of `source` stands.
    ///
    /// # Errors
    /// The disk.
    pub fn set_tail(&self, source: &str, position: TailPosition) -> Result<(), OffsetsError> {
        let value = codec::encode(&StoredPosition { seq: position.seq.0, lsn: position.lsn.0 })?;
        Ok(self.db.put(keys::tail(source), value)?)
    }

    /// Room for the transactions in progress of `source`; what an earlier process left there is dropped, for the
    /// server streams a transaction in progress again from its start.
    ///
    /// # Errors
    /// The disk.
    pub fn spill(&self, source: &str) -> Result<Spill, OffsetsError> {
        Spill::new(Arc::clone(&self.db), source)
    }
}

fn failed(dir: &Path, source: rocksdb::Error) -> OffsetsError {
    OffsetsError::Open { path: dir.to_owned(), source }
}

/// It is not the files: another process has them, or the folder cannot be written. RocksDB tells the system's errors as text only.
fn is_elsewhere(error: &rocksdb::Error) -> bool {
    let text = error.to_string();
    let reasons =
        ["lock file", "lock hold", "Permission denied", "Read-only file system", "No space left", "Not a directory"];
    reasons.iter().any(|reason| text.contains(reason))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_reopening_and_another_version_reads_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let position = TailPosition { seq: Seq(7), lsn: Lsn(1 << 40) };
        {
            let store = Store::open(dir.path()).unwrap();
            assert_eq!(store.tail("shop").unwrap(), None);
            store.set_tail("shop", position).unwrap();
        }
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.tail("shop").unwrap(), Some(position));
        store.db.put(keys::tail("shop"), [200, 1, 2]).unwrap();
        assert_eq!(store.tail("shop").unwrap(), None);
    }

    #[test]
    fn a_damaged_store_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let position = TailPosition { seq: Seq(7), lsn: Lsn(1) };
        for damaged in ["CURRENT", ".sst", "MANIFEST"] {
            Store::open(dir.path()).unwrap().set_tail("shop", position).unwrap();
            // Opening again writes what is in the log into a table file.
            assert_eq!(Store::open(dir.path()).unwrap().tail("shop").unwrap(), Some(position));
            let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
            let hit: Vec<_> = files.filter(|file| file.to_string_lossy().contains(damaged)).collect();
            assert!(!hit.is_empty(), "no file {damaged}");
            hit.iter().for_each(|file| std::fs::write(file, "not what it was").unwrap());
            assert_eq!(Store::open(dir.path()).unwrap().tail("shop").unwrap(), None, "{damaged}");
        }
    }

    #[test]
    fn a_second_process_is_told_who_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let _held = Store::open(dir.path()).unwrap();
        let error = Store::open(dir.path()).err().unwrap();
        assert!(matches!(error, OffsetsError::Open { .. }));
    }
}
