//! Set operations and CTEs.

use super::As::Rows;
use super::{Class, agg, c, eq, filter, i, one, t, units};

pub const CLASSES: &[Class] = &[
    ("union", Rows, |d| {
        (
            format!(
                "SELECT p.{} AS u, p.{} AS v FROM {} p{} UNION {} SELECT q.{}, r.{} FROM {} q LEFT JOIN {} r ON {}",
                i(d),
                i(d),
                t(d),
                filter(d, &["p"]),
                one(d, &["", "ALL"]),
                i(d),
                i(d),
                t(d),
                t(d),
                eq(d, "q", "r")
            ),
            vec!["u"],
        )
    }),
    ("except", Rows, |d| {
        (
            format!(
                "SELECT p.{} AS u, p.{} AS v FROM {} p {} SELECT q.{}, r.{} FROM {} q LEFT JOIN {} r ON {}",
                i(d),
                i(d),
                t(d),
                one(d, &["EXCEPT", "EXCEPT ALL", "INTERSECT", "INTERSECT ALL"]),
                i(d),
                i(d),
                t(d),
                t(d),
                eq(d, "q", "r")
            ),
            units(d, &[&["u"], &["v"], &["u", "v"]]),
        )
    }),
    ("union_sub", Rows, |d| {
        (
            format!(
                "SELECT s.u AS u, {} AS n FROM (SELECT p.{} AS u, p.k AS k, p.x AS x, p.g AS g FROM {} p {} SELECT q.{}, q.k, q.x, q.g FROM {} q WHERE NOT EXISTS (SELECT 1 FROM {} r WHERE {})) s LEFT JOIN {} t ON t.{} = s.u GROUP BY s.u",
                agg(d, "s"),
                i(d),
                t(d),
                one(d, &["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]),
                i(d),
                t(d),
                t(d),
                eq(d, "q", "r"),
                t(d),
                i(d)
            ),
            vec!["u"],
        )
    }),
    ("union_aggregate_sub", Rows, |d| {
        (
            format!(
                "SELECT p.id AS u, s.n AS n FROM {} p {}JOIN (SELECT q.k AS n FROM {} q UNION ALL SELECT count(*)::int FROM {} r) s ON {}",
                t(d),
                one(d, &["", "LEFT "]),
                t(d),
                t(d),
                one(d, &["true", "s.n = p.x", "s.n > p.k"])
            ),
            vec!["u"],
        )
    }),
    ("cte", Rows, |d| {
        let column = c(d);
        (
            format!(
                "WITH s AS (SELECT p.{column} AS u, {} AS n FROM {} p GROUP BY p.{column}), t AS (SELECT s.u AS u, s.n AS n, q.id AS id FROM s {}JOIN {} q ON q.{} = s.{}) SELECT t1.u AS u, t2.n AS n, t2.id AS w FROM t t1 {}JOIN t t2 ON t1.u = t2.{}",
                agg(d, "p"),
                t(d),
                one(d, &["", "LEFT "]),
                t(d),
                i(d),
                one(d, &["u", "n"]),
                one(d, &["", "LEFT ", "FULL "]),
                one(d, &["u", "id"])
            ),
            units(d, &[&["u"], &["w"]]),
        )
    }),
];
