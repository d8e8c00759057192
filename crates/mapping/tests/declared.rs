//! What a plan may say of a derived table besides its query.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use crossfade_mapping::{Derived, OnConflict, SourceTable, TroubleKind, Usual, Way, WhenMissing, compile};
use model::TableName;
use plan::{AffectedBy, Part, Rows};
use support::ground::Ground;
use support::maintain::into;

const ROWS: &str = "id int PRIMARY KEY, k int, x int, g int";

fn table(source: &str, name: &str) -> SourceTable {
    SourceTable::new(source, TableName::new("public", name))
}

fn derived(key: &[&str], unit: &[&str], sql: &str) -> Derived {
    let mut derived = Derived::new(into(), key, sql);
    derived.recompute_by = unit.iter().map(|&name| name.to_owned()).collect();
    derived
}

fn affected(name: &str, sql: &str) -> AffectedBy {
    AffectedBy { source: "shop".to_owned(), table: TableName::new("public", name), sql: sql.into() }
}

async fn ground() -> Ground {
    let ground = Ground::new(&[("shop", "a", ROWS), ("shop", "b", ROWS)]).await;
    ground
        .load("INSERT INTO shop.a VALUES (1, 1, 10, 1), (2, 1, 20, NULL), (3, 2, 30, 1); INSERT INTO shop.b VALUES (1, 1, 5, 1), (2, 2, 6, 2)")
        .await;
    ground
}

#[tokio::test]
async fn affected_by_takes_the_place_of_what_is_derived() {
    let mut ground = ground().await;
    // The three highest: which ones they are depends on all rows, so all units, those that leave included.
    let mut first = derived(&["id"], &[], "SELECT a.id, a.x AS v FROM shop.public.a ORDER BY a.x DESC LIMIT 2");
    let all = "SELECT id FROM shop.public.a UNION SELECT id FROM changed";
    first.affected_by.push(affected("a", all));
    let compiled = ground.derive(&first).await;
    let Way::Maintained(maintained) = &compiled.way else { panic!("{compiled:?}") };
    assert!(maintained.derivations.iter().all(|derivation| derivation.mention.is_none()));
    assert_eq!(ground.target().await, ["(2,20)", "(3,30)"]);
    ground.transaction(&compiled, "INSERT INTO shop.a VALUES (4, 1, 25, 1)").await;
    assert_eq!(ground.target().await, ["(3,30)", "(4,25)"]);
    ground.transaction(&compiled, "DELETE FROM shop.a WHERE id = 3").await;
    assert_eq!(ground.target().await, ["(2,20)", "(4,25)"]);
}

#[tokio::test]
async fn affected_by_of_one_table_leaves_the_others_derived_and_may_read_more_tables() {
    let mut ground = Ground::new(&[("shop", "a", ROWS), ("shop", "b", ROWS), ("shop", "c", ROWS)]).await;
    ground.load("INSERT INTO shop.a VALUES (1, 1, 1, 1), (2, 2, 2, 2); INSERT INTO shop.b VALUES (1, 1, 7, 1); INSERT INTO shop.c VALUES (1, 1, 1, 1), (2, 1, 2, 1)").await;
    let sql = "SELECT a.id, (SELECT sum(b.x) FROM shop.public.b WHERE b.k < a.k) AS v FROM shop.public.a";
    let mut sums = derived(&["id"], &[], sql);
    let said =
        "SELECT DISTINCT a.id FROM changed JOIN shop.public.c ON c.k = changed.g JOIN shop.public.a ON a.k >= c.x";
    sums.affected_by.push(affected("b", said));
    let compiled = ground.derive(&sums).await;
    assert_eq!(compiled.sources, ["a", "b", "c"].map(|name| table("shop", name)), "c has to be mirrored too");
    ground.transaction(&compiled, "UPDATE shop.b SET x = 8; UPDATE shop.a SET k = 3 WHERE id = 1").await;
    assert_eq!(ground.target().await, ["(1,8)", "(2,8)"]);
    ground.holds(&compiled).await;
}

#[tokio::test]
async fn affected_by_has_to_give_the_unit() {
    let mut ground = ground().await;
    let mut one = derived(&["id"], &[], "SELECT a.id, a.x AS v FROM shop.public.a JOIN shop.public.b ON a.k > b.k");
    ground.derive(&one).await;
    one.affected_by.push(affected("a", "SELECT changed.x FROM changed"));
    let trouble = compile(&one, &ground.catalog, &Usual).unwrap_err().remove(0);
    assert_eq!(trouble.kind, TroubleKind::Declaration, "{trouble}");
    assert!(trouble.to_string().contains("shop.public.a") && trouble.next.contains("id"), "{trouble}");
}

#[tokio::test]
async fn columns_of_rows_that_are_there_follow_their_rule() {
    for sql in [
        "SELECT a.id, a.x AS kept, a.x AS most, a.x AS least, a.x AS same FROM shop.public.a",
        "SELECT a.id, max(a.x) AS kept, max(a.x) AS most, max(a.x) AS least, max(a.x) AS same FROM shop.public.a GROUP BY a.id",
    ] {
        let mut ground = ground().await;
        let mut one = derived(&["id"], &[], sql);
        one.on_conflict.insert("kept".to_owned(), OnConflict::Keep);
        one.on_conflict.insert("most".to_owned(), OnConflict::Greatest);
        one.on_conflict.insert("least".to_owned(), OnConflict::Least);
        let compiled = ground.derive(&one).await;
        assert_eq!(compiled.oracle.left_out, ["kept", "most", "least"]);
        ground.transaction(&compiled, "UPDATE shop.a SET x = 15 WHERE id < 3").await;
        assert_eq!(ground.target().await, ["(1,10,15,10,15)", "(2,20,20,15,15)", "(3,30,30,30,30)"]);
        ground.holds(&compiled).await;
        ground.transaction(&compiled, "UPDATE shop.a SET x = 12 WHERE id = 1").await;
        assert_eq!(ground.target().await[0], "(1,10,15,10,12)");
        // A row that went and came again has no history.
        ground.transaction(&compiled, "DELETE FROM shop.a WHERE id = 1").await;
        ground.transaction(&compiled, "INSERT INTO shop.a VALUES (1, 1, 11, 1)").await;
        assert_eq!(ground.target().await[0], "(1,11,11,11,11)");
    }
}

#[tokio::test]
async fn rows_that_the_query_no_longer_gives_stay_if_so_said() {
    for sql in [
        "SELECT a.id, a.x AS v FROM shop.public.a WHERE a.k = 1",
        "SELECT a.id, a.x AS v FROM shop.public.a JOIN shop.public.b ON b.k = a.k WHERE a.k = 1",
    ] {
        let mut ground = ground().await;
        let mut one = derived(&["id"], &[], sql);
        one.when_missing = WhenMissing::Keep;
        let compiled = ground.derive(&one).await;
        assert!(compiled.oracle.more_in_target);
        ground
            .transaction(&compiled, "DELETE FROM shop.a WHERE id = 1; UPDATE shop.a SET k = 2, x = 21 WHERE id = 2; UPDATE shop.a SET k = 1 WHERE id = 3")
            .await;
        assert_eq!(ground.target().await, ["(1,10)", "(2,20)", "(3,30)"]);
        ground.transaction(&compiled, "UPDATE shop.a SET k = 1 WHERE id = 2").await;
        assert_eq!(ground.target().await, ["(1,10)", "(2,21)", "(3,30)"]);
    }
}

#[tokio::test]
async fn rows_without_a_key_cannot_be_told_to_stay() {
    let mut ground = ground().await;
    let mut one = derived(&[], &["g"], "SELECT a.g, a.x AS v FROM shop.public.a");
    ground.derive(&one).await;
    one.when_missing = WhenMissing::Keep;
    let troubles = compile(&one, &ground.catalog, &Usual).unwrap_err();
    assert!(
        troubles.iter().any(|t| t.kind == TroubleKind::Declaration && t.what.contains("when_missing")),
        "{troubles:?}"
    );
}

#[tokio::test]
async fn rows_without_a_key_are_made_anew_by_their_unit() {
    let mut ground = ground().await;
    let one = derived(&[], &["g"], "SELECT a.g, b.x AS v FROM shop.public.a JOIN shop.public.b ON b.k = a.k");
    let compiled = ground.derive(&one).await;
    // Rows that are equal are as many as the query gives.
    ground.transaction(&compiled, "INSERT INTO shop.a VALUES (4, 1, 0, 1), (5, 1, 0, 1)").await;
    assert_eq!(ground.target().await, ["(,5)", "(1,5)", "(1,5)", "(1,5)", "(1,6)"]);
    ground.transaction(&compiled, "DELETE FROM shop.a WHERE id = 4; UPDATE shop.a SET g = NULL WHERE id = 5").await;
    assert_eq!(ground.target().await, ["(,5)", "(,5)", "(1,5)", "(1,6)"]);
    ground.holds(&compiled).await;
}

#[tokio::test]
async fn a_unit_of_several_columns_may_be_null_in_any_of_them() {
    let mut ground = ground().await;
    let sql = "SELECT a.k, a.x, a.g, count(*) AS n FROM shop.public.a LEFT JOIN shop.public.b ON b.k = a.k GROUP BY a.k, a.x, a.g";
    for key in [
        derived(&[], &["k", "x", "g"], sql),
        derived(&[], &["g", "k", "x"], &format!("({sql}) EXCEPT SELECT 0, 0, 0, 0")),
    ] {
        let compiled = ground.derive(&key).await;
        let values = ["NULL", "1", "2"];
        let mut rows = Vec::new();
        for (number, combination) in (0..27).enumerate() {
            let [k, x, g] = [combination / 9, combination / 3 % 3, combination % 3].map(|n| values[n]);
            rows.push(format!("({}, {k}, {x}, {g})", 100 + number));
        }
        ground.transaction(&compiled, &format!("INSERT INTO shop.a VALUES {}", rows.join(", "))).await;
        ground.holds(&compiled).await;
        assert_eq!(ground.target().await.len(), 27 + 3);
        // Every pattern of nulls turns into another one.
        ground.transaction(&compiled, "UPDATE shop.a SET k = x, x = g, g = k WHERE id > 110").await;
        ground.holds(&compiled).await;
        ground
            .transaction(&compiled, "INSERT INTO shop.b VALUES (9, 1, 1, 1); DELETE FROM shop.a WHERE id > 120")
            .await;
        ground.holds(&compiled).await;
        ground.transaction(&compiled, "DELETE FROM shop.a WHERE id > 99; DELETE FROM shop.b WHERE id = 9").await;
        ground.holds(&compiled).await;
        assert_eq!(ground.target().await.len(), 3);
    }
}

#[tokio::test]
async fn several_sources_have_tables_of_one_name() {
    let mut ground = Ground::new(&[("shop", "a", ROWS), ("crm", "a", ROWS)]).await;
    ground.load("INSERT INTO shop.a VALUES (1, 1, 1, 1), (2, 2, 2, 2); INSERT INTO crm.a VALUES (1, 1, 5, 1)").await;
    let sql = "SELECT s.id, c.x AS v FROM shop.public.a s LEFT JOIN crm.public.a c ON c.k = s.k";
    let compiled = ground.derive(&derived(&["id"], &[], sql)).await;
    assert_eq!(compiled.sources, [table("crm", "a"), table("shop", "a")]);
    assert_eq!(compiled.oracle.sources, ["crm", "shop"]);
    // Each source's transactions come by themselves.
    ground.transaction(&compiled, "INSERT INTO crm.a VALUES (2, 2, 6, 1)").await;
    ground.holds(&compiled).await;
    ground.transaction(&compiled, "INSERT INTO shop.a VALUES (3, 1, 1, 1); DELETE FROM shop.a WHERE id = 2").await;
    ground.holds(&compiled).await;
    assert_eq!(ground.target().await, ["(1,5)", "(3,5)"]);
    let unnamed = derived(&["id"], &[], "SELECT a.id, a.x AS v FROM public.a");
    let trouble = compile(&unnamed, &ground.catalog, &Usual).unwrap_err().remove(0);
    assert!(trouble.next.contains("shop.public.a") && trouble.next.contains("crm.public.a"), "{trouble}");
    let sql = "SELECT shop.public.a.id, crm.public.a.x AS v FROM shop.public.a JOIN crm.public.a ON shop.public.a.k = crm.public.a.k";
    assert_eq!(compile(&derived(&["id"], &[], sql), &ground.catalog, &Usual).unwrap().sources.len(), 2);
}

#[tokio::test]
async fn two_rows_of_one_key_are_an_error_even_where_one_of_them_is_there_already() {
    let mut ground = ground().await;
    let parts = [
        "SELECT id, x AS v FROM shop.public.a",
        "SELECT x AS v, id + 10 * g AS id FROM shop.public.b WHERE g IS NOT NULL",
    ];
    let all = "SELECT 0 AS id, 0 AS v";
    let mut two = derived(&["id"], &[], "");
    two.parts = parts.map(|sql| Part { rows: Rows::Query(sql.into()), line: 1 }).to_vec();
    let compiled = ground.derive_like(&two, all).await;
    assert_eq!(ground.target().await, ["(1,10)", "(11,5)", "(2,20)", "(22,6)", "(3,30)"]);
    ground.change("UPDATE shop.b SET g = 0 WHERE id = 1").await;
    let error = ground.all_steps(&compiled).await.unwrap_err();
    assert!(error.contains("(id)=(1)") && error.contains("duplicate"), "{error}");
    // The same rows, where it is said what becomes of them.
    two.merge = vec!["max(v)".into()];
    ground.session.run("ROLLBACK; UPDATE shop.b SET g = 1 WHERE id = 1").await;
    let compiled = ground.derive_like(&two, all).await;
    ground.transaction(&compiled, "UPDATE shop.b SET g = 0, x = 15 WHERE id = 1").await;
    assert_eq!(ground.target().await, ["(1,15)", "(2,20)", "(22,6)", "(3,30)"]);
    ground.transaction(&compiled, "UPDATE shop.b SET x = 5 WHERE id = 1").await;
    assert_eq!(ground.target().await, ["(1,10)", "(2,20)", "(22,6)", "(3,30)"]);
}
