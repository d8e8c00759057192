//! What is no query by itself: several `[[table]]`s into one table, rows that share a key merged, a table in part.

use model::TableName;
use plan::{Cut, Derived, MaskIn, Part, Rows};

use super::{Dice, and, c, cmp, eq, filter, i, one, t};
use crate::support::maintain::into;

/// What is declared, and the query that it stands for.
type Roll = fn(&mut Dice) -> (Derived, String);

pub const CLASSES: &[(&str, Roll)] = &[("parts", parts), ("merged", merged), ("cut", cut)];

fn declared(key: &[&str], queries: &[String]) -> Derived {
    let part = |sql: &String| Part { rows: Rows::Query(sql.into()), line: 1 };
    Derived { parts: queries.iter().map(part).collect(), ..Derived::new(into(), key, "") }
}

/// Disjoint by key; the columns in any order, and each with what must not reach the others: a WITH, an ORDER BY, a comment at its end.
fn parts(d: &mut Dice) -> (Derived, String) {
    let mut queries = Vec::new();
    let many = 2 + d.below(3);
    for number in 0..many {
        let u = match d.below(2) {
            0 => format!("p.id * {many} + {number}"),
            _ => format!("{number} + {many} * p.id"),
        };
        let v = match d.below(3) {
            0 => format!("p.{}", c(d)),
            1 => format!("(SELECT count(*)::int FROM {} q WHERE {})", t(d), eq(d, "p", "q")),
            _ => format!("(SELECT max(q.{}) FROM {} q WHERE q.k = p.k{})", c(d), t(d), and(d, "q")),
        };
        let from = format!("FROM {} p{}", t(d), filter(d, &["p"]));
        queries.push(match d.below(4) {
            0 => format!("SELECT {u} AS u, {v} AS v {from} -- all of them"),
            1 => format!("SELECT {v} AS v, {u} AS u {from}"),
            2 => format!("WITH s AS (SELECT {v} AS v, {u} AS u {from}) SELECT u, v FROM s"),
            _ => format!("SELECT {v} AS v, {u} AS u {from} ORDER BY 1"),
        });
    }
    let all: Vec<String> = queries.iter().map(|sql| format!("SELECT u, v FROM (\n{sql}\n) x")).collect();
    (declared(&["u"], &queries), all.join(" UNION ALL "))
}

fn merged(d: &mut Dice) -> (Derived, String) {
    let mut queries = Vec::new();
    for _ in 0..=d.below(3) {
        let u = format!("coalesce(p.{}, -1) AS u", i(d));
        queries.push(match d.below(3) {
            0 => format!(
                "SELECT {u}, p.{} AS v, q.{} AS w FROM {} p LEFT JOIN {} q ON {}",
                c(d),
                i(d),
                t(d),
                t(d),
                eq(d, "p", "q")
            ),
            1 => format!("SELECT p.{} AS w, p.{} AS v, {u} FROM {} p{}", i(d), c(d), t(d), filter(d, &["p"])),
            _ => format!(
                "SELECT {u}, p.{} AS v, p.{} AS w FROM {} p WHERE NOT EXISTS (SELECT 1 FROM {} q WHERE {})",
                c(d),
                i(d),
                t(d),
                t(d),
                eq(d, "p", "q")
            ),
        });
    }
    let mut over = |name: &str| {
        let call = one(d, &["max", "min", "sum", "count", "count(DISTINCT"]);
        if call.ends_with("DISTINCT") { format!("{call} {name})") } else { format!("{call}({name})") }
    };
    let merge = [over("v"), over("w")];
    let all: Vec<String> = queries.iter().map(|sql| format!("SELECT u, v, w FROM (\n{sql}\n) x")).collect();
    let sql = format!("SELECT u, {} AS v, {} AS w FROM ({}) m GROUP BY u", merge[0], merge[1], all.join(" UNION ALL "));
    let derived = Derived { merge: merge.iter().map(Into::into).collect(), ..declared(&["u"], &queries) };
    (derived, sql)
}

/// The key is the table's own.
fn cut(d: &mut Dice) -> (Derived, String) {
    let table = t(d);
    let columns: Vec<&str> = ["id", "k", "x", "g"].into_iter().filter(|name| *name == "id" || d.chance(70)).collect();
    let chosen = if d.chance(70) { columns.clone() } else { vec!["id", "k", "x", "g", "arr"] };
    let mut masks = Vec::new();
    for name in chosen.iter().filter(|name| !["id", "arr"].contains(*name)) {
        if d.chance(30) {
            masks.push(((*name).to_owned(), format!("coalesce({}, {name}, 0) + id", c(d))));
        }
    }
    let rows = d.chance(60).then(|| cmp(d, table));
    let value = |name: &&str| match masks.iter().find(|(masked, _)| masked == *name) {
        Some((_, mask)) => format!("{mask} AS {name}"),
        None => (*name).to_owned(),
    };
    let sql = format!(
        "SELECT {} FROM {table}{}",
        chosen.iter().map(value).collect::<Vec<_>>().join(", "),
        rows.as_ref().map_or(String::new(), |rows| format!(" WHERE {rows}"))
    );
    let from = format!("shop.public.{table}");
    let cut = Cut {
        source: "shop".to_owned(),
        table: TableName::new("public", table),
        from: (&from).into(),
        columns: if chosen.contains(&"arr") { Vec::new() } else { chosen.iter().map(|&name| name.into()).collect() },
        filter: rows.as_ref().map(Into::into),
        masks: masks.iter().map(|(name, mask)| (name.clone(), mask.into())).collect(),
        mask_in: MaskIn::Everywhere,
    };
    let part = Part { rows: Rows::Cut(cut), line: 1 };
    (Derived { parts: vec![part], ..Derived::new(into(), &[], "") }, sql)
}
