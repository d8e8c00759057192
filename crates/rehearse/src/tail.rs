//! What a source's tail holds: where it ends, where copy and tail are joined, and what verifies have recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use log::{Log, StreamKind, StreamName};
use model::{Batch, Change, Code, Lsn, MarkerKind, Problem, Record, Seq, TableName};
use verify::{Recorded, Recordings};

use crate::copies::Copies;
use crate::walk::Walk;

/// How far a rehearsal goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Through the last commit that ends here or before.
    Lsn(Lsn),
    /// Up to the first commit that is later, in microseconds since 1970 UTC. Times of commits need not come in their order.
    Time(i64),
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Until, String> {
        if let Ok(lsn) = text.parse() {
            return Ok(Until::Lsn(lsn));
        }
        let micros =
            |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok()?.as_micros().try_into().ok();
        let time = humantime::parse_rfc3339_weak(text).ok().and_then(micros);
        time.map(Until::Time)
            .ok_or_else(|| "it is no LSN (16/B374D848) and no time in UTC (2026-01-31T12:00:00Z)".to_owned())
    }
}

impl Until {
    fn is_before(self, end: Lsn, time: i64) -> bool {
        match self {
            Until::Lsn(lsn) => lsn < end,
            Until::Time(until) => until < time,
        }
    }
}

/// A tail, read to the end that it had.
#[derive(Debug)]
pub(crate) struct Tail {
    stream: StreamName,
    begin: Seq,
    last: Seq,
    /// The last commit that is asked for.
    pub end: Lsn,
    /// Where copy and tail are joined.
    pub joined: Option<Lsn>,
    /// Of each table the last comparison that found it equal as a whole, among those that lie before the end.
    pub recorded: BTreeMap<TableName, Recorded>,
    /// Tables of which only copies were compared that do not count any more.
    pub outdated: BTreeSet<TableName>,
    marks: Marks,
}

/// Where some of the commits are.
#[derive(Debug)]
struct Marks {
    seen: usize,
    every: usize,
    marks: Vec<(Lsn, Seq)>,
}

/// Marks that are kept, 16 bytes each. If there are more messages, a few of them are read again to find one.
const MARKS: usize = 1 << 17;

impl Marks {
    /// The message holds the end of this commit; later ones come later.
    fn add(&mut self, lsn: Lsn, seq: Seq) {
        if self.seen.is_multiple_of(self.every) {
            self.marks.push((lsn, seq));
        }
        self.seen += 1;
        if self.marks.len() >= MARKS {
            let mut keep = false;
            self.marks.retain(|_| {
                keep = !keep;
                keep
            });
            self.every *= 2;
        }
    }

    /// A message in or before which this commit has its end.
    fn before(&self, lsn: Lsn) -> Option<Seq> {
        let behind = self.marks.partition_point(|(mark, _)| *mark < lsn);
        behind.checked_sub(1).and_then(|at| self.marks.get(at)).map(|(_, seq)| *seq)
    }
}

/// Reads the tail of a source, from where it begins.
///
/// # Errors
/// The log.
pub(crate) async fn read(
    log: &Arc<dyn Log>,
    plan: &str,
    source: &str,
    copies: &Copies,
    until: Option<Until>,
) -> Result<Tail, Problem> {
    let stream = StreamName::new(plan, source, StreamKind::Tail);
    let last = log.state(&stream).await?.map_or(Seq::ZERO, |state| state.last);
    let mut walk = Walk::new(log, &stream, copies.begin, last);
    let mut tail = Tail {
        stream: stream.clone(),
        begin: copies.begin,
        last,
        end: Lsn::ZERO,
        joined: None,
        recorded: BTreeMap::new(),
        outdated: BTreeSet::new(),
        marks: Marks { seen: 0, every: 1, marks: Vec::new() },
    };
    let mut recordings = Recordings::default();
    let mut past = false;
    while let Some((seq, record)) = walk.next().await? {
        let batch = match record {
            Record::Batch(batch) => batch,
            // Behind it is another tail, to which this copy does not belong.
            Record::Writer(writer) if writer.anew && seq != copies.begin => break,
            _ => continue,
        };
        let mut ended = None;
        for part in batch.parts {
            let end = part.end_lsn.unwrap_or(part.commit_lsn);
            for change in part.changes {
                let Change::Marker(marker) = change else { continue };
                match marker.kind {
                    MarkerKind::Joined if marker.id == copies.join => tail.joined = Some(end),
                    MarkerKind::Verified => {
                        let whole = recordings.take(&marker.id, &marker.data);
                        tail.take(whole, past, copies);
                    }
                    _ => {}
                }
            }
            if part.end_lsn.is_none() {
                continue;
            }
            past |= until.is_some_and(|until| until.is_before(end, part.commit_time));
            if !past {
                tail.end = end;
                ended = Some(end);
            }
        }
        if let Some(end) = ended {
            tail.marks.add(end, seq);
        }
    }
    tail.take(recordings.end(), past, copies);
    Ok(tail)
}

impl Tail {
    /// Takes what a comparison says; once the end is past, only what was so before it.
    fn take(&mut self, whole: Vec<Recorded>, past: bool, copies: &Copies) {
        for recorded in whole.into_iter().filter(Recorded::is_whole_and_equal) {
            if past && recorded.commits().iter().any(|lsn| *lsn > self.end) {
                continue;
            }
            let table = recorded.table.clone();
            if recorded.is_of(&copies.header.nonce, &copies.epochs) {
                self.outdated.remove(&table);
                self.recorded.insert(table, recorded);
            } else if !self.recorded.contains_key(&table) {
                self.outdated.insert(table);
            }
        }
    }

    /// Where the tail has to end for the target to stand at this commit: the message that holds its end, without what comes behind it there.
    ///
    /// # Errors
    /// The log; or it does not have this commit.
    pub async fn cut(&self, log: &Arc<dyn Log>, lsn: Lsn) -> Result<(Seq, Bytes), Problem> {
        let from = self.marks.before(lsn).unwrap_or(self.begin);
        let mut walk = Walk::new(log, &self.stream, from, self.last);
        while let Some((seq, record)) = walk.next().await? {
            let Record::Batch(mut batch) = record else { continue };
            if let Some(at) = batch.parts.iter().position(|part| part.end_lsn == Some(lsn)) {
                batch.parts.truncate(at + 1);
                return Ok((seq, Record::Batch(Batch { ..batch }).encode()));
            }
            if batch.parts.iter().any(|part| part.end_lsn.is_some_and(|end| end > lsn)) {
                break;
            }
        }
        Err(Problem::new(
            Code::NothingRecorded,
            format!("the tail of source {:?}", self.stream.source),
            format!("no commit in it ends at {lsn}, as of which tables were compared"),
            "`crossfade verify` compares them again",
        ))
    }

    /// The commits as of which these tables were compared.
    pub fn commits<'a>(tables: impl IntoIterator<Item = &'a Recorded>) -> BTreeSet<Lsn> {
        tables.into_iter().flat_map(Recorded::commits).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_an_lsn_or_a_time() {
        assert_eq!("16/B374D848".parse(), Ok(Until::Lsn(Lsn(0x16_B374_D848))));
        assert_eq!("1970-01-01T00:00:01.5Z".parse(), Ok(Until::Time(1_500_000)));
        assert_eq!("1970-01-01 00:01:00".parse(), Ok(Until::Time(60_000_000)));
        assert!("yesterday".parse::<Until>().is_err());
    }

    #[test]
    fn marks_get_fewer_and_still_lie_before() {
        let mut marks = Marks { seen: 0, every: 1, marks: Vec::new() };
        for number in 1..=(4 * MARKS as u64) {
            marks.add(Lsn(number * 10), Seq(number));
        }
        assert!(marks.marks.len() < MARKS && marks.every > 1);
        assert_eq!(marks.before(Lsn(5)), None);
        for lsn in [15, 1_000, 999_999, 40 * MARKS as u64] {
            let seq = marks.before(Lsn(lsn)).unwrap().0;
            assert!(seq * 10 < lsn && lsn - seq * 10 <= 10 * (marks.every as u64 + 1), "{lsn}: {seq}");
        }
    }
}
