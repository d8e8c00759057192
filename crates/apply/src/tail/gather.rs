use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Poll;

use model::{Change, Lsn, Marker, MarkerKind, Oid, Old, Part, Seq, TableName, Xid};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::checkpoint::{Advance, Checkpoint};
use super::fold::{Op, Run};
use super::read::{CutOff, Incoming, What};
use super::target::{Target, Targets};
use crate::{ApplyError, Job};

/// Source transactions that become one target transaction, or a piece of one that is too large to be held.
#[derive(Default)]
pub(super) struct Group {
    pub steps: Vec<Step>,
    pub advances: BTreeMap<Arc<str>, Advance>,
    pub markers: Vec<(Arc<str>, Lsn, Marker)>,
    /// The last transaction goes on in the next group: no commit yet.
    pub partial: bool,
    /// It ends where the tail is to stand still.
    pub stands: bool,
    /// Steps that still take changes of their table.
    open: HashMap<TableName, usize>,
    ops: usize,
    bytes: usize,
    /// Of large messages: free again once this is written.
    large: Vec<OwnedSemaphorePermit>,
}

/// What is written in one go. Steps are written in order; only steps of the same table depend on it.
pub(super) enum Step {
    Rows(Run),
    /// A row's key changes.
    Move {
        target: Arc<Target>,
        old: Old,
        new: model::Tuple,
    },
    /// Tables are emptied.
    Truncate {
        targets: Vec<Arc<Target>>,
        restart_identity: bool,
    },
}

/// Changes of a group at most: a set-wise statement gains nothing from more, and what is in memory three times (gathered, waiting, being
/// written) stays small.
const OPS: usize = 20_000;

/// The share of the memory budget that one group's rows may take.
const SHARE: u64 = 32;

/// The share of it that a message of the log may take without being alone on its way: several are read ahead.
const LARGE: u64 = 128;

/// From how many bytes on a message is large.
pub(super) fn large(job: &Job) -> u64 {
    job.plan.limits.memory / LARGE
}

impl Group {
    /// Adds a change: to those of its table that are folded, or, if it gives the row another key, as a step of its own.
    pub fn take(&mut self, target: &Arc<Target>, op: Op) {
        match op {
            Op::Update { old: Some(old), new }
                if Run::moves(target, &Op::Update { old: Some(old.clone()), new: new.clone() }) =>
            {
                self.barrier(Step::Move { target: Arc::clone(target), old, new });
            }
            op => self.run(target).push(op),
        }
    }

    fn run(&mut self, target: &Arc<Target>) -> &mut Run {
        let at = match self.open.get(&target.into) {
            // Two partitions may lead into one table: their order counts then.
            Some(at) if matches!(&self.steps[*at], Step::Rows(run) if Arc::ptr_eq(&run.target, target)) => *at,
            _ => {
                self.steps.push(Step::Rows(Run::new(Arc::clone(target))));
                self.open.insert(target.into.clone(), self.steps.len() - 1);
                self.steps.len() - 1
            }
        };
        match &mut self.steps[at] {
            Step::Rows(run) => run,
            // `open` holds positions of `Rows` only: they are put there two lines above and nowhere else.
            Step::Move { .. } | Step::Truncate { .. } => unreachable!("an open step takes rows"),
        }
    }

    fn barrier(&mut self, step: Step) {
        match &step {
            Step::Rows(_) => {}
            Step::Move { target, .. } => {
                self.open.remove(&target.into);
            }
            Step::Truncate { targets, .. } => targets.iter().for_each(|target| {
                self.open.remove(&target.into);
            }),
        }
        self.steps.push(step);
    }

    fn is_empty(&self) -> bool {
        self.advances.is_empty() && !self.partial
    }

    fn full(&self, budget: usize) -> bool {
        self.ops >= OPS || self.bytes >= budget || self.pauses()
    }

    /// Nothing is gathered behind it before it is written, and what it waits for is there.
    pub fn pauses(&self) -> bool {
        let holds = |(_, _, marker): &(Arc<str>, Lsn, Marker)| marker.kind == MarkerKind::Hold;
        self.has_gate() || (!self.partial && (self.stands || self.markers.iter().any(holds)))
    }

    /// Markers of tables whose copies have to be in before the tail goes on, and their sources.
    pub fn gates(&self) -> impl Iterator<Item = (&Arc<str>, &Marker)> {
        let copies = self.markers.iter().filter(|(_, _, marker)| marker.kind == MarkerKind::Copy);
        copies.map(|(source, _, marker)| (source, marker))
    }

    fn has_gate(&self) -> bool {
        self.gates().next().is_some()
    }
}

/// A transaction that is coming in.
#[derive(Default)]
struct Pending {
    changes: Vec<Change>,
    bytes: usize,
    large: Vec<OwnedSemaphorePermit>,
    /// A piece of it is in a group already.
    begun: bool,
    commit: Lsn,
}

/// The epoch and the table that a copy's marker announces.
pub(super) fn copied_table(marker: &str) -> (i32, &str) {
    let (epoch, table) = marker.split_once(' ').unwrap_or(("0", marker));
    (epoch.parse().unwrap_or(0), table)
}

struct Gather {
    targets: HashMap<Arc<str>, Targets>,
    pending: HashMap<Arc<str>, Pending>,
    group: Group,
    budget: usize,
    cut_off: CutOff,
    /// Behind which commits a group is to end: there the tail stands still.
    stands: BTreeMap<Arc<str>, Lsn>,
    /// Parts that have come in and are not folded: those of one message at most.
    queue: VecDeque<Queued>,
}

/// What the writing tells the gathering.
#[derive(Default)]
pub(super) struct Passed {
    /// How many groups with a pause behind them are written, and the pause over.
    pub pauses: u64,
    /// The commits behind which the next ones are to be.
    pub stands: BTreeMap<Arc<str>, Lsn>,
}

struct Queued {
    source: Arc<str>,
    seq: Seq,
    part: Part,
    large: Option<OwnedSemaphorePermit>,
}

/// Takes what the readers bring and hands on groups as fast as they are written.
pub(super) async fn run(
    job: Arc<Job>,
    checkpoints: BTreeMap<String, Checkpoint>,
    mut incoming: Inbox,
    groups: mpsc::Sender<Group>,
    mut passed: watch::Receiver<Passed>,
) -> Result<(), ApplyError> {
    let session = Arc::new(pg::connect(&job.endpoint, "apply catalog").await?);
    let targets = checkpoints.keys().map(|source| {
        let source: Arc<str> = source.as_str().into();
        (Arc::clone(&source), Targets::new(source, Arc::clone(&session), job.plan.is_back()))
    });
    let mut gather = Gather {
        targets: targets.collect(),
        pending: HashMap::new(),
        group: Group::default(),
        budget: (job.plan.limits.memory / SHARE) as usize,
        cut_off: job.cut_off.clone(),
        stands: passed.borrow().stands.clone(),
        queue: VecDeque::new(),
    };
    let mut pauses = 0;
    loop {
        let due = gather.group.partial || gather.group.full(gather.budget);
        if !due && let Some(queued) = gather.queue.pop_front() {
            gather.part(queued)?;
            continue;
        }
        tokio::select! {
            biased;
            permit = groups.reserve(), if !gather.group.is_empty() => {
                let Ok(permit) = permit else { return Ok(()) };
                let group = std::mem::take(&mut gather.group);
                let gated: Vec<_> = group.gates().map(|(source, marker)| (Arc::clone(source), marker.id.clone())).collect();
                let pauses_here = group.pauses();
                permit.send(group);
                if pauses_here {
                    // What a table's changes mean depends on the copy that is being waited for.
                    pauses += 1;
                    match passed.wait_for(|passed| passed.pauses >= pauses).await {
                        Ok(passed) => gather.stands.clone_from(&passed.stands),
                        Err(_) => return Ok(()),
                    }
                    for (source, marker) in &gated {
                        if let Some(targets) = gather.targets.get_mut(source) {
                            targets.refresh(copied_table(marker).1).await?;
                        }
                    }
                }
            }
            message = incoming.next(gather.begun()), if !due => gather.take(message).await?,
        }
    }
}

/// What the readers of all sources bring.
#[derive(Default)]
pub(super) struct Inbox {
    sources: Vec<(Arc<str>, mpsc::Receiver<Incoming>)>,
    turn: usize,
}

impl Inbox {
    pub fn add(&mut self, source: &str, receiver: mpsc::Receiver<Incoming>) {
        self.sources.push((source.into(), receiver));
    }

    /// The next message, by turns of any source, or of this one `only`. A reader that has ended brings nothing more; its own result says why.
    async fn next(&mut self, only: Option<Arc<str>>) -> Incoming {
        let only = only.as_deref();
        std::future::poll_fn(|context| {
            let count = self.sources.len();
            for at in (self.turn + 1..=self.turn + count).map(|at| at % count) {
                let (source, receiver) = &mut self.sources[at];
                if only.is_none_or(|only| only == &**source)
                    && let Poll::Ready(Some(message)) = receiver.poll_recv(context)
                {
                    self.turn = at;
                    return Poll::Ready(message);
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Gather {
    /// The source whose transaction is in the target's open transaction with its first pieces only. Nothing of another source may come
    /// before its end: the target transaction would end with a part of it.
    fn begun(&self) -> Option<Arc<str>> {
        self.pending.iter().find(|(_, pending)| pending.begun).map(|(source, _)| Arc::clone(source))
    }

    async fn take(&mut self, message: Incoming) -> Result<(), ApplyError> {
        let Incoming { source, seq, what, large } = message;
        match what {
            What::Parts(relations, parts) => {
                if let Some(targets) = self.targets.get_mut(&source) {
                    for relation in &relations {
                        targets.describe(relation).await?;
                    }
                }
                let parts = parts.into_iter();
                self.queue.extend(parts.map(|part| Queued { source: Arc::clone(&source), seq, part, large: None }));
                if let Some(last) = self.queue.back_mut() {
                    last.large = large;
                }
                Ok(())
            }
            What::Discard => match self.pending.remove(&source) {
                // A piece of it is in the target's open transaction: start again from the checkpoint, without it.
                Some(pending) if pending.begun => {
                    self.cut_off.note(&source, pending.commit, seq);
                    let why = "the capture that wrote a transaction died in the middle of it".to_owned();
                    Err(log::LogError::Unavailable(why).into())
                }
                Some(_) | None => Ok(()),
            },
        }
    }

    fn part(&mut self, Queued { source, seq, part, large }: Queued) -> Result<(), ApplyError> {
        let source = &source;
        let pending = self.pending.entry(Arc::clone(source)).or_default();
        if part.first {
            *pending = Pending::default();
        }
        pending.commit = part.commit_lsn;
        pending.bytes += part.changes.iter().map(size).sum::<usize>();
        pending.changes.extend(part.changes);
        pending.large.extend(large);
        // What holds up the reader is handed on in any case.
        if part.end_lsn.is_none() && pending.bytes < self.budget && pending.large.is_empty() {
            return Ok(());
        }
        let changes = std::mem::take(&mut pending.changes);
        self.group.large.append(&mut pending.large);
        self.group.bytes += std::mem::take(&mut pending.bytes);
        pending.begun = part.end_lsn.is_none();
        let rows = self.fold(source, part.xid, part.end_lsn.unwrap_or(part.commit_lsn), changes)?;
        let advance = self.group.advances.entry(Arc::clone(source)).or_default();
        advance.rows += rows;
        match part.end_lsn {
            Some(lsn) => {
                let Advance { transactions, rows, .. } = *advance;
                *advance = Advance { lsn, seq, commit_time: part.commit_time, transactions: transactions + 1, rows };
                self.group.partial = false;
                self.group.stands |= self.stands.get(source).is_some_and(|stand| lsn >= *stand);
            }
            None => self.group.partial = true,
        }
        Ok(())
    }

    /// Sorts a transaction's changes into the group. Says how many there were to write.
    fn fold(&mut self, source: &Arc<str>, xid: Xid, lsn: Lsn, changes: Vec<Change>) -> Result<i64, ApplyError> {
        let Some(targets) = self.targets.get(source) else { return Ok(0) };
        let group = &mut self.group;
        // A change by a transaction that the table's copy has seen is in the copy; so is one to a table whose copy has not begun.
        let find =
            |relation: Oid| Ok::<_, ApplyError>(targets.get(relation)?.filter(|target| !target.copied.sees(xid)));
        let mut rows = 0;
        for change in changes {
            let (relation, op) = match change {
                Change::Insert { relation, new } => (relation, Op::Insert(new)),
                Change::Update { relation, old, new } => (relation, Op::Update { old, new }),
                Change::Delete { relation, old } => (relation, Op::Delete(old)),
                Change::Truncate { relations, restart_identity, .. } => {
                    let mut emptied = Vec::with_capacity(relations.len());
                    for relation in relations {
                        emptied.extend(find(relation)?.cloned());
                    }
                    if !emptied.is_empty() {
                        group.barrier(Step::Truncate { targets: emptied, restart_identity });
                    }
                    continue;
                }
                Change::Marker(marker) => {
                    group.markers.push((Arc::clone(source), lsn, marker));
                    continue;
                }
            };
            let Some(target) = find(relation)? else { continue };
            rows += 1;
            group.ops += 1;
            group.take(target, op);
        }
        Ok(rows)
    }
}

/// With what stands around it.
fn size(change: &Change) -> usize {
    64 + change.bytes()
}
