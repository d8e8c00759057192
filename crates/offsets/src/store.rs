use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bincode::{Decode, Encode};
use model::{Code, Lsn, Problem, Seq};
use nix::sys::statvfs::statvfs;
use rocksdb::{DB, Direction, IteratorMode, Options};
use tracing::warn;

use crate::{Spill, codec, keys};

/// The store of one process. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Arc<DB>,
    disk: Arc<Disk>,
}

/// Left free on the disk: RocksDB does not recover from a full one without being opened anew. Its buffers, and a compaction of them.
const RESERVE: u64 = 64 << 20;

/// The disk that the store is on.
pub(crate) struct Disk {
    path: PathBuf,
    reserve: AtomicU64,
}

impl Disk {
    /// There is room for more, or it cannot be said.
    ///
    /// # Errors
    /// There is not.
    pub(crate) fn has_room(&self) -> Result<(), OffsetsError> {
        let Ok(stat) = statvfs(&self.path) else { return Ok(()) };
        if stat.blocks_available() * stat.fragment_size() < self.reserve.load(Ordering::Relaxed) {
            return Err(OffsetsError::Full { path: self.path.clone() });
        }
        Ok(())
    }
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
    /// The disk has no room to spare. Nothing was written.
    #[error("the disk of the offset store in {} is full", path.display())]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// Reading or writing failed: a damaged file, a disk that fails.
    #[error("the offset store failed: {0}")]
    Access(#[from] rocksdb::Error),
    /// A value could not be encoded.
    #[error("the offset store cannot hold a value: {0}")]
    Value(String),
}

impl OffsetsError {
    /// Whether the same may be tried again after a while.
    pub fn retry(&self) -> bool {
        match self {
            OffsetsError::Full { .. } => true,
            OffsetsError::Open { .. } | OffsetsError::Access(_) | OffsetsError::Value(_) => false,
        }
    }
}

impl From<OffsetsError> for Problem {
    fn from(error: OffsetsError) -> Self {
        let code = match error {
            OffsetsError::Full { .. } => Code::DiskShort,
            OffsetsError::Open { .. } | OffsetsError::Access(_) | OffsetsError::Value(_) => Code::StateNotWritable,
        };
        Problem::new(
            code,
            "the offset store",
            error.to_string(),
            "if another crossfade uses the folder [state] dir, stop that one, or give this plan a folder of its own; else give it room and write permission, or delete its offsets folder: it is rebuilt",
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
        let db = DB::open(&options, dir)?;
        let disk = Disk { path: dir.to_owned(), reserve: AtomicU64::new(RESERVE) };
        Ok(Store { db: Arc::new(db), disk: Arc::new(disk) })
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

    /// Notes where the tail of `source` stands, if the disk has room: it is found in the log as well.
    ///
    /// # Errors
    /// The disk.
    pub fn set_tail(&self, source: &str, position: TailPosition) -> Result<(), OffsetsError> {
        if self.disk.has_room().is_err() {
            return Ok(());
        }
        let value = codec::encode(&StoredPosition { seq: position.seq.0, lsn: position.lsn.0 })?;
        Ok(self.db.put(keys::tail(source), value)?)
    }

    /// Room for the transactions in progress of `source`; what an earlier process left there is dropped, for the
    /// server streams a transaction in progress again from its start.
    ///
    /// # Errors
    /// The disk.
    pub fn spill(&self, source: &str) -> Result<Spill, OffsetsError> {
        Spill::new(Arc::clone(&self.db), Arc::clone(&self.disk), source)
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
    fn a_full_disk_is_told_as_such_and_takes_more_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let spill = store.spill("shop").unwrap();
        store.disk.reserve.store(u64::MAX, Ordering::Relaxed);
        let error = spill.put(5, 0, b"piece").unwrap_err();
        assert!(error.retry(), "{error}");
        assert_eq!(Problem::from(error).code, Code::DiskShort);
        store.set_tail("shop", TailPosition { seq: Seq(7), lsn: Lsn(8) }).unwrap();
        assert_eq!((spill.pieces(), store.tail("shop").unwrap()), (0, None));
        store.disk.reserve.store(0, Ordering::Relaxed);
        spill.put(5, 0, b"piece").unwrap();
        assert_eq!(spill.pieces(), 1);
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
