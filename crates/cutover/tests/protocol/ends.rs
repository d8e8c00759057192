//! All states and what leads where, to ask what the checker cannot: whether an end can be reached from each of them. (Its
//! `eventually` does not see a run that goes round in circles.)

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use stateright::Model;

use super::model::{Action, Protocol, State};
use super::process::{Phase, Step};

/// What was found among the states.
pub struct Ends {
    pub states: usize,
    /// One out of which the guard alone leads to no end.
    pub stuck: Option<State>,
    /// How often a process went on after it had been overtaken.
    pub continued: usize,
    /// Where that changed a database.
    pub meddled: Option<(State, Action)>,
}

impl Ends {
    /// Visits every state of `protocol`, then goes back from the ends: by those steps alone that happen also while every process
    /// but the guard is stopped for good.
    pub fn of(protocol: &Protocol) -> Ends {
        let hashing = RandomState::new();
        let mut states = protocol.init_states();
        let mut numbers: HashMap<u64, usize> = states.iter().map(|state| hashing.hash_one(state)).zip(0..).collect();
        let mut steps = Vec::new();
        let mut actions = Vec::new();
        let mut found = Ends { states: 0, stuck: None, continued: 0, meddled: None };
        while let Some(state) = states.get(found.states).copied() {
            protocol.actions(&state, &mut actions);
            for action in actions.drain(..) {
                found.look_at(protocol, &state, action);
                let Some(next) = protocol.next_state(&state, action) else { continue };
                let to = *numbers.entry(hashing.hash_one(next)).or_insert_with(|| {
                    states.push(next);
                    states.len() - 1
                });
                if action.needs_only_the_guard() {
                    steps.push((to, found.states));
                }
            }
            found.states += 1;
        }
        found.stuck = stuck(&states, steps);
        found
    }

    /// Someone overtaken who goes on leaves the fences, the journals and the tables as they are. Two steps ask for no token: a marker
    /// of it may get into the log, where it names an epoch behind whose fence it is; and it may route for its epoch.
    fn look_at(&mut self, protocol: &Protocol, state: &State, action: Action) {
        let Action::Step(place) = action else { return };
        let process = state.processes[place];
        if process.overtaken(&state.world) && !matches!(process.phase, Phase::Mark | Phase::Route) {
            self.continued += 1;
            if matches!(process.step(protocol, state), Step::Goes(world, _) if world != state.world) {
                self.meddled.get_or_insert((*state, action));
            }
        }
    }
}

/// A state from which no end is reached by `steps`, each given as its two states' numbers, the later one first.
fn stuck(states: &[State], mut steps: Vec<(usize, usize)>) -> Option<State> {
    steps.sort_unstable();
    let mut reaches: Vec<bool> = states.iter().map(State::is_end).collect();
    let mut open: Vec<usize> = (0..states.len()).filter(|state| reaches[*state]).collect();
    while let Some(to) = open.pop() {
        let first = steps.partition_point(|step| step.0 < to);
        for (_, from) in steps[first..].iter().take_while(|step| step.0 == to) {
            if !std::mem::replace(&mut reaches[*from], true) {
                open.push(*from);
            }
        }
    }
    reaches.iter().position(|reached| !reached).map(|state| states[state])
}
