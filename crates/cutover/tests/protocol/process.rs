//! A process of crossfade that leads an epoch, or ends it: what it knows, and its next step. A step is one transaction in one
//! database. Between two of them any other process may do any number of its own, which is what being stopped there comes to.

use super::model::{Flaw, Protocol, State};
use super::world::{Database, Entry, Row, SETUP, Side, Stage, World, Writer};

/// Why a process takes the lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Goal {
    /// To begin an epoch.
    Begin,
    /// To cancel one that is undecided, or to reopen after one that was.
    Cancel,
    /// To finish one that is committed.
    RollForward,
}

/// What it does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It does not run.
    Off,
    /// Has read the first journal, reads the second one.
    Look(Seen),
    /// Raises the token at the side that the epoch closes.
    Lead(Goal),
    /// Raises the token of the journal's row.
    TakeRow(Goal),
    Insert,
    Claim,
    Fencing,
    Fence,
    /// Has the fence row locked; waits for the tables, and commits.
    Closing,
    Fenced,
    Mark,
    Drain,
    Prepare,
    Decide,
    /// Has the journal's row locked; commits.
    Deciding,
    Cancel,
    Reopen,
    /// Disables the triggers of the side that it reopened.
    Disable,
    /// Sends the application to the side that is open.
    Route,
    Routed,
    Finish,
    /// Disables the triggers of the side that the epoch opened.
    Lift,
}

/// What one journal said when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    /// The highest epoch, and its stage.
    pub top: u8,
    pub stage: Stage,
    /// The highest epoch that was committed.
    pub committed: u8,
}

impl Seen {
    fn read(database: &Database) -> Seen {
        let mut seen = Seen { top: SETUP, stage: Stage::Absent, committed: 0 };
        for (row, epoch) in database.journal.iter().zip(0..).filter(|(row, _)| row.stage != Stage::Absent) {
            seen.top = epoch;
            seen.stage = row.stage;
            if row.stage.committed() {
                seen.committed = epoch;
            }
        }
        seen
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    pub phase: Phase,
    /// The side that it was started to close: A by `cutover`, B by `rollback`. A guard wants nothing of the kind.
    pub wish: Option<Side>,
    pub epoch: u8,
    /// The side that this epoch closes. Its journal is in the other one.
    pub closes: Side,
    /// The token that it raised.
    pub mine: u8,
}

/// What comes of a process's next step.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Nothing yet: it waits for a lock, or for apply.
    Waits,
    /// Somebody else has the lead. It ends.
    Refused,
    Goes(World, Process),
}

impl Process {
    pub const OFF: Process = Process { phase: Phase::Off, wish: None, epoch: 0, closes: Side::A, mine: 0 };

    fn to(self, phase: Phase) -> Process {
        Process { phase, ..self }
    }

    pub fn row(&self, world: &World) -> Row {
        world[self.closes.other()].row(self.epoch)
    }

    /// A transaction of it is open and holds the fence row of the side that it closes.
    pub fn locks_fence(&self) -> bool {
        self.phase == Phase::Closing
    }

    /// The same for the journal's row.
    pub fn locks_row(&self) -> bool {
        self.phase == Phase::Deciding
    }

    /// The next step changes a database, if it is not refused.
    pub fn writes(&self) -> bool {
        !matches!(self.phase, Phase::Off | Phase::Look(_) | Phase::Fence | Phase::Decide)
    }

    /// Somebody has taken the lead from it, at both places that ask for the token.
    pub fn overtaken(&self, world: &World) -> bool {
        self.mine > 0 && world[self.closes].fence.token > self.mine && self.row(world).token > self.mine
    }

    /// Starts it: it reads the journals.
    pub fn start(wish: Option<Side>, protocol: &Protocol, world: &World) -> Process {
        let started = Process { wish, ..Process::OFF };
        if protocol.back {
            return started.to(Phase::Look(Seen::read(&world[started.reads_first(protocol)])));
        }
        started.conclude(protocol, world, Seen::read(&world[Side::A]), Seen::read(&world[Side::B]))
    }

    /// Its next step.
    pub fn step(self, protocol: &Protocol, state: &State) -> Step {
        let mut world = state.world;
        let row = self.row(&world);
        let leads = world[self.closes].fence.token == self.mine;
        let fence_locked = state.any(|it| it.locks_fence() && it.closes == self.closes && *it != self);
        let row_locked =
            state.any(|it| it.locks_row() && (it.closes, it.epoch) == (self.closes, self.epoch) && *it != self);
        let opens = self.closes.other();
        let next = match self.phase {
            Phase::Off => return Step::Waits,
            Phase::Look(first) => {
                let side = self.reads_first(protocol);
                let second = Seen::read(&world[side.other()]);
                let (a, b) = if side == Side::A { (first, second) } else { (second, first) };
                self.conclude(protocol, &world, a, b)
            }

            Phase::Lead(goal) => {
                if fence_locked {
                    return Step::Waits;
                }
                let fence = &mut world[self.closes].fence;
                // What has been read may be over: then the one who leads now must not lose its token.
                let read = self.epoch - u8::from(goal == Goal::Begin);
                if fence.epoch > read && !protocol.has(Flaw::LeadUnchecked) {
                    return Step::Refused;
                }
                if !protocol.has(Flaw::TokenKept) {
                    fence.token += 1;
                }
                let next = Process { mine: fence.token, ..self };
                match goal {
                    Goal::Begin => next.to(Phase::Insert),
                    Goal::Cancel if protocol.has(Flaw::CancelAtSource) => next.to(Phase::Reopen),
                    goal => next.to(Phase::TakeRow(goal)),
                }
            }
            Phase::TakeRow(goal) => {
                if row_locked {
                    return Step::Waits;
                }
                let next = self.to(if goal == Goal::Cancel { Phase::Cancel } else { Phase::Route });
                if row.token < self.mine || protocol.has(Flaw::TokenKept) && row.token == self.mine {
                    world[opens].row_mut(self.epoch).token = self.mine;
                    next
                } else if row.stage == Stage::Cancelled {
                    next
                } else {
                    return Step::Refused;
                }
            }

            Phase::Insert => {
                if Seen::read(&world[opens]).top >= self.epoch {
                    return Step::Refused;
                }
                *world[opens].row_mut(self.epoch) = Row { stage: Stage::Begun, token: self.mine };
                self.to(Phase::Claim)
            }
            Phase::Claim if fence_locked => return Step::Waits,
            Phase::Claim if leads => {
                world[self.closes].fence.epoch = self.epoch;
                self.to(Phase::Fencing)
            }
            Phase::Fencing => {
                let next = if protocol.has(Flaw::MarkerFirst) { Phase::Mark } else { Phase::Fence };
                return self.set(world, Stage::Begun, Stage::Fencing, next);
            }
            Phase::Fence if fence_locked => return Step::Waits,
            Phase::Fence if leads => self.to(Phase::Closing),
            Phase::Closing => {
                let side = &mut world[self.closes];
                // SHARE ROW EXCLUSIVE on all tables: nobody who wrote is still to commit.
                if side.writer == Writer::Wrote && !protocol.has(Flaw::WritesInFlight) {
                    return Step::Waits;
                }
                side.fence.closed = self.epoch;
                side.fence.triggers = true;
                self.to(Phase::Fenced)
            }
            Phase::Fenced => {
                let next = if protocol.has(Flaw::MarkerFirst) { Phase::Drain } else { Phase::Mark };
                return self.set(world, Stage::Fencing, Stage::Fenced, next);
            }
            Phase::Mark => {
                world[self.closes].append(Entry::Marker(self.epoch));
                self.to(if protocol.has(Flaw::MarkerFirst) { Phase::Fence } else { Phase::Drain })
            }
            Phase::Drain => {
                if world[opens].recorded & (1 << self.epoch) == 0 {
                    return Step::Waits;
                }
                return self.set(world, Stage::Fenced, Stage::Drained, Phase::Prepare);
            }
            Phase::Prepare => return self.set(world, Stage::Drained, Stage::Prepared, Phase::Decide),
            Phase::Decide if row_locked => return Step::Waits,
            Phase::Decide if row == (Row { stage: Stage::Prepared, token: self.mine }) => self.to(Phase::Deciding),
            Phase::Deciding => {
                world[opens].row_mut(self.epoch).stage = Stage::Committed;
                world[opens].fence.opened = self.epoch;
                if !protocol.has(Flaw::LeaseKept) {
                    world.raise_lease(opens);
                }
                self.to(Phase::Route)
            }

            Phase::Cancel if row_locked => return Step::Waits,
            Phase::Cancel => match row.stage {
                Stage::Cancelled => self.reopens(protocol),
                Stage::Committed | Stage::Routed => self.to(Phase::Route),
                stage if stage.undecided() && row.token == self.mine => {
                    world[opens].row_mut(self.epoch).stage = Stage::Cancelled;
                    self.reopens(protocol)
                }
                _ => return Step::Refused,
            },
            Phase::Reopen | Phase::Disable if fence_locked => return Step::Waits,
            Phase::Reopen if leads || protocol.has(Flaw::ReopenUnchecked) => {
                world[self.closes].fence.opened = self.epoch;
                self.to(if protocol.has(Flaw::CancelAtSource) { Phase::TakeRow(Goal::Cancel) } else { Phase::Disable })
            }
            Phase::Disable if leads || protocol.has(Flaw::ReopenUnchecked) => {
                world[self.closes].fence.triggers = false;
                Process::OFF
            }

            // No database is asked here: who routes has to know the epoch that routed last.
            Phase::Route => {
                if self.epoch > world.route.0 || protocol.has(Flaw::RouteUnchecked) {
                    world.route = (self.epoch, opens);
                }
                self.to(Phase::Routed)
            }
            Phase::Routed if row.stage == Stage::Routed => self.to(Phase::Finish),
            Phase::Routed => return self.set(world, Stage::Committed, Stage::Routed, Phase::Finish),
            Phase::Finish => return self.set(world, Stage::Routed, Stage::Done, Phase::Lift),
            Phase::Lift => {
                if state.any(|it| it.locks_fence() && it.closes == opens) {
                    return Step::Waits;
                }
                let fence = &mut world[opens].fence;
                // Somebody may have closed this side again: then they are in use.
                if fence.closed <= fence.opened || protocol.has(Flaw::LiftUnchecked) {
                    fence.triggers = false;
                }
                Process::OFF
            }
            Phase::Claim | Phase::Fence | Phase::Decide | Phase::Reopen | Phase::Disable => return Step::Refused,
        };
        Step::Goes(world, next)
    }

    /// Whatever happens, its next step will be refused: tokens and stages only rise. Not so while it takes over, where a row that
    /// somebody else has cancelled lets it pass.
    pub fn is_lost(self, protocol: &Protocol, state: &State) -> bool {
        !matches!(self.phase, Phase::Off | Phase::TakeRow(_) | Phase::Cancel)
            && matches!(self.step(protocol, state), Step::Refused)
    }

    /// A compare-and-set in the journal.
    fn set(self, mut world: World, from: Stage, to: Stage, next: Phase) -> Step {
        let row = world[self.closes.other()].row_mut(self.epoch);
        if *row != (Row { stage: from, token: self.mine }) {
            return Step::Refused;
        }
        row.stage = to;
        Step::Goes(world, self.to(next))
    }

    fn reopens(self, protocol: &Protocol) -> Process {
        self.to(if protocol.has(Flaw::CancelAtSource) { Phase::Disable } else { Phase::Reopen })
    }

    /// The journal of the side that it wants to open comes last: if that side has been opened meanwhile, the journal says so.
    fn reads_first(self, protocol: &Protocol) -> Side {
        let closes = self.wish.unwrap_or(Side::A);
        if protocol.has(Flaw::OpenedReadFirst) { closes.other() } else { closes }
    }

    /// What the journals ask for.
    fn conclude(self, protocol: &Protocol, world: &World, a: Seen, b: Seen) -> Process {
        let (top, closes) = if b.top >= a.top { (b, Side::A) } else { (a, Side::B) };
        let lead = |goal| Process { phase: Phase::Lead(goal), epoch: top.top, closes, ..self };
        if top.stage.undecided() {
            return lead(Goal::Cancel);
        }
        if matches!(top.stage, Stage::Committed | Stage::Routed) {
            return lead(Goal::RollForward);
        }
        let writable = if b.committed > a.committed { Side::B } else { Side::A };
        if self.wish == Some(writable) && top.top < protocol.epochs {
            return Process { epoch: top.top + 1, closes: writable, ..self }.to(Phase::Lead(Goal::Begin));
        }
        if top.stage == Stage::Cancelled && !world[closes].fence.writable() {
            return lead(Goal::Cancel);
        }
        Process::OFF
    }
}
