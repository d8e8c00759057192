//! From a query, for one mention of a table, the monotone queries that find the units which a changed row of it can affect.
//!
//! The query is relaxed until it only joins, filters and unites: what is left out only makes it find more. Where a side of
//! an outer join can be there or not, there is a variant for each. The mention itself reads the changed rows.
//!
//! - here: blocks and set operations; `joins`: FROM; `witness`: subqueries in conditions and expressions
//! - `bounds`: which variants cannot give rows, and in which a changed row is tied to the unit

pub(crate) mod bounds;
mod joins;
mod witness;

use std::collections::BTreeMap;

use crate::clean::{clean, keepable, tainted};
use crate::nulls::Nulls;
use crate::print::Aliases;
use crate::query::{Block, Body, Expr, From, Group, Occurrence, Query, SetKind, Sublink, Target};
use crate::walk::{Columns, columns};

/// A wrong rule, for tests that show that it would be noticed.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// None: the rules as they are.
    #[default]
    None,
    /// Conditions with other subqueries are kept.
    KeepSublinks,
    /// No variants in which a side of an outer join is missing.
    NoNulls,
}

/// More variants than this of one mention are not worked out: the query has too many outer joins around it.
const VARIANTS: usize = 2_000;

/// A value that is compared before and after a batch: where it is the same, what depends on it did not change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Guard {
    /// A subquery of an expression.
    Sublink(Sublink),
    /// A subquery of FROM that gives one row.
    Row(Query),
}

pub(crate) struct Relaxer<'a> {
    pub aliases: &'a mut Aliases,
    pub nulls: &'a Nulls,
    /// Of each mention, the outermost guard.
    pub guards: BTreeMap<Occurrence, Guard>,
    pub fault: Fault,
    /// Set where there were more than [`VARIANTS`].
    pub overflow: bool,
}

impl Relaxer<'_> {
    /// Queries of the columns `want` of `query`, together monotone, in which the mention `i`, if it is inside, reads the
    /// changed rows.
    pub fn query(&mut self, query: &Query, i: Option<Occurrence>, want: &[usize]) -> Vec<Block> {
        let variants = match &query.body {
            Body::Block(block) => self.block(block, query, i, want),
            Body::Set(set) => {
                let inside = |side: &Query| i.is_some_and(|i| side.reads(i));
                if inside(&set.left) {
                    self.query(&set.left, i, want)
                } else if inside(&set.right) {
                    self.query(&set.right, i, want)
                } else {
                    let mut all = self.query(&set.left, None, want);
                    if set.kind == SetKind::Union {
                        all.extend(self.query(&set.right, None, want));
                    }
                    all
                }
            }
            Body::Values { names, .. } => {
                let item = self.aliases.add("v");
                let chosen = want.iter().filter_map(|&number| names.get(number));
                let targets =
                    chosen.map(|name| Target { name: name.clone(), expr: Expr::column(item, name) }).collect();
                let values = Query::of(query.body.clone());
                vec![Block {
                    targets,
                    from: vec![From::Query { item, lateral: true, query: Box::new(values) }],
                    ..Block::default()
                }]
            }
        };
        let mut variants: Vec<Block> = variants.into_iter().filter(|block| !bounds::gives_nothing(block)).collect();
        let mut unique: Vec<Block> = Vec::new();
        for variant in variants.drain(..) {
            if !unique.contains(&variant) {
                unique.push(variant);
            }
        }
        if unique.len() > VARIANTS {
            self.overflow = true;
            unique.truncate(VARIANTS);
        }
        unique
    }

    fn block(&mut self, block: &Block, query: &Query, i: Option<Occurrence>, want: &[usize]) -> Vec<Block> {
        let targets: Vec<Target> = want.iter().filter_map(|&number| block.targets.get(number)).cloned().collect();
        if block.always_has_a_row(&query.order) && !i.is_some_and(|i| query.reads(i)) {
            // Rows of FROM may be missing, and its row is there: what is wanted of it depends on none of them.
            let outer = Block { targets, ..Block::default() };
            return vec![outer];
        }
        let bad = tainted(&block.from);
        let filter: Vec<Expr> = block.filter.iter().filter(|expr| self.keeps(expr, &bad, i)).cloned().collect();
        let mut need = columns(targets.iter().map(|target| &target.expr).chain(&filter));
        need.extend(block.from.iter().flat_map(From::arguments));
        let mut witnesses = vec![(None, Vec::new())];
        if let Some((sublink, positive)) = i.and_then(|i| holder(block, query, i)) {
            need.extend(Expr::Sub(Box::new(sublink.clone())).columns());
            witnesses = self.witness(sublink, i, positive).into_iter().map(|(from, on)| (Some(from), on)).collect();
        }
        let mut all = Vec::new();
        for from in self.list(&block.from, &need, i) {
            for (witness, conditions) in &witnesses {
                let mut from = from.clone();
                from.extend(witness.clone());
                let mut filter = filter.clone();
                filter.extend(conditions.clone());
                all.push(Block { targets: targets.clone(), from, filter, ..Block::default() });
            }
        }
        all
    }

    /// Whether a condition stays.
    fn keeps(&self, condition: &Expr, bad: &Columns, i: Option<Occurrence>) -> bool {
        let other = || i.is_some_and(|i| !condition.reads(i)) && columns([condition]).is_disjoint(bad);
        keepable(condition, bad) || self.fault == Fault::KeepSublinks && other()
    }

    /// All ways to take one variant of each item.
    fn list(&mut self, items: &[From], need: &Columns, i: Option<Occurrence>) -> Vec<Vec<From>> {
        let mut all = vec![Vec::new()];
        for item in items {
            let variants = self.from(item, need, i);
            if all.len() * variants.len() > VARIANTS {
                self.overflow = true;
                return Vec::new();
            }
            all = all
                .iter()
                .flat_map(|before: &Vec<From>| {
                    variants.iter().map(move |one| before.iter().cloned().chain(one.clone()).collect())
                })
                .collect();
        }
        all
    }

    /// Remembers what to compare for the mention `i`; what was found further outside stays.
    fn guard(&mut self, i: Option<Occurrence>, guard: Guard) {
        if let Some(i) = i {
            self.guards.entry(i).or_insert(guard);
        }
    }
}

/// The subquery of the block, outside of FROM, that holds the mention `i`, and whether it stands in WHERE as a condition
/// of its own.
fn holder<'a>(block: &'a Block, query: &'a Query, i: Occurrence) -> Option<(&'a Sublink, bool)> {
    for conjunct in &block.filter {
        if let Some(sublink) = conjunct.sublinks().into_iter().find(|sublink| sublink.query.reads(i)) {
            let alone = matches!(conjunct, Expr::Sub(own) if std::ptr::eq(&**own, sublink));
            return Some((sublink, alone));
        }
    }
    let mut found = None;
    let mut look = |expr: &'a Expr| {
        let held = expr.sublinks().into_iter().find(|sublink| sublink.query.reads(i));
        found = found.or(held.map(|sublink| (sublink, false)));
    };
    block.targets.iter().for_each(|target| look(&target.expr));
    block.each_other(&mut look);
    query.each_around(&mut look);
    found
}

/// The columns of a subquery that are wanted: clean ones that are needed.
fn wanted(query: &Query, item: usize, need: &Columns) -> Vec<usize> {
    let names = query.names();
    let clean = clean(query);
    (0..names.len()).filter(|&number| clean[number] && need.contains(&(item, names[number].to_owned()))).collect()
}

/// Whether a query gives exactly one row, or one at most, whatever its tables hold.
fn one_row(query: &Query) -> bool {
    match &query.body {
        Body::Block(block) => {
            block.is_one_row(&query.order) && !block.group.iter().any(|group| matches!(group, Group::Sets { .. }))
        }
        Body::Set(_) | Body::Values { .. } => false,
    }
}
