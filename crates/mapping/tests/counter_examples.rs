//! Cases that the obvious rule gets wrong, each as one transaction that must not be missed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use crossfade_mapping::Derived;
use support::maintain::{Plant, batch, compiled, difference, into, start};
use support::server::Server;
use support::world::{Rows, World, catalog, create, load};

/// Rows of `id, k, x, g`; 9 is null.
fn rows(all: &[[i32; 4]]) -> Rows {
    let text = |value: i32| if value == 9 { "NULL".to_owned() } else { value.to_string() };
    all.iter().map(|r| (r[0], [text(r[0]), text(r[1]), text(r[2]), text(r[3]), "NULL".to_owned()])).collect()
}

/// Keeps `sql` current by `unit` over one transaction that turns `before` into `after`.
async fn holds(sql: &str, unit: &[&str], before: [&[[i32; 4]]; 3], after: [&[[i32; 4]]; 3]) {
    let server = Server::start();
    let session = server.connect().await;
    create(&session).await;
    let mut catalog = catalog(&session).await;
    let mut world = World { rows: before.map(rows) };
    load(&session, &world).await;
    let mut derived = Derived::new(into(), &[], sql);
    derived.recompute_by = unit.iter().map(|&name| name.to_owned()).collect();
    let compiled = compiled(&session, &mut catalog, &derived, sql, Plant::None).await.unwrap();
    start(&session, &compiled).await;
    let was = session.bag("SELECT t::text FROM public.derived t").await;
    let changes: Vec<_> = (0..3).map(|table| world.change(table, rows(after[table]))).collect();
    batch(&session, &compiled, &changes, Plant::None).await.unwrap();
    let found = difference(&session, &compiled).await;
    assert!(found.is_none(), "{}", found.unwrap());
    assert_ne!(was, session.bag("SELECT t::text FROM public.derived t").await, "the transaction changes nothing");
}

const A: &[[i32; 4]] = &[[1, 1, 1, 1], [2, 2, 2, 1]];
const NONE: &[[i32; 4]] = &[];

#[tokio::test]
async fn a_row_that_had_no_partner_gets_one() {
    let sql = "SELECT a.id AS u FROM a LEFT JOIN b ON a.k = b.k WHERE b.id IS NULL";
    holds(sql, &["u"], [A, NONE, NONE], [A, &[[1, 1, 0, 0]], NONE]).await;
}

#[tokio::test]
async fn the_unit_null_loses_its_row() {
    let sql = "SELECT b.id AS u, a.id AS v FROM a LEFT JOIN b ON a.k = b.k";
    holds(sql, &["u"], [A, NONE, NONE], [A, &[[1, 1, 0, 0]], NONE]).await;
}

#[tokio::test]
async fn of_two_rows_one_was_matched_before() {
    let sql = "SELECT a.id AS u FROM a WHERE NOT EXISTS (SELECT 1 FROM b WHERE b.k = a.g AND b.x >= a.id)";
    holds(sql, &["u"], [A, &[[1, 1, 1, 0]], NONE], [A, &[[1, 1, 1, 0], [2, 1, 2, 0]], NONE]).await;
}

#[tokio::test]
async fn a_row_into_each_of_two_not_exists_in_one_transaction() {
    let sql = "SELECT a.id AS u FROM a WHERE NOT EXISTS (SELECT 1 FROM b WHERE b.k = a.k) AND NOT EXISTS (SELECT 1 FROM c WHERE c.k = a.k)";
    holds(sql, &["u"], [A, NONE, NONE], [A, &[[1, 1, 0, 0]], &[[1, 1, 0, 0]]]).await;
}

#[tokio::test]
async fn a_value_that_has_to_differ_from_all() {
    let sql = "SELECT a.id AS u FROM a WHERE a.x <> ALL (SELECT b.x FROM b)";
    holds(sql, &["u"], [A, NONE, NONE], [A, &[[1, 0, 1, 0]], NONE]).await;
    holds(sql, &["u"], [A, NONE, NONE], [A, &[[1, 0, 9, 0]], NONE]).await;
}

#[tokio::test]
async fn a_count_that_is_compared() {
    let sql = "SELECT a.id AS u FROM a WHERE (SELECT count(*) FROM b WHERE b.k = a.k) IS DISTINCT FROM a.x";
    holds(sql, &["u"], [A, NONE, NONE], [A, &[[1, 1, 0, 0]], NONE]).await;
}

#[tokio::test]
async fn a_full_join_whose_null_extended_side_finds_a_partner() {
    let sql = "SELECT a.id AS u, b.id AS v FROM a FULL JOIN b ON a.k = b.k";
    for unit in ["u", "v"] {
        holds(sql, &[unit], [NONE, &[[1, 1, 0, 0]], NONE], [A, &[[1, 1, 0, 0]], NONE]).await;
    }
}

#[tokio::test]
async fn both_not_exists_of_a_grouped_query_in_one_transaction() {
    let sql = "SELECT a.g AS u, count(*) AS n FROM a WHERE NOT EXISTS (SELECT 1 FROM b WHERE b.k = a.k) AND NOT EXISTS (SELECT 1 FROM c WHERE c.k = a.k) GROUP BY a.g";
    holds(sql, &["u"], [A, NONE, NONE], [A, &[[1, 1, 0, 0]], &[[1, 1, 0, 0]]]).await;
}

#[tokio::test]
async fn an_aggregate_that_has_a_row_where_its_tables_have_none() {
    let sql = "SELECT a.id AS u, s.n AS n FROM a JOIN (SELECT b.k AS n FROM b UNION ALL SELECT count(*)::int FROM c) s ON true";
    holds(sql, &["u"], [NONE, NONE, NONE], [A, NONE, NONE]).await;
}
