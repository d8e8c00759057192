//! The RocksDB that the log lives in: how it is opened, and the blocking calls on it.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use model::Seq;
use nix::sys::statvfs::statvfs;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, LogLevel, Options, ReadOptions,
};

use super::keys::{self, StreamId};
use crate::{LogError, Message, StreamState};

/// Of messages in memory before they go to a file; three at most, the one being filled and two being written.
const WRITE_BUFFER: usize = 8 << 20;

/// For keys and what points to messages; the messages themselves are read from the system's cache.
const BLOCK_CACHE: usize = 4 << 20;

/// Messages from this size on are kept apart from their keys, so that compactions do not copy them.
const APART: u64 = 1024;

pub(super) struct Store {
    db: DB,
    path: PathBuf,
}

impl Store {
    /// Opens or creates it, for this process alone.
    pub(super) fn open(path: &Path) -> Result<Store, LogError> {
        std::fs::create_dir_all(path).map_err(|error| unusable(path, &error.to_string()))?;
        let db = DB::open(&options(), path).map_err(|error| {
            let text = error.into_string();
            match text.contains("lock file") || text.contains("lock hold") {
                true => unusable(path, "another process has it open"),
                false => unusable(path, &text),
            }
        })?;
        Ok(Store { db, path: path.to_owned() })
    }

    /// Opens it as it is now, whoever else has it open.
    pub(super) fn open_read_only(path: &Path) -> Result<Store, LogError> {
        if !path.join("CURRENT").exists() {
            return Err(unusable(path, "there is no log in it"));
        }
        let mut options = options();
        options.create_if_missing(false);
        // All files are opened now: the process that writes may delete some later.
        options.set_max_open_files(-1);
        let open = || DB::open_for_read_only(&options, path, false);
        // The list of files may be outdated before all of them are open; the next one is newer.
        let db = open().or_else(|_| open()).or_else(|_| open());
        let db = db.map_err(|error| unusable(path, error.as_ref()))?;
        Ok(Store { db, path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn streams(&self) -> Result<Vec<(String, StreamId, StreamState)>, LogError> {
        let mut streams = Vec::new();
        for item in self.db.iterator(IteratorMode::From(keys::STREAMS, Direction::Forward)) {
            let (key, value) = item.map_err(failed)?;
            let Some(name) = keys::stream_name(&key) else { break };
            let (id, state) = keys::decode_stream(&value)?;
            streams.push((name.to_owned(), id, state));
        }
        Ok(streams)
    }

    /// Writes a stream that is not there yet.
    pub(super) fn create(&self, name: &str, state: &StreamState) -> Result<StreamId, LogError> {
        let id = match self.db.get(keys::NEXT_ID).map_err(failed)? {
            Some(value) => keys::decode_id(&value)?,
            None => StreamId(1),
        };
        let mut batch = rocksdb::WriteBatch::default();
        batch.put(keys::NEXT_ID, keys::encode_id(StreamId(id.0 + 1)));
        batch.put(keys::stream(name), keys::encode_stream(id, state));
        self.db.write(batch).map_err(failed)?;
        Ok(id)
    }

    /// Deletes a stream and its messages.
    pub(super) fn remove(&self, name: &str, id: StreamId) -> Result<(), LogError> {
        let range = keys::messages(id);
        let mut batch = rocksdb::WriteBatch::default();
        batch.delete(keys::stream(name));
        batch.delete_range(range.start, range.end);
        self.db.write(batch).map_err(failed)?;
        // The range's deletion frees nothing by itself; files that hold nothing else go now.
        self.db.delete_file_in_range(range.start, range.end).map_err(failed)
    }

    /// Writes messages, and the states that they leave behind.
    pub(super) fn append<'a>(
        &self,
        messages: impl Iterator<Item = (StreamId, Seq, &'a Bytes)>,
        states: impl Iterator<Item = (&'a str, StreamId, StreamState)>,
    ) -> Result<(), LogError> {
        let mut batch = rocksdb::WriteBatch::default();
        for (id, seq, payload) in messages {
            batch.put(keys::message(id, seq), payload);
        }
        for (name, id, state) in states {
            batch.put(keys::stream(name), keys::encode_stream(id, &state));
        }
        self.db.write(batch).map_err(failed)
    }

    pub(super) fn get(&self, id: StreamId, seq: Seq) -> Result<Option<Bytes>, LogError> {
        Ok(self.db.get(keys::message(id, seq)).map_err(failed)?.map(Bytes::from))
    }

    /// Messages from `from` up to `to` (inclusive), in order, until they are more than `bytes` together.
    pub(super) fn scan(&self, id: StreamId, from: Seq, to: Seq, bytes: usize) -> Result<Vec<Message>, LogError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(keys::message(id, to.next()));
        let start = keys::message(id, from);
        let (mut found, mut total) = (Vec::new(), 0);
        for item in self.db.iterator_opt(IteratorMode::From(&start, Direction::Forward), options) {
            let (key, value) = item.map_err(failed)?;
            total += value.len();
            found.push(Message { seq: keys::message_seq(&key)?, payload: Bytes::from(value) });
            if total >= bytes {
                break;
            }
        }
        Ok(found)
    }

    /// Makes everything written so far survive a power loss.
    pub(super) fn sync(&self) -> Result<(), LogError> {
        self.db.flush_wal(true).map_err(failed)
    }

    /// Room left on the disk, in bytes.
    pub(super) fn room(&self) -> Result<u64, LogError> {
        let stat = statvfs(&self.path).map_err(|error| unusable(&self.path, error.desc()))?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Takes a message out, as nothing in the program does.
    #[cfg(test)]
    pub(super) fn damage(&self, id: StreamId, seq: Seq) -> Result<(), LogError> {
        self.db.delete(keys::message(id, seq)).map_err(failed)
    }
}

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE));
    table.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER);
    options.set_max_write_buffer_number(3);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(APART);
    options.set_blob_compression_type(DBCompressionType::Lz4);
    options.set_enable_blob_gc(true);
    // Written on in the background while it is filled, so that a sync has little left to do.
    options.set_bytes_per_sync(1 << 20);
    options.set_wal_bytes_per_sync(1 << 20);
    options.set_max_open_files(128);
    options.set_keep_log_file_num(2);
    options.set_log_level(LogLevel::Warn);
    options
}

fn unusable(path: &Path, why: &str) -> LogError {
    LogError::StateNotWritable { path: path.to_owned(), why: why.to_owned() }
}

/// RocksDB tells the system's errors as text only.
fn failed(error: rocksdb::Error) -> LogError {
    let text = error.into_string();
    match text.contains("No space left") || text.contains(&io::Error::from_raw_os_error(28).to_string()) {
        true => LogError::Full,
        false => LogError::Other(format!("embedded log: {text}")),
    }
}
