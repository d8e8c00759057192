//! What lies between, of one table: folded to what becomes of each row that the source's snapshot sees.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use model::{Cell, Change, Old, Relation, Tuple};

use crate::error::VerifyError;
use crate::pair::Pair;
use crate::side::Row;

/// A value after the transactions in between.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Known(Option<String>),
    /// As it was before.
    Unchanged,
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Net {
    /// Key of the row, as the snapshot sees it, whose values the unchanged ones are.
    base: Vec<String>,
    /// In the order of the pair's columns; nothing if the row is gone.
    row: Option<Vec<Value>>,
}

/// What lies between, of one table.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    keyed: BTreeMap<Vec<String>, Net>,
    /// Of a table without key: rows that came, and rows that went.
    pub plus: Vec<Row>,
    pub minus: Vec<Row>,
}

impl Delta {
    /// Of this pair.
    pub fn of(pair: &Pair, changes: &[(Arc<Relation>, Change)]) -> Result<Delta, VerifyError> {
        let mut delta = Delta::default();
        let mut places: HashMap<*const Relation, Vec<Option<usize>>> = HashMap::new();
        for (relation, change) in changes {
            if let Change::Truncate { .. } = change {
                // Its lock is older than ours, and it is not seen: it cannot be.
                return Err(VerifyError::Again("a table was emptied just then".to_owned()));
            }
            if !pair.sources.contains(&relation.table) {
                continue;
            }
            let places = places.entry(Arc::as_ptr(relation)).or_insert_with(|| places_of(pair, relation));
            if pair.key.is_empty() {
                delta.whole(pair, places, change)?;
            } else {
                delta.keyed(pair, places, change)?;
            }
        }
        Ok(delta)
    }

    fn keyed(&mut self, pair: &Pair, places: &[Option<usize>], change: &Change) -> Result<(), VerifyError> {
        match change {
            Change::Insert { new, .. } => {
                let row = values(places, new);
                let key = key(pair, &row)?;
                self.keyed.insert(key.clone(), Net { base: key, row: Some(row) });
            }
            Change::Delete { old, .. } => {
                let key = key(pair, &values(places, old.tuple()))?;
                self.gone(key);
            }
            Change::Update { old, new, .. } => {
                let mut row = values(places, new);
                let after = key(pair, &row)?;
                let before = match old {
                    Some(old) => key(pair, &values(places, old.tuple()))?,
                    None => after.clone(),
                };
                let known = self.keyed.get(&before);
                let base = known.map_or_else(|| before.clone(), |known| known.base.clone());
                // What this change left as it was may have been changed by the one before.
                if let Some(Net { row: Some(known), .. }) = known {
                    for (value, known) in row.iter_mut().zip(known) {
                        if *value == Value::Unchanged {
                            value.clone_from(known);
                        }
                    }
                }
                if before != after {
                    self.gone(before);
                }
                self.keyed.insert(after, Net { base, row: Some(row) });
            }
            Change::Truncate { .. } | Change::Marker(_) => {}
        }
        Ok(())
    }

    fn gone(&mut self, key: Vec<String>) {
        self.keyed.insert(key.clone(), Net { base: key, row: None });
    }

    fn whole(&mut self, pair: &Pair, places: &[Option<usize>], change: &Change) -> Result<(), VerifyError> {
        match change {
            Change::Insert { new, .. } => self.plus.push(filled(pair, values(places, new), None)?),
            Change::Delete { old: Old::Full(old), .. } => self.minus.push(filled(pair, values(places, old), None)?),
            Change::Update { old: Some(Old::Full(old)), new, .. } => {
                let old = filled(pair, values(places, old), None)?;
                self.plus.push(filled(pair, values(places, new), Some(&old))?);
                self.minus.push(old);
            }
            Change::Update { .. } | Change::Delete { .. } => {
                let why = "it has neither key nor full replica identity, and rows of it were updated or deleted";
                return Err(VerifyError::Table(pair.table.clone(), why.to_owned()));
            }
            Change::Truncate { .. } | Change::Marker(_) => {}
        }
        Ok(())
    }

    /// The keys of the rows that it touches.
    pub fn keys(&self) -> BTreeSet<Vec<String>> {
        self.keyed.iter().flat_map(|(key, net)| [key.clone(), net.base.clone()]).collect()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.keyed.is_empty() && self.plus.is_empty() && self.minus.is_empty()
    }

    /// What the target's rows must be, from what the source's snapshot sees of them.
    pub fn expected(
        &self,
        pair: &Pair,
        seen: BTreeMap<Vec<String>, Row>,
    ) -> Result<BTreeMap<Vec<String>, Row>, VerifyError> {
        let mut expected = seen.clone();
        for (key, net) in &self.keyed {
            match &net.row {
                None => {
                    expected.remove(key);
                }
                Some(row) => {
                    let row = filled(pair, row.clone(), seen.get(&net.base))?;
                    expected.insert(key.clone(), row);
                }
            }
        }
        Ok(expected)
    }
}

/// The keys that a change names: of the row before, and of the row after it.
pub(crate) fn keys_of(pair: &Pair, relation: &Relation, change: &Change) -> Result<Vec<Vec<String>>, VerifyError> {
    let places = places_of(pair, relation);
    let of = |tuple: &Tuple| key(pair, &values(&places, tuple));
    match change {
        Change::Insert { new, .. } => Ok(vec![of(new)?]),
        Change::Update { old, new, .. } => {
            old.iter().map(|old| of(old.tuple())).chain(std::iter::once(of(new))).collect()
        }
        Change::Delete { old, .. } => Ok(vec![of(old.tuple())?]),
        Change::Truncate { .. } | Change::Marker(_) => Ok(Vec::new()),
    }
}

/// Where each of a relation's columns stands in the pair.
fn places_of(pair: &Pair, relation: &Relation) -> Vec<Option<usize>> {
    pair.columns.iter().map(|column| relation.columns.iter().position(|other| other.name == column.name)).collect()
}

fn values(places: &[Option<usize>], tuple: &Tuple) -> Vec<Value> {
    let cells: Vec<Cell<'_>> = tuple.cells().collect();
    places
        .iter()
        .map(|place| match place.and_then(|at| cells.get(at)) {
            Some(Cell::Null) => Value::Known(None),
            Some(Cell::Text(text)) => Value::Known(Some(String::from_utf8_lossy(text).into_owned())),
            // What is generated is not in the log.
            Some(Cell::Unchanged) | None => Value::Unchanged,
        })
        .collect()
}

fn key(pair: &Pair, row: &[Value]) -> Result<Vec<String>, VerifyError> {
    let part = |at: &usize| match &row[*at] {
        Value::Known(Some(text)) => Ok(text.clone()),
        Value::Known(None) | Value::Unchanged => {
            let why = format!("a change in the log lacks column {} of its key", pair.columns[*at].name);
            Err(VerifyError::Table(pair.table.clone(), why))
        }
    };
    pair.key.iter().map(part).collect()
}

fn filled(pair: &Pair, row: Vec<Value>, base: Option<&Row>) -> Result<Row, VerifyError> {
    let value = |(at, value): (usize, Value)| match (value, base) {
        (Value::Known(value), _) => Ok(value),
        (Value::Unchanged, Some(base)) => Ok(base[at].clone()),
        (Value::Unchanged, None) if pair.columns[at].generated => Ok(None),
        (Value::Unchanged, None) => {
            Err(VerifyError::Again(format!("a row of table {} that was updated was not to be seen", pair.table)))
        }
    };
    row.into_iter().enumerate().map(value).collect()
}
