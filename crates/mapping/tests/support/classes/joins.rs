//! Joins of all kinds.

use super::As::{Keyed, Rows};
use super::{Class, and, c, eq, filter, i, maybe, one, t, units};

pub const CLASSES: &[Class] = &[
    ("inner", Rows, |d| {
        (
            format!(
                "SELECT p.id AS u, q.{} AS v, r.{} AS w FROM {} p JOIN {} q ON {}, {} r WHERE {}{}",
                c(d),
                c(d),
                t(d),
                t(d),
                eq(d, "p", "q"),
                t(d),
                eq(d, "q", "r"),
                and(d, "r")
            ),
            vec!["u"],
        )
    }),
    ("self_join", Keyed, |d| {
        let table = t(d);
        (
            format!(
                "SELECT p.id AS u, q.id AS v, count(*) AS n FROM {table} p JOIN {table} q ON {}{} GROUP BY p.id, q.id",
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            vec!["u", "v"],
        )
    }),
    ("left_key_left", Rows, |d| {
        let from = one(d, &["p", "q"]);
        (
            format!(
                "SELECT p.id AS u, q.{} AS v, r.{} AS w FROM {} p LEFT JOIN {} q ON {} LEFT JOIN {} r ON {}{}",
                i(d),
                c(d),
                t(d),
                t(d),
                eq(d, "p", "q"),
                t(d),
                eq(d, from, "r"),
                filter(d, &["p", "q", "r"])
            ),
            vec!["u"],
        )
    }),
    ("left_key_right", Rows, |d| {
        (
            format!(
                "SELECT q.{} AS u, p.id AS v FROM {} p LEFT JOIN {} q ON {}{}",
                i(d),
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            vec!["u"],
        )
    }),
    ("left_key_both", Rows, |d| {
        (
            format!(
                "SELECT coalesce(q.{}, p.{}, -1) AS u, r.{} AS v FROM {} p LEFT JOIN {} q ON {} JOIN {} r ON r.{} = coalesce(q.{}, p.{}){}",
                i(d),
                i(d),
                i(d),
                t(d),
                t(d),
                eq(d, "p", "q"),
                t(d),
                i(d),
                i(d),
                i(d),
                filter(d, &["p", "q", "r"])
            ),
            vec!["u", "v"],
        )
    }),
    ("left_anti_join", Rows, |d| {
        let more = maybe(d, " AND r.id IS NULL");
        (
            format!(
                "SELECT p.id AS u FROM {} p LEFT JOIN {} q ON {} LEFT JOIN {} r ON {} WHERE q.id IS NULL{more}",
                t(d),
                t(d),
                eq(d, "p", "q"),
                t(d),
                eq(d, "p", "r")
            ),
            vec!["u"],
        )
    }),
    ("right_join", Rows, |d| {
        (
            format!(
                "SELECT p.{} AS u, q.id AS v FROM {} p RIGHT JOIN {} q ON {}{}",
                i(d),
                t(d),
                t(d),
                eq(d, "p", "q"),
                filter(d, &["p", "q"])
            ),
            units(d, &[&["u"], &["v"], &["u", "v"]]),
        )
    }),
    ("nested_left", Rows, |d| {
        let kind = one(d, &["", "LEFT ", "RIGHT ", "FULL "]);
        (
            format!(
                "SELECT p.{} AS u, q.{} AS v, r.{} AS w FROM {} p LEFT JOIN ({} q {kind}JOIN {} r ON q.{} = r.{}) ON p.{} = {}.{}{}",
                i(d),
                i(d),
                i(d),
                t(d),
                t(d),
                t(d),
                i(d),
                i(d),
                i(d),
                one(d, &["q", "r"]),
                i(d),
                filter(d, &["p", "q", "r"])
            ),
            units(d, &[&["u"], &["v"], &["w"], &["u", "w"]]),
        )
    }),
    ("full_join", Rows, |d| {
        (
            format!(
                "SELECT coalesce(p.{}, q.{}) AS u, p.{} AS v, q.{} AS w FROM {} p FULL JOIN {} q ON p.{} = q.{}{}",
                i(d),
                i(d),
                i(d),
                i(d),
                t(d),
                t(d),
                i(d),
                i(d),
                filter(d, &["p", "q"])
            ),
            units(d, &[&["u"], &["v"], &["w"], &["v", "w"]]),
        )
    }),
    ("full_using", Rows, |d| {
        (
            format!(
                "SELECT {0} AS u, p.x AS v, q.x AS w, count(*) AS n FROM {1} p FULL JOIN {2} q USING ({0}) GROUP BY {0}, p.x, q.x",
                one(d, &["k", "g", "id"]),
                t(d),
                t(d)
            ),
            units(d, &[&["u"], &["u", "v"]]),
        )
    }),
    ("full_chain", Rows, |d| {
        (
            format!(
                "SELECT coalesce(p.id, q.id, r.id) AS u, p.x AS v FROM {} p FULL JOIN {} q ON p.{} = q.{} FULL JOIN {} r ON r.{} = coalesce(p.{}, q.{}){}",
                t(d),
                t(d),
                i(d),
                i(d),
                t(d),
                i(d),
                i(d),
                i(d),
                filter(d, &["p", "q", "r"])
            ),
            vec!["u"],
        )
    }),
];
