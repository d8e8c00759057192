//! With the indexes that are wanted, no statement of a batch reads a whole mirror.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use crossfade_mapping::{Derived, Places, Usual, Way};
use model::quote;
use support::ground::Ground;
use support::maintain::into;

/// Enough that a sequential scan is the dearer way.
const ROWS: u32 = 20_000;

const QUERIES: &[(&str, &str, &[&str])] = &[
    ("a join", "SELECT a.id AS u, b.x AS v FROM shop.public.a JOIN shop.public.b ON b.k = a.k", &["u"]),
    (
        "a join of three",
        "SELECT c.id AS u, a.x AS v FROM shop.public.a JOIN shop.public.b ON b.k = a.id JOIN shop.public.c ON c.k = b.id",
        &["u"],
    ),
    (
        "GROUP BY",
        "SELECT b.k AS u, count(*) AS n, sum(a.x) AS s FROM shop.public.a JOIN shop.public.b ON b.id = a.k GROUP BY b.k",
        &["u"],
    ),
    (
        "a window",
        "SELECT a.k AS u, a.id AS v, rank() OVER (PARTITION BY a.k ORDER BY a.x) AS n FROM shop.public.a",
        &["u"],
    ),
    ("DISTINCT ON", "SELECT DISTINCT ON (a.k) a.k AS u, a.id AS v FROM shop.public.a ORDER BY a.k, a.x, a.id", &["u"]),
    (
        "EXISTS",
        "SELECT a.id AS u FROM shop.public.a WHERE EXISTS (SELECT 1 FROM shop.public.b WHERE b.k = a.x)",
        &["u"],
    ),
    (
        "NOT EXISTS",
        "SELECT a.id AS u FROM shop.public.a WHERE NOT EXISTS (SELECT 1 FROM shop.public.b WHERE b.k = a.x)",
        &["u"],
    ),
    ("IN", "SELECT a.id AS u FROM shop.public.a WHERE a.k IN (SELECT b.x FROM shop.public.b)", &["u"]),
    (
        "a subquery as a column",
        "SELECT a.id AS u, (SELECT max(b.x) FROM shop.public.b WHERE b.k = a.k) AS v FROM shop.public.a",
        &["u"],
    ),
    (
        "a subquery in FROM",
        "SELECT s.u, a.x AS v FROM (SELECT b.k AS u, count(*) AS n FROM shop.public.b GROUP BY b.k) s JOIN shop.public.a ON a.id = s.u",
        &["u"],
    ),
    ("LEFT JOIN", "SELECT a.id AS u, b.x AS v FROM shop.public.a LEFT JOIN shop.public.b ON b.k = a.k", &["u"]),
    (
        "LEFT JOIN by the right side",
        "SELECT b.id AS u, a.x AS v FROM shop.public.a LEFT JOIN shop.public.b ON b.id = a.k WHERE b.id IS NOT NULL",
        &["u"],
    ),
    (
        "an anti-join",
        "SELECT a.id AS u FROM shop.public.a LEFT JOIN shop.public.b ON b.k = a.k WHERE b.id IS NULL",
        &["u"],
    ),
    (
        "UNION",
        "SELECT a.k AS u, a.x AS v FROM shop.public.a UNION SELECT b.x, b.k FROM shop.public.b JOIN shop.public.c ON c.k = b.id",
        &["u"],
    ),
    ("EXCEPT", "SELECT a.k AS u FROM shop.public.a EXCEPT SELECT b.x FROM shop.public.b", &["u"]),
    (
        "a unit of two columns",
        "SELECT a.k AS u, a.x AS v, count(*) AS n FROM shop.public.a GROUP BY a.k, a.x",
        &["u", "v"],
    ),
    (
        "a unit of two tables",
        "SELECT a.id AS u, b.id AS v, c.x AS w FROM shop.public.a JOIN shop.public.b ON b.k = a.k LEFT JOIN shop.public.c ON c.k = b.id",
        &["u", "v"],
    ),
];

#[tokio::test]
async fn no_statement_of_a_batch_reads_a_whole_mirror() {
    let columns = "id int PRIMARY KEY, k int, x int, g int";
    let names = ["a", "b", "c"];
    let mut ground = Ground::new(&names.map(|name| ("shop", name, columns))).await;
    let fill: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(n, name)| {
            format!(
                "INSERT INTO shop.{name} SELECT i, i * {} % 9973, i * 7 % 9941, 1 FROM generate_series(1, {ROWS}) i;",
                n + 3
            )
        })
        .collect();
    ground.load(&fill.join("")).await;
    // One row of each table comes, goes, or becomes another one.
    let change = names.map(|name| {
        format!("UPDATE shop.{name} SET k = k + 1, x = x + 1 WHERE id = 5; DELETE FROM shop.{name} WHERE id = 7; INSERT INTO shop.{name} VALUES (30000, 11, 12, 1);")
    });
    ground.change(&change.join("")).await;
    let mut wrong = Vec::new();
    for (class, sql, unit) in QUERIES {
        let mut derived = Derived::new(into(), &[], *sql);
        derived.recompute_by = unit.iter().map(|&name| name.to_owned()).collect();
        let compiled = ground.derive(&derived).await;
        let Way::Maintained(maintained) = &compiled.way else { panic!("{class}") };
        let mut made = String::new();
        for (number, index) in maintained.indexes.iter().enumerate() {
            let columns = quote::idents(index.columns.iter().map(String::as_str));
            made += &format!("CREATE INDEX wanted_{number} ON {} ({columns});", index.table.quoted());
        }
        let tables: Vec<String> =
            ground.catalog.tables.iter().map(|table| Usual.mirror(&table.name).quoted()).collect();
        let analyze = format!("VACUUM ANALYZE {}, public.derived", tables.join(", "));
        ground.session.run(&made).await;
        ground.session.run(&analyze).await;
        ground.session.run(&maintained.clear.join(";")).await;
        let passes = maintained.before.iter().chain(&maintained.after).map(|step| &step.sql);
        let statements: Vec<&String> = passes.chain(&maintained.recompute).chain(&maintained.write).collect();
        ground.session.run("BEGIN").await;
        for statement in statements {
            if !statement.starts_with("ANALYZE") {
                let plan = ground.session.rows(&format!("EXPLAIN {statement}")).await;
                let plan: Vec<String> = plan.into_iter().map(|row| row[0].clone().unwrap()).collect();
                if plan.iter().any(|line| line.contains("Seq Scan on \"mirror")) {
                    wrong.push(format!("{class}: {statement}\nwith {:?}\n{}", maintained.indexes, plan.join("\n")));
                }
            }
            ground.session.run(statement).await;
        }
        ground.session.run("ROLLBACK").await;
        let all: Vec<String> = (0..maintained.indexes.len())
            .map(|number| {
                ["crossfade", "public"].map(|schema| format!("DROP INDEX IF EXISTS {schema}.wanted_{number};")).concat()
            })
            .collect();
        ground.session.run(&all.concat()).await;
        let temp =
            ["found", "units", "result", "guards"].map(|name| format!("DROP TABLE pg_temp.\"{name} public.derived\";"));
        ground.session.run(&temp.concat()).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
