//! The cutover's protocol in all its states: two databases, the log between them, processes that die, are stopped and go on with what
//! they knew, statements that arrive late, and a COMMIT whose answer does not.
//!
//! - `protocol::world`: fences, journals, log, the application's writes, apply
//! - `protocol::process`: what a process that leads or ends an epoch does, step by step
//! - `protocol::model`: what may happen when, what must hold, and the ways to get it wrong ([`Flaw`])
//! - `protocol::ends`: whether every state leads to an end
//!
//! Being stopped at any step, and continued, needs no steps of its own: a process may always be the one that does nothing while the
//! others go on. Neither does a database that cannot be reached: until it answers, nobody does his next step there. A statement takes
//! effect as a whole, as Postgres has it; the transactions that hold others up, while their process may be stopped, have two steps.

#![allow(clippy::expect_used, clippy::panic)]

mod protocol {
    pub mod ends;
    pub mod model;
    pub mod process;
    pub mod world;
}

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use protocol::ends::Ends;
use protocol::model::{
    CANCELLED, COMMITTED, Flaw, NOTHING_LOST, NOTHING_OVERWRITTEN, ONE_WRITABLE, OVERTAKEN, Protocol, ROLLED_BACK,
    WRITES_GO_ON,
};
use protocol::world::{SETUP, World};

const SMALL: Protocol = Protocol::SMALL;

/// `cutover` and `rollback`, each as often as people like, one process at a time and the guard.
const BACK: Protocol = Protocol { back: true, commands: 1, ..SMALL };

/// In no state is anything wrong, and each of `sometimes` is seen.
fn holds(protocol: Protocol, sometimes: &[&str]) {
    let begun = Instant::now();
    let checker = protocol.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries();
    for never in [ONE_WRITABLE, NOTHING_LOST, NOTHING_OVERWRITTEN] {
        if let Some(path) = found.get(never) {
            panic!("not so: {never}\n{:#?}", path.clone().into_actions());
        }
    }
    for name in sometimes {
        assert!(found.contains_key(name), "never seen: {name}");
    }
    eprintln!("{} states, {:.1} s", checker.unique_state_count(), begun.elapsed().as_secs_f64());
}

/// The checker finds a way to a state where `property` does not hold.
fn breaks(protocol: Protocol, property: &'static str) {
    let flaws = protocol.flaws;
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{flaws:?} was not seen to break: {property}"));
    eprintln!("{flaws:?}, not so: {property}\n{:?}", path.into_actions());
}

/// Every state leads to an end, by the guard alone.
fn ends(protocol: Protocol) {
    let begun = Instant::now();
    let ends = Ends::of(&protocol);
    assert!(ends.stuck.is_none(), "no end from here: {:#?}", ends.stuck);
    assert!(ends.meddled.is_none(), "overtaken, and yet it changed something: {:#?}", ends.meddled);
    eprintln!("{} states lead to an end, {:.1} s", ends.states, begun.elapsed().as_secs_f64());
}

/// A state is left from which the guard cannot come to an end.
fn gets_stuck(protocol: Protocol) {
    let stuck = Ends::of(&protocol).stuck.expect("it was not seen to get stuck");
    eprintln!("{:?}: {stuck:?}", protocol.flaws);
}

#[test]
fn two_cutovers_and_a_guard() {
    let seen = &[COMMITTED, CANCELLED, WRITES_GO_ON, OVERTAKEN];
    holds(Protocol { writes: 2, ..SMALL }, seen);
    holds(Protocol { stalls: true, snapshots: true, ..SMALL }, seen);
}

/// With two cutovers, a guard and a write at once it holds, too, but that takes 3.4 million states.
#[test]
fn statements_arrive_late() {
    holds(Protocol { late: true, commands: 1, ..SMALL }, &[COMMITTED, CANCELLED, WRITES_GO_ON, OVERTAKEN]);
    holds(Protocol { late: true, writes: 0, ..SMALL }, &[COMMITTED, CANCELLED, OVERTAKEN]);
}

#[test]
fn there_and_back() {
    let seen = &[COMMITTED, CANCELLED, WRITES_GO_ON, ROLLED_BACK, OVERTAKEN];
    holds(Protocol { writes: 2, stalls: true, ..BACK }, seen);
    holds(Protocol { late: true, writes: 0, ..BACK }, &[COMMITTED, CANCELLED, ROLLED_BACK, OVERTAKEN]);
    holds(Protocol { epochs: SETUP + 3, ..BACK }, seen);
}

#[test]
fn two_who_do_not_agree_where_to_go() {
    let seen = &[COMMITTED, CANCELLED, ROLLED_BACK, OVERTAKEN];
    holds(Protocol { commands: 2, writes: 0, ..BACK }, seen);
    holds(BACK_AND_FORTH, seen);
}

/// A cutover is done; three epochs more, and two processes for both ways.
const BACK_AND_FORTH: Protocol =
    Protocol { begin: World::CUT_OVER, epochs: SETUP + 4, commands: 2, guard: false, writes: 0, ..BACK };

#[test]
fn whoever_is_stopped_the_guard_comes_to_an_end() {
    ends(SMALL);
    ends(Protocol { late: true, commands: 1, ..SMALL });
    ends(Protocol { epochs: SETUP + 3, ..BACK });
}

#[test]
fn who_was_overtaken_and_goes_on_is_refused_and_changes_nothing() {
    let protocol = Protocol { forget_lost: false, writes: 0, ..SMALL };
    let ends = Ends::of(&protocol);
    assert!(ends.meddled.is_none(), "{:#?}", ends.meddled);
    assert!(ends.continued > 10_000, "{}", ends.continued);
    holds(protocol, &[COMMITTED, CANCELLED, OVERTAKEN]);
}

/// The epoch that it read has been cancelled by another one, and the next one is under way. It takes the lead for the old one, with
/// a token that counts, and reopens what the new one has closed.
#[test]
fn who_takes_the_lead_for_an_epoch_that_is_over_opens_a_second_side() {
    breaks(Protocol { flaws: &[Flaw::LeadUnchecked], ..SMALL }, ONE_WRITABLE);
}

/// The canceller that stalled and woke after another one had committed.
#[test]
fn who_reopens_without_its_token_opens_a_second_side() {
    breaks(Protocol { flaws: &[Flaw::ReopenUnchecked], ..SMALL }, ONE_WRITABLE);
}

/// The same canceller: nobody has taken its token from it.
#[test]
fn a_takeover_that_leaves_the_sources_token_alone_opens_a_second_side() {
    breaks(Protocol { flaws: &[Flaw::TokenKept], ..SMALL }, ONE_WRITABLE);
}

/// `DISABLE TRIGGER` of the epoch before arrives after the fence of the next one.
#[test]
fn a_token_for_two_epochs_opens_a_second_side() {
    breaks(Protocol { late: true, flaws: &[Flaw::TokenOfBefore], ..SMALL }, ONE_WRITABLE);
}

/// Between the reopening and the journal somebody commits.
#[test]
fn a_cancellation_decided_at_the_source_opens_a_second_side() {
    breaks(Protocol { flaws: &[Flaw::CancelAtSource], ..SMALL }, ONE_WRITABLE);
}

/// Who rolls back has read A's journal before the way back was gone once, and B's after the next cutover was cancelled: it takes
/// B for the side that is open, and reopens it when it gives up.
#[test]
fn journals_read_in_the_wrong_order_open_a_second_side() {
    breaks(Protocol { flaws: &[Flaw::OpenedReadFirst], ..BACK_AND_FORTH }, ONE_WRITABLE);
}

/// A process that finishes the cutover wakes after the rollback.
#[test]
fn triggers_that_go_although_their_side_is_closed_again_open_a_second_side() {
    breaks(Protocol { flaws: &[Flaw::LiftUnchecked], ..BACK }, ONE_WRITABLE);
}

/// A transaction that wrote before the fence commits behind the marker.
#[test]
fn a_fence_that_does_not_wait_for_writes_in_flight_loses_one() {
    breaks(Protocol { flaws: &[Flaw::WritesInFlight], ..SMALL }, NOTHING_LOST);
}

/// REPEATABLE READ: the transaction's snapshot is older than the fence, its first write is not. The trigger fires, and the row that it
/// reads says that the side is open.
#[test]
fn a_trigger_that_reads_in_a_row_that_its_side_is_closed_loses_a_write() {
    breaks(Protocol { snapshots: true, flaws: &[Flaw::ClosedByFlag], ..SMALL }, NOTHING_LOST);
}

/// What is written between the two has not been applied when the marker is there.
#[test]
fn a_marker_before_the_fence_loses_a_write() {
    breaks(Protocol { flaws: &[Flaw::MarkerFirst], ..SMALL }, NOTHING_LOST);
}

/// Two things hold a stalled transaction of apply back, and each one would do: its lease has been raised by the decision, and the
/// checkpoint has moved on before the marker was recorded.
#[test]
fn a_lease_left_alone_lets_apply_write_into_the_open_side_if_it_does_not_compare_the_checkpoint() {
    let stalls = Protocol { stalls: true, ..SMALL };
    holds(Protocol { flaws: &[Flaw::LeaseKept], ..stalls.clone() }, &[COMMITTED]);
    holds(Protocol { flaws: &[Flaw::CheckpointUnchecked], ..stalls.clone() }, &[COMMITTED]);
    breaks(Protocol { flaws: &[Flaw::LeaseKept, Flaw::CheckpointUnchecked], ..stalls }, NOTHING_OVERWRITTEN);
}

/// It is stopped in the transaction that fences, and has the row locked that everybody else needs.
#[test]
fn a_transaction_that_stays_open_while_its_process_is_stopped_keeps_everybody_from_an_end() {
    gets_stuck(Protocol { flaws: &[Flaw::NoTimeout], ..SMALL });
}

/// The hook of the cutover runs after that of the rollback, and nobody sends the application back.
#[test]
fn a_route_that_does_not_know_its_epoch_leaves_the_application_at_the_closed_side() {
    gets_stuck(Protocol { flaws: &[Flaw::RouteUnchecked], ..BACK });
}
