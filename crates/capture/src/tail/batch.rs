use std::collections::{HashSet, VecDeque};

use model::{Batch, Change, Lsn, Oid, Part, Relation, Xid};

/// Size of a full batch: large enough that a message's own cost does not count, small enough to be read at once.
const FULL: usize = 256 << 10;

/// Packs transactions into batches: many small ones into one, a large one into several.
pub(super) struct Packer {
    writer: String,
    limit: usize,
    batch: Batch,
    known: HashSet<Oid>,
    bytes: usize,
    complete: Option<Lsn>,
    /// The last part of `batch` is of a transaction that is still coming in.
    open: bool,
    /// A marker is in it.
    urgent: bool,
    ready: VecDeque<(Batch, Option<Lsn>)>,
}

impl Packer {
    pub fn new(writer: String, max_message: usize) -> Self {
        let batch = Batch { writer: writer.clone(), ..Batch::default() };
        Packer {
            writer,
            limit: FULL.min(max_message / 2),
            batch,
            known: HashSet::new(),
            bytes: 0,
            complete: None,
            open: false,
            urgent: false,
            ready: VecDeque::new(),
        }
    }

    /// A transaction begins.
    pub fn begin(&mut self, xid: Xid, commit_lsn: Lsn, commit_time: i64) {
        self.batch.parts.push(Part { xid, commit_lsn, commit_time, first: true, end_lsn: None, changes: Vec::new() });
        self.bytes += PART;
        self.open = true;
    }

    /// Describes a table that the next change names, once a batch.
    pub fn describe(&mut self, relation: &Relation) {
        if self.known.insert(relation.id) {
            self.bytes += relation.columns.iter().map(|column| column.name.len() + COLUMN).sum::<usize>();
            self.batch.relations.push(relation.clone());
        }
    }

    /// A change of the transaction.
    pub fn change(&mut self, change: Change) {
        self.bytes += size(&change);
        self.urgent |= matches!(change, Change::Marker(_));
        if let Some(part) = self.batch.parts.last_mut() {
            part.changes.push(change);
        }
        if self.bytes >= self.limit {
            self.split();
        }
    }

    /// The transaction is complete.
    pub fn commit(&mut self, end_lsn: Lsn) {
        if let Some(part) = self.batch.parts.last_mut() {
            part.end_lsn = Some(end_lsn);
        }
        self.complete = Some(end_lsn);
        self.open = false;
        if self.bytes >= self.limit {
            self.close();
        }
    }

    /// A table looks different from now on: a batch describes each table once, so what comes goes into another one.
    pub fn redefined(&mut self) {
        if self.open { self.split() } else { self.close() }
    }

    /// Hands out what there is, and goes on with the open transaction in a part of its own.
    fn split(&mut self) {
        let part = self.batch.parts.last().map(|part| Part { first: false, changes: Vec::new(), ..*part });
        self.open = false;
        self.close();
        if let Some(part) = part {
            self.batch.parts.push(part);
            self.open = true;
        }
    }

    /// Hands out what there is. A transaction that is still coming in stays.
    pub fn close(&mut self) {
        let rest = if self.open { self.batch.parts.pop() } else { None };
        if self.batch.parts.is_empty() {
            self.batch.parts.extend(rest);
            return;
        }
        self.urgent = false;
        let next = Batch { writer: self.writer.clone(), ..Batch::default() };
        let mut done = std::mem::replace(&mut self.batch, next);
        if let Some(part) = rest {
            // Its relations must stand in its own batch, too.
            self.batch.relations = done.relations.clone();
            self.bytes = PART + part.changes.iter().map(size).sum::<usize>();
            self.batch.parts.push(part);
        } else {
            self.known.clear();
            self.bytes = 0;
        }
        done.parts.retain(|part| part.first || part.end_lsn.is_some() || !part.changes.is_empty());
        self.ready.push_back((done, self.complete.take()));
    }

    /// There is something, and nobody waits for it.
    pub fn may_wait(&self) -> bool {
        !self.batch.parts.is_empty() && self.ready.is_empty() && !self.urgent
    }

    /// Enough is ready to be appended before more is read.
    pub fn full(&self) -> bool {
        self.ready.len() >= 8
    }

    /// The next batch, and the LSN up to which the log is complete with it.
    pub fn pop(&mut self) -> Option<(Batch, Option<Lsn>)> {
        self.ready.pop_front()
    }
}

/// About what a part and a column take beside their contents.
const PART: usize = 48;
const COLUMN: usize = 16;

/// With what stands around it.
fn size(change: &Change) -> usize {
    16 + change.bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use model::{Cell, Tuple};

    fn insert(bytes: usize) -> Change {
        Change::Insert { relation: Oid(1), new: Tuple::from_cells([Cell::Text(&vec![b'x'; bytes])].into_iter()) }
    }

    #[test]
    fn many_small_transactions_share_a_batch_and_an_open_one_waits() {
        let mut packer = Packer::new("w".into(), 1 << 20);
        for n in 1..=3 {
            packer.begin(Xid(n), Lsn(n * 10), 0);
            packer.change(insert(10));
            if n < 3 {
                packer.commit(Lsn(n * 10 + 5));
            }
        }
        packer.close();
        let (batch, complete) = packer.pop().unwrap();
        assert_eq!((batch.parts.len(), complete), (2, Some(Lsn(25))));
        assert!(packer.pop().is_none());
        packer.commit(Lsn(35));
        packer.close();
        assert_eq!(packer.pop().unwrap().0.parts[0].xid, Xid(3));
    }

    #[test]
    fn a_table_that_is_redefined_is_described_anew() {
        let relation = |name: &str| Relation {
            id: Oid(1),
            table: model::TableName::new("public", name),
            identity: model::ReplicaIdentity::Default,
            columns: Vec::new(),
        };
        for open in [false, true] {
            let mut packer = Packer::new("w".into(), 1 << 20);
            packer.begin(Xid(1), Lsn(10), 0);
            packer.describe(&relation("old"));
            packer.change(insert(1));
            if !open {
                packer.commit(Lsn(15));
            }
            packer.redefined();
            if !open {
                packer.begin(Xid(2), Lsn(20), 0);
            }
            packer.describe(&relation("new"));
            packer.change(insert(1));
            packer.commit(Lsn(25));
            packer.close();
            let described: Vec<_> =
                std::iter::from_fn(|| packer.pop()).map(|(batch, _)| batch.relations[0].table.name.clone()).collect();
            assert_eq!(described, ["old", "new"], "open: {open}");
        }
    }

    #[test]
    fn a_large_transaction_goes_over_several_batches_and_is_complete_with_the_last() {
        let mut packer = Packer::new("w".into(), 1 << 20);
        packer.begin(Xid(1), Lsn(10), 0);
        for _ in 0..10 {
            packer.change(insert(100_000));
        }
        packer.commit(Lsn(15));
        packer.close();
        let batches: Vec<_> = std::iter::from_fn(|| packer.pop()).collect();
        assert!(batches.len() > 2);
        let parts: Vec<_> = batches.iter().flat_map(|(batch, _)| &batch.parts).collect();
        assert_eq!(parts.iter().map(|part| part.changes.len()).sum::<usize>(), 10);
        assert!(parts.iter().skip(1).all(|part| !part.first) && parts[0].first);
        assert_eq!(parts.iter().filter(|part| part.end_lsn.is_some()).count(), 1);
        assert_eq!(batches.last().unwrap().1, Some(Lsn(15)));
    }
}
