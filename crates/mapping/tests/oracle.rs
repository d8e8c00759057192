//! The oracle: random queries of every class, random rows, random transactions; after each of them the derived table is
//! what its query gives in full. How many is in `CROSSFADE_CASES` (queries, four transactions each), which ones in
//! `CROSSFADE_SEED`; what fails says its seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use crossfade_mapping::{Catalog, Way};
use support::classes::{Rolled, names, roll};
use support::dice::Dice;
use support::maintain::{Plant, batch, compiled, difference, start};
use support::server::{Server, Session};
use support::world::{World, catalog, create, load};

/// Queries in a run; four transactions each.
const CASES: u64 = 2000;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What one case was.
enum Case {
    /// Postgres itself refuses the query: another one is rolled.
    NotSql,
    Refused(String),
    Same,
    Different(String),
}

async fn case(session: &Session, catalog: &mut Catalog, seed: u64, only: &[&str], plant: Plant) -> (Rolled, Case) {
    let mut dice = Dice::new(seed);
    let rolled = roll(&mut dice, seed, only);
    let mut world = World::roll(&mut dice);
    load(session, &world).await;
    if session.try_run(&format!("EXPLAIN {}", rolled.sql)).await.is_err() {
        return (rolled, Case::NotSql);
    }
    let compiled = match compiled(session, catalog, &rolled.derived, &rolled.sql, plant).await {
        Ok(compiled) => compiled,
        Err(why) => return (rolled, Case::Refused(why)),
    };
    // Of a table in part both happen: a filter makes it maintained where a value may be left out of an update.
    let is_streamed = rolled.class == "streamed" && !rolled.derived.key.is_empty();
    assert_eq!(is_streamed, rolled.class != "cut" && matches!(compiled.way, Way::Streamed(_)), "{}", rolled.sql);
    start(session, &compiled).await;
    if let Some(difference) = difference(session, &compiled).await {
        return (rolled, Case::Different(format!("after it was filled: {difference}")));
    }
    for number in 0..4 {
        let before = world.clone();
        let changes = world.batch(&mut dice);
        let failed = batch(session, &compiled, &changes, plant).await.err();
        let found = match failed {
            Some(error) => Some(error),
            None => difference(session, &compiled).await,
        };
        if let Some(difference) = found {
            let text = format!("batch {number}: {difference}\nbefore {before:?}\nchanges {changes:?}");
            return (rolled, Case::Different(text));
        }
    }
    (rolled, Case::Same)
}

async fn ground() -> (Server, Session, Catalog) {
    let server = Server::start();
    let session = server.connect().await;
    create(&session).await;
    let catalog = catalog(&session).await;
    (server, session, catalog)
}

#[tokio::test]
async fn a_derived_table_is_its_query_in_full_after_every_transaction() {
    let (_server, session, mut catalog) = ground().await;
    let first = number("CROSSFADE_SEED", 1);
    let only = std::env::var("CROSSFADE_CLASS").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|class| !class.is_empty()).collect();
    let mut seen: BTreeMap<&str, [u32; 2]> = BTreeMap::new();
    for seed in first..first + number("CROSSFADE_CASES", CASES) {
        let (rolled, case) = case(&session, &mut catalog, seed, &only, Plant::None).await;
        let counts = seen.entry(rolled.class).or_default();
        let said = format!("CROSSFADE_SEED={seed}, class {}\n{}\nby {:?}", rolled.class, rolled.sql, rolled.derived);
        match case {
            Case::NotSql => counts[1] += 1,
            Case::Refused(why) => {
                assert!(rolled.is_refused, "{said}\nrefused: {why}");
                counts[0] += 1;
            }
            Case::Same => {
                assert!(!rolled.is_refused, "{said}\nhad to be refused");
                counts[0] += 1;
            }
            Case::Different(difference) => panic!("{said}\n{difference}"),
        }
    }
    if only.is_empty() && number("CROSSFADE_CASES", CASES) >= CASES {
        for name in names() {
            assert!(
                seen.get(name).is_some_and(|[tried, _]| *tried > 0),
                "no query of class {name} was tried: {seen:?}"
            );
        }
    }
}

/// The first case of these seeds that comes out different with an error planted.
async fn found(plant: Plant, only: &[&str]) -> Option<(u64, String)> {
    const TRIES: u64 = 400;
    let (_server, session, mut catalog) = ground().await;
    for seed in 1..=TRIES {
        if let (rolled, Case::Different(_)) = case(&session, &mut catalog, seed, only, plant).await {
            return Some((seed, rolled.sql));
        }
    }
    None
}

#[tokio::test]
async fn a_pass_over_old_rows_that_is_left_out_is_noticed() {
    assert!(found(Plant::NoOldPass, &[]).await.is_some());
}

#[tokio::test]
async fn variants_with_a_missing_side_that_are_left_out_are_noticed() {
    assert!(found(Plant::NoNulls, &["left_key_right", "full_join", "nested_left"]).await.is_some());
}

#[tokio::test]
async fn other_subqueries_that_are_kept_are_noticed() {
    assert!(found(Plant::KeepSublinks, &["exists_mix", "group_not_exists"]).await.is_some());
}

#[tokio::test]
async fn a_mention_of_a_table_that_is_forgotten_is_noticed() {
    assert!(found(Plant::ForgetMention, &[]).await.is_some());
}
