//! Results that the rows alone do not fix: two runs of the query over the same rows may differ.

use std::collections::BTreeMap;

use crate::compile::{Subject, of};
use crate::query::{Block, Body, By, CallKind, Distinct, Expr, From, Item, Over, Query, Sort};
use crate::trouble::{Trouble, TroubleKind};
use crate::walk::{Columns, columns};

/// Aggregates of Postgres whose result does not depend on the order of rows.
const UNORDERED: &[&str] = &[
    "any_value",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "count",
    "every",
    "max",
    "min",
    "range_agg",
    "range_intersect_agg",
    "stddev",
    "stddev_pop",
    "stddev_samp",
    "sum",
    "var_pop",
    "var_samp",
    "variance",
];

/// Window functions of Postgres whose result is the same for rows that tie.
const TIED: &[&str] = &["rank", "dense_rank", "percent_rank", "cume_dist"];

pub(crate) fn warnings(subject: &Subject<'_>) -> Vec<Trouble> {
    let mut tables = BTreeMap::new();
    subject.query().each_from(&mut |from| {
        if let From::Table { item, table, .. } = from {
            tables.insert(*item, *table);
        }
    });
    let mut look = Look { subject, tables, warnings: Vec::new() };
    let mut queries = Vec::new();
    subject.query().each_query(&mut |query| queries.push(query));
    queries.into_iter().for_each(|query| look.query(query));
    let mut unique = Vec::new();
    for warning in look.warnings {
        if !unique.contains(&warning) {
            unique.push(warning);
        }
    }
    unique
}

struct Look<'a> {
    subject: &'a Subject<'a>,
    tables: BTreeMap<Item, usize>,
    warnings: Vec<Trouble>,
}

impl Look<'_> {
    fn warn(&mut self, what: String, why: &str, next: &str) {
        self.warnings.push(of(TroubleKind::NotDeterministic, what, why, next));
    }

    fn query(&mut self, query: &Query) {
        let limited = query.is_limited();
        let Body::Block(block) = &query.body else {
            let all: Vec<Sort> = query.order.clone();
            let every = (0..query.names().len()).all(|n| all.iter().any(|sort| sort.by == By::Output(n)));
            if limited && !every {
                self.warn("LIMIT".to_owned(), "rows may tie, and any of them can be the first", "ORDER BY all columns");
            }
            return;
        };
        let next = "end ORDER BY with a unique column of each table";
        if limited && !query.ties && !self.is_total(block, &sorted(block, &query.order)) {
            self.warn("LIMIT".to_owned(), "rows may tie, and any of them can be among the first", next);
        }
        if matches!(block.distinct, Distinct::On(_)) && !self.is_total(block, &sorted(block, &query.order)) {
            self.warn("DISTINCT ON".to_owned(), "rows may tie, and any of them can be the first", next);
        }
        let mut own = Vec::new();
        block.each_own(&mut |expr| own.push(expr));
        query.each_around(&mut |expr| own.push(expr));
        for expr in own {
            let mut calls = Vec::new();
            expr.each(&mut |part| {
                if let Expr::Call(call) = part {
                    calls.push(&**call);
                }
            });
            for call in calls {
                match &call.kind {
                    CallKind::Plain => {}
                    CallKind::Aggregate => self.aggregate(&call.name, call),
                    CallKind::Window(over) => self.window(block, &call.name, call, over),
                }
            }
        }
    }

    fn aggregate(&mut self, name: &str, call: &crate::query::Call) {
        let ordered = call.pieces.iter().any(|piece| {
            matches!(piece, crate::query::Piece::Sql(sql) if sql == "ORDER BY " || sql.contains("WITHIN GROUP"))
        });
        if !UNORDERED.contains(&name) && !ordered {
            let next = format!("write {name}(… ORDER BY …) over columns that do not tie");
            self.warn(
                format!("aggregate {name}"),
                "without ORDER BY its result depends on the order in which rows are read",
                &next,
            );
        }
        self.floats(name, call);
    }

    fn floats(&mut self, name: &str, call: &crate::query::Call) {
        if !["sum", "avg"].contains(&name) {
            return;
        }
        let args = call.pieces.iter().filter_map(|piece| match piece {
            crate::query::Piece::Expr(expr) => Some(expr),
            crate::query::Piece::Sql(_) => None,
        });
        let float = args.flat_map(Expr::columns).any(|(item, column)| {
            self.tables
                .get(&item)
                .and_then(|table| {
                    let columns = &self.subject.catalog.tables.get(*table)?.columns;
                    columns.iter().find(|known| known.name == column)
                })
                .is_some_and(|column| ["real", "double precision"].contains(&column.type_name.as_str()))
        });
        if float {
            let next = "cast it to numeric first";
            self.warn(format!("aggregate {name}"), "sums of floats depend on the order of the addends", next);
        }
    }

    fn window(&mut self, block: &Block, name: &str, call: &crate::query::Call, over: &Over) {
        let window = match over {
            Over::Own(window) => Some(window),
            Over::Named(named) => block.windows.iter().find(|(known, _)| known == named).map(|(_, window)| window),
        };
        let Some(window) = window else { return };
        self.floats(name, call);
        if TIED.contains(&name) || UNORDERED.contains(&name) && !frame_of_rows(window) {
            return;
        }
        let mut by: Vec<Expr> = window.partition.clone();
        by.extend(window.order.iter().filter_map(|sort| match &sort.by {
            By::Expr(expr) => Some(expr.clone()),
            By::Output(_) => None,
        }));
        if window.base.is_none() && !self.is_total(block, &by) {
            let next = "end its ORDER BY with a unique column of each table";
            self.warn(
                format!("{name}() OVER"),
                "rows may tie in its ORDER BY, and their order is then arbitrary",
                next,
            );
        }
    }

    /// Whether no two rows of FROM agree in all these: they name the identity of each table, or, of a grouped block, all
    /// that it groups by.
    fn is_total(&self, block: &Block, by: &[Expr]) -> bool {
        let used: Columns = columns(by.iter().filter(|expr| matches!(expr, Expr::Column(..))));
        if !block.group.is_empty() {
            return block.group.iter().all(|group| match group {
                crate::query::Group::By(By::Expr(expr)) => by.contains(expr),
                crate::query::Group::By(By::Output(n)) => {
                    block.targets.get(*n).is_some_and(|target| by.contains(&target.expr))
                }
                crate::query::Group::Sets { .. } => false,
            });
        }
        let leaves = block.from.iter().flat_map(From::leaves);
        leaves.into_iter().all(|leaf| match leaf {
            From::Table { item, table, .. } => {
                let table = &self.subject.catalog.tables[*table];
                !table.full
                    && !table.identity.is_empty()
                    && table.identity.iter().all(|name| used.contains(&(*item, name.clone())))
            }
            From::Query { item, query, .. } => {
                query.names().iter().all(|name| used.contains(&(*item, (*name).to_owned())))
            }
            From::Function { .. } | From::Join { .. } => false,
        })
    }
}

fn frame_of_rows(window: &crate::query::Window) -> bool {
    matches!(window.frame.first(), Some(crate::query::Piece::Sql(sql)) if sql.starts_with("ROWS"))
}

/// What rows are ordered by, DISTINCT ON included.
fn sorted(block: &Block, order: &[Sort]) -> Vec<Expr> {
    let on = match &block.distinct {
        Distinct::On(by) => by.clone(),
        Distinct::None | Distinct::All => Vec::new(),
    };
    let all = on.into_iter().chain(order.iter().map(|sort| sort.by.clone()));
    all.filter_map(|by| match by {
        By::Output(n) => block.targets.get(n).map(|target| target.expr.clone()),
        By::Expr(expr) => Some(expr),
    })
    .collect()
}
