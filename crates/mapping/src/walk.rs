//! Looking through a query: which columns, tables, aggregates, subqueries a part of it holds.

use std::collections::BTreeSet;

use crate::query::{
    Block, Body, By, CallKind, Distinct, Expr, From, Group, Item, Occurrence, Over, Piece, Query, Sort, Sublink, Window,
};

/// Columns that are referred to.
pub(crate) type Columns = BTreeSet<(Item, String)>;

fn pieces<'a>(all: &'a [Piece], f: &mut dyn FnMut(&'a Expr)) {
    for piece in all {
        if let Piece::Expr(expr) = piece {
            f(expr);
        }
    }
}

fn by<'a>(by: &'a By, f: &mut dyn FnMut(&'a Expr)) {
    if let By::Expr(expr) = by {
        f(expr);
    }
}

fn sorts<'a>(all: &'a [Sort], f: &mut dyn FnMut(&'a Expr)) {
    for sort in all {
        by(&sort.by, f);
    }
}

fn groups<'a>(all: &'a [Group], f: &mut dyn FnMut(&'a Expr)) {
    for group in all {
        match group {
            Group::By(one) => by(one, f),
            Group::Sets { content, .. } => groups(content, f),
        }
    }
}

impl Window {
    fn each_expr<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        self.partition.iter().for_each(&mut *f);
        sorts(&self.order, f);
        pieces(&self.frame, f);
    }
}

impl Expr {
    /// Its direct parts; of a subquery only what stands before it.
    pub fn each_part<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        match self {
            Expr::Column(..) | Expr::Constant { .. } => {}
            Expr::And(all) | Expr::Coalesce(all) | Expr::Row(all) => all.iter().for_each(f),
            Expr::Not(arg) | Expr::Null { arg, .. } | Expr::Cast { arg, .. } => f(arg),
            Expr::Binary { left, right, .. } | Expr::NotDistinct(left, right) => {
                f(left);
                f(right);
            }
            Expr::Case { arg, whens, otherwise } => {
                arg.iter().for_each(|arg| f(arg));
                for (when, then) in whens {
                    f(when);
                    f(then);
                }
                otherwise.iter().for_each(|otherwise| f(otherwise));
            }
            Expr::Call(call) => {
                pieces(&call.pieces, f);
                if let CallKind::Window(Over::Own(window)) = &call.kind {
                    window.each_expr(f);
                }
            }
            Expr::Sub(sub) => sub.test.iter().for_each(f),
            Expr::Made(all) => pieces(all, f),
        }
    }

    /// It and all its parts, those inside subqueries left out.
    pub fn each<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        f(self);
        self.each_part(&mut |part| part.each(f));
    }

    fn any(&self, is: &dyn Fn(&Expr) -> bool) -> bool {
        let mut found = false;
        self.each(&mut |part| found |= is(part));
        found
    }

    /// Whether it holds an aggregate, outside of subqueries.
    pub fn has_aggregate(&self) -> bool {
        self.any(&|part| matches!(part, Expr::Call(call) if call.kind == CallKind::Aggregate))
    }

    pub fn has_window(&self) -> bool {
        self.any(&|part| matches!(part, Expr::Call(call) if matches!(call.kind, CallKind::Window(_))))
    }

    pub fn has_sublink(&self) -> bool {
        self.any(&|part| matches!(part, Expr::Sub(_)))
    }

    pub fn returns_set(&self) -> bool {
        self.any(&|part| matches!(part, Expr::Call(call) if call.returns_set))
    }

    /// The subqueries in it that are in no other one.
    pub fn sublinks(&self) -> Vec<&Sublink> {
        let mut all = Vec::new();
        self.each(&mut |part| {
            if let Expr::Sub(sub) = part {
                all.push(&**sub);
            }
        });
        all
    }

    /// The columns it refers to, inside its subqueries as well.
    pub fn columns(&self) -> Columns {
        let mut all = Columns::new();
        self.each_deep(&mut |part| {
            if let Expr::Column(item, name) = part {
                all.insert((*item, name.clone()));
            }
        });
        all
    }

    /// It and all its parts, those inside subqueries as well.
    pub fn each_deep<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        self.each(&mut |part| {
            f(part);
            if let Expr::Sub(sub) = part {
                sub.query.each_expr(&mut |expr| expr.each_deep(f));
            }
        });
    }

    pub fn reads(&self, occurrence: Occurrence) -> bool {
        self.sublinks().iter().any(|sub| sub.query.reads(occurrence))
    }
}

/// The columns that any of these refers to.
pub(crate) fn columns<'a>(all: impl IntoIterator<Item = &'a Expr>) -> Columns {
    all.into_iter().flat_map(Expr::columns).collect()
}

impl Query {
    /// The expressions at its level and in its arms and FROM, those of subqueries in FROM included.
    pub fn each_expr<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        match &self.body {
            Body::Block(block) => {
                block.each_own(f);
                block.from.iter().for_each(|from| from.each_expr(f));
            }
            Body::Set(set) => {
                set.left.each_expr(f);
                set.right.each_expr(f);
            }
            Body::Values { rows, .. } => rows.iter().flatten().for_each(&mut *f),
        }
        self.each_around(f);
    }

    /// Those of ORDER BY, LIMIT and OFFSET.
    pub fn each_around<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        sorts(&self.order, f);
        self.limit.iter().for_each(&mut *f);
        self.offset.iter().for_each(f);
    }

    /// All FROM items, those inside subqueries of any kind included.
    pub fn each_from<'a>(&'a self, f: &mut dyn FnMut(&'a From)) {
        let mut inner = Vec::new();
        self.each_query(&mut |query| {
            if let Body::Block(block) = &query.body {
                inner.push(&**block);
            }
        });
        for block in inner {
            block.from.iter().flat_map(From::leaves).for_each(&mut *f);
        }
    }

    /// It and every query inside it.
    pub fn each_query<'a>(&'a self, f: &mut dyn FnMut(&'a Query)) {
        f(self);
        match &self.body {
            Body::Block(block) => {
                for leaf in block.from.iter().flat_map(From::leaves) {
                    if let From::Query { query, .. } = leaf {
                        query.each_query(f);
                    }
                }
                let mut own = Vec::new();
                block.each_own(&mut |expr| own.push(expr));
                block.from.iter().for_each(|from| from.each_condition(&mut |expr| own.push(expr)));
                self.each_around(&mut |expr| own.push(expr));
                own.into_iter().flat_map(Expr::sublinks).for_each(|sub| sub.query.each_query(f));
            }
            Body::Set(set) => {
                set.left.each_query(f);
                set.right.each_query(f);
            }
            Body::Values { .. } => {}
        }
    }

    pub fn reads(&self, occurrence: Occurrence) -> bool {
        self.occurrences().contains(&occurrence)
    }

    /// The mentions of tables in it.
    pub fn occurrences(&self) -> BTreeSet<Occurrence> {
        let mut all = BTreeSet::new();
        self.each_from(&mut |from| {
            if let From::Table { occurrence, .. } = from {
                all.insert(*occurrence);
            }
        });
        all
    }

    /// The columns it refers to that are not its own.
    pub fn outer_columns(&self) -> Columns {
        let mut own = BTreeSet::new();
        self.each_from(&mut |from| own.extend(from.item()));
        let mut all = Columns::new();
        self.each_expr(&mut |expr| all.extend(expr.columns()));
        all.retain(|(item, _)| !own.contains(item));
        all
    }
}

impl Block {
    /// The expressions of its clauses, FROM left out.
    pub fn each_own<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        self.targets.iter().for_each(|target| f(&target.expr));
        self.filter.iter().for_each(&mut *f);
        self.each_other(f);
    }

    /// Those of all clauses but SELECT, FROM and WHERE.
    pub fn each_other<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        if let Distinct::On(all) = &self.distinct {
            all.iter().for_each(|one| by(one, f));
        }
        groups(&self.group, f);
        self.having.iter().for_each(&mut *f);
        self.windows.iter().for_each(|(_, window)| window.each_expr(f));
    }
}

impl From {
    /// The expressions in it, subqueries in FROM included.
    pub fn each_expr<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        match self {
            From::Query { query, .. } => query.each_expr(f),
            From::Join { left, right, on, .. } => {
                left.each_expr(f);
                right.each_expr(f);
                on.iter().for_each(f);
            }
            other => other.each_condition(f),
        }
    }

    /// Its conditions and the calls of its functions.
    pub fn each_condition<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        match self {
            From::Table { .. } | From::Query { .. } => {}
            From::Function { call, .. } => f(call),
            From::Join { left, right, on, .. } => {
                left.each_condition(f);
                right.each_condition(f);
                on.iter().for_each(f);
            }
        }
    }

    /// Whether a table in it is this mention, or a subquery in its conditions holds it.
    pub fn reads(&self, occurrence: Occurrence) -> bool {
        match self {
            From::Table { occurrence: own, .. } => *own == occurrence,
            From::Query { query, .. } => query.reads(occurrence),
            From::Function { call, .. } => call.reads(occurrence),
            From::Join { left, right, on, .. } => {
                left.reads(occurrence) || right.reads(occurrence) || on.iter().any(|expr| expr.reads(occurrence))
            }
        }
    }

    /// The columns that its subqueries and functions take from elsewhere.
    pub fn arguments(&self) -> Columns {
        match self {
            From::Table { .. } => Columns::new(),
            From::Query { query, .. } => query.outer_columns(),
            From::Function { call, .. } => call.columns(),
            From::Join { .. } => self.leaves().into_iter().flat_map(From::arguments).collect(),
        }
    }
}
