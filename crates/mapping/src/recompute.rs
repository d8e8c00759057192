//! Making the rows of some units anew. The unit's values come from outside, row by row, so that each is looked up by
//! index; OFFSET 0 keeps the planner from turning that into one large join.

use crate::compile::{Subject, of};
use crate::print::Aliases;
use crate::query::{Body, Expr, Item, Query, Read, SetKind};
use crate::trouble::{Trouble, TroubleKind};
use crate::write::matched;

/// More columns of the unit than these cannot be nullable: the statements double with each.
const NULLABLE: usize = 4;

/// The ways in which the unit can be null: for each, the columns that are.
pub(crate) fn patterns(subject: &Subject<'_>) -> Result<Vec<Vec<usize>>, Vec<Trouble>> {
    let never = subject.nulls.outputs(subject.query());
    let nullable: Vec<usize> = (0..).zip(subject.unit()).filter(|(_, place)| !never[*place]).map(|(n, _)| n).collect();
    if nullable.len() > NULLABLE {
        let why =
            format!("{} of its columns can be null, and each way in which they can is a statement", nullable.len());
        let next = "choose fewer columns, or exclude nulls by WHERE … IS NOT NULL";
        return Err(vec![of(TroubleKind::TooLarge, "the unit", why, next)]);
    }
    let chosen =
        |ways: usize| nullable.iter().enumerate().filter(|(n, _)| ways >> n & 1 == 1).map(|(_, &n)| n).collect();
    Ok((0..1 << nullable.len()).map(chosen).collect())
}

/// The statements that put the rows of `units` into `result`.
pub(crate) fn recompute(subject: &Subject<'_>, units: &str, result: &str, patterns: &[Vec<usize>]) -> Vec<String> {
    let mut aliases = subject.reading.aliases.clone();
    let affected = aliases.add("affected");
    let alias = model::quote::ident(aliases.of(affected));
    let each = |nulls: &Vec<usize>| {
        let mut query = subject.query().clone();
        narrow(&mut query, subject, affected, nulls);
        let sql = print(subject, &aliases, &query);
        let matched = matched("q", &alias, subject.derived.unit(), nulls);
        format!(
            "INSERT INTO {result} SELECT q.* FROM {units} AS {alias}, LATERAL (SELECT * FROM ({sql}) AS q WHERE {matched} OFFSET 0) AS q"
        )
    };
    patterns.iter().map(each).collect()
}

fn print(subject: &Subject<'_>, aliases: &Aliases, query: &Query) -> String {
    let table = |table: usize, _: Read| subject.places.mirror(subject.source(table)).quoted();
    crate::print::Printer { aliases, table: &table }.query(query)
}

/// Puts the unit into both arms of EXCEPT and INTERSECT, through which Postgres does not push it. A clean column is the same
/// for all rows that contribute, so to choose by it before or after grouping is one.
fn narrow(query: &mut Query, subject: &Subject<'_>, affected: Item, nulls: &[usize]) {
    if let Body::Set(set) = &mut query.body
        && set.kind != SetKind::Union
    {
        narrow_arm(&mut set.left, subject, affected, nulls);
        narrow_arm(&mut set.right, subject, affected, nulls);
    }
}

fn narrow_arm(query: &mut Query, subject: &Subject<'_>, affected: Item, nulls: &[usize]) {
    let order = query.order.clone();
    match &mut query.body {
        Body::Set(set) => {
            narrow_arm(&mut set.left, subject, affected, nulls);
            narrow_arm(&mut set.right, subject, affected, nulls);
        }
        Body::Block(block) if !block.always_has_a_row(&order) && !subject.is_all_said() => {
            for ((number, place), name) in subject.unit().into_iter().enumerate().zip(subject.derived.unit()) {
                let Some(target) = block.targets.get(place).filter(|target| !target.expr.returns_set()) else {
                    continue;
                };
                let expr = target.expr.clone();
                block.filter.push(if nulls.contains(&number) {
                    Expr::is_null(expr)
                } else {
                    Expr::binary("=", expr, Expr::column(affected, name))
                });
            }
        }
        Body::Block(_) | Body::Values { .. } => {}
    }
}
