//! Whether a relaxed query can give rows at all, and whether a changed row is tied to the unit: items are put together
//! along the equalities that were kept. Where the items of the unit are not among those of the changed rows, a change
//! affects all units.

use std::collections::{BTreeMap, BTreeSet};

use crate::query::{Block, Body, Expr, From, Item, JoinKind, Query, Read};
use crate::walk::{Columns, columns};

#[derive(Default)]
struct Ties {
    parent: BTreeMap<Item, Item>,
    changed: BTreeSet<Item>,
    /// What the columns of a subquery stand for.
    columns: BTreeMap<(Item, String), BTreeSet<Item>>,
    /// Items all of whose columns are null.
    nulled: BTreeSet<Item>,
    /// Columns of subqueries that are null.
    null: Columns,
    dead: bool,
}

/// Whether an equality in it compares with a column that is null.
pub(crate) fn gives_nothing(block: &Block) -> bool {
    let mut ties = Ties::default();
    ties.block(block);
    ties.dead
}

/// Whether the changed rows are tied to all that its columns come from.
pub(crate) fn is_bounded(block: &Block) -> bool {
    let mut ties = Ties::default();
    let outputs = ties.block(block);
    let roots =
        |ties: &Ties, items: &BTreeSet<Item>| items.iter().map(|&item| ties.root(item)).collect::<BTreeSet<_>>();
    let changed = roots(&ties, &ties.changed);
    outputs.iter().all(|items| roots(&ties, items).is_subset(&changed))
}

impl Ties {
    fn root(&self, item: Item) -> Item {
        let mut root = item;
        while let Some(&parent) = self.parent.get(&root)
            && parent != root
        {
            root = parent;
        }
        root
    }

    fn tie(&mut self, items: &BTreeSet<Item>) {
        let mut items = items.iter();
        let Some(&first) = items.next() else { return };
        for &item in items {
            let (one, other) = (self.root(first), self.root(item));
            self.parent.insert(other, one);
        }
    }

    /// The items that columns come from.
    fn sources(&self, used: &Columns) -> BTreeSet<Item> {
        let of = |column: &(Item, String)| match self.columns.get(column) {
            Some(items) => items.clone(),
            None if self.nulled.contains(&column.0) => BTreeSet::new(),
            None => BTreeSet::from([column.0]),
        };
        used.iter().flat_map(of).collect()
    }

    fn is_null(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Column(item, name) => self.nulled.contains(item) || self.null.contains(&(*item, name.clone())),
            Expr::Constant { null, .. } => *null,
            _ => false,
        }
    }

    fn condition(&mut self, condition: &Expr) {
        match condition {
            Expr::Binary { op, left, right } if ["=", "<>", "<", ">", "<=", ">="].contains(&op.as_str()) => {
                self.dead |= self.is_null(left) || self.is_null(right);
            }
            Expr::Null { arg, not: true } => self.dead |= self.is_null(arg),
            _ => {}
        }
        if let Some((left, right)) = condition.equality() {
            let items = self.sources(&columns([left, right]));
            self.tie(&items);
        }
    }

    fn from(&mut self, from: &From) {
        match from {
            From::Table { item, read, .. } => {
                if *read == Read::Changed {
                    self.changed.insert(*item);
                }
            }
            From::Function { item, call, .. } => {
                let mut items = self.sources(&call.columns());
                items.insert(*item);
                self.tie(&items);
            }
            From::Query { item, query, .. } => self.query(*item, query),
            From::Join { kind: JoinKind::Nulled, left, right, .. } => {
                self.from(left);
                self.nulled.extend(right.items());
            }
            From::Join { left, right, on, .. } => {
                self.from(left);
                self.from(right);
                on.iter().for_each(|expr| self.condition(expr));
            }
        }
    }

    fn query(&mut self, item: Item, query: &Query) {
        let Body::Block(block) = &query.body else {
            // VALUES: constants, tied to what they take from elsewhere.
            let mut items = self.sources(&query.outer_columns());
            items.insert(item);
            self.tie(&items);
            return;
        };
        let outputs = self.block(block);
        for (target, items) in block.targets.iter().zip(outputs) {
            if self.is_null(&target.expr) {
                self.null.insert((item, target.name.clone()));
            }
            self.columns.insert((item, target.name.clone()), items);
        }
    }

    /// What each of its columns comes from.
    fn block(&mut self, block: &Block) -> Vec<BTreeSet<Item>> {
        block.from.iter().for_each(|from| self.from(from));
        block.filter.iter().for_each(|expr| self.condition(expr));
        block.targets.iter().map(|target| self.sources(&target.expr.columns())).collect()
    }
}
