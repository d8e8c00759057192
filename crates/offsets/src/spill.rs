use std::sync::Arc;

use rocksdb::{DB, IteratorMode, WriteBatch, WriteOptions};

use crate::store::Disk;
use crate::{OffsetsError, keys};

/// Pieces of transactions in progress that do not fit into memory.
pub struct Spill {
    db: Arc<DB>,
    disk: Arc<Disk>,
    source: String,
    write: WriteOptions,
}

impl Spill {
    pub(crate) fn new(db: Arc<DB>, disk: Arc<Disk>, source: &str) -> Result<Spill, OffsetsError> {
        // A crash makes the server send it all again: no need for RocksDB's own WAL.
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        let spill = Spill { db, disk, source: source.to_owned(), write };
        let start = keys::spill_of(&spill.source);
        spill.drop_range(&start, &after(&start))?;
        Ok(spill)
    }

    fn drop_range(&self, start: &[u8], end: &[u8]) -> Result<(), OffsetsError> {
        let mut batch = WriteBatch::default();
        batch.delete_range(start, end);
        Ok(self.db.write_opt(batch, &self.write)?)
    }

    /// Keeps the `n`-th piece of transaction `xid`.
    ///
    /// # Errors
    /// The disk; [`OffsetsError::Full`] while it has no room.
    pub fn put(&self, xid: u32, n: u32, piece: &[u8]) -> Result<(), OffsetsError> {
        self.disk.has_room()?;
        Ok(self.db.put_opt(keys::spill(&self.source, xid, n), piece, &self.write)?)
    }

    /// The `n`-th piece of transaction `xid`, if there is one.
    ///
    /// # Errors
    /// The disk.
    pub fn get(&self, xid: u32, n: u32) -> Result<Option<Vec<u8>>, OffsetsError> {
        Ok(self.db.get(keys::spill(&self.source, xid, n))?)
    }

    /// Drops what is kept of transaction `xid`, `pieces` of them.
    ///
    /// # Errors
    /// The disk.
    pub fn drop_transaction(&self, xid: u32, pieces: u32) -> Result<(), OffsetsError> {
        self.drop_range(&keys::spill(&self.source, xid, 0), &keys::spill(&self.source, xid, pieces))
    }

    /// How many pieces are kept, over all transactions.
    pub fn pieces(&self) -> usize {
        let start = keys::spill_of(&self.source);
        self.db
            .iterator(IteratorMode::From(&start, rocksdb::Direction::Forward))
            .map_while(Result::ok)
            .take_while(|(key, _)| key.starts_with(&start))
            .count()
    }
}

/// The first key after all that begin with `prefix`, whose last byte is 0.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = 1;
    }
    end
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::Store;

    #[test]
    fn pieces_are_dropped_with_their_transaction_and_with_a_new_process() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let spill = store.spill("shop").unwrap();
        for (xid, n) in [(5, 0), (5, 1), (6, 0)] {
            spill.put(xid, n, b"piece").unwrap();
        }
        spill.drop_transaction(5, 2).unwrap();
        assert_eq!((spill.get(5, 1).unwrap(), spill.get(6, 0).unwrap()), (None, Some(b"piece".to_vec())));
        assert_eq!(store.spill("shop").unwrap().pieces(), 0);
    }
}
