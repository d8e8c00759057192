use std::collections::{BTreeMap, BTreeSet};

use model::TableName;

use crate::compile::Subject;
use crate::fit::{column, origin};
use crate::query::{Body, Expr, From, Query};

/// An index that makes derivations and recomputing quick.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Index {
    /// The mirror, or the target.
    pub table: TableName,
    /// Its columns.
    pub columns: Vec<String>,
}

/// Those that a maintained table wants: on mirrors, the columns by which tables are joined and by which the unit finds its
/// rows; on the target, the unit.
pub(crate) fn wanted(subject: &Subject<'_>) -> Vec<Index> {
    let mut all = BTreeSet::new();
    let mut queries = Vec::new();
    subject.query().each_query(&mut |query| queries.push(query));
    // Which item is which table, wherever it stands.
    let mut tables: BTreeMap<usize, &From> = BTreeMap::new();
    subject.query().each_from(&mut |from| {
        tables.extend(from.item().map(|item| (item, from)));
    });
    let mut add = |table: usize, columns: Vec<String>| {
        let Some(known) = subject.catalog.tables.get(table) else { return };
        // The mirror has its key as it is.
        let keyed = !known.full && columns.len() == 1 && known.identity.first() == columns.first();
        if !keyed {
            all.insert(Index { table: subject.places.mirror(&known.name), columns });
        }
    };
    let find = |expr: &Expr| match expr {
        Expr::Column(item, name) => column(std::slice::from_ref(*tables.get(item)?), *item, name),
        _ => None,
    };
    for query in queries {
        let mut conditions = Vec::new();
        if let Body::Block(block) = &query.body {
            conditions.extend(&block.filter);
            block.from.iter().for_each(|from| from.each_condition(&mut |expr| conditions.push(expr)));
        }
        for condition in conditions {
            for sublink in condition.sublinks() {
                let tests = sublink.test.iter().flat_map(parts).chain(firsts(&sublink.query));
                tests.filter_map(find).for_each(|(table, name)| add(table, vec![name]));
            }
            if let Some((left, right)) = condition.equality() {
                let joins =
                    left.columns() != right.columns() && !left.columns().is_empty() && !right.columns().is_empty();
                if joins {
                    [left, right].into_iter().filter_map(find).for_each(|(table, name)| add(table, vec![name]));
                }
            }
        }
    }
    units(subject.query(), &subject.unit(), &mut add);
    let unit = subject.derived.unit().to_vec();
    let target = &subject.catalog.target;
    let has = target.unique.iter().any(|unique| unique.starts_with(&unit));
    if !has {
        all.insert(Index { table: subject.derived.into.clone(), columns: unit });
    }
    all.into_iter().collect()
}

fn parts(test: &Expr) -> Vec<&Expr> {
    match test {
        Expr::Row(parts) => parts.iter().collect(),
        one => vec![one],
    }
}

/// The columns that a subquery is compared by.
fn firsts(query: &Query) -> Vec<&Expr> {
    match &query.body {
        Body::Block(block) => block.targets.iter().map(|target| &target.expr).collect(),
        Body::Set(_) | Body::Values { .. } => Vec::new(),
    }
}

/// The columns of each table that the unit is, together where they are of one table; in every arm.
fn units(query: &Query, unit: &[usize], add: &mut dyn FnMut(usize, Vec<String>)) {
    if let Body::Set(set) = &query.body {
        units(&set.left, unit, add);
        units(&set.right, unit, add);
        return;
    }
    // Below, several may be united.
    if let Body::Block(block) = &query.body
        && let [From::Query { item, query: below, .. }] = block.from.as_slice()
    {
        let names = below.names();
        let place = |&number: &usize| match &block.targets.get(number)?.expr {
            Expr::Column(of, name) if of == item => names.iter().position(|known| known == name),
            _ => None,
        };
        return units(below, &unit.iter().filter_map(place).collect::<Vec<_>>(), add);
    }
    let mut by_table: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (table, name) in unit.iter().filter_map(|&number| origin(query, number)) {
        let columns = by_table.entry(table).or_default();
        if !columns.contains(&name) {
            columns.push(name);
        }
    }
    by_table.into_iter().for_each(|(table, columns)| add(table, columns));
}
