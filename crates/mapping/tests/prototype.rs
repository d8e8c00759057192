//! Which units a batch affects, held against what a prototype of the same rule found, which another parser and another language stand behind. `prototype.txt` has its
//! cases, three of each of its classes: a query, rows, a batch, and the units that it found. To find more units costs time, to find fewer costs rows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use crossfade_mapping::{Catalog, Derived, Way};
use support::maintain::{Plant, batch, compiled, difference, into, start};
use support::server::{Server, Session};
use support::world::{Changes, Row, TABLES, World, catalog, create, homes, load};

/// One case of the file.
#[derive(Clone, Debug, Default)]
struct Case {
    class: String,
    sql: String,
    unit: Vec<String>,
    world: World,
    changes: BTreeMap<usize, (Vec<Row>, Vec<Row>)>,
    /// None where the prototype asks for `affected_by`.
    units: Option<BTreeSet<String>>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("prototype.txt").lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "case" {
            cases.push(Case { class: rest.to_owned(), ..Case::default() });
            continue;
        }
        let case = cases.last_mut().unwrap();
        let row = || -> (usize, Row) {
            let (table, values) = rest.split_once(' ').unwrap();
            let values: Vec<String> = values.split(" | ").map(str::to_owned).collect();
            (TABLES.iter().position(|name| *name == table).unwrap(), values.try_into().unwrap())
        };
        match word {
            "sql" => case.sql = rest.to_owned(),
            "unit" => case.unit = rest.split(' ').map(str::to_owned).collect(),
            "row" => {
                let (table, row) = row();
                case.world.rows[table].insert(row[0].parse().unwrap(), row);
            }
            "old" => case.changes.entry(row().0).or_default().0.push(row().1),
            "new" => case.changes.entry(row().0).or_default().1.push(row().1),
            "units" => case.units = Some(rest.split(' ').filter(|unit| !unit.is_empty()).map(str::to_owned).collect()),
            "refused" => {}
            _ => panic!("{line}"),
        }
    }
    cases
}

/// The prototype's tables: only `id` is NOT NULL.
async fn ground(session: &Session) -> Catalog {
    create(session).await;
    for home in (0..TABLES.len()).flat_map(homes) {
        let columns = ["k", "x", "g"].map(|column| format!("ALTER {column} DROP NOT NULL")).join(", ");
        session.run(&format!("ALTER TABLE {home} {columns}")).await;
    }
    let mut catalog = catalog(session).await;
    for column in catalog.tables.iter_mut().flat_map(|table| &mut table.columns) {
        column.not_null = column.name == "id";
    }
    catalog
}

#[tokio::test]
async fn the_units_of_a_batch_are_the_prototypes() {
    let server = Server::start();
    let session = server.connect().await;
    let mut catalog = ground(&session).await;
    let (mut same, mut apart) = (0, Vec::new());
    for case in cases() {
        let said = format!("class {}\n{}\nby {:?}", case.class, case.sql, case.unit);
        load(&session, &case.world).await;
        let mut derived = Derived::new(into(), &[], &case.sql);
        derived.recompute_by.clone_from(&case.unit);
        let compiled = compiled(&session, &mut catalog, &derived, &case.sql, Plant::None).await;
        let (compiled, units) = match (compiled, case.units) {
            (Ok(compiled), Some(units)) => (compiled, units),
            (Err(_), None) => continue,
            (Ok(_), None) => panic!("{said}\nthe prototype asks for affected_by"),
            (Err(why), Some(_)) => {
                apart.push(format!("{said}\nrefused: {why}"));
                continue;
            }
        };
        let Way::Maintained(_) = compiled.way else {
            apart.push(format!("streamed {said}"));
            continue;
        };
        start(&session, &compiled).await;
        let changes: Vec<Changes> =
            case.changes.into_iter().map(|(table, (old, new))| Changes { table, old, new }).collect();
        batch(&session, &compiled, &changes, Plant::None).await.unwrap_or_else(|why| panic!("{said}\n{why}"));
        if let Some(difference) = difference(&session, &compiled).await {
            panic!("{said}\n{difference}");
        }
        let found = session.bag("SELECT t::text FROM pg_temp.\"units public.derived\" AS t").await;
        let found: BTreeSet<String> = found.into_iter().collect();
        if found == units { same += 1 } else { apart.push(format!("{said}\nours {found:?}\nprototype {units:?}")) }
    }
    assert!(apart.is_empty(), "{same} agree, {} do not:\n{}", apart.len(), apart.join("\n\n"));
    assert!(same > 100, "only {same} cases were held against each other");
}
