//! What becomes of the rows of a table of which nothing is stored, in a group: where each was before and what it is after. Nothing tells the values that
//! the source did not send, so they stay open.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;
use model::{Old, Tuple};

use super::fold::{Op, filled, key_of};

/// The net effect on a table's rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Net {
    /// Rows that are there, by their keys.
    lines: HashMap<Bytes, Line>,
    /// Rows that were there and are not, by the keys that they had.
    left: HashMap<Bytes, Tuple>,
    /// All that were there before are gone.
    pub emptied: bool,
    /// Which rows were there is not known: rows with these keys are taken away, and others put in their place.
    pub loose: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    /// The key under which it was there before; none if it was not.
    was: Option<Tuple>,
    now: Tuple,
}

/// Ready to be written in this order: what is gone leaves, then what stays changes, then comes what is new.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sorted<'a> {
    /// Keys under which there was a row, and is none or another one.
    pub gone: Vec<&'a Tuple>,
    /// Rows that stay under their keys.
    pub stay: Vec<&'a Tuple>,
    /// Rows under keys that they did not have. With the old key where they had another one.
    pub come: Vec<(Option<&'a Tuple>, &'a Tuple)>,
}

impl Net {
    /// Adds a change that is no move. Says whether it can follow what came before.
    pub fn op(&mut self, op: &Op, key: &[usize]) -> bool {
        match op {
            Op::Insert(new) => {
                let at = key_of(new, key);
                let was = self.left.remove(&at);
                self.lines.insert(at, Line { was, now: new.clone() }).is_none()
            }
            Op::Update { old, new } => {
                let new = match old {
                    Some(Old::Full(old)) => filled(new, old),
                    Some(Old::Key(_)) | None => new.clone(),
                };
                let at = key_of(&new, key);
                let away = self.is_away(&at);
                match self.lines.entry(at) {
                    Entry::Occupied(mut line) => {
                        let line = line.get_mut();
                        line.now = filled(&new, &line.now);
                        true
                    }
                    Entry::Vacant(_) if away => false,
                    Entry::Vacant(line) => {
                        line.insert(Line { was: Some(new.clone()), now: new });
                        true
                    }
                }
            }
            Op::Delete(old) => {
                let at = key_of(old.tuple(), key);
                match self.lines.remove(&at) {
                    Some(Line { was: Some(was), .. }) => self.left.insert(key_of(&was, key), was).is_none(),
                    Some(Line { was: None, .. }) => true,
                    None if self.is_away(&at) => false,
                    None => self.left.insert(at, old.tuple().clone()).is_none(),
                }
            }
        }
    }

    /// A row's key changes.
    pub fn moves(&mut self, old: &Old, new: &Tuple, key: &[usize]) -> bool {
        let (from, to) = (key_of(old.tuple(), key), key_of(new, key));
        let line = match self.lines.remove(&from) {
            Some(line) => Line { now: filled(new, &line.now), ..line },
            None if self.is_away(&from) => return false,
            None => {
                let now = if let Old::Full(old) = old { filled(new, old) } else { new.clone() };
                Line { was: Some(old.tuple().clone()), now }
            }
        };
        self.lines.insert(to, line).is_none()
    }

    /// The table is emptied.
    pub fn empty(&mut self) {
        *self = Net { emptied: true, loose: self.loose, ..Net::default() };
    }

    /// Rows with these keys are taken away, whichever are there, and others put in their place.
    pub fn replace(&mut self, keys: &[Tuple], new: &[Tuple], key: &[usize]) {
        self.loose = true;
        self.left.extend(keys.iter().map(|was| (key_of(was, key), was.clone())));
        self.lines.extend(new.iter().map(|now| (key_of(now, key), Line { was: None, now: now.clone() })));
    }

    /// No row was under this key before that is still to be told of.
    fn is_away(&self, at: &Bytes) -> bool {
        self.emptied || self.left.contains_key(at)
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.left.is_empty() && !self.emptied
    }

    /// In the key's order, shorter texts first, which for numbers is theirs: neighbours share pages of table and index.
    pub fn sorted(&self, key: &[usize]) -> Sorted<'_> {
        let mut sorted = Sorted::default();
        let mut left: Vec<(&Bytes, &Tuple)> = self.left.iter().collect();
        left.sort_unstable_by(|(a, _), (b, _)| (a.len(), *a).cmp(&(b.len(), *b)));
        sorted.gone.extend(left.into_iter().map(|(_, was)| was));
        let mut lines: Vec<(&Bytes, &Line)> = self.lines.iter().collect();
        lines.sort_unstable_by(|(a, _), (b, _)| (a.len(), *a).cmp(&(b.len(), *b)));
        for (at, Line { was, now }) in lines {
            match was {
                Some(was) if key_of(was, key) == *at => sorted.stay.push(now),
                Some(was) => {
                    sorted.gone.push(was);
                    sorted.come.push((Some(was), now));
                }
                None => sorted.come.push((None, now)),
            }
        }
        sorted
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use model::Cell;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const KEY: [usize; 1] = [0];

    fn row(key: u8, value: Option<u8>) -> Tuple {
        let (key, value) = (key.to_string(), value.map(|v| v.to_string()));
        let value = value.as_ref().map_or(Cell::Unchanged, |v| Cell::Text(v.as_bytes()));
        Tuple::from_cells([Cell::Text(key.as_bytes()), value].into_iter())
    }

    fn cells(tuple: &Tuple) -> (String, Option<String>) {
        let text = |cell: Cell<'_>| cell.text().map(|text| String::from_utf8(text.to_vec()).unwrap());
        let mut cells = tuple.cells();
        (text(cells.next().unwrap()).unwrap(), text(cells.next().unwrap()))
    }

    proptest! {
        /// Taken away, changed and put in their place at once, rows are what they become one by one; values that were not sent are those of the row before.
        #[test]
        fn at_once_equals_one_by_one(steps in proptest::collection::vec((0u8..5, 0u8..5, proptest::option::of(any::<u8>()), 0u8..9), 0..40)) {
            let start: BTreeMap<String, String> = (0u8..3).map(|k| (k.to_string(), format!("start {k}"))).collect();
            let (mut expected, mut net) = (start.clone(), Net::default());
            for (key, to, value, what) in steps {
                let (name, other) = (key.to_string(), to.to_string());
                let said = value.map(|v| v.to_string());
                let follows = match (expected.contains_key(&name), what) {
                    (_, 8) => { net.empty(); expected.clear(); true }
                    (false, _) => {
                        let value = value.unwrap_or(0);
                        expected.insert(name, value.to_string());
                        net.op(&Op::Insert(row(key, Some(value))), &KEY)
                    }
                    (true, 0..=1) => { expected.remove(&name); net.op(&Op::Delete(Old::Key(row(key, None))), &KEY) }
                    (true, 2..=4) if !expected.contains_key(&other) => {
                        let before = expected.remove(&name).unwrap();
                        expected.insert(other, said.unwrap_or(before));
                        net.moves(&Old::Key(row(key, None)), &row(to, value), &KEY)
                    }
                    (true, _) => {
                        if let Some(said) = said { expected.insert(name, said); }
                        net.op(&Op::Update { old: None, new: row(key, value) }, &KEY)
                    }
                };
                prop_assert!(follows);
            }
            let sorted = net.sorted(&KEY);
            let before = if net.emptied { BTreeMap::new() } else { start };
            let mut state = before.clone();
            for gone in &sorted.gone { prop_assert!(state.remove(&cells(gone).0).is_some()); }
            for stay in &sorted.stay {
                let (key, value) = cells(stay);
                let now = state.get_mut(&key).unwrap();
                if let Some(value) = value { *now = value; }
            }
            for (was, now) in &sorted.come {
                let (key, value) = cells(now);
                let value = value.unwrap_or_else(|| before[&cells(was.unwrap()).0].clone());
                prop_assert!(state.insert(key, value).is_none());
            }
            prop_assert_eq!(state, expected);
        }
    }

    #[test]
    fn what_cannot_follow_is_told() {
        let mut net = Net::default();
        assert!(net.op(&Op::Insert(row(1, Some(1))), &KEY) && !net.op(&Op::Insert(row(1, Some(2))), &KEY));
        let mut net = Net::default();
        assert!(net.op(&Op::Delete(Old::Key(row(1, None))), &KEY));
        assert!(!net.op(&Op::Update { old: None, new: row(1, Some(2)) }, &KEY));
        assert!(!net.moves(&Old::Key(row(1, None)), &row(2, None), &KEY));
        net.empty();
        assert!(!net.op(&Op::Delete(Old::Key(row(3, None))), &KEY));
    }
}
