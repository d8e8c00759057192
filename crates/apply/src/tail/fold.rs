//! Many changes of one row become one. Rows are told apart by the exact text of their key: every change names the key's current text, so
//! two texts that are equal to the type (1.0 and 1.00) are never mixed up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use model::{Cell, Old, Tuple};

use super::target::{Identity, Target};

/// One change of a row, as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Insert(Tuple),
    Update { old: Option<Old>, new: Tuple },
    Delete(Old),
}

/// The changes to one table between two barriers (moves, truncates).
pub(super) struct Run {
    pub target: Arc<Target>,
    /// In the order in which they were made, for writing them one by one.
    pub ops: Vec<Op>,
    nets: HashMap<Bytes, Net>,
    /// Keyless tables: how often each row (all columns) is to be added; negative: removed.
    counts: HashMap<Bytes, (Tuple, i64)>,
    /// Something did not fit together: write one by one, which finds out what.
    pub broken: bool,
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Net {
    Insert(Tuple),
    Update(Tuple),
    Delete(Tuple),
    /// Was there, was deleted, and is there again.
    Replace(Tuple),
    /// Was not there and is not there.
    Nothing,
}

/// The net effect, ready to be written in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Folded {
    /// Tuples that hold the keys; of a keyless table whole rows.
    pub deletes: Vec<Tuple>,
    pub updates: Vec<Tuple>,
    pub inserts: Vec<Tuple>,
}

impl Run {
    pub fn new(target: Arc<Target>) -> Self {
        Run { target, ops: Vec::new(), nets: HashMap::new(), counts: HashMap::new(), broken: false }
    }

    /// Whether this change gives a row another key. It is a move, to be written on its own: as DELETE and INSERT it would lose the
    /// values that the source did not send.
    pub fn moves(target: &Target, op: &Op) -> bool {
        match (op, &target.identity) {
            (Op::Update { old: Some(old), new }, Identity::Key(key)) => key_of(old.tuple(), key) != key_of(new, key),
            _ => false,
        }
    }

    /// Adds a change that is no move.
    pub fn push(&mut self, op: Op) {
        match &self.target.identity {
            // What becomes of them is worked out for the whole group.
            _ if !self.target.stored => {}
            Identity::Key(key) => self.broken |= !keyed(&mut self.nets, &op, key),
            Identity::WholeRow => self.whole(&op),
            Identity::None => self.broken |= !matches!(op, Op::Insert(_)),
        }
        self.ops.push(op);
    }

    fn whole(&mut self, op: &Op) {
        match op {
            Op::Insert(new) => self.count(new, 1),
            Op::Delete(Old::Full(old)) => self.count(old, -1),
            Op::Update { old: Some(Old::Full(old)), new } => {
                self.count(old, -1);
                self.count(&filled(new, old), 1);
            }
            Op::Delete(Old::Key(_)) | Op::Update { .. } => self.broken = true,
        }
    }

    fn count(&mut self, row: &Tuple, by: i64) {
        self.counts.entry(row.bytes().clone()).or_insert_with(|| (row.clone(), 0)).1 += by;
    }

    /// The net effect.
    pub fn folded(&self) -> Folded {
        let mut out = Folded::default();
        if self.target.identity == Identity::None {
            out.inserts.extend(
                self.ops.iter().filter_map(|op| if let Op::Insert(new) = op { Some(new.clone()) } else { None }),
            );
        }
        // In the key's order, shorter texts first, which for numbers is theirs: neighbours share pages of table and index.
        let mut nets: Vec<(&Bytes, &Net)> = self.nets.iter().collect();
        nets.sort_unstable_by(|(a, _), (b, _)| (a.len(), *a).cmp(&(b.len(), *b)));
        for (_, net) in nets {
            match net {
                Net::Insert(new) => out.inserts.push(new.clone()),
                Net::Update(new) => out.updates.push(new.clone()),
                Net::Delete(old) => out.deletes.push(old.clone()),
                Net::Replace(new) => {
                    out.deletes.push(new.clone());
                    out.inserts.push(new.clone());
                }
                Net::Nothing => {}
            }
        }
        for (row, count) in self.counts.values() {
            let rows = if *count < 0 { &mut out.deletes } else { &mut out.inserts };
            rows.extend(std::iter::repeat_n(row.clone(), count.unsigned_abs() as usize));
        }
        out
    }
}

/// Adds a change of the row with its key; says whether it can follow what came before.
fn keyed(nets: &mut HashMap<Bytes, Net>, op: &Op, key: &[usize]) -> bool {
    let (of, next) = match op {
        Op::Insert(new) => (new, Net::Insert(new.clone())),
        Op::Update { new, .. } => (new, Net::Update(new.clone())),
        Op::Delete(old) => (old.tuple(), Net::Delete(old.tuple().clone())),
    };
    match nets.entry(key_of(of, key)) {
        Entry::Vacant(entry) => {
            entry.insert(next);
        }
        Entry::Occupied(mut entry) => {
            let before = std::mem::replace(entry.get_mut(), Net::Nothing);
            match fold(before, next) {
                Some(net) => *entry.get_mut() = net,
                None => return false,
            }
        }
    }
    true
}

/// What two changes of one row are together; `None` if the second cannot follow the first.
fn fold(before: Net, next: Net) -> Option<Net> {
    Some(match (before, next) {
        (Net::Insert(old), Net::Update(new)) => Net::Insert(filled(&new, &old)),
        (Net::Update(old), Net::Update(new)) => Net::Update(filled(&new, &old)),
        (Net::Replace(old), Net::Update(new)) => Net::Replace(filled(&new, &old)),
        (Net::Insert(_), Net::Delete(_)) => Net::Nothing,
        (Net::Update(_) | Net::Replace(_), Net::Delete(old)) => Net::Delete(old),
        (Net::Delete(_), Net::Insert(new)) => Net::Replace(new),
        (Net::Nothing, Net::Insert(new)) => Net::Insert(new),
        (Net::Insert(_) | Net::Update(_) | Net::Replace(_), Net::Insert(_))
        | (Net::Delete(_) | Net::Nothing, Net::Update(_) | Net::Delete(_))
        | (_, Net::Replace(_) | Net::Nothing) => return None,
    })
}

/// `new` with the values that were not sent taken from `old`.
pub(super) fn filled(new: &Tuple, old: &Tuple) -> Tuple {
    if !new.cells().any(|cell| cell == Cell::Unchanged) {
        return new.clone();
    }
    let cells: Vec<Cell<'_>> =
        new.cells().zip(old.cells()).map(|(new, old)| if new == Cell::Unchanged { old } else { new }).collect();
    Tuple::from_cells(cells.into_iter())
}

/// The key's columns as one value that is equal only for equal texts.
pub(super) fn key_of(tuple: &Tuple, key: &[usize]) -> Bytes {
    if let [only] = key
        && let Some(Cell::Text(text)) = tuple.cells().nth(*only)
    {
        return tuple.bytes().slice_ref(text);
    }
    let mut out = BytesMut::new();
    let cells: Vec<Cell<'_>> = tuple.cells().collect();
    for index in key {
        match cells.get(*index) {
            Some(Cell::Text(text)) => {
                out.put_u32(text.len() as u32);
                out.put_slice(text);
            }
            Some(Cell::Null | Cell::Unchanged) | None => out.put_u32(u32::MAX),
        }
    }
    out.freeze()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn row(key: u8, value: Option<u8>) -> Tuple {
        let (key, value) = (key.to_string(), value.map(|v| v.to_string()));
        let value = value.as_ref().map_or(Cell::Unchanged, |v| Cell::Text(v.as_bytes()));
        Tuple::from_cells([Cell::Text(key.as_bytes()), value].into_iter())
    }

    fn text(tuple: &Tuple, column: usize) -> Vec<u8> {
        tuple.cells().nth(column).unwrap().text().unwrap().to_vec()
    }

    proptest! {
        /// Folded and written as deletes, updates, inserts, any valid sequence of changes leaves what it leaves one by one.
        #[test]
        fn folded_equals_one_by_one(steps in proptest::collection::vec((0u8..4, proptest::option::of(any::<u8>()), any::<bool>()), 0..60)) {
            let target = Arc::new(Target::for_test(Identity::Key(vec![0])));
            let start: BTreeMap<Vec<u8>, Vec<u8>> = (0u8..2).map(|k| (k.to_string().into_bytes(), b"start".to_vec())).collect();
            let mut expected = start.clone();
            let mut run = Run::new(target);
            for (key, value, delete) in steps {
                let name = key.to_string().into_bytes();
                let there = expected.contains_key(&name);
                let op = match (there, delete) {
                    (false, _) => Op::Insert(row(key, Some(value.unwrap_or(0)))),
                    (true, true) => Op::Delete(Old::Key(row(key, Some(0)))),
                    (true, false) => Op::Update { old: None, new: row(key, value) },
                };
                match &op {
                    Op::Insert(new) => { expected.insert(name, text(new, 1)); }
                    Op::Update { new, .. } => if let Some(Cell::Text(v)) = new.cells().nth(1) { expected.insert(name, v.to_vec()); },
                    Op::Delete(_) => { expected.remove(&name); }
                }
                run.push(op);
            }
            prop_assert!(!run.broken);
            let folded = run.folded();
            let mut state = start;
            for old in &folded.deletes { prop_assert!(state.remove(&text(old, 0)).is_some()); }
            for new in &folded.updates {
                let value = match new.cells().nth(1).unwrap() { Cell::Text(v) => v.to_vec(), _ => state[&text(new, 0)].clone() };
                prop_assert!(state.insert(text(new, 0), value).is_some());
            }
            for new in &folded.inserts { prop_assert!(state.insert(text(new, 0), text(new, 1)).is_none()); }
            prop_assert_eq!(state, expected);
        }
    }

    #[test]
    fn equal_rows_of_a_table_without_key_keep_their_number() {
        let mut run = Run::new(Arc::new(Target::for_test(Identity::WholeRow)));
        let twin = row(1, Some(1));
        for op in [
            Op::Insert(twin.clone()),
            Op::Insert(twin.clone()),
            Op::Insert(twin.clone()),
            Op::Delete(Old::Full(twin.clone())),
        ] {
            run.push(op);
        }
        assert_eq!(run.folded().inserts, vec![twin.clone(), twin]);
    }

    #[test]
    fn what_cannot_follow_is_left_to_be_found_one_by_one() {
        let mut run = Run::new(Arc::new(Target::for_test(Identity::Key(vec![0]))));
        run.push(Op::Insert(row(1, Some(1))));
        run.push(Op::Insert(row(1, Some(2))));
        assert!(run.broken);
    }
}
