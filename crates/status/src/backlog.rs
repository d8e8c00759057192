//! What a source's tail stream holds behind a checkpoint.

use futures::{StreamExt, stream};
use log::{Log, LogError, StreamName, StreamState};
use model::{Lsn, Record, Seq};

/// Messages read ahead, at most: a second or two of a busy source, read within some hundred milliseconds. What is behind them is
/// estimated.
const READ: u64 = 512;

/// Changes read ahead, at most: full messages have thousands, and a look each second must not keep the log busy.
const CHANGES: usize = 100_000;

/// Messages asked for at a time, 256 KiB each at most unless a value is larger.
const AT_ONCE: usize = 16;

/// How far back the last position is looked for: behind it there can be a writer's hello, or pieces of a large record.
const BACK: u64 = 32;

/// What is logged and not applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub transactions: u64,
    /// When the first of them was committed, in microseconds since 1970.
    pub oldest: Option<i64>,
    /// `transactions` is an estimate.
    pub estimated: bool,
    /// How far the log is complete.
    pub logged: Option<Lsn>,
}

/// Reads what is behind `applied`, whose last part is in message `seq`.
pub(crate) async fn read(
    log: &dyn Log,
    name: &StreamName,
    state: StreamState,
    applied: Lsn,
    seq: Seq,
) -> Result<Backlog, LogError> {
    let mut backlog = Backlog { logged: logged(log, name, state).await?, ..Backlog::default() };
    let known = applied == Lsn::ZERO || stands(log, name, applied, seq).await?;
    // Later parts of the message that the checkpoint names may not be applied. Where the log lost its end and was filled again, the message
    // with that number is another one: what is missing is among the last ones.
    let from = if known { seq } else { Seq((state.last.0 + 1).saturating_sub(READ)) }.max(state.first).max(Seq(1));
    let mut before = known || from <= state.first;
    let mut newest = applied;
    let until = state.last.0.min(from.0.saturating_add(READ - 1));
    let mut records =
        std::pin::pin!(stream::iter(from.0..=until).map(|seq| get(log, name, Seq(seq))).buffered(AT_ONCE));
    let (mut read, mut changes) = (0, 0);
    while changes < CHANGES
        && let Some(record) = records.next().await
    {
        read += 1;
        let Some(Record::Batch(batch)) = record? else { continue };
        for part in batch.parts {
            changes += part.changes.len();
            before |= part.end_lsn.is_some_and(|end| end <= applied);
            // What a new writer repeats counts once.
            if let Some(end) = part.end_lsn.filter(|end| *end > newest) {
                newest = end;
                backlog.transactions += 1;
                backlog.oldest.get_or_insert(part.commit_time);
            }
        }
    }
    let rest = (state.last.0 + 1).saturating_sub(from.0 + read);
    if rest > 0 && read > 0 {
        backlog.transactions += (backlog.transactions as f64 / read as f64 * rest as f64) as u64;
        // One is under way at least, though it may be so large that its end was not seen.
        backlog.transactions = backlog.transactions.max(1);
        backlog.estimated = true;
    }
    backlog.estimated |= !before && backlog.transactions > 0;
    Ok(backlog)
}

/// Message `seq` is the one that the checkpoint takes it for: the one with its commit, or the one with which the tail began anew.
async fn stands(log: &dyn Log, stream: &StreamName, applied: Lsn, seq: Seq) -> Result<bool, LogError> {
    Ok(match get(log, stream, seq).await? {
        Some(Record::Batch(batch)) => batch.parts.iter().any(|part| part.end_lsn == Some(applied)),
        Some(Record::Writer(writer)) => writer.anew,
        _ => false,
    })
}

/// The last position that a record names.
async fn logged(log: &dyn Log, stream: &StreamName, state: StreamState) -> Result<Option<Lsn>, LogError> {
    let oldest = state.first.0.max(state.last.0.saturating_sub(BACK)).max(1);
    for seq in (oldest..=state.last.0).rev() {
        let lsn = match get(log, stream, Seq(seq)).await? {
            Some(Record::Heartbeat(heartbeat)) => Some(heartbeat.lsn),
            Some(Record::Batch(batch)) => batch.parts.iter().filter_map(|part| part.end_lsn).max(),
            _ => None,
        };
        if lsn.is_some() {
            return Ok(lsn);
        }
    }
    Ok(None)
}

/// A record; none if it has just been taken out by people.
async fn get(log: &dyn Log, stream: &StreamName, seq: Seq) -> Result<Option<Record>, LogError> {
    match log::get_record(log, stream, seq).await {
        Ok(record) => Ok(Some(record)),
        Err(LogError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
