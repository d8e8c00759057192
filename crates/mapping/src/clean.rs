//! Clean columns: those that are a function of every row that contributes to a row of the result. Only from them can a
//! changed row be followed to what it changes.

use std::collections::BTreeSet;

use crate::query::{Block, Body, By, CallKind, Distinct, Expr, From, Group, Item, Over, Query, Window};
use crate::walk::{Columns, columns};

/// For each column of the result, whether it is clean.
pub(crate) fn clean(query: &Query) -> Vec<bool> {
    match &query.body {
        Body::Set(set) => {
            let both = clean(&set.left).into_iter().zip(clean(&set.right));
            both.map(|(left, right)| left && right && !query.is_limited()).collect()
        }
        Body::Values { names, .. } => vec![!query.is_limited(); names.len()],
        Body::Block(block) => of_block(block, query),
    }
}

fn of_block(block: &Block, query: &Query) -> Vec<bool> {
    let tainted = tainted(&block.from);
    let own: BTreeSet<Item> = block.from.iter().flat_map(From::items).collect();
    let partitions = partitions(block, query);
    let sets = block.group.iter().any(|group| matches!(group, Group::Sets { .. }));
    let one = |(number, expr): (usize, &Expr)| {
        if sets || expr.has_sublink() || expr.has_aggregate() || expr.has_window() {
            return false;
        }
        let used = expr.columns();
        if !used.is_disjoint(&tainted) {
            return false;
        }
        // What does not depend on the block's own rows is the same for all of them.
        if !used.iter().any(|(item, _)| own.contains(item)) && !expr.returns_set() {
            return true;
        }
        let chosen = match &block.distinct {
            Distinct::On(by) => by.iter().any(|by| match by {
                By::Output(output) => *output == number,
                By::Expr(on) => on == expr,
            }),
            Distinct::None | Distinct::All => true,
        };
        chosen && !query.is_limited() && partitions.iter().all(|partition| partition.contains(expr))
    };
    block.targets.iter().map(|target| &target.expr).enumerate().map(one).collect()
}

/// The columns of subqueries in FROM that are not clean.
pub(crate) fn tainted(from: &[From]) -> Columns {
    let mut all = Columns::new();
    for leaf in from.iter().flat_map(From::leaves) {
        if let From::Query { item, query, .. } = leaf {
            let names = query.names().into_iter().zip(clean(query));
            all.extend(names.filter(|(_, clean)| !clean).map(|(name, _)| (*item, name.to_owned())));
        }
    }
    all
}

/// PARTITION BY of every window that is used.
fn partitions(block: &Block, query: &Query) -> Vec<Vec<Expr>> {
    let mut all = Vec::new();
    let mut look = |expr: &Expr| {
        expr.each(&mut |part| {
            if let Expr::Call(call) = part
                && let CallKind::Window(over) = &call.kind
            {
                all.push(match over {
                    Over::Named(name) => named(block, name),
                    Over::Own(window) => partition(block, window),
                });
            }
        });
    };
    block.targets.iter().for_each(|target| look(&target.expr));
    block.each_other(&mut look);
    query.each_around(&mut look);
    all
}

fn named(block: &Block, name: &str) -> Vec<Expr> {
    let found = block.windows.iter().find(|(known, _)| known == name);
    found.map_or(Vec::new(), |(_, window)| partition(block, window))
}

fn partition(block: &Block, window: &Window) -> Vec<Expr> {
    match &window.base {
        Some(base) => named(block, base),
        None => window.partition.clone(),
    }
}

/// Whether a conjunct can stay in a relaxed query: no subquery, nothing unclean.
pub(crate) fn keepable(conjunct: &Expr, tainted: &Columns) -> bool {
    !conjunct.has_sublink() && columns([conjunct]).is_disjoint(tainted)
}
