//! The protocol as a machine: what may happen next in a state, and what must hold in all of them.

use stateright::{Model, Property};

use super::process::{Phase, Process, Step};
use super::world::{Entry, SETUP, Side, Stage, World, Writer};

/// One way to get the protocol wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Who takes the lead does not look whether a later epoch than the one that it read has the side to be closed.
    LeadUnchecked,
    /// Who takes the lead leaves the token at the side to be closed as it is.
    TokenKept,
    /// A process begins its next epoch with the token of the one before, while a statement of that is still under way.
    TokenOfBefore,
    /// Who reopens does not check its token.
    ReopenUnchecked,
    /// The side is reopened before the journal says that the epoch is cancelled.
    CancelAtSource,
    /// The journal of the side to be opened is read before the other one.
    OpenedReadFirst,
    /// The fence does not wait for transactions that have written.
    WritesInFlight,
    /// The triggers read in the fence row whether the side is closed, as the snapshot of the transaction shows it.
    ClosedByFlag,
    /// The marker is emitted before the fence.
    MarkerFirst,
    /// The decision leaves apply's lease as it is.
    LeaseKept,
    /// Apply does not compare the checkpoint.
    CheckpointUnchecked,
    /// The triggers of the side that was opened are disabled without a look at its fence row.
    LiftUnchecked,
    /// The application is routed without a look at the epoch that did it last.
    RouteUnchecked,
    /// The server lets the transaction of a stopped process stay open.
    NoTimeout,
}

/// What is in the model, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub begin: World,
    /// The last epoch.
    pub epochs: u8,
    /// How many processes people start at a time; two at most.
    pub commands: usize,
    /// There is a guard, which ends what others have left.
    pub guard: bool,
    /// People also start `rollback`.
    pub back: bool,
    /// How many transactions of the application commit.
    pub writes: u8,
    /// Their snapshots may be old when they write.
    pub snapshots: bool,
    /// Transactions of apply may stall.
    pub stalls: bool,
    /// Statements may arrive after their process has given them up.
    pub late: bool,
    /// A process that can only be refused counts as gone, which leaves few states of many.
    pub forget_lost: bool,
    pub flaws: &'static [Flaw],
}

impl Protocol {
    /// Two processes and the guard, two epochs, one write, from the set-up.
    pub const SMALL: Protocol = Protocol {
        begin: World::SET_UP,
        epochs: SETUP + 2,
        commands: 2,
        guard: true,
        back: false,
        writes: 1,
        snapshots: false,
        stalls: false,
        late: false,
        forget_lost: true,
        flaws: &[],
    };

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaws.contains(&flaw)
    }

    /// The statement of a transaction that writes. The triggers and the epoch that closed the side are in the catalog, which no
    /// snapshot makes old. `opened` is in the fence row: an old one of these only refuses too much.
    fn write(&self, world: &World, side: Side) -> Writer {
        let fence = world[side].fence;
        let (opened, closed) = match world[side].writer {
            Writer::Snapshot { opened, closed } if self.has(Flaw::ClosedByFlag) => (opened, closed),
            Writer::Snapshot { opened, .. } => (opened, fence.closed),
            _ => (fence.opened, fence.closed),
        };
        if !fence.triggers || closed <= opened { Writer::Wrote } else { Writer::None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub world: World,
    /// Two that people start, and the guard.
    pub processes: [Process; 3],
    /// A statement that its process did not see answered and that may still arrive: kept as a process that does this one step.
    pub late: Process,
}

/// The guard's place among the processes.
pub const GUARD: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start(usize, Option<Side>),
    /// Not being chosen for this is being stopped; being chosen again is being continued.
    Step(usize),
    /// It dies, or meets an error and forgets what it knew, or gives up.
    Crash(usize),
    /// COMMIT takes effect, and the process sees an error.
    Unheard(usize),
    /// It dies, or meets an error, while a statement of it is under way.
    Leave(usize),
    Arrive,
    Vanish,
    /// The server ends a transaction that has been idle for too long.
    TimeOut(usize),
    Snapshot(Side),
    Write(Side),
    Commit(Side),
    Apply(Side),
    Stall(Side),
    LandStalled,
}

impl Action {
    /// Happens even if every process but the guard is stopped, and apply and the application are, too.
    pub fn needs_only_the_guard(self) -> bool {
        match self {
            Action::Start(place, _) | Action::Step(place) | Action::Crash(place) => place == GUARD,
            Action::Vanish | Action::TimeOut(_) => true,
            _ => false,
        }
    }
}

impl State {
    pub fn any(&self, condition: impl Fn(&Process) -> bool) -> bool {
        self.processes.iter().chain([&self.late]).any(condition)
    }

    /// What the last epoch of both journals came to, and the side that it was to close.
    fn last_epoch(&self) -> (Stage, Side) {
        let last = |side: Side| {
            let rows = self.world[side].journal.into_iter().zip(0u8..);
            rows.filter(|(row, _)| row.stage != Stage::Absent).map(|(row, epoch)| (epoch, row.stage)).last()
        };
        let (side, last) =
            if last(Side::A) > last(Side::B) { (Side::A, last(Side::A)) } else { (Side::B, last(Side::B)) };
        (last.map_or(Stage::Absent, |(_, stage)| stage), side.other())
    }

    /// The side that is to be writable now that the last epoch has been cancelled or carried out; none while it is under way.
    pub fn outcome(&self) -> Option<Side> {
        match self.last_epoch() {
            (Stage::Absent | Stage::Cancelled, closes) => Some(closes),
            (Stage::Done, closes) => Some(closes.other()),
            _ => None,
        }
    }

    /// Nothing is under way: the side that is to be writable is, the other one is not, and the application goes there.
    pub fn is_end(&self) -> bool {
        self.outcome().is_some_and(|open| {
            self.world[open].fence.writable()
                && !self.world[open.other()].fence.writable()
                && self.world.route.1 == open
        })
    }

    /// Leaves out what two states may differ in without behaving differently: which of two equal processes is which, how high the
    /// tokens have got, what has no effect any more.
    fn normal(mut self, protocol: &Protocol) -> State {
        for side in Side::BOTH {
            for row in &mut self.world[side].journal {
                if matches!(row.stage, Stage::Cancelled | Stage::Done) {
                    row.token = 0;
                }
            }
            self.world.forget_markers(side);
            // Whoever would be refused may as well take a new snapshot later.
            if self.world[side].writer != Writer::Wrote && protocol.write(&self.world, side) == Writer::None {
                self.world[side].writer = Writer::None;
            }
        }
        if protocol.forget_lost {
            let before = self;
            let lost = |process: &&mut Process| process.is_lost(protocol, &before);
            self.processes.iter_mut().chain([&mut self.late]).filter(lost).for_each(|it| *it = Process::OFF);
        }
        Side::BOTH.into_iter().for_each(|side| self.rank_tokens(side));
        self.processes[..GUARD].sort_unstable();
        self
    }

    /// Only the order of the tokens counts, not how many there were.
    fn rank_tokens(&mut self, closes: Side) {
        let mut tokens = |act: &mut dyn FnMut(&mut u8)| {
            act(&mut self.world[closes].fence.token);
            self.world[closes.other()].journal.iter_mut().for_each(|row| act(&mut row.token));
            let processes = self.processes.iter_mut().chain([&mut self.late]);
            processes.filter(|it| it.closes == closes).for_each(|it| act(&mut it.mine));
        };
        let mut used = 1u32;
        tokens(&mut |token| used |= 1 << *token);
        tokens(&mut |token| *token = (used & ((1 << *token) - 1)).count_ones() as u8);
    }
}

pub const ONE_WRITABLE: &str = "at most one side is writable";
pub const NOTHING_LOST: &str = "a writable side has every acknowledged write";
pub const NOTHING_OVERWRITTEN: &str = "no stalled transaction of apply writes into a writable side";
pub const COMMITTED: &str = "an epoch is carried out";
pub const CANCELLED: &str = "an epoch is cancelled and its side open again";
pub const WRITES_GO_ON: &str = "the application writes on the other side";
pub const ROLLED_BACK: &str = "A is writable again after B was";
pub const OVERTAKEN: &str = "a process has been overtaken";

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { world: self.begin, processes: [Process::OFF; 3], late: Process::OFF }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let commands = state.processes[..GUARD].iter().filter(|it| it.phase != Phase::Off).count();
        for (place, process) in state.processes.iter().enumerate() {
            if process.phase != Phase::Off {
                actions.extend([Action::Step(place), Action::Crash(place)]);
                if process.locks_fence() || process.locks_row() {
                    actions.push(Action::Unheard(place));
                    actions.extend((!self.has(Flaw::NoTimeout)).then_some(Action::TimeOut(place)));
                }
                if self.late && process.writes() && state.late.phase == Phase::Off {
                    actions.push(Action::Leave(place));
                }
            } else if place == GUARD {
                actions.extend(self.guard.then_some(Action::Start(place, None)));
            } else if commands < self.commands {
                actions.push(Action::Start(place, Some(Side::A)));
                actions.extend(self.back.then_some(Action::Start(place, Some(Side::B))));
            }
        }
        if state.late.phase != Phase::Off {
            actions.extend([Action::Arrive, Action::Vanish]);
        }
        for side in Side::BOTH {
            match state.world[side].writer {
                Writer::None if state.world.writes == self.writes => {}
                Writer::None if self.snapshots => actions.push(Action::Snapshot(side)),
                Writer::None | Writer::Snapshot { .. } => actions.push(Action::Write(side)),
                Writer::Wrote => actions.push(Action::Commit(side)),
            }
            if state.world.may_apply(side) {
                actions.push(Action::Apply(side));
                actions.extend((self.stalls && state.world.may_stall(side)).then_some(Action::Stall(side)));
            }
        }
        actions.extend(state.world.stalled.is_some().then_some(Action::LandStalled));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Start(place, wish) => state.processes[place] = Process::start(wish, self, &last.world),
            Action::Step(place) => match last.processes[place].step(self, last) {
                Step::Waits => return None,
                Step::Refused => state.processes[place] = Process::OFF,
                Step::Goes(world, process) => {
                    state.world = world;
                    state.processes[place] = process;
                }
            },
            Action::Crash(place) | Action::TimeOut(place) => state.processes[place] = Process::OFF,
            Action::Unheard(place) => {
                let Step::Goes(world, _) = last.processes[place].step(self, last) else { return None };
                state.world = world;
                state.processes[place] = Process::OFF;
            }
            Action::Leave(place) => {
                let process = last.processes[place];
                state.late = Process { wish: None, ..process };
                let goes_on = self.has(Flaw::TokenOfBefore) && process.phase == Phase::Disable;
                state.processes[place] = if goes_on && process.epoch < self.epochs {
                    Process { phase: Phase::Insert, epoch: process.epoch + 1, ..process }
                } else {
                    Process::OFF
                };
            }
            Action::Arrive => {
                match last.late.step(self, last) {
                    Step::Waits => return None,
                    Step::Refused => {}
                    Step::Goes(world, _) => state.world = world,
                }
                state.late = Process::OFF;
            }
            Action::Vanish => state.late = Process::OFF,
            Action::Snapshot(side) => {
                let fence = last.world[side].fence;
                // Where nobody reads it, it need not tell states apart.
                let closed = if self.has(Flaw::ClosedByFlag) { fence.closed } else { 0 };
                state.world[side].writer = Writer::Snapshot { opened: fence.opened, closed };
            }
            Action::Write(side) => state.world[side].writer = self.write(&last.world, side),
            // Both sides may have one under way when the bound is reached: the later one rolls back.
            Action::Commit(side) if last.world.writes == self.writes => state.world[side].writer = Writer::None,
            Action::Commit(side) => state.world.acknowledge(side),
            Action::Apply(side) => state.world.apply(side),
            Action::Stall(side) => state.world.stall(side),
            Action::LandStalled => state.world.land_stalled(!self.has(Flaw::CheckpointUnchecked)),
        }
        Some(state.normal(self))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_WRITABLE, |_, state: &State| {
                !Side::BOTH.iter().all(|side| state.world[*side].fence.writable())
            }),
            Property::always(NOTHING_LOST, |_, state: &State| {
                let whole = |side: &Side| state.world[*side].holds == state.world.acknowledged();
                Side::BOTH.iter().filter(|side| state.world[**side].fence.writable()).all(whole)
            }),
            Property::always(NOTHING_OVERWRITTEN, |_, state: &State| !state.world.overwrote),
            Property::sometimes(COMMITTED, |_, state: &State| state.is_end() && state.last_epoch().0 == Stage::Done),
            Property::sometimes(CANCELLED, |_, state: &State| {
                state.is_end() && state.last_epoch().0 == Stage::Cancelled
            }),
            Property::sometimes(WRITES_GO_ON, |_, state: &State| {
                Side::BOTH.iter().any(|side| matches!(state.world[*side].log[0], Some(Entry::Write(_))))
                    && state.is_end()
                    && state.outcome() == Some(Side::B)
            }),
            Property::sometimes(ROLLED_BACK, |_, state: &State| {
                state.is_end() && state.last_epoch() == (Stage::Done, Side::B)
            }),
            Property::sometimes(OVERTAKEN, |_, state: &State| state.any(|process| process.overtaken(&state.world))),
        ]
    }
}
