use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use log::{Log, LogError, RecordReader};
use model::{CopyColumn, Header, Problem, Record, Seq, TableName};
use pg::catalog::Table;

use crate::claim;

/// What the copy stream says has been copied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// The schema is in the log.
    pub schema: bool,
    /// With these tables.
    dumped: BTreeSet<TableName>,
    tables: BTreeMap<TableName, (u32, bool)>,
    /// Tables some of whose chunks the log has lost since (a power loss takes what was not synced): they are copied again.
    lost: BTreeSet<TableName>,
    columns: BTreeMap<TableName, Vec<CopyColumn>>,
    /// What the last `CopyEnd` names.
    ended: Vec<(TableName, u32)>,
    /// Id of the last `Writer`. What another one appends is of a process that was replaced and does not know it yet.
    writer: Option<String>,
}

impl Progress {
    /// A table's copy was begun at some time.
    pub fn begun(&self) -> bool {
        !self.tables.is_empty()
    }

    /// The table's definition is in the log.
    pub fn dumped(&self, table: &TableName) -> bool {
        self.dumped.contains(table)
    }

    /// The epoch in which a table has to be copied; `None` if it has been.
    pub fn next_epoch(&self, table: &TableName) -> Option<u32> {
        match self.tables.get(table) {
            None => Some(1),
            Some((epoch, false)) => Some(epoch + 1),
            Some((_, true)) => None,
        }
    }

    /// Every one of `tables` is copied, and that was said.
    pub fn complete(&self, tables: &[Table]) -> bool {
        tables.iter().all(|table| {
            self.next_epoch(&table.name).is_none() && self.ended.iter().any(|(name, _)| *name == table.name)
        })
    }

    /// The tables that are copied, with their epochs.
    pub fn done(&self) -> Vec<(TableName, u32)> {
        self.tables.iter().filter(|(_, (_, done))| *done).map(|(name, (epoch, _))| (name.clone(), *epoch)).collect()
    }

    /// The tables look as they did when they were copied.
    ///
    /// # Errors
    /// One of them does not: the tail would not fit to the copy.
    pub fn check_columns(&self, tables: &[Table]) -> Result<(), Problem> {
        let changed =
            tables.iter().find(|table| self.columns.get(&table.name).is_some_and(|copied| *copied != table.columns));
        match changed {
            None => Ok(()),
            Some(table) => Err(crate::watch::changed(&table.name, "its columns are not those that were copied")),
        }
    }

    /// The table's copy is complete.
    pub fn is_done(&self, table: &TableName) -> bool {
        self.tables.get(table).is_some_and(|(_, done)| *done)
    }

    /// It is of a process that copied before the one that copies now.
    fn is_late(&self, record: &Record) -> bool {
        record.copier().zip(self.writer.as_deref()).is_some_and(|(writer, now)| writer != now)
    }

    fn take(&mut self, record: Record, chunks: Seq) {
        match record {
            Record::Writer(writer) => self.writer = Some(writer.id),
            record if self.is_late(&record) => {}
            Record::Schema(schema) => {
                self.schema = true;
                self.dumped
                    .extend(schema.items.into_iter().filter(|item| item.kind == "TABLE").filter_map(|item| item.table));
            }
            Record::TableBegin(begin) => {
                self.tables.insert(begin.table.clone(), (begin.epoch, false));
                self.lost.remove(&begin.table);
                self.columns.insert(begin.table, begin.columns);
            }
            Record::TableEnd(end) => {
                // A late end of a void epoch says nothing.
                if let Some((_, done)) = self.tables.get_mut(&end.table).filter(|(epoch, _)| *epoch == end.epoch) {
                    *done = !self.lost.contains(&end.table);
                }
            }
            Record::CopyEnd(end) => self.ended = end.tables,
            Record::ChunkLogged(logged) => {
                if logged.sequence > chunks {
                    self.lost.insert(logged.table);
                }
            }
            Record::Header(_)
            | Record::Chunk(_)
            | Record::Recopy(_)
            | Record::TailBegin(_)
            | Record::Batch(_)
            | Record::Heartbeat(_)
            | Record::Blob(_)
            | Record::Joined(_)
            | Record::Unknown => {}
        }
    }
}

/// Reads the copy stream's control records.
pub(crate) async fn progress(log: &Arc<dyn Log>, header: &Header) -> Result<Progress, LogError> {
    let claim::Streams { copy, chunks, .. } = claim::streams(&header.plan, &header.source);
    let chunks = log.state(&chunks).await?.map_or(Seq::ZERO, |state| state.last);
    let mut progress = Progress::default();
    let Some(last) = log.last(&copy).await? else { return Ok(progress) };
    let mut reader = RecordReader::open(Arc::clone(log), copy, Seq::ZERO.next()).await?;
    loop {
        let (seq, record) = reader.next().await?;
        progress.take(record, chunks);
        if seq >= last.seq {
            return Ok(progress);
        }
    }
}
