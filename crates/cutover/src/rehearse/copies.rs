use std::collections::BTreeSet;
use std::sync::Arc;

use log::{Log, LogError, StreamKind, StreamName};
use model::{Code, CopyEnd, DecodeError, Header, Identity, Problem, Record, Seq, TableName};

use crate::rehearse::walk::Walk;

/// What a source's copy stream holds: the last copy of all its tables that is whole.
#[derive(Clone, Debug)]
pub(crate) struct Copies {
    /// Whose stream it is.
    pub header: Header,
    /// Where the data comes from; other than in the header after a recopy from another cluster.
    pub source: Identity,
    /// The tables, and those that they are partitions of.
    pub tables: BTreeSet<TableName>,
    /// Those that were copied, under the epoch that counts.
    pub epochs: Vec<(TableName, u32)>,
    /// The last message that belongs to it. Behind that there is another round under way, or nothing.
    pub end: Seq,
    /// The message with which the tail begins.
    pub begin: Seq,
    /// The marker that joins copy and tail.
    pub join: String,
}

impl Copies {
    /// The header as it would be if the stream began now.
    pub fn now(&self) -> Header {
        Header { source_identity: self.source.clone(), ..self.header.clone() }
    }
}

/// A round of copies, as far as it has been read.
#[derive(Default)]
struct Round {
    tables: BTreeSet<TableName>,
    /// Who copies: what another one says is void.
    copier: Option<String>,
    /// Tables that are to be copied again, and whether everything is.
    due: BTreeSet<TableName>,
    everything: bool,
    begin: Seq,
    /// Something was begun that no end has come for.
    open: bool,
}

/// Reads the copy stream of a source.
///
/// # Errors
/// The log; or there is no whole copy in it.
pub(crate) async fn read(log: &Arc<dyn Log>, plan: &str, source: &str) -> Result<Copies, Problem> {
    let stream = StreamName::new(plan, source, StreamKind::Copy);
    let last = log.state(&stream).await?.map_or(Seq::ZERO, |state| state.last);
    let mut walk = Walk::new(log, &stream, Seq(1), last);
    let header = match walk.next().await? {
        Some((_, Record::Header(header))) => header,
        Some(_) => {
            return Err(LogError::Damaged(DecodeError::Field("the copy stream does not begin with a header")).into());
        }
        None => return Err(nothing(source, "it holds nothing of this plan")),
    };
    let mut identity = header.source_identity.clone();
    let mut round = Round { begin: Seq(1), ..Round::default() };
    let mut whole: Option<Copies> = None;
    while let Some((seq, record)) = walk.next().await? {
        if let (Some(copier), Some(writer)) = (&round.copier, record.copier())
            && copier != writer
        {
            continue;
        }
        match record {
            Record::Writer(writer) => round.copier = Some(writer.id),
            Record::TableBegin(begin) => {
                round.due.remove(&begin.table);
                round.tables.extend(begin.root);
                round.tables.insert(begin.table);
                round.open = true;
            }
            Record::Recopy(recopy) => {
                round.everything |= recopy.tables.is_empty();
                round.due.extend(recopy.tables);
                if let Some(other) = recopy.source_identity {
                    identity = other;
                }
                round.open = true;
            }
            Record::TailBegin(begin) => {
                (round.begin, round.everything, round.open) = (begin.sequence, false, true);
            }
            Record::CopyEnd(CopyEnd { marker, tables, .. }) if round.due.is_empty() && !round.everything => {
                round.open = false;
                whole = Some(Copies {
                    header: header.clone(),
                    source: identity.clone(),
                    tables: round.tables.clone(),
                    epochs: tables,
                    end: seq,
                    begin: round.begin,
                    join: marker,
                });
            }
            _ => {}
        }
        if let Some(whole) = whole.as_mut().filter(|_| !round.open) {
            whole.end = seq;
        }
    }
    whole.ok_or_else(|| nothing(source, "no copy in it is whole"))
}

fn nothing(source: &str, why: &str) -> Problem {
    Problem::new(
        Code::NothingRecorded,
        format!("the log of source {source:?}"),
        why,
        "rehearse once `crossfade status` says phase following, and `crossfade verify` has found the tables equal",
    )
}
