use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use model::{Change, Code, Lsn, Marker, MarkerKind, Oid, Problem, Relation, Xid};
use offsets::Spill;
use pg::pgoutput::{Decoder, PgOutput};

use super::batch::Packer;
use super::streamed::{Item, Replay, Streamed};
use crate::CaptureError;
use crate::run::Running;

/// The share of the memory budget that transactions in progress may take before they move to disk; the log's window, the
/// connection's buffer and the chunks of the copy take the rest.
const SHARE: u64 = 4;

/// Turns pgoutput's messages into transactions in commit order.
pub(super) struct Assembler {
    running: Arc<Running>,
    decoder: Decoder,
    relations: HashMap<Oid, Relation>,
    /// Commit records that start before are in the log already.
    logged: Lsn,
    state: State,
    streamed: Streamed,
    replays: Vec<Replay>,
    /// The last transaction that was left out ends here.
    passed: Lsn,
}

/// A transaction that was streamed, and whose commit has come.
pub(super) struct Committed {
    xid: u32,
    commit_lsn: Lsn,
    end_lsn: Lsn,
    commit_time: i64,
    /// Of which it has still to be asked whether they rolled back.
    pub subtransactions: Vec<Xid>,
}

enum State {
    Between,
    /// Inside of a transaction that is sent whole, and nothing of it has come yet.
    Begun {
        xid: u32,
        final_lsn: Lsn,
        commit_time: i64,
    },
    /// The same, and its beginning is handed on.
    Open,
    /// Inside of one that is in the log already.
    Logged,
    /// Inside of one that apply has written here, for the other direction.
    Own,
    /// Inside of a block of a transaction in progress.
    Stream {
        top: u32,
    },
}

impl Assembler {
    pub fn new(running: &Arc<Running>, logged: Lsn, spill: Spill) -> Self {
        let budget = (running.job.plan.limits.memory / SHARE) as usize;
        Assembler {
            running: Arc::clone(running),
            decoder: Decoder::default(),
            relations: HashMap::new(),
            logged,
            state: State::Between,
            streamed: Streamed::new(spill, budget),
            replays: Vec::new(),
            passed: Lsn::ZERO,
        }
    }

    /// Up to where there is nothing but what was handed on and what apply has written here; only [between transactions](Self::between_transactions).
    pub fn passed(&self) -> Lsn {
        self.passed
    }

    /// No transaction is half read, so what the server says to have sent is complete.
    pub fn between_transactions(&self) -> bool {
        matches!(self.state, State::Between) && self.replays.is_empty()
    }

    /// Takes one message of the replication stream. What it returns has to be [settled](Self::settle) before the next one.
    pub fn take(&mut self, payload: Bytes, out: &mut Packer) -> Result<Option<Committed>, CaptureError> {
        // Rows that are left out are not even read.
        if matches!(self.state, State::Own) && matches!(payload.first(), Some(b'I' | b'U' | b'D')) {
            return Ok(None);
        }
        match self.decoder.decode(payload)? {
            PgOutput::Begin { final_lsn, commit_time, xid } => {
                self.state = match final_lsn < self.logged {
                    true => State::Logged,
                    false => State::Begun { xid, final_lsn, commit_time },
                };
            }
            PgOutput::Commit { end_lsn, .. } => {
                match std::mem::replace(&mut self.state, State::Between) {
                    State::Open => out.commit(end_lsn),
                    // Nothing of it is wanted: servers before 15 send empty ones, too.
                    State::Own | State::Begun { .. } => self.passed = end_lsn,
                    State::Logged | State::Between | State::Stream { .. } => {}
                }
            }
            PgOutput::StreamStart { xid, .. } => self.state = State::Stream { top: xid },
            PgOutput::StreamStop => self.state = State::Between,
            PgOutput::StreamAbort { xid, subxid } => self.streamed.abort(xid, subxid)?,
            PgOutput::StreamCommit { xid, commit_lsn, end_lsn, commit_time } => {
                if commit_lsn < self.logged {
                    self.streamed.abort(xid, xid)?;
                } else {
                    let all = self.streamed.subtransactions(xid);
                    let subtransactions = all.into_iter().map(|xid| self.widen(xid)).collect();
                    return Ok(Some(Committed { xid, commit_lsn, end_lsn, commit_time, subtransactions }));
                }
            }
            PgOutput::Relation { relation, .. } => match self.state {
                State::Stream { top } => self.streamed.push(top, Item::Relation(relation))?,
                State::Between | State::Begun { .. } | State::Open | State::Logged | State::Own => {
                    self.describe(relation, out);
                }
            },
            PgOutput::Insert { xid, relation, new } => self.change(xid, Change::Insert { relation, new }, out)?,
            PgOutput::Update { xid, relation, old, new } => {
                self.change(xid, Change::Update { relation, old, new }, out)?
            }
            PgOutput::Delete { xid, relation, old } => self.change(xid, Change::Delete { relation, old }, out)?,
            PgOutput::Truncate { xid, relations, cascade, restart_identity } => {
                self.change(xid, Change::Truncate { relations, cascade, restart_identity }, out)?;
            }
            PgOutput::Message { xid, transactional, prefix, content, .. } => {
                if let Some(marker) = self.marker(transactional, &prefix, &content) {
                    if marker.kind == MarkerKind::Catalog {
                        self.running.catalog.send_replace(marker.id);
                        return Ok(None);
                    }
                    self.change(xid, Change::Marker(marker), out)?;
                }
            }
            PgOutput::Origin { name, .. } if self.is_own(&name) => match self.state {
                State::Begun { .. } => self.state = State::Own,
                State::Stream { top } => self.streamed.own(top),
                State::Between | State::Open | State::Logged | State::Own => {}
            },
            PgOutput::Origin { .. } | PgOutput::Type { .. } => {}
        }
        Ok(None)
    }

    /// Hands on a transaction that was streamed, but for what these subtransactions of it did.
    pub fn settle(&mut self, committed: &Committed, rolled_back: &[Xid], out: &mut Packer) -> Result<(), CaptureError> {
        for xid in rolled_back {
            self.streamed.abort(committed.xid, xid.0 as u32)?;
        }
        let replay = self.streamed.commit(committed.xid, committed.end_lsn);
        if !replay.own {
            out.begin(self.widen(committed.xid), committed.commit_lsn, committed.commit_time);
        }
        self.replays.push(replay);
        // All of it before anything that comes later.
        while self.replay(out)? && !out.full() {}
        Ok(())
    }

    /// Whether an origin is one of those under which apply writes for this plan.
    fn is_own(&self, origin: &str) -> bool {
        let number = origin.strip_prefix(&plan::origins(&self.running.job.plan.name));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    }

    /// Hands on the beginning of the transaction that is being sent, if that is still to be done.
    fn open(&mut self, out: &mut Packer) {
        if let State::Begun { xid, final_lsn, commit_time } = self.state {
            out.begin(self.widen(xid), final_lsn, commit_time);
            self.state = State::Open;
        }
    }

    /// Anybody may emit a message; ours carry the plan's nonce.
    fn marker(&self, transactional: bool, prefix: &str, content: &[u8]) -> Option<Marker> {
        let content = std::str::from_utf8(content).ok().filter(|_| transactional && prefix == MarkerKind::PREFIX)?;
        Marker::parse(content).filter(|marker| marker.nonce == self.running.header.nonce)
    }

    fn change(&mut self, xid: Option<u32>, change: Change, out: &mut Packer) -> Result<(), CaptureError> {
        self.open(out);
        match self.state {
            State::Stream { top } => self.streamed.push(top, Item::Change { xid: xid.unwrap_or(top), change }),
            State::Logged => Ok(()),
            State::Own => {
                self.leave_out(&change);
                Ok(())
            }
            State::Begun { .. } | State::Open => self.put(change, out),
            State::Between => Err(internal("a change outside of any transaction")),
        }
    }

    fn describe(&mut self, relation: Relation, out: &mut Packer) {
        let (id, now) = (relation.id, relation.clone());
        if self.relations.insert(id, relation).is_some_and(|before| before != now) {
            out.redefined();
        }
    }

    fn put(&self, change: Change, out: &mut Packer) -> Result<(), CaptureError> {
        let named =
            |id: &Oid| self.relations.get(id).ok_or_else(|| internal("a change to a table that was not described"));
        match &change {
            Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
                out.describe(named(relation)?);
            }
            Change::Truncate { relations, .. } => {
                for relation in relations {
                    out.describe(named(relation)?);
                }
                // Only now: a streamed transaction's may come long before its commit, or be rolled back.
                self.running.note_truncate(relations);
            }
            Change::Marker(_) => {}
        }
        out.change(change);
        Ok(())
    }

    /// Of what apply has written here only that tables were emptied is of interest.
    fn leave_out(&self, change: &Change) {
        if let Change::Truncate { relations, .. } = change {
            self.running.note_truncate(relations);
        }
    }

    /// Hands on the next piece of a transaction that was streamed and has committed. Says whether there was one.
    pub fn replay(&mut self, out: &mut Packer) -> Result<bool, CaptureError> {
        let Some(mut replay) = self.replays.pop() else { return Ok(false) };
        match self.streamed.piece(&mut replay)? {
            None if replay.own => self.passed = replay.end_lsn,
            None => out.commit(replay.end_lsn),
            Some(items) => {
                for item in items {
                    match item {
                        Item::Relation(relation) => self.describe(relation, out),
                        Item::Change { change, .. } if replay.own => self.leave_out(&change),
                        Item::Change { change, .. } => self.put(change, out)?,
                    }
                }
                self.replays.push(replay);
            }
        }
        Ok(true)
    }

    fn widen(&self, xid: u32) -> Xid {
        let near = &self.running.near;
        let wide = Xid::widen(xid, Xid(near.load(Ordering::Relaxed)));
        near.fetch_max(wide.0, Ordering::Relaxed);
        wide
    }
}

fn internal(why: &str) -> CaptureError {
    Problem::new(Code::Internal, "the replication stream", why, "start it again; if it comes back, report it").into()
}
