//! What lies between the two sides: transactions that the target has and the source's snapshot does not see. Commits become visible in another order than
//! that of their records, which is the order in which they are applied, so there are such transactions as a rule. The log knows them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use log::{Log, LogError, StreamName};
use model::{Change, Lsn, MarkerKind, Oid, Part, Record, Relation, Seq, Snapshot, TableName, Xid};

use crate::LogAccess;
use crate::access::Records;
use crate::error::VerifyError;

/// Changes that may lie between, in bytes: with more of them the sides are brought together again, at a better moment.
const LARGE: usize = 32 << 20;

/// A committed transaction.
struct Transaction {
    xid: Xid,
    end: Lsn,
    changes: Vec<(Arc<Relation>, Change)>,
    bytes: usize,
}

/// What the target has and the source's snapshot does not see, in commit order.
#[derive(Default)]
pub(crate) struct Between {
    /// End of the last commit that the snapshot sees, or of the marker at which the target stood before.
    pub through: Lsn,
    /// How many transactions there are. If any, what the snapshot sees is no prefix of what was committed.
    pub transactions: usize,
    pub changes: Vec<(Arc<Relation>, Change)>,
}

/// Follows the tail from some message on, and keeps what a snapshot did not see.
pub(crate) struct Tail<'a> {
    records: Records<'a>,
    /// Only changes to these tables count.
    tables: &'a BTreeSet<TableName>,
    /// What it sees is of no interest: any later one sees it, too.
    seen: Snapshot,
    relations: HashMap<Oid, Arc<Relation>>,
    pending: Option<Transaction>,
    done: Lsn,
    kept: Vec<Transaction>,
    bytes: usize,
}

impl<'a> Tail<'a> {
    pub fn new(
        open: &'a LogAccess,
        stream: StreamName,
        from: Seq,
        seen: Snapshot,
        tables: &'a BTreeSet<TableName>,
    ) -> Self {
        Tail {
            tables,
            records: Records::new(open, stream, from),
            seen,
            relations: HashMap::new(),
            pending: None,
            done: Lsn(0),
            kept: Vec::new(),
            bytes: 0,
        }
    }

    /// Reads on until the marker of this id has come by.
    pub async fn until(&mut self, marker: &str) -> Result<(), VerifyError> {
        loop {
            match self.records.next().await?.1 {
                Record::Batch(batch) => {
                    for relation in batch.relations {
                        self.relations.insert(relation.id, Arc::new(relation));
                    }
                    let mut found = false;
                    for part in batch.parts {
                        found |= self.part(part, marker)?;
                    }
                    if found {
                        return Ok(());
                    }
                }
                // A transaction that is not complete comes again, or never was.
                Record::Writer(_) => self.pending = None,
                _ => {}
            }
        }
    }

    /// Takes a part of a transaction in; says whether it completes the one with the marker.
    fn part(&mut self, part: Part, marker: &str) -> Result<bool, VerifyError> {
        if part.commit_lsn < self.done {
            return Ok(false);
        }
        if part.first {
            self.pending = Some(Transaction { xid: part.xid, end: Lsn(0), changes: Vec::new(), bytes: 0 });
        }
        // One whose beginning was not read is older than what is of interest.
        let Some(pending) = &mut self.pending else { return Ok(false) };
        let mut found = false;
        for change in part.changes {
            let relations: Vec<Oid> = match &change {
                Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
                    vec![*relation]
                }
                Change::Truncate { relations, .. } => relations.clone(),
                Change::Marker(seen) => {
                    found |= seen.id == marker && matches!(seen.kind, MarkerKind::Fence | MarkerKind::Hold);
                    continue;
                }
            };
            if self.seen.sees(part.xid) {
                continue;
            }
            for relation in relations {
                let relation = self.relations.get(&relation).ok_or(LogError::Damaged(model::DecodeError::Field(
                    "a change names a relation that its batch does not describe",
                )))?;
                if !self.tables.contains(&relation.table) {
                    continue;
                }
                pending.bytes += size(&change);
                pending.changes.push((Arc::clone(relation), change.clone()));
            }
        }
        if self.bytes + pending.bytes > LARGE {
            return Err(VerifyError::Again("a large transaction was committed just then".to_owned()));
        }
        let Some(end) = part.end_lsn else { return Ok(false) };
        self.done = end;
        if let Some(mut whole) = self.pending.take()
            && !self.seen.sees(whole.xid)
        {
            whole.end = end;
            self.bytes += whole.bytes;
            self.kept.push(whole);
        }
        Ok(found)
    }

    /// What this snapshot sees is of no interest, either.
    pub fn forget(&mut self, seen: Snapshot) {
        self.kept.retain(|one| !seen.sees(one.xid));
        self.bytes = self.kept.iter().map(|one| one.bytes).sum();
        self.seen = seen;
    }

    /// What the target has of it, if it goes on from `stands` to the last transaction that `snapshot` sees, and the snapshot has not.
    pub fn between(self, snapshot: &Snapshot, stands: Lsn) -> Between {
        let last = self.kept.iter().filter(|one| snapshot.sees(one.xid)).map(|one| one.end).max();
        let mut between = Between { through: last.unwrap_or_default().max(stands), ..Between::default() };
        for one in self.kept {
            if one.end <= between.through && !snapshot.sees(one.xid) && !one.changes.is_empty() {
                between.transactions += 1;
                between.changes.extend(one.changes);
            }
        }
        between
    }
}

/// With what stands around it.
fn size(change: &Change) -> usize {
    64 + change.bytes()
}

/// The message from which on the tail holds every transaction that committed at `since` or later, in microseconds since 1970; at most `from`. Commit times are
/// not quite in order: a minute is allowed for.
pub(crate) async fn message_at(log: &dyn Log, stream: &StreamName, from: Seq, since: i64) -> Result<Seq, VerifyError> {
    const MARGIN: i64 = 60_000_000;
    let first = log.state(stream).await?.ok_or(LogError::NoStream)?.first;
    let (mut at, mut step) = (from, 64);
    while at > first {
        at = Seq(at.0.saturating_sub(step)).max(first);
        step *= 2;
        if let Record::Batch(batch) = log::get_record(log, stream, at).await?
            && let Some(part) = batch.parts.first()
            && part.commit_time < since - MARGIN
        {
            break;
        }
    }
    Ok(at)
}
