//! Tables whose rows are made of the changed rows alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use crossfade_mapping::{Compiled, Derived, Places, Side, Streamed, Usual, Way, WhenMissing, compile};
use support::ground::Ground;
use support::maintain::into;

async fn ground() -> Ground {
    let ground = Ground::new(&[("shop", "a", "id int PRIMARY KEY, k int NOT NULL, body text")]).await;
    ground.load("INSERT INTO shop.a VALUES (1, 1, 'One'), (2, 2, 'Two'), (3, -3, 'Three')").await;
    ground
}

fn streamed(compiled: &Compiled) -> &Streamed {
    match &compiled.way {
        Way::Streamed(streamed) => streamed,
        Way::Maintained(maintained) => panic!("{}", maintained.reason),
    }
}

#[tokio::test]
async fn changed_rows_come_and_go_and_move() {
    let mut ground = ground().await;
    let sql = "SELECT id AS nr, k * 2 AS v FROM shop.public.a WHERE k > 0";
    let compiled = ground.derive(&Derived::new(into(), &["nr"], sql)).await;
    assert!(streamed(&compiled).filter.is_some());
    for (statements, rows) in [
        ("INSERT INTO shop.a VALUES (4, 4, NULL), (5, -5, NULL)", "(1,2) (2,4) (4,8)"),
        ("UPDATE shop.a SET k = 7 WHERE id = 1", "(1,14) (2,4) (4,8)"),
        ("UPDATE shop.a SET k = -k WHERE id IN (2, 3)", "(1,14) (3,6) (4,8)"),
        ("UPDATE shop.a SET id = 9 WHERE id = 4", "(1,14) (3,6) (9,8)"),
        // Two rows take each other's key.
        (
            "UPDATE shop.a SET id = 0 WHERE id = 1; UPDATE shop.a SET id = 1 WHERE id = 3; UPDATE shop.a SET id = 3 WHERE id = 0",
            "(1,6) (3,14) (9,8)",
        ),
        ("DELETE FROM shop.a WHERE id = 1; UPDATE shop.a SET id = 1 WHERE id = 9", "(1,8) (3,14)"),
        ("DELETE FROM shop.a", ""),
    ] {
        ground.transaction(&compiled, statements).await;
        assert_eq!(ground.target().await.join(" "), rows, "after {statements}");
        ground.holds(&compiled).await;
    }
}

#[tokio::test]
async fn columns_say_which_values_they_read_so_that_an_absent_one_stays() {
    let mut ground = ground().await;
    let sql = "SELECT id, lower(body) AS v, k + id AS w FROM shop.public.a";
    let compiled = ground.derive(&Derived::new(into(), &["id"], sql)).await;
    let streamed = streamed(&compiled);
    let reads: Vec<(&str, String)> =
        streamed.columns.iter().map(|column| (column.name.as_str(), column.reads.join(", "))).collect();
    assert_eq!(reads, [("id", "id".to_owned()), ("v", "body".to_owned()), ("w", "id, k".to_owned())]);
    // The changed row comes without `body`: what reads it is left alone.
    let new = Usual.changed(&streamed.source, Side::New).quoted();
    ground.change("UPDATE shop.a SET k = 100 WHERE id = 2").await;
    ground.session.run(&format!("UPDATE {new} SET body = NULL; {}", ground.moves())).await;
    let present =
        |name: &&&str| !streamed.columns.iter().any(|c| c.name == ***name && c.reads.contains(&"body".to_owned()));
    let of = |name: &str| streamed.columns.iter().find(|column| column.name == name).unwrap().sql.clone();
    let set: Vec<String> = ["v", "w"].iter().filter(present).map(|name| format!("{name} = {}", of(name))).collect();
    let update = format!("UPDATE public.derived AS t SET {} FROM {new} AS r WHERE t.id = {}", set.join(", "), of("id"));
    ground.session.run(&update).await;
    assert_eq!(ground.target().await, ["(1,one,2)", "(2,two,102)", "(3,three,0)"]);
}

/// An update may bring a row into the target that was not there, and leave out a value that has not changed: nobody knows it.
#[tokio::test]
async fn a_value_that_may_be_absent_is_not_needed_for_a_new_row() {
    let mut ground = ground().await;
    let filtered = Derived::new(into(), &["id"], "SELECT id, body AS v FROM shop.public.a WHERE k > 0");
    let compiled = ground.derive(&filtered).await;
    let Way::Maintained(maintained) = &compiled.way else { panic!("{compiled:?}") };
    assert!(maintained.reason.contains("body") && maintained.reason.contains("FULL"), "{}", maintained.reason);
    ground.transaction(&compiled, "UPDATE shop.a SET k = 3 WHERE id = 3").await;
    assert_eq!(ground.target().await, ["(1,One)", "(2,Two)", "(3,Three)"]);
    // The same where the old key's row stays and the new key's is another one.
    let mut kept = Derived::new(into(), &["id"], "SELECT id, body AS v FROM shop.public.a");
    streamed(&compile(&kept, &ground.catalog, &Usual).unwrap());
    kept.when_missing = WhenMissing::Keep;
    assert!(matches!(compile(&kept, &ground.catalog, &Usual).unwrap().way, Way::Maintained(_)));
    // All old values are known with the identity FULL.
    ground.catalog.tables[0].full = true;
    ground.catalog.tables[0].identity = ["id", "k", "body"].map(str::to_owned).to_vec();
    let reason = |derived: &Derived| match compile(derived, &ground.catalog, &Usual).unwrap().way {
        Way::Streamed(_) => String::new(),
        Way::Maintained(maintained) => maintained.reason,
    };
    // But equal rows may be there several times.
    assert!(reason(&filtered).contains("nothing less than all columns"), "{}", reason(&filtered));
}

#[tokio::test]
async fn new_ids_are_the_same_wherever_they_are_made() {
    let mut ground = ground().await;
    let sql = "SELECT crossfade_id('shop', 'public.a', id) AS id, k AS v FROM shop.public.a";
    // The target is made of a query that Postgres knows.
    ground
        .session
        .run("CREATE FUNCTION crossfade_id(text, text, int) RETURNS uuid IMMUTABLE LANGUAGE sql AS 'SELECT NULL::uuid'")
        .await;
    let compiled = ground.derive(&Derived::new(into(), &["id"], sql)).await;
    streamed(&compiled);
    assert!(!compiled.oracle.over_sources.contains("crossfade_id"), "{}", compiled.oracle.over_sources);
    ground.transaction(&compiled, "INSERT INTO shop.a VALUES (4, 4, NULL); UPDATE shop.a SET k = 8 WHERE id = 1; DELETE FROM shop.a WHERE id = 2").await;
    ground.holds(&compiled).await;
    // Worked out apart from it: SHA-256 of each part behind its length, cut to 16 bytes, version 8 and variant set.
    let bytes = "encode(sha256('4:shop8:public.a1:1'), 'hex')";
    let want = format!("SELECT left({bytes}, 12) || '8' || substr({bytes}, 14, 3) || '8' || substr({bytes}, 18, 15)");
    let have = "SELECT replace(id::text, '-', '') FROM public.derived WHERE v = 8";
    assert_eq!(ground.session.bag(have).await, ground.session.bag(&want).await);
    assert_eq!(ground.target().await.len(), 3);
}

#[tokio::test]
async fn new_ids_of_other_parts_are_others() {
    let mut ground = Ground::new(&[("shop", "a", "id text PRIMARY KEY, k int, x int, g int")]).await;
    ground.load("INSERT INTO shop.a VALUES ('1', 1, 1, 1)").await;
    ground
        .session
        .run(
            "CREATE FUNCTION crossfade_id(text, text, text) RETURNS uuid IMMUTABLE LANGUAGE sql AS 'SELECT NULL::uuid'",
        )
        .await;
    let sql = "SELECT p.id, crossfade_id('a', 'b:c', p.id) AS one, crossfade_id('a:b', 'c', p.id) AS two, crossfade_id('a', 'b', 'c' || p.id) AS three, (crossfade_id('a', 'b', NULL::text) IS NULL) AS none FROM shop.public.a p JOIN shop.public.a q ON q.id = p.id";
    ground.derive(&Derived::new(into(), &["id"], sql)).await;
    let rows = ground
        .session
        .rows("SELECT count(DISTINCT u), bool_and(none) FROM public.derived, unnest(ARRAY[one, two, three]) u")
        .await;
    assert_eq!(rows, [[Some("3".to_owned()), Some("t".to_owned())]]);
}
