//! The two databases and the log between them: what they say, and what the application and apply do to them.

use std::ops::{Index, IndexMut};

/// Epochs are numbered from here: this one is the set-up, which opened A and closed B.
pub const SETUP: u8 = 1;

/// Room in the journals, and in the log for what has not been applied.
const EPOCHS: usize = 6;
const LOG: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    A,
    B,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::A, Side::B];

    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// The fence row and the triggers that ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The last epoch that was to close this side.
    pub epoch: u8,
    pub token: u8,
    pub opened: u8,
    pub closed: u8,
    /// Enabled. Disabled ones let everything pass, whatever the row says.
    pub triggers: bool,
}

impl Fence {
    pub fn writable(&self) -> bool {
        !self.triggers || self.closed <= self.opened
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Absent,
    Begun,
    Fencing,
    Fenced,
    Drained,
    Prepared,
    Committed,
    Routed,
    Done,
    Cancelled,
}

impl Stage {
    pub fn undecided(self) -> bool {
        (Stage::Begun..=Stage::Prepared).contains(&self)
    }

    pub fn committed(self) -> bool {
        (Stage::Committed..=Stage::Done).contains(&self)
    }
}

/// The journal's row of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub stage: Stage,
    pub token: u8,
}

/// What a side's log says, in commit order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    Write(u8),
    Marker(u8),
}

/// A transaction of the application. Its snapshot may be old by the time that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Writer {
    None,
    Snapshot { opened: u8, closed: u8 },
    Wrote,
}

/// A transaction of an apply process that stalled, with what it was to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stalled {
    pub into: Side,
    pub entry: Entry,
    /// Its token is still the lease's.
    pub leased: bool,
    /// The checkpoint still is where it found it.
    pub fresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    pub fence: Fence,
    pub journal: [Row; EPOCHS],
    /// What the other side has not applied yet of the writes and markers of this one.
    pub log: [Option<Entry>; LOG],
    /// The writes that are in the tables, a bit each.
    pub holds: u8,
    /// The epochs whose marker apply has recorded, a bit each.
    pub recorded: u8,
    /// The apply process that writes here has a lease that counts.
    pub leased: bool,
    pub writer: Writer,
}

impl Database {
    const fn new(opened: u8, closed: u8) -> Database {
        Database {
            fence: Fence { epoch: SETUP, token: 0, opened, closed, triggers: closed > opened },
            journal: [Row { stage: Stage::Absent, token: 0 }; EPOCHS],
            log: [None; LOG],
            holds: 0,
            recorded: 0,
            leased: closed > opened,
            writer: Writer::None,
        }
    }

    pub fn row(&self, epoch: u8) -> Row {
        self.journal[usize::from(epoch)]
    }

    pub fn row_mut(&mut self, epoch: u8) -> &mut Row {
        &mut self.journal[usize::from(epoch)]
    }

    pub fn append(&mut self, entry: Entry) {
        let end = self.log.iter().position(Option::is_none).expect("the bounds leave room");
        self.log[end] = Some(entry);
    }

    fn take(&mut self) -> Option<Entry> {
        self.log.rotate_left(1);
        self.log[LOG - 1].take()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World {
    sides: [Database; 2],
    /// Where the application's connections go, and the epoch that sent them there.
    pub route: (u8, Side),
    pub stalled: Option<Stalled>,
    /// How many writes have been acknowledged; they are numbered.
    pub writes: u8,
    /// A transaction of apply that was overtaken has written into a side that the application writes to.
    pub overwrote: bool,
}

impl Index<Side> for World {
    type Output = Database;

    fn index(&self, side: Side) -> &Database {
        &self.sides[side as usize]
    }
}

impl IndexMut<Side> for World {
    fn index_mut(&mut self, side: Side) -> &mut Database {
        &mut self.sides[side as usize]
    }
}

impl World {
    /// A is open, B is closed, nothing has been written.
    pub const SET_UP: World = World {
        sides: [Database::new(SETUP, SETUP - 1), Database::new(SETUP - 1, SETUP)],
        route: (SETUP, Side::A),
        stalled: None,
        writes: 0,
        overwrote: false,
    };

    /// A first cutover is over: B is open.
    pub const CUT_OVER: World = {
        let epoch = SETUP + 1;
        let mut world = World::SET_UP;
        let [a, b] = &mut world.sides;
        a.fence = Fence { epoch, token: 0, opened: SETUP, closed: epoch, triggers: true };
        a.leased = true;
        b.fence.opened = epoch;
        b.journal[epoch as usize] = Row { stage: Stage::Done, token: 0 };
        b.leased = false;
        world.route = (epoch, Side::B);
        world
    };

    /// Every acknowledged write, a bit each.
    pub fn acknowledged(&self) -> u8 {
        (1 << self.writes) - 1
    }

    /// The transaction that wrote commits, and the application is told so.
    pub fn acknowledge(&mut self, side: Side) {
        let write = self.writes;
        self.writes += 1;
        self[side].holds |= 1 << write;
        self[side].append(Entry::Write(write));
        self[side].writer = Writer::None;
    }

    /// Whether there is something to apply, and a lease to do it with: none is given out for a side that the application writes to.
    pub fn may_apply(&self, into: Side) -> bool {
        self[into.other()].log[0].is_some() && (self[into].leased || !self[into].fence.writable())
    }

    /// One transaction of apply: the next entry of the log, and the checkpoint behind it.
    pub fn apply(&mut self, into: Side) {
        self[into].leased = true;
        let Some(entry) = self[into.other()].take() else { return };
        if let Some(stalled) = self.stalled.as_mut().filter(|stalled| stalled.into == into) {
            stalled.fresh = false;
        }
        self.land(into, entry);
    }

    /// Only writes do: a marker that stalls is one that has not been applied yet.
    pub fn may_stall(&self, into: Side) -> bool {
        self.stalled.is_none() && matches!(self[into.other()].log[0], Some(Entry::Write(_)))
    }

    /// A transaction of apply stalls before it changes anything. Before it goes on, its process may be replaced, or do the same
    /// once more after an error.
    pub fn stall(&mut self, into: Side) {
        self[into].leased = true;
        self.stalled = self[into.other()].log[0].map(|entry| Stalled { into, entry, leased: true, fresh: true });
    }

    /// The stalled transaction goes on.
    pub fn land_stalled(&mut self, checkpoint_checked: bool) {
        let Some(Stalled { into, entry, leased, fresh }) = self.stalled.take() else { return };
        if !leased || (checkpoint_checked && !fresh) {
            return;
        }
        if fresh {
            self[into.other()].take();
        }
        self.land(into, entry);
    }

    fn land(&mut self, into: Side, entry: Entry) {
        match entry {
            Entry::Write(write) => {
                self.overwrote |= self[into].fence.writable();
                self[into].holds |= 1 << write;
            }
            Entry::Marker(epoch) => self[into].recorded |= 1 << epoch,
        }
    }

    /// Nobody writes here any more with the lease that he has.
    pub fn raise_lease(&mut self, side: Side) {
        self[side].leased = false;
        if let Some(stalled) = self.stalled.as_mut().filter(|stalled| stalled.into == side) {
            stalled.leased = false;
        }
    }

    /// Forgets the markers that nobody waits for: those of epochs that are decided.
    pub fn forget_markers(&mut self, closes: Side) {
        let journal = self[closes.other()].journal;
        let waited_for = |epoch: u8| journal[usize::from(epoch)].stage.undecided();
        let log = std::mem::replace(&mut self[closes].log, [None; LOG]);
        for entry in log.into_iter().flatten() {
            if !matches!(entry, Entry::Marker(epoch) if !waited_for(epoch)) {
                self[closes].append(entry);
            }
        }
        for epoch in (0..).take(EPOCHS).filter(|epoch| !waited_for(*epoch)) {
            self[closes.other()].recorded &= !(1 << epoch);
        }
    }
}
