use std::fmt;
use std::time::Duration;

use crate::{Dice, Orphan};

/// What there is between which the network can be bad, and which can be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Where the data comes from.
    Source,
    /// Where it goes.
    Target,
    /// The log's.
    Nats,
}

/// What the network is like for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Connections break; new ones are refused.
    Cut,
    /// Nothing arrives.
    Stalled,
    /// So many bytes a second arrive.
    Throttled(u32),
    /// Connections lose one end, and the other one does not hear of it. New ones are fine.
    HalfOpen(Orphan),
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of one of the processes; the supervisor starts it again.
    Kill {
        /// Which, counted over those that live.
        process: u64,
    },
    /// SIGSTOP of one of the processes for longer than the lease lasts; then SIGCONT.
    Freeze {
        /// Which, counted over those that live.
        process: u64,
        /// Somebody starts another one meanwhile.
        replaced: bool,
    },
    /// A server stops at once, without saying goodbye, and is started again.
    Crash(Server),
    /// The network to a server.
    Network(Server, Trouble),
}

/// A fault, when it comes and how long it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// After the beginning of the act.
    pub at: Duration,
    /// How long it lasts; nothing for what is over at once.
    pub lasts: Duration,
    /// What it is.
    pub fault: Fault,
}

impl Planned {
    /// When it is over.
    pub fn end(&self) -> Duration {
        self.at + self.lasts
    }

    /// Both at once would undo each other: they concern the same thing.
    fn meets(&self, other: &Planned) -> bool {
        let apart = Duration::from_millis(300);
        let same = match (self.fault, other.fault) {
            // Which process is meant is only known when it comes.
            (Fault::Kill { .. } | Fault::Freeze { .. }, Fault::Freeze { .. })
            | (Fault::Freeze { .. }, Fault::Kill { .. }) => true,
            (Fault::Crash(one), Fault::Crash(other)) | (Fault::Network(one, _), Fault::Network(other, _)) => {
                one == other
            }
            _ => false,
        };
        same && self.at < other.end() + apart && other.at < self.end() + apart
    }
}

/// Rolls the faults of a run that lasts `length`, by the time at which they come.
pub(super) fn schedule(dice: &mut Dice, length: Duration, nats: bool) -> Vec<Planned> {
    let wanted = dice.between(2, 7) as usize;
    let mut planned: Vec<Planned> = Vec::new();
    // Some do not fit in; more tries make up for it.
    for _ in 0..wanted * 10 {
        if planned.len() == wanted {
            break;
        }
        let next = one(dice, length, nats);
        if next.end() <= length && !planned.iter().any(|other| next.meets(other)) {
            planned.push(next);
        }
    }
    planned.sort_by_key(|planned| planned.at);
    planned
}

fn one(dice: &mut Dice, length: Duration, nats: bool) -> Planned {
    let servers: &[Server] =
        if nats { &[Server::Source, Server::Target, Server::Nats] } else { &[Server::Source, Server::Target] };
    let server = dice.one_of(servers);
    let (fault, lasts) = match dice.below(100) {
        0..34 => (Fault::Kill { process: dice.below(100) }, 0),
        // Longer than the 6 s after which a silent holder loses the lease.
        34..44 => {
            let replaced = nats && dice.chance(60);
            (Fault::Freeze { process: dice.below(100), replaced }, dice.between(6_800, 8_500))
        }
        44..66 => (Fault::Crash(server), dice.below(2_000)),
        66..76 => (Fault::Network(server, Trouble::Cut), dice.below(2_500)),
        76..86 => (Fault::Network(server, Trouble::Stalled), dice.between(300, 7_000)),
        86..91 => {
            let rate = dice.between(64, 1024) as u32 * 1024;
            (Fault::Network(server, Trouble::Throttled(rate)), dice.between(1_000, 4_000))
        }
        _ => {
            let orphan = dice.one_of(&[Orphan::Program, Orphan::Server, Orphan::Both]);
            (Fault::Network(server, Trouble::HalfOpen(orphan)), dice.between(1_000, 8_000))
        }
    };
    // What is too long for the act does not fit, wherever it begins.
    let at = dice.below((length.as_millis() as u64).saturating_sub(lasts).max(1));
    Planned { at: Duration::from_millis(at), lasts: Duration::from_millis(lasts), fault }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.1} s, for {:.1} s: {}", self.at.as_secs_f32(), self.lasts.as_secs_f32(), self.fault)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Server::Source => "source",
            Server::Target => "target",
            Server::Nats => "nats-server",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill { process } => write!(f, "kill -9 of process {process}"),
            Fault::Freeze { process, replaced } => {
                write!(f, "SIGSTOP of process {process}{}", if *replaced { ", which is replaced" } else { "" })
            }
            Fault::Crash(server) => write!(f, "stop of the {server}"),
            Fault::Network(server, Trouble::Cut) => write!(f, "no connection to the {server}"),
            Fault::Network(server, Trouble::Stalled) => write!(f, "connections to the {server} stall"),
            Fault::Network(server, Trouble::Throttled(rate)) => {
                write!(f, "connections to the {server} carry {} KiB/s", rate / 1024)
            }
            Fault::Network(server, Trouble::HalfOpen(orphan)) => {
                write!(f, "connections to the {server} are half-open: {orphan:?} left")
            }
        }
    }
}
