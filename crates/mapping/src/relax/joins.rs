//! FROM, relaxed. Of `L LEFT JOIN R` a row can be one of both sides, or one of L alone: two variants. A side that nothing
//! refers to and that does not hold the mention cannot change which units there are, and goes.

use super::{Fault, Guard, Relaxer, one_row, wanted};
use crate::clean::{keepable, tainted};
use crate::query::{Block, Body, Expr, From, JoinKind, Occurrence, Query, Read, Sublink};
use crate::walk::{Columns, columns};

/// One join and what is to be known of it.
struct Join<'a> {
    left: &'a From,
    right: &'a From,
    /// What of ON stays.
    kept: Vec<Expr>,
    /// The subquery in ON that holds the mention, and whether it is a condition of its own.
    sublink: Option<(&'a Sublink, bool)>,
    /// The columns needed of either side, those of ON included.
    need: Columns,
    i: Option<Occurrence>,
}

impl Relaxer<'_> {
    /// The variants of an item; `None` is one that is not needed.
    pub(super) fn from(&mut self, from: &From, need: &Columns, i: Option<Occurrence>) -> Vec<Option<From>> {
        let inside = i.is_some_and(|i| from.reads(i));
        match from {
            From::Table { item, occurrence, table, .. } => {
                let read = if inside { Read::Changed } else { Read::All };
                vec![Some(From::Table { item: *item, occurrence: *occurrence, table: *table, read })]
            }
            From::Function { .. } => vec![Some(from.clone())],
            From::Query { item, query, .. } => {
                if inside && one_row(query) && query.outer_columns().is_empty() {
                    self.guard(i, Guard::Row((**query).clone()));
                }
                let want = wanted(query, *item, need);
                if !inside && want.is_empty() && always_has_a_row(query) {
                    return vec![None];
                }
                let variants = self.query(query, i, &want);
                let each = |block: Block| {
                    let query = Box::new(Query::of(Body::Block(Box::new(block))));
                    Some(From::Query { item: *item, lateral: true, query })
                };
                variants.into_iter().map(each).collect()
            }
            From::Join { kind, left, right, on } => {
                let bad = tainted(&[(**left).clone(), (**right).clone()]);
                let kept = on.iter().filter(|expr| keepable(expr, &bad)).cloned().collect();
                let mut both = need.clone();
                both.extend(columns(on));
                let sublink = i.and_then(|i| held(on, i));
                let (left, right) = if *kind == JoinKind::Right { (right, left) } else { (left, right) };
                let join = Join { left, right, kept, sublink, need: both, i };
                match kind {
                    JoinKind::Inner => self.inner(&join),
                    JoinKind::Left | JoinKind::Right => self.left(&join, need),
                    JoinKind::Full => self.full(&join),
                    JoinKind::Nulled => vec![Some(from.clone())],
                }
            }
        }
    }

    fn sides(&mut self, join: &Join<'_>) -> (Vec<Option<From>>, Vec<Option<From>>) {
        (self.from(join.left, &join.need, join.i), self.from(join.right, &join.need, join.i))
    }

    fn inner(&mut self, join: &Join<'_>) -> Vec<Option<From>> {
        let (lefts, rights) = self.sides(join);
        let mut all = Vec::new();
        for left in &lefts {
            for right in &rights {
                all.extend(self.both(join, left, right, true));
            }
        }
        all
    }

    fn left(&mut self, join: &Join<'_>, need: &Columns) -> Vec<Option<From>> {
        let inside = join.i.is_some_and(|i| join.right.reads(i)) || join.sublink.is_some();
        let items = join.right.items();
        let used = need.iter().any(|(item, _)| items.contains(item));
        if !inside && !used {
            return self.from(join.left, need, join.i);
        }
        let (lefts, rights) = self.sides(join);
        let mut all = Vec::new();
        for left in &lefts {
            for right in &rights {
                all.extend(self.both(join, left, right, false));
            }
            if used && self.fault != Fault::NoNulls {
                all.extend(self.alone(join, left, &rights, join.right, inside));
            }
        }
        all
    }

    fn full(&mut self, join: &Join<'_>) -> Vec<Option<From>> {
        let holds = |side: &From| join.i.is_some_and(|i| side.reads(i)) || join.sublink.is_some();
        let (lefts, rights) = self.sides(join);
        let mut all = Vec::new();
        for left in &lefts {
            for right in &rights {
                all.extend(self.both(join, left, right, false));
            }
        }
        if self.fault == Fault::NoNulls {
            return all;
        }
        for left in &lefts {
            all.extend(self.alone(join, left, &rights, join.right, holds(join.right)));
        }
        for right in &rights {
            all.extend(self.alone(join, right, &lefts, join.left, holds(join.left)));
        }
        all
    }

    /// Rows of both sides.
    fn both(&mut self, join: &Join<'_>, left: &Option<From>, right: &Option<From>, inner: bool) -> Vec<Option<From>> {
        let joined = match (left, right) {
            (Some(left), Some(right)) => {
                Some(From::join(JoinKind::Inner, left.clone(), right.clone(), join.kept.clone()))
            }
            (one, other) => one.clone().or(other.clone()),
        };
        let Some((sublink, alone)) = join.sublink else { return vec![joined] };
        let witnesses = self.witness(sublink, join.i, alone && inner);
        let with = |(witness, on): (From, Vec<Expr>)| match &joined {
            Some(joined) => Some(From::join(JoinKind::Inner, joined.clone(), witness, on)),
            None => Some(witness),
        };
        witnesses.into_iter().map(with).collect()
    }

    /// Rows of one side alone, the other one's columns null. Where the mention is on the `missing` side, or in ON, a row
    /// there (`others`) has to match: only then can it have changed that there is none.
    fn alone(
        &mut self,
        join: &Join<'_>,
        one: &Option<From>,
        others: &[Option<From>],
        missing: &From,
        witnessed: bool,
    ) -> Vec<Option<From>> {
        let mut all = Vec::new();
        if witnessed {
            for other in others {
                all.extend(self.matched(join, one, other));
            }
        } else {
            all.push(one.clone());
        }
        // Something with the right columns.
        let nothing = self.from(missing, &join.need, None).into_iter().next().flatten();
        all.into_iter()
            .map(|one| match (one, &nothing) {
                (Some(one), Some(nothing)) => Some(From::join(JoinKind::Nulled, one, nothing.clone(), Vec::new())),
                (None, Some(nothing)) => {
                    let row = self.row();
                    Some(From::join(JoinKind::Nulled, row, nothing.clone(), Vec::new()))
                }
                (one, None) => one,
            })
            .collect()
    }

    /// `one` with a row of `other` that matches it, whose columns are not seen.
    fn matched(&mut self, join: &Join<'_>, one: &Option<From>, other: &Option<From>) -> Vec<Option<From>> {
        if other.is_none() && join.sublink.is_none() {
            return vec![one.clone()];
        }
        let mut inside = vec![(Vec::new(), Vec::new())];
        if let Some((sublink, _)) = join.sublink {
            let witnesses = self.witness(sublink, join.i, false);
            inside = witnesses.into_iter().map(|(witness, on)| (vec![witness], on)).collect();
        }
        let mut all = Vec::new();
        for (witness, on) in inside {
            let from: Vec<From> = other.iter().cloned().chain(witness).collect();
            let filter: Vec<Expr> = join.kept.iter().cloned().chain(on).collect();
            let witness = self.existing(Block { from, filter, ..Block::default() });
            all.push(match one {
                Some(one) => Some(From::join(JoinKind::Inner, one.clone(), witness, Vec::new())),
                None => Some(witness),
            });
        }
        all
    }

    /// A LATERAL item of no columns: rows exist.
    pub(super) fn existing(&mut self, block: Block) -> From {
        let item = self.aliases.add("w");
        From::Query { item, lateral: true, query: Box::new(Query::of(Body::Block(Box::new(block)))) }
    }

    /// One row without columns.
    fn row(&mut self) -> From {
        self.existing(Block::default())
    }
}

/// The subquery in ON that holds the mention, and whether it is a condition of its own.
fn held(on: &[Expr], i: Occurrence) -> Option<(&Sublink, bool)> {
    on.iter().find_map(|conjunct| {
        let sublink = conjunct.sublinks().into_iter().find(|sublink| sublink.query.reads(i))?;
        Some((sublink, matches!(conjunct, Expr::Sub(own) if std::ptr::eq(&**own, sublink))))
    })
}

fn always_has_a_row(query: &Query) -> bool {
    matches!(&query.body, Body::Block(block) if block.always_has_a_row(&query.order))
}
