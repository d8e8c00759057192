//! GROUP BY, DISTINCT, windows.

use super::As::{Keyed, Refused, Rows};
use super::{Class, agg, c, eq, filter, i, maybe, one, t, units};

pub const CLASSES: &[Class] = &[
    ("group_by", Rows, |d| {
        let column = c(d);
        let having = if d.chance(50) { format!(" HAVING {} > {}", agg(d, "p"), d.below(4)) } else { String::new() };
        (
            format!(
                "SELECT p.{column} AS u, {} AS v FROM {} p JOIN {} q ON {}{} GROUP BY p.{column}{having}",
                agg(d, "q"),
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            vec!["u"],
        )
    }),
    ("group_by_left", Rows, |d| {
        let having = if d.chance(50) { format!(" HAVING {} > {}", agg(d, "p"), d.below(4)) } else { String::new() };
        (
            format!(
                "SELECT q.k AS u, coalesce(q.g, p.g) AS z, {} AS v, {} AS w FROM {} p LEFT JOIN {} q ON {}{} GROUP BY 1, z{having}",
                agg(d, "q"),
                agg(d, "p"),
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            units(d, &[&["u"], &["z"], &["u", "z"]]),
        )
    }),
    ("group_by_key", Keyed, |d| {
        (
            format!(
                "SELECT p.id AS u, {} AS v, max(p.x) AS w FROM {} p LEFT JOIN {} q ON {}{} GROUP BY p.id",
                agg(d, "q"),
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            vec!["u"],
        )
    }),
    ("group_by_sub", Rows, |d| {
        let having = maybe(d, " HAVING count(*) > 1");
        (
            format!(
                "SELECT s.g AS u, s.n AS v, r.id AS w FROM (SELECT p.g AS g, {} AS n FROM {} p{} GROUP BY p.g{having}) s {}JOIN {} r ON r.{} = s.{}{}",
                agg(d, "p"),
                t(d),
                filter(d, &["p"]),
                one(d, &["", "LEFT "]),
                t(d),
                i(d),
                one(d, &["g", "g", "n"]),
                filter(d, &["r"])
            ),
            units(d, &[&["u"], &["w"], &["u", "w"]]),
        )
    }),
    ("group_not_exists", Rows, |d| {
        (
            format!(
                "SELECT p.g AS u, {} AS v FROM {} p WHERE NOT EXISTS (SELECT 1 FROM {} q WHERE {}) AND NOT EXISTS (SELECT 1 FROM {} r WHERE {}) GROUP BY p.g",
                agg(d, "p"),
                t(d),
                t(d),
                eq(d, "p", "q"),
                t(d),
                eq(d, "p", "r")
            ),
            vec!["u"],
        )
    }),
    ("aggregate_of_sub", Rows, |d| {
        (
            format!(
                "SELECT p.g AS u, sum((SELECT count(*) FROM {} q WHERE {})) AS v FROM {} p GROUP BY p.g HAVING max((SELECT max(r.x) FROM {} r WHERE {})) > 0",
                t(d),
                eq(d, "p", "q"),
                t(d),
                t(d),
                eq(d, "p", "r")
            ),
            vec!["u"],
        )
    }),
    ("distinct", Rows, |d| {
        (
            format!(
                "SELECT DISTINCT p.{} AS u, q.{} AS v FROM {} p LEFT JOIN {} q ON {}{}",
                c(d),
                c(d),
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            units(d, &[&["u"], &["v"], &["u", "v"]]),
        )
    }),
    ("distinct_on", Rows, |d| {
        (
            format!(
                "SELECT DISTINCT ON (p.g) p.g AS u, p.id AS v, q.x AS w FROM {} p LEFT JOIN {} q ON {}{} ORDER BY p.g, p.x, q.x, p.id, q.id",
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            vec!["u"],
        )
    }),
    ("distinct_on_key_id", Refused, |d| {
        (format!("SELECT DISTINCT ON (p.g) p.g AS u, p.id AS v FROM {} p ORDER BY p.g, p.x, p.id", t(d)), vec!["v"])
    }),
    ("window", Rows, |d| {
        (
            format!(
                "SELECT p.g AS u, p.id AS v, rank() OVER (PARTITION BY p.g ORDER BY p.x) AS w, sum(p.k) OVER (PARTITION BY p.g) AS z, lag(p.x) OVER w1 AS y, count(*) OVER (w1 ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n FROM {} p LEFT JOIN {} q ON {}{} WINDOW w1 AS (PARTITION BY p.g ORDER BY p.x, p.id, q.id)",
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            vec!["u"],
        )
    }),
    ("window_key_id", Refused, |d| {
        (
            format!("SELECT p.g AS u, p.id AS v, rank() OVER (PARTITION BY p.g ORDER BY p.x) AS w FROM {} p", t(d)),
            vec!["v"],
        )
    }),
    ("window_sub", Rows, |d| {
        let not = maybe(d, "NOT ");
        (
            format!(
                "SELECT s.u AS u, s.v AS v, r.id AS z FROM (SELECT p.g AS u, p.id AS v, row_number() OVER (PARTITION BY p.g ORDER BY p.x, p.id) AS rn FROM {} p WHERE {not}EXISTS (SELECT 1 FROM {} q WHERE {})) s {}JOIN {} r ON {} WHERE s.rn = 1",
                t(d),
                t(d),
                eq(d, "p", "q"),
                one(d, &["", "LEFT "]),
                t(d),
                one(d, &["r.k = s.u", "r.k = s.v", "r.k = s.u AND r.x = s.v", "r.g = s.rn"])
            ),
            vec!["u"],
        )
    }),
];
