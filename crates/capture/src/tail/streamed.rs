use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use model::{Batch, Change, DecodeError, Lsn, Old, Part, Record, Relation, Xid};
use offsets::Spill;
use tracing::info;

use crate::CaptureError;

/// Something that a transaction in progress has sent.
pub(super) enum Item {
    /// A table's definition, as of here.
    Relation(Relation),
    /// A change by (sub)transaction `xid`.
    Change { xid: u32, change: Change },
}

/// Transactions that the server streams while they are in progress. Beyond the budget the largest moves to disk.
pub(super) struct Streamed {
    transactions: HashMap<u32, Transaction>,
    spill: Spill,
    budget: usize,
    bytes: usize,
    on_disk: OnDisk,
}

/// What transactions in progress take on the local disk, in bytes. Said when it begins, whenever it has doubled, and when it is over.
#[derive(Default)]
struct OnDisk {
    now: u64,
    said: u64,
}

impl OnDisk {
    fn add(&mut self, xid: u32, bytes: u64) {
        self.now += bytes;
        if self.now >= 2 * self.said {
            self.said = self.now;
            info!(xid, bytes = self.now, "a large transaction in progress is kept on the local disk");
        }
    }

    fn remove(&mut self, bytes: u64) {
        self.now = self.now.saturating_sub(bytes);
        if self.now == 0 && self.said > 0 {
            self.said = 0;
            info!("no transaction takes room on the local disk any more");
        }
    }
}

#[derive(Default)]
struct Transaction {
    items: Vec<Item>,
    bytes: usize,
    /// Pieces on disk, and their bytes; they come before `items`.
    pieces: u32,
    on_disk: u64,
    aborted: HashSet<u32>,
    /// Subtransactions that its changes are by, in their order; some of them several times.
    subtransactions: Vec<u32>,
    own: bool,
}

/// A transaction that has committed, to be read back from its beginning.
pub(super) struct Replay {
    pub xid: u32,
    pub end_lsn: Lsn,
    next: u32,
    pieces: u32,
    on_disk: u64,
    rest: Option<Vec<Item>>,
    aborted: HashSet<u32>,
    /// Apply has written it here, for the other direction: there are no rows in it.
    pub own: bool,
}

impl Streamed {
    /// `budget`: bytes of changes that may stay in memory.
    pub fn new(spill: Spill, budget: usize) -> Self {
        Streamed { transactions: HashMap::new(), spill, budget, bytes: 0, on_disk: OnDisk::default() }
    }

    /// Keeps what top-level transaction `top` sent.
    pub fn push(&mut self, top: u32, item: Item) -> Result<(), CaptureError> {
        let bytes = size(&item);
        let transaction = self.transactions.entry(top).or_default();
        if transaction.own && !matches!(item, Item::Relation(_) | Item::Change { change: Change::Truncate { .. }, .. })
        {
            return Ok(());
        }
        if let Item::Change { xid, .. } = item
            && xid != top
            && transaction.subtransactions.last() != Some(&xid)
        {
            transaction.subtransactions.push(xid);
        }
        transaction.items.push(item);
        transaction.bytes += bytes;
        self.bytes += bytes;
        while self.bytes > self.budget {
            let largest = self.transactions.iter().max_by_key(|(_, t)| t.bytes).map(|(xid, _)| *xid);
            let Some(xid) = largest else { break };
            self.spill(xid)?;
        }
        Ok(())
    }

    /// Apply has written this one here, for the other direction: its rows are not kept.
    pub fn own(&mut self, top: u32) {
        self.transactions.entry(top).or_default().own = true;
    }

    fn spill(&mut self, xid: u32) -> Result<(), CaptureError> {
        if let Some(transaction) = self.transactions.get_mut(&xid) {
            let before = transaction.on_disk;
            let mut rest = transaction.items.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(piece_length(rest));
                let bytes = encode(piece);
                self.spill.put(xid, transaction.pieces, &bytes)?;
                transaction.on_disk += bytes.len() as u64;
                model::failpoint!("spill_written");
                transaction.pieces += 1;
                rest = after;
            }
            self.bytes -= transaction.bytes;
            transaction.bytes = 0;
            transaction.items = Vec::new();
            self.on_disk.add(xid, transaction.on_disk - before);
        }
        Ok(())
    }

    /// Subtransaction `xid` of `top` rolled back, or the whole of it.
    pub fn abort(&mut self, top: u32, xid: u32) -> Result<(), CaptureError> {
        if top != xid {
            self.transactions.entry(top).or_default().aborted.insert(xid);
        } else if let Some(transaction) = self.transactions.remove(&top) {
            self.bytes -= transaction.bytes;
            self.spill.drop_transaction(top, transaction.pieces)?;
            self.on_disk.remove(transaction.on_disk);
        }
        Ok(())
    }

    /// Those of its subtransactions, each once, of which nobody has said that they rolled back.
    pub fn subtransactions(&mut self, top: u32) -> Vec<u32> {
        let Some(transaction) = self.transactions.get_mut(&top) else { return Vec::new() };
        let mut all = std::mem::take(&mut transaction.subtransactions);
        all.sort_unstable();
        all.dedup();
        all.retain(|xid| !transaction.aborted.contains(xid));
        all
    }

    /// The transaction committed.
    pub fn commit(&mut self, top: u32, end_lsn: Lsn) -> Replay {
        let transaction = self.transactions.remove(&top).unwrap_or_default();
        self.bytes -= transaction.bytes;
        Replay {
            xid: top,
            end_lsn,
            next: 0,
            pieces: transaction.pieces,
            on_disk: transaction.on_disk,
            rest: Some(transaction.items),
            aborted: transaction.aborted,
            own: transaction.own,
        }
    }

    /// The next piece of a committed transaction, what was rolled back left out; `None` after the last.
    pub fn piece(&mut self, replay: &mut Replay) -> Result<Option<Vec<Item>>, CaptureError> {
        let mut items = if replay.next < replay.pieces {
            let piece =
                self.spill.get(replay.xid, replay.next)?.ok_or(DecodeError::Field("a spilled piece is gone"))?;
            replay.next += 1;
            decode(piece.into())?
        } else {
            match replay.rest.take() {
                Some(items) => items,
                None => {
                    self.spill.drop_transaction(replay.xid, replay.pieces)?;
                    self.on_disk.remove(replay.on_disk);
                    return Ok(None);
                }
            }
        };
        items.retain(|item| match item {
            Item::Relation(_) => true,
            Item::Change { xid, .. } => !replay.aborted.contains(xid),
        });
        Ok(Some(items))
    }
}

/// Bytes of a spilled piece, about: it is in memory several times while it is written or read back.
const PIECE: usize = 1 << 20;

/// How many of `items` make a piece; one at least.
fn piece_length(items: &[Item]) -> usize {
    let mut bytes = 0;
    let fits = items.iter().take_while(|item| {
        bytes += size(item);
        bytes <= PIECE
    });
    fits.count().max(1)
}

/// What an item takes in memory, about.
fn size(item: &Item) -> usize {
    let old = |old: &Old| old.tuple().bytes().len();
    64 + match item {
        Item::Relation(relation) => relation.columns.len() * 48,
        Item::Change { change, .. } => match change {
            Change::Insert { new, .. } => new.bytes().len(),
            Change::Update { old: before, new, .. } => new.bytes().len() + before.as_ref().map_or(0, old),
            Change::Delete { old: before, .. } => old(before),
            Change::Truncate { .. } | Change::Marker(_) => 0,
        },
    }
}

/// A piece on disk is a batch of the log's own format: each run of changes by one (sub)transaction is a part, and a table's definition
/// stands in a batch before the changes that follow it. Lengths stand before each batch.
fn encode(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut batch = Batch::default();
    let flush = |batch: &mut Batch, out: &mut Vec<u8>| {
        let bytes = Record::Batch(std::mem::take(batch)).encode();
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(&bytes);
    };
    for item in items {
        match item {
            Item::Relation(relation) => {
                if !batch.parts.is_empty() {
                    flush(&mut batch, &mut out);
                }
                batch.relations.push(relation.clone());
            }
            Item::Change { xid, change } => {
                let xid = Xid(u64::from(*xid));
                if batch.parts.last().is_none_or(|part| part.xid != xid) {
                    let (commit_lsn, commit_time) = (Lsn::ZERO, 0);
                    batch.parts.push(Part {
                        xid,
                        commit_lsn,
                        commit_time,
                        first: false,
                        end_lsn: None,
                        changes: Vec::new(),
                    });
                }
                if let Some(part) = batch.parts.last_mut() {
                    part.changes.push(change.clone());
                }
            }
        }
    }
    flush(&mut batch, &mut out);
    out
}

fn decode(mut piece: Bytes) -> Result<Vec<Item>, CaptureError> {
    let mut items = Vec::new();
    while !piece.is_empty() {
        let damaged = DecodeError::Field("a spilled piece ends too early");
        if piece.len() < 4 {
            return Err(damaged.into());
        }
        let head = piece.split_to(4);
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if piece.len() < length {
            return Err(damaged.into());
        }
        if let Record::Batch(batch) = Record::decode(piece.split_to(length))? {
            items.extend(batch.relations.into_iter().map(Item::Relation));
            for part in batch.parts {
                let xid = part.xid.0 as u32;
                items.extend(part.changes.into_iter().map(|change| Item::Change { xid, change }));
            }
        }
    }
    Ok(items)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use model::{Cell, Oid, Tuple};

    fn insert(n: u32) -> Change {
        Change::Insert { relation: Oid(n), new: Tuple::from_cells([Cell::Text(&[b'x'; 1000])].into_iter()) }
    }

    /// Three savepoints, the second rolled back, in memory and on disk: the same changes in the same order.
    #[test]
    fn a_rolled_back_subtransaction_leaves_nothing_whether_spilled_or_not() {
        for budget in [1 << 20, 1] {
            let dir = tempfile::tempdir().unwrap();
            let store = offsets::Store::open(dir.path()).unwrap();
            let mut streamed = Streamed::new(store.spill("s").unwrap(), budget);
            for n in 0..30 {
                streamed.push(100, Item::Change { xid: 101 + n % 3, change: insert(n) }).unwrap();
            }
            streamed.abort(100, 102).unwrap();
            let mut replay = streamed.commit(100, Lsn(2));
            let mut seen = Vec::new();
            while let Some(items) = streamed.piece(&mut replay).unwrap() {
                seen.extend(items.into_iter().map(|item| match item {
                    Item::Change { change: Change::Insert { relation, .. }, .. } => relation.0,
                    _ => unreachable!(),
                }));
            }
            assert_eq!(seen, (0..30).filter(|n| n % 3 != 1).collect::<Vec<_>>(), "budget {budget}");
        }
    }
}
