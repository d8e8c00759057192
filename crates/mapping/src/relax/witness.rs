//! A subquery of an expression that holds the mention. Its rows are joined as a witness: a changed row can change the
//! subquery's value only where it belongs to it, and whether the value is wanted true or false does not matter.

use super::{Guard, Relaxer, clean};
use crate::query::{Body, Expr, From, Occurrence, Query, Sublink, SublinkKind};
use crate::walk::Columns;

/// The comparisons of rows with this many columns are not taken apart: the variants triple with each.
const COLUMNS: usize = 3;

impl Relaxer<'_> {
    /// Items to join and conditions to add; each pair is a variant. `positive`: the subquery is a condition of its own, so
    /// it can only matter where it is true.
    pub(super) fn witness(
        &mut self,
        sublink: &Sublink,
        i: Option<Occurrence>,
        positive: bool,
    ) -> Vec<(From, Vec<Expr>)> {
        let single = matches!(sublink.kind, SublinkKind::Scalar | SublinkKind::Exists | SublinkKind::Array);
        if single && sublink.query.outer_columns().is_empty() {
            self.guard(i, Guard::Sublink(sublink.clone()));
        }
        // That ALL is true rests on all rows; only of ANY is it enough to look at those for which it holds.
        let positive = positive && sublink.kind == SublinkKind::Any;
        let compared = compared(sublink);
        let want: Vec<usize> = (0..compared.as_ref().map_or(0, |(_, tests)| tests.len())).collect();
        let variants = self.query(&sublink.query, i, &want);
        let mut all = Vec::new();
        for mut block in variants {
            // Its own names may be one and the same.
            let names: Vec<String> = (1..=block.targets.len()).map(|number| format!("y{number}")).collect();
            block.targets.iter_mut().zip(&names).for_each(|(target, name)| target.name.clone_from(name));
            let never: Vec<bool> =
                block.targets.iter().map(|target| self.nulls.never(&target.expr, &Columns::new())).collect();
            let item = self.aliases.add("w");
            let query = Box::new(Query::of(Body::Block(Box::new(block))));
            let witness = From::Query { item, lateral: true, query };
            let mut conditions: Vec<Vec<Expr>> = vec![Vec::new()];
            if let Some((op, tests)) = &compared {
                for ((test, name), y_never) in tests.iter().zip(&names).zip(never) {
                    let y = Expr::column(item, name);
                    let mut ways = vec![op.between(test.clone(), y.clone())];
                    if !positive {
                        if !y_never {
                            ways.push(Expr::is_null(y));
                        }
                        if !self.nulls.never(test, &Columns::new()) {
                            ways.push(Expr::is_null(test.clone()));
                        }
                    }
                    conditions = conditions
                        .iter()
                        .flat_map(|before| {
                            ways.iter().map(move |way| before.iter().cloned().chain([way.clone()]).collect())
                        })
                        .collect();
                }
            }
            all.extend(conditions.into_iter().map(|conditions| (witness.clone(), conditions)));
        }
        all
    }
}

/// How a value is compared with a row of the subquery for that row to matter.
enum Comparison {
    Holds(String),
    Fails(String),
}

impl Comparison {
    fn between(&self, x: Expr, y: Expr) -> Expr {
        match self {
            Comparison::Holds(op) => Expr::binary(op, x, y),
            Comparison::Fails(op) => Expr::Not(Box::new(Expr::binary(op, x, y))),
        }
    }
}

/// The values that ANY or ALL compares with the subquery's columns; none where nothing can be said of a row.
fn compared(sublink: &Sublink) -> Option<(Comparison, Vec<Expr>)> {
    let test = sublink.test.as_ref()?;
    let op = sublink.op.as_str();
    let comparison = match sublink.kind {
        SublinkKind::Any => Comparison::Holds(op.to_owned()),
        // Rows for which it does not hold; where `<>` does not, `=` does, which an index can find.
        SublinkKind::All if op == "<>" => Comparison::Holds("=".to_owned()),
        SublinkKind::All => Comparison::Fails(op.to_owned()),
        SublinkKind::Exists | SublinkKind::Row | SublinkKind::Scalar | SublinkKind::Array => return None,
    };
    let tests = match test {
        Expr::Row(parts) => {
            // Only equality of rows is the equality of their columns.
            let equality = matches!(&comparison, Comparison::Holds(op) if op == "=");
            if !equality || parts.len() > COLUMNS {
                return None;
            }
            parts.clone()
        }
        one => vec![one.clone()],
    };
    let clean = clean(&sublink.query);
    let usable = clean.len() == tests.len() && clean.iter().all(|clean| *clean) && !tests.iter().any(Expr::has_sublink);
    usable.then_some((comparison, tests))
}
