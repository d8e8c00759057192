//! Which columns can be null. Where it is not known, they can.

use std::collections::BTreeSet;

use crate::catalog::Catalog;
use crate::query::{Body, Expr, From, Item, JoinKind, Piece, Query};
use crate::walk::Columns;

/// What is known of the columns of all FROM items of a query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nulls {
    /// Columns that are never null where their item has a row.
    never: Columns,
    /// Items on a side of an outer join that can be missing.
    missing: BTreeSet<Item>,
}

/// Functions of Postgres that are null only where an argument is.
const STRICT: &[&str] = &[
    "abs",
    "btrim",
    "crossfade_id",
    "date",
    "date_part",
    "date_trunc",
    "initcap",
    "int4",
    "int8",
    "left",
    "length",
    "lower",
    "lpad",
    "ltrim",
    "md5",
    "replace",
    "reverse",
    "right",
    "rpad",
    "rtrim",
    "sha256",
    "text",
    "timezone",
    "to_char",
    "upper",
];

/// Functions of Postgres that are never null.
const NEVER: &[&str] = &[
    "concat",
    "count",
    "cume_dist",
    "dense_rank",
    "jsonb_build_array",
    "jsonb_build_object",
    "percent_rank",
    "rank",
    "row_number",
];

/// Operators of Postgres that are null only where an operand is.
const OPERATORS: &[&str] = &["+", "-", "*", "/", "%", "||", "=", "<>", "<", ">", "<=", ">=", "~~", "!~~"];

impl Nulls {
    pub fn of(query: &Query, catalog: &Catalog) -> Nulls {
        let mut nulls = Nulls::default();
        nulls.query(query, catalog);
        nulls
    }

    /// Inner queries first: what they give is a column of the one around.
    fn query(&mut self, query: &Query, catalog: &Catalog) {
        let mut all = Vec::new();
        query.each_query(&mut |one| all.push(one));
        for one in all.iter().rev() {
            if let Body::Block(block) = &one.body {
                block.from.iter().for_each(|from| self.from(from, catalog));
            }
        }
    }

    fn from(&mut self, from: &From, catalog: &Catalog) {
        match from {
            From::Table { item, table, .. } => {
                let columns = catalog.tables.get(*table).map_or(&[][..], |table| &table.columns);
                let never = columns.iter().filter(|column| column.not_null);
                self.never.extend(never.map(|column| (*item, column.name.clone())));
            }
            From::Query { item, query, .. } => {
                let names = query.names();
                let never = self.outputs(query);
                let never = names.into_iter().zip(never).filter(|(_, never)| *never);
                self.never.extend(never.map(|(name, _)| (*item, name.to_owned())));
            }
            From::Function { .. } => {}
            From::Join { kind, left, right, .. } => {
                self.from(left, catalog);
                self.from(right, catalog);
                if matches!(kind, JoinKind::Left | JoinKind::Full | JoinKind::Nulled) {
                    self.missing.extend(right.items());
                }
                if matches!(kind, JoinKind::Right | JoinKind::Full) {
                    self.missing.extend(left.items());
                }
            }
        }
    }

    /// For each column of the result, whether it is never null.
    pub fn outputs(&self, query: &Query) -> Vec<bool> {
        match &query.body {
            Body::Block(block) => {
                let sets = block.always_has_a_row(&query.order) && !block.group.is_empty();
                let mut known = Columns::new();
                block.filter.iter().for_each(|expr| demanded(expr, &mut known));
                block.from.iter().for_each(|from| joined(from, &mut known));
                block.targets.iter().map(|target| !sets && self.never(&target.expr, &known)).collect()
            }
            Body::Set(set) => self
                .outputs(&set.left)
                .into_iter()
                .zip(self.outputs(&set.right))
                .map(|(one, other)| one && other)
                .collect(),
            Body::Values { names, rows } => {
                let none = Columns::new();
                (0..names.len())
                    .map(|n| rows.iter().all(|row| row.get(n).is_some_and(|expr| self.never(expr, &none))))
                    .collect()
            }
        }
    }

    /// Whether an expression is never null, in rows whose columns `known` are not.
    pub fn never(&self, expr: &Expr, known: &Columns) -> bool {
        match expr {
            Expr::Column(item, name) => {
                let column = (*item, name.clone());
                known.contains(&column) || self.never.contains(&column) && !self.missing.contains(item)
            }
            Expr::Constant { null, .. } => !null,
            Expr::And(all) => all.iter().all(|part| self.never(part, known)),
            Expr::Not(arg) | Expr::Cast { arg, .. } => self.never(arg, known),
            Expr::Binary { op, left, right } => {
                OPERATORS.contains(&op.as_str()) && self.never(left, known) && self.never(right, known)
            }
            Expr::NotDistinct(..) | Expr::Null { .. } | Expr::Row(_) => true,
            Expr::Coalesce(all) => all.iter().any(|part| self.never(part, known)),
            Expr::Case { whens, otherwise, .. } => {
                whens.iter().all(|(_, then)| self.never(then, known))
                    && otherwise.as_ref().is_some_and(|otherwise| self.never(otherwise, known))
            }
            Expr::Call(call) => {
                let strict = || {
                    call.pieces.iter().all(|piece| match piece {
                        Piece::Sql(_) => true,
                        Piece::Expr(expr) => self.never(expr, known),
                    })
                };
                !call.returns_set
                    && (NEVER.contains(&call.name.as_str()) || STRICT.contains(&call.name.as_str()) && strict())
            }
            Expr::Sub(sub) => sub.kind == crate::query::SublinkKind::Exists,
            Expr::Made(_) => false,
        }
    }
}

/// Columns that are not null in rows that pass `condition`.
fn demanded(condition: &Expr, known: &mut Columns) {
    let mut not_null = |expr: &Expr| {
        if let Expr::Column(item, name) = expr {
            known.insert((*item, name.clone()));
        }
    };
    match condition {
        Expr::Null { arg, not: true } => not_null(arg),
        Expr::Binary { op, left, right } if ["=", "<>", "<", ">", "<=", ">="].contains(&op.as_str()) => {
            not_null(left);
            not_null(right);
        }
        _ => {}
    }
}

/// Columns that inner joins demand.
fn joined(from: &From, known: &mut Columns) {
    if let From::Join { kind: JoinKind::Inner, left, right, on } = from {
        on.iter().for_each(|expr| demanded(expr, known));
        joined(left, known);
        joined(right, known);
    }
}
