use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use log::{Log, LogError, RecordReader};
use model::{CopyColumn, Header, Identity, Problem, Recopy, Record, Seq, TableBegin, TableName, TailBegin};
use pg::catalog::Table;

use crate::claim;

/// What the copy stream says has been copied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// The schema is in the log.
    pub schema: bool,
    /// The last record of the stream.
    pub last: Seq,
    /// With these tables.
    dumped: BTreeSet<TableName>,
    tables: BTreeMap<TableName, Copied>,
    /// Tables some of whose chunks the log has lost since (a power loss takes what was not synced): they are copied again.
    lost: BTreeSet<TableName>,
    /// What the last `CopyEnd` names.
    ended: Vec<(TableName, u32)>,
    /// Id of the last `Writer`. What another one appends is of a process that was replaced and does not know it yet.
    writer: Option<String>,
    /// The last recopy of everything that was asked for.
    everything: Option<Recopy>,
    /// How the tail started anew for the last time.
    tail: Option<TailBegin>,
}

/// The last copy of a table that was begun.
#[derive(Clone, Debug)]
struct Copied {
    begin: TableBegin,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Begun,
    Done,
    /// Somebody has asked for another one since.
    Void,
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
            Some(Copied { state: State::Done, .. }) => None,
            Some(copied) => Some(copied.begin.epoch + 1),
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
        let done = self.tables.iter().filter(|(_, copied)| copied.state == State::Done);
        done.map(|(name, copied)| (name.clone(), copied.begin.epoch)).collect()
    }

    /// The tables look as they did when they were copied.
    ///
    /// # Errors
    /// One of them does not: the tail would not fit to the copy.
    pub fn check_columns(&self, tables: &[Table]) -> Result<(), Problem> {
        let differs = |table: &&Table| {
            let copied = self.tables.get(&table.name).filter(|copied| copied.state != State::Void);
            copied.is_some_and(|copied| !CopyColumn::are_alike(&copied.begin.columns, &table.columns))
        };
        match tables.iter().find(differs) {
            None => Ok(()),
            Some(table) => Err(crate::watch::changed(&table.name, "its columns are not those that were copied")),
        }
    }

    /// The table's copy is complete.
    pub fn is_done(&self, table: &TableName) -> bool {
        self.tables.get(table).is_some_and(|copied| copied.state == State::Done)
    }

    /// The copied tables that `name` means: that one, or the partitions of that root.
    pub fn named(&self, name: &TableName) -> Vec<TableName> {
        let is = |copied: &&Copied| copied.begin.table == *name || copied.begin.root.as_ref() == Some(name);
        self.tables.values().filter(is).map(|copied| copied.begin.table.clone()).collect()
    }

    /// Everything is to be copied again, and the tail has not started anew for it: the recopy's id.
    pub fn anew(&self) -> Option<&str> {
        let asked = self.everything.as_ref()?;
        let answered = self.tail.as_ref().is_some_and(|begin| begin.recopy == asked.id);
        (!answered).then_some(asked.id.as_str())
    }

    /// The message of the tail stream with which it started anew for the last time; zero for none.
    pub fn tail_begin(&self) -> Seq {
        self.tail.as_ref().map_or(Seq::ZERO, |begin| begin.sequence)
    }

    /// Where the data comes from: what the header says, or a later recopy of everything.
    pub fn source_identity<'a>(&'a self, header: &'a Header) -> &'a Identity {
        self.everything.as_ref().and_then(|asked| asked.source_identity.as_ref()).unwrap_or(&header.source_identity)
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
                let tables = schema.items.into_iter().filter(|item| item.kind == "TABLE");
                self.dumped.extend(tables.filter_map(|item| item.table));
            }
            Record::TableBegin(begin) => {
                self.lost.remove(&begin.table);
                self.tables.insert(begin.table.clone(), Copied { begin, state: State::Begun });
            }
            Record::TableEnd(end) => {
                // A late end of a void epoch says nothing.
                let lost = self.lost.contains(&end.table);
                if let Some(copied) = self.tables.get_mut(&end.table)
                    && copied.begin.epoch == end.epoch
                    && copied.state == State::Begun
                    && !lost
                {
                    copied.state = State::Done;
                }
            }
            Record::CopyEnd(end) => self.ended = end.tables,
            Record::ChunkLogged(logged) => {
                if logged.sequence > chunks {
                    self.lost.insert(logged.table);
                }
            }
            Record::Recopy(recopy) => self.void(recopy),
            Record::TailBegin(begin) => self.tail = Some(begin),
            Record::Header(_)
            | Record::Mend(_)
            | Record::Chunk(_)
            | Record::Batch(_)
            | Record::Heartbeat(_)
            | Record::Blob(_)
            | Record::Joined(_)
            | Record::Unknown => {}
        }
    }

    fn void(&mut self, recopy: Recopy) {
        let all = recopy.tables.is_empty();
        for (name, copied) in &mut self.tables {
            if all || recopy.tables.contains(name) {
                copied.state = State::Void;
            }
        }
        if all {
            self.everything = Some(recopy);
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
        progress.last = seq;
        if seq >= last.seq {
            return Ok(progress);
        }
    }
}

/// Returns once somebody asks for tables to be copied again, in a record behind `last`. Says whether it is everything.
pub(crate) async fn asked(log: &Arc<dyn Log>, header: &Header, last: Seq) -> Result<bool, LogError> {
    let copy = claim::streams(&header.plan, &header.source).copy;
    let mut reader = RecordReader::open(Arc::clone(log), copy, last.next()).await?;
    loop {
        if let (_, Record::Recopy(recopy)) = reader.next().await? {
            return Ok(recopy.tables.is_empty());
        }
    }
}
