//! LATERAL, functions that return rows, queries that hang together with nothing, and the rest.

use super::As::{Keyed, Refused, Rows};
use super::{Class, agg, eq, filter, i, maybe, one, t, units};

pub const CLASSES: &[Class] = &[
    ("lateral", Rows, |d| {
        let more =
            if d.chance(50) { format!(" WHERE s.x {}", one(d, &["> 0", "IS NULL", "= 1"])) } else { String::new() };
        (
            format!(
                "SELECT p.id AS u, s.x AS v, s.id AS w FROM {} p {}JOIN LATERAL (SELECT q.x AS x, q.id AS id FROM {} q WHERE {} ORDER BY q.x, q.id LIMIT 2) s ON true{more}",
                t(d),
                one(d, &["", "LEFT "]),
                t(d),
                eq(d, "p", "q")
            ),
            vec!["u"],
        )
    }),
    ("lateral_key_inner", Rows, |d| {
        (
            format!(
                "SELECT s.id AS u, p.id AS v FROM {} p JOIN LATERAL (SELECT q.x AS x, q.id AS id FROM {} q WHERE {}) s ON true",
                t(d),
                t(d),
                eq(d, "p", "q")
            ),
            vec!["u"],
        )
    }),
    ("lateral_limit_key", Refused, |d| {
        (
            format!(
                "SELECT s.id AS u, p.id AS v FROM {} p JOIN LATERAL (SELECT q.x AS x, q.id AS id FROM {} q WHERE {} ORDER BY q.x LIMIT 1) s ON true",
                t(d),
                t(d),
                eq(d, "p", "q")
            ),
            vec!["u"],
        )
    }),
    ("lateral_aggregate", Rows, |d| {
        let more = maybe(d, " WHERE s.n IS NULL");
        (
            format!(
                "SELECT p.id AS u, s.n AS n, r.id AS w FROM {} p CROSS JOIN LATERAL (SELECT {} AS n FROM {} q WHERE {}) s LEFT JOIN {} r ON r.{} = s.n{more}",
                t(d),
                agg(d, "q"),
                t(d),
                eq(d, "p", "q"),
                t(d),
                i(d)
            ),
            vec!["u"],
        )
    }),
    ("rollup_sub", Rows, |d| {
        (
            format!(
                "SELECT p.id AS u, s.n AS n FROM {} p {}JOIN LATERAL (SELECT q.k AS k, count(*) AS n FROM {} q WHERE {} GROUP BY ROLLUP (q.k)) s ON {}",
                t(d),
                one(d, &["", "LEFT "]),
                t(d),
                eq(d, "p", "q"),
                one(d, &["true", "s.k = p.x", "s.k IS NULL"])
            ),
            vec!["u"],
        )
    }),
    ("values", Rows, |d| {
        (
            format!(
                "SELECT p.{} AS u, v.y AS v FROM {} p {}JOIN (VALUES (1, 2), (2, 0), (3, NULL)) v(x, y) ON v.x = p.{}{}",
                i(d),
                t(d),
                one(d, &["", "LEFT ", "FULL "]),
                i(d),
                filter(d, &["p"])
            ),
            units(d, &[&["u"], &["v"]]),
        )
    }),
    ("srf", Rows, |d| {
        (
            format!(
                "SELECT p.id AS u, e.v AS v, q.x AS w FROM {} p CROSS JOIN LATERAL unnest(p.arr) e(v) {}JOIN {} q ON q.{} = e.v{}",
                t(d),
                one(d, &["", "LEFT "]),
                t(d),
                i(d),
                filter(d, &["p", "q"])
            ),
            units(d, &[&["u"], &["v"]]),
        )
    }),
    ("srf_select", Rows, |d| {
        (
            format!(
                "SELECT p.{} AS u, unnest(p.arr) AS v FROM {} p LEFT JOIN {} q ON {}",
                i(d),
                t(d),
                t(d),
                eq(d, "p", "q")
            ),
            units(d, &[&["u"], &["v"]]),
        )
    }),
    ("srf_group", Rows, |d| {
        (
            format!(
                "SELECT e.v AS u, {} AS n FROM {} p CROSS JOIN LATERAL unnest(p.arr) e(v) GROUP BY e.v",
                agg(d, "p"),
                t(d)
            ),
            vec!["u"],
        )
    }),
    ("uncorrelated", Keyed, |d| {
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE p.x {} (SELECT max(q.x) FROM {} q)",
                t(d),
                one(d, &["=", ">="]),
                t(d)
            ),
            vec!["u"],
        )
    }),
    ("uncorrelated_from", Keyed, |d| {
        (
            format!(
                "SELECT p.id AS u, m.m AS v FROM {} p CROSS JOIN (SELECT max(q.x) AS m FROM {} q) m WHERE p.x = m.m",
                t(d),
                t(d)
            ),
            vec!["u"],
        )
    }),
    ("uncorrelated_exists", Keyed, |d| {
        let not = maybe(d, "NOT ");
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE {not}EXISTS (SELECT FROM {} q JOIN {} r ON {}{})",
                t(d),
                t(d),
                t(d),
                eq(d, "q", "r"),
                filter(d, &["q", "r"])
            ),
            vec!["u"],
        )
    }),
    ("limit_top", Refused, |d| {
        (format!("SELECT p.id AS u, p.x AS v FROM {} p ORDER BY p.x, p.id LIMIT 3", t(d)), vec!["u"])
    }),
    ("global_aggregate", Keyed, |d| {
        (
            format!(
                "SELECT 1 AS u, count(*) AS n, sum(p.x) AS s FROM {} p LEFT JOIN {} q ON {}{}",
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            vec!["u"],
        )
    }),
    ("key_is_aggregate", Refused, |d| {
        (format!("SELECT max(p.k) AS u, p.g AS v FROM {} p GROUP BY p.g", t(d)), vec!["u"])
    }),
    ("case_or", Rows, |d| {
        (
            format!(
                "SELECT p.id AS u, CASE WHEN EXISTS (SELECT 1 FROM {} q WHERE {}) THEN r.x ELSE p.x END AS v FROM {} p LEFT JOIN {} r ON {} WHERE r.id IS NULL OR p.x IN (SELECT q.x FROM {} q WHERE {})",
                t(d),
                eq(d, "p", "q"),
                t(d),
                t(d),
                eq(d, "p", "r"),
                t(d),
                eq(d, "r", "q")
            ),
            vec!["u"],
        )
    }),
    ("natural", Rows, |d| {
        (
            format!(
                "SELECT p.x AS u, p.id AS v, q.id AS w FROM (SELECT id AS id, x FROM {}) p NATURAL {}JOIN (SELECT k, x, id AS other FROM {}) o JOIN {} q ON {}",
                t(d),
                one(d, &["", "LEFT "]),
                t(d),
                t(d),
                one(d, &["q.k = p.x", "q.id = o.k", "q.id = o.other"])
            ),
            vec!["u"],
        )
    }),
    ("streamed", Keyed, |d| {
        (
            format!("SELECT p.id AS u, p.x + 1 AS v, coalesce(p.k, p.g) AS w FROM {} p{}", t(d), filter(d, &["p"])),
            vec!["u"],
        )
    }),
];
