//! Subqueries in conditions and in what is selected.

use super::As::{Keyed, Rows};
use super::{Class, agg, c, eq, filter, i, maybe, one, t, units};

pub const CLASSES: &[Class] = &[
    ("exists", Keyed, |d| {
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE EXISTS (SELECT 1 FROM {} q WHERE {})",
                t(d),
                t(d),
                eq(d, "p", "q")
            ),
            vec!["u"],
        )
    }),
    ("not_exists", Keyed, |d| {
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE NOT EXISTS (SELECT 1 FROM {} q WHERE {})",
                t(d),
                t(d),
                eq(d, "p", "q")
            ),
            vec!["u"],
        )
    }),
    ("exists_mix", Keyed, |d| {
        let nots = [maybe(d, "NOT "), maybe(d, "NOT "), maybe(d, "NOT ")];
        let word = one(d, &["AND", "OR"]);
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE {}EXISTS (SELECT 1 FROM {} q WHERE {}) {word} {}EXISTS (SELECT 1 FROM {} r WHERE {} AND {}EXISTS (SELECT 1 FROM {} s WHERE {} AND {}))",
                t(d),
                nots[0],
                t(d),
                eq(d, "p", "q"),
                nots[1],
                t(d),
                eq(d, "p", "r"),
                nots[2],
                t(d),
                eq(d, "r", "s"),
                eq(d, "p", "s")
            ),
            vec!["u"],
        )
    }),
    ("in", Keyed, |d| {
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE p.{} IN (SELECT q.{} FROM {} q{})",
                t(d),
                i(d),
                i(d),
                t(d),
                filter(d, &["q", "p"])
            ),
            vec!["u"],
        )
    }),
    ("not_in", Keyed, |d| {
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE p.{} NOT IN (SELECT q.{} FROM {} q WHERE {})",
                t(d),
                i(d),
                i(d),
                t(d),
                eq(d, "p", "q")
            ),
            vec!["u"],
        )
    }),
    ("row_in", Keyed, |d| {
        let not = maybe(d, "NOT ");
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE (p.{}, p.{}) {not}IN (SELECT q.{}, q.{} FROM {} q{})",
                t(d),
                i(d),
                i(d),
                i(d),
                i(d),
                t(d),
                filter(d, &["q"])
            ),
            vec!["u"],
        )
    }),
    ("any_all", Keyed, |d| {
        let not = maybe(d, "NOT ");
        let inner = if d.chance(50) { eq(d, "p", "q") } else { "q.id < 3".to_owned() };
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE {not}p.{} {} {} (SELECT q.{} FROM {} q WHERE {inner})",
                t(d),
                i(d),
                one(d, &["<", ">=", "=", "<>"]),
                one(d, &["ANY", "ALL"]),
                i(d),
                t(d)
            ),
            vec!["u"],
        )
    }),
    ("scalar_sub", Keyed, |d| {
        (
            format!(
                "SELECT p.id AS u, (SELECT {} FROM {} q WHERE {}) AS v, (SELECT q.{} FROM {} q WHERE {} ORDER BY q.id LIMIT 1) AS w, EXISTS (SELECT 1 FROM {} q WHERE {}) AS z, ARRAY(SELECT q.x FROM {} q WHERE {} ORDER BY q.id) AS y FROM {} p{}",
                agg(d, "q"),
                t(d),
                eq(d, "p", "q"),
                c(d),
                t(d),
                eq(d, "p", "q"),
                t(d),
                eq(d, "p", "q"),
                t(d),
                eq(d, "p", "q"),
                t(d),
                filter(d, &["p"])
            ),
            vec!["u"],
        )
    }),
    ("scalar_in_where", Keyed, |d| {
        let right = if d.chance(50) { d.below(4).to_string() } else { "p.x".to_owned() };
        (
            format!(
                "SELECT p.id AS u, p.x AS v FROM {} p WHERE (SELECT {} FROM {} q WHERE {}) {} {right}",
                t(d),
                agg(d, "q"),
                t(d),
                eq(d, "p", "q"),
                one(d, &[">", "=", "IS DISTINCT FROM"])
            ),
            vec!["u"],
        )
    }),
    ("scalar_in_join", Rows, |d| {
        (
            format!(
                "SELECT p.id AS u, q.id AS v FROM {} p {}JOIN {} q ON {} AND {}EXISTS (SELECT 1 FROM {} r WHERE {})",
                t(d),
                one(d, &["", "LEFT "]),
                t(d),
                eq(d, "p", "q"),
                one(d, &["", "NOT "]),
                t(d),
                eq(d, "q", "r")
            ),
            units(d, &[&["u"], &["v"]]),
        )
    }),
    ("exists_in_full_join", Rows, |d| {
        let on = i(d);
        (
            format!(
                "SELECT p.id AS u, q.id AS v FROM {} p {}JOIN {} q ON p.{on} = q.{on} LEFT JOIN {} r ON r.{} = q.{} AND {}EXISTS (SELECT 1 FROM {} s WHERE {}) AND r.id IN (SELECT s.k FROM {} s)",
                t(d),
                one(d, &["FULL ", "RIGHT "]),
                t(d),
                t(d),
                i(d),
                i(d),
                one(d, &["", "NOT "]),
                t(d),
                eq(d, "p", "s"),
                t(d)
            ),
            units(d, &[&["u"], &["v"]]),
        )
    }),
];
