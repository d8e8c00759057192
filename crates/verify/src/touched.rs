//! The rows that were changed since they were compared: the log knows them. Where they are few, a table need not be compared again as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use log::StreamName;
use model::{Change, Lsn, Oid, Record, Relation, Seq, TableName};

use crate::LogAccess;
use crate::access::Records;
use crate::delta::keys_of;
use crate::error::VerifyError;
use crate::pair::Pair;

/// Rows of a table from which on it is compared as a whole: each key is looked up on both sides, and kept in memory until then.
const MANY: usize = 100_000;

/// The rows of a table that were touched.
#[derive(Debug)]
enum Rows {
    Keys(BTreeSet<Vec<String>>),
    /// Many, or all, or none knows which.
    All,
}

/// What was touched of some tables, each since the commit up to which it was compared.
pub(crate) struct Touched<'a> {
    records: Records<'a>,
    at: Seq,
    tables: BTreeMap<TableName, (Arc<Pair>, Lsn, Rows)>,
    relations: HashMap<Oid, Arc<Relation>>,
}

impl<'a> Touched<'a> {
    /// Of these pairs, each compared up to a commit; `from` is the message with the first of these.
    pub fn new(log: &'a LogAccess, stream: StreamName, from: Seq, pairs: Vec<(Arc<Pair>, Lsn)>) -> Self {
        let table = |(pair, since): (Arc<Pair>, Lsn)| {
            let rows = Rows::Keys(BTreeSet::new());
            (pair.table.clone(), (pair, since, rows))
        };
        Touched {
            records: Records::new(log, stream, from),
            at: Seq::ZERO,
            tables: pairs.into_iter().map(table).collect(),
            relations: HashMap::new(),
        }
    }

    /// Reads on until message `seq` has been read.
    pub async fn until(&mut self, seq: Seq) -> Result<(), VerifyError> {
        while self.at < seq {
            let (at, record) = self.records.next().await?;
            self.at = at;
            let batch = match record {
                Record::Batch(batch) => batch,
                // Something is missing before this.
                Record::Writer(writer) if writer.anew => {
                    self.tables.values_mut().for_each(|(.., rows)| *rows = Rows::All);
                    continue;
                }
                _ => continue,
            };
            for relation in batch.relations {
                self.relations.insert(relation.id, Arc::new(relation));
            }
            for part in batch.parts {
                for change in &part.changes {
                    self.change(part.commit_lsn, change);
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, commit: Lsn, change: &Change) {
        let relations: &[Oid] = match change {
            Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
                std::slice::from_ref(relation)
            }
            Change::Truncate { relations, .. } => relations,
            Change::Marker(_) => return,
        };
        for relation in relations.iter().filter_map(|relation| self.relations.get(relation)) {
            let of = self.tables.values_mut().find(|(pair, ..)| pair.sources.contains(&relation.table));
            let Some((pair, since, rows)) = of else { continue };
            // A commit that ends at `since` begins before it.
            if commit < *since {
                continue;
            }
            let Rows::Keys(keys) = rows else { continue };
            match change {
                Change::Truncate { .. } => *rows = Rows::All,
                _ if pair.key.is_empty() => *rows = Rows::All,
                change => match keys_of(pair, relation, change) {
                    Ok(found) if keys.len() < MANY => keys.extend(found),
                    Ok(_) | Err(_) => *rows = Rows::All,
                },
            }
        }
    }

    /// The keys of the rows of a table that were touched; nothing where it has to be compared as a whole.
    pub fn keys(&self, table: &TableName) -> Option<&BTreeSet<Vec<String>>> {
        match self.tables.get(table) {
            Some((_, _, Rows::Keys(keys))) => Some(keys),
            Some((_, _, Rows::All)) | None => None,
        }
    }
}
