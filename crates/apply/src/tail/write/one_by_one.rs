//! Folded and set-wise equals one by one in order, on a real server: random changes of a table with two unique keys beside its primary key, and of
//! one without any key.
#![allow(clippy::unwrap_used)]

mod server;

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{Cell, Old, Snapshot, TableName, Tuple};
use pg::Session;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::Runtime;

use super::super::fold::{Op, filled};
use super::super::gather::{Group, Step};
use super::super::target::{Identity, Target};
use super::Writer;
use crate::ApplyError;
use server::Server;

/// Sequences that are tried. A hundredth of a second each.
const CASES: u32 = 300;

/// A value, or none.
type Value = Option<String>;

/// One change, before it is known whether the table's rows and constraints allow it.
#[derive(Clone, Debug)]
enum Wish {
    Insert {
        id: u8,
        a: Option<u8>,
        b: Option<u8>,
        v: u8,
    },
    /// `None`: not sent, or not changed. The value of `v` is one that is not sent unless it changes.
    Update {
        id: u8,
        a: Option<Option<u8>>,
        b: Option<Option<u8>>,
        v: Option<u8>,
    },
    Move {
        id: u8,
        to: u8,
        v: Option<u8>,
    },
    /// The unique values of two rows change places, by way of NULL.
    Swap {
        id: u8,
        other: u8,
    },
    Delete {
        id: u8,
    },
    /// What follows is a group of its own.
    Commit,
}

/// Few ids and few values, so that they meet.
fn wish() -> impl Strategy<Value = Wish> {
    let value = || proptest::option::weighted(0.8, 0..6u8);
    let id = || 0..5u8;
    prop_oneof![
        4 => (id(), value(), value(), any::<u8>()).prop_map(|(id, a, b, v)| Wish::Insert { id, a, b, v }),
        5 => (id(), proptest::option::of(value()), proptest::option::of(value()), proptest::option::of(any::<u8>()))
            .prop_map(|(id, a, b, v)| Wish::Update { id, a, b, v }),
        2 => (id(), id(), proptest::option::of(any::<u8>())).prop_map(|(id, to, v)| Wish::Move { id, to, v }),
        3 => (id(), id()).prop_map(|(id, other)| Wish::Swap { id, other }),
        3 => id().prop_map(|id| Wish::Delete { id }),
        1 => Just(Wish::Commit),
    ]
}

/// The rows as they are after each change: id → a, b, v.
#[derive(Default)]
struct Rows(BTreeMap<u8, [Value; 3]>);

impl Rows {
    /// No other row has one of these unique values.
    fn free(&self, id: u8, row: &[Value; 3]) -> bool {
        let taken = |column: usize| {
            row[column].is_some() && self.0.iter().any(|(other, there)| *other != id && there[column] == row[column])
        };
        !taken(0) && !taken(1)
    }

    fn tuple(id: u8, row: &[Value; 3], unchanged: bool) -> Tuple {
        let id = id.to_string();
        let mut cells = vec![Cell::Text(id.as_bytes())];
        cells.extend(row.iter().map(|value| value.as_ref().map_or(Cell::Null, |text| Cell::Text(text.as_bytes()))));
        if unchanged {
            cells[3] = Cell::Unchanged;
        }
        Tuple::from_cells(cells.into_iter())
    }

    fn update(&mut self, id: u8, row: [Value; 3], unchanged: bool) -> Option<Op> {
        if !self.0.contains_key(&id) || !self.free(id, &row) {
            return None;
        }
        let op = Op::Update { old: None, new: Self::tuple(id, &row, unchanged) };
        self.0.insert(id, row);
        Some(op)
    }

    /// The changes that a wish comes to.
    fn grant(&mut self, wish: &Wish) -> Vec<Op> {
        let text = |value: &Option<u8>| value.map(|value| value.to_string());
        match wish {
            Wish::Insert { id, a, b, v } => {
                let row = [text(a), text(b), Some(format!("v{v}"))];
                if self.0.contains_key(id) || !self.free(*id, &row) {
                    return Vec::new();
                }
                let op = Op::Insert(Self::tuple(*id, &row, false));
                self.0.insert(*id, row);
                vec![op]
            }
            Wish::Update { id, a, b, v } => {
                let Some(before) = self.0.get(id).cloned() else { return Vec::new() };
                let [old_a, old_b, old_v] = before;
                let row = [
                    a.as_ref().map_or(old_a, text),
                    b.as_ref().map_or(old_b, text),
                    v.map_or(old_v, |v| Some(format!("v{v}"))),
                ];
                self.update(*id, row, v.is_none()).into_iter().collect()
            }
            Wish::Move { id, to, v } => {
                if id == to || self.0.contains_key(to) {
                    return Vec::new();
                }
                let Some(mut row) = self.0.remove(id) else { return Vec::new() };
                let old = Old::Key(Self::tuple(*id, &[None, None, None], false));
                row[2] = v.map_or_else(|| row[2].clone(), |v| Some(format!("v{v}")));
                let new = Self::tuple(*to, &row, v.is_none());
                self.0.insert(*to, row);
                vec![Op::Update { old: Some(old), new }]
            }
            Wish::Swap { id, other } => {
                let (Some(one), Some(two)) = (self.0.get(id).cloned(), self.0.get(other).cloned()) else {
                    return Vec::new();
                };
                if id == other {
                    return Vec::new();
                }
                let with = |row: &[Value; 3], a: &Value, b: &Value| [a.clone(), b.clone(), row[2].clone()];
                let steps = [
                    (*id, with(&one, &None, &None)),
                    (*other, with(&two, &one[0], &one[1])),
                    (*id, with(&one, &two[0], &two[1])),
                ];
                steps.into_iter().filter_map(|(id, row)| self.update(id, row, true)).collect()
            }
            Wish::Delete { id } => match self.0.remove(id) {
                Some(_) => vec![Op::Delete(Old::Key(Self::tuple(*id, &[None, None, None], false)))],
                None => Vec::new(),
            },
            Wish::Commit => Vec::new(),
        }
    }

    fn content(&self) -> Vec<String> {
        let show = |value: &Value| value.clone().unwrap_or_else(|| "null".to_owned());
        self.0.iter().map(|(id, [a, b, v])| format!("{id} {} {} {}", show(a), show(b), show(v))).collect()
    }
}

/// How the groups' rows were written.
#[derive(Default)]
struct Count {
    sets: u32,
    one_by_one: u32,
}

struct Bench {
    runtime: Runtime,
    session: Session,
    folded: Arc<Target>,
    ordered: Arc<Target>,
    _server: Server,
}

impl Bench {
    /// Two tables of the same form: one to be written folded, the other one in order.
    fn new(columns: &str, identity: Identity) -> Bench {
        let server = Server::start();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (session, folded, ordered) = runtime.block_on(async {
            let session = pg::connect(&server.endpoint(), "property").await.unwrap();
            let sql = format!("CREATE TABLE public.folded ({columns}); CREATE TABLE public.ordered ({columns})");
            session.batch_execute(&sql).await.unwrap();
            session
                .batch_execute("SET session_replication_role = replica; SET synchronous_commit = off")
                .await
                .unwrap();
            let folded = Arc::new(target(&session, "folded", identity.clone()).await);
            let ordered = Arc::new(target(&session, "ordered", identity).await);
            (session, folded, ordered)
        });
        Bench { runtime, session, folded, ordered, _server: server }
    }

    /// Writes the groups to both tables and returns what is in them.
    fn write(&self, groups: &[Vec<Op>], order: &str, count: &mut Count) -> [Vec<String>; 2] {
        self.runtime.block_on(async {
            self.session.batch_execute("TRUNCATE public.folded, public.ordered").await.unwrap();
            for ops in groups {
                self.folded(ops, count).await.unwrap();
                self.ordered(ops).await.unwrap();
            }
            [self.content("folded", order).await, self.content("ordered", order).await]
        })
    }

    async fn content(&self, table: &str, columns: &str) -> Vec<String> {
        let sql = format!("SELECT concat_ws(' ', {columns}) FROM public.{table} ORDER BY 1");
        let mut rows: Vec<String> = self.session.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        rows.sort();
        rows
    }

    fn writer(&self) -> Writer<'_> {
        Writer::new(&self.session)
    }

    /// As the tail does it: gathered, folded, in sets where that works.
    async fn folded(&self, ops: &[Op], count: &mut Count) -> Result<(), ApplyError> {
        let mut group = Group::default();
        for op in ops {
            group.take(&self.folded, op.clone());
        }
        let mut writer = self.writer();
        self.session.batch_execute("BEGIN").await?;
        for step in &group.steps {
            if let Step::Rows(run) = step {
                assert!(!run.broken, "changes that follow each other are told not to");
                self.session.batch_execute("SAVEPOINT probe").await?;
                match writer.folded(&run.target, &run.folded()).await {
                    Ok(true) => count.sets += 1,
                    // Every row that is folded is there: only a constraint may say no.
                    Ok(false) => panic!("a set does not find its rows: {ops:?}"),
                    Err(error) if error.is_constraint() => count.one_by_one += 1,
                    Err(error) => return Err(error),
                }
                self.session.batch_execute("ROLLBACK TO probe; RELEASE probe").await?;
            }
            writer.step(step).await?;
        }
        Ok(self.session.batch_execute("COMMIT").await?)
    }

    async fn ordered(&self, ops: &[Op]) -> Result<(), ApplyError> {
        let mut writer = self.writer();
        self.session.batch_execute("BEGIN").await?;
        for op in ops {
            match op {
                Op::Update { old: Some(Old::Key(old)), new } => writer.shift(&self.ordered, old, new).await?,
                op => writer.one(&self.ordered, op).await?,
            }
        }
        Ok(self.session.batch_execute("COMMIT").await?)
    }
}

async fn target(session: &Session, table: &str, identity: Identity) -> Target {
    let into = TableName::new("public", table);
    let columns = pg::catalog::target_columns(session, &into).await.unwrap();
    let origin = mapping::SourceTable::new("shop", into.clone());
    Target { origin, into, stored: true, only: "ONLY ", columns, identity, copied: Snapshot::default(), bound: None }
}

#[test]
fn in_a_table_with_two_unique_keys() {
    let bench = Bench::new("id int PRIMARY KEY, a int UNIQUE, b int UNIQUE, v text", Identity::Key(vec![0]));
    let count = std::cell::RefCell::new(Count::default());
    let mut runner = TestRunner::new(Config { cases: CASES, ..Config::default() });
    let outcome = runner.run(&proptest::collection::vec(wish(), 1..60), |wishes| {
        let mut rows = Rows::default();
        // Rows that were there before: the set-wise form may meet them.
        let there = |id| rows.grant(&Wish::Insert { id, a: Some(id), b: Some(id), v: id });
        let mut groups = vec![(0..4).flat_map(there).collect(), Vec::new()];
        for wish in &wishes {
            if matches!(wish, Wish::Commit) {
                groups.push(Vec::new());
            }
            groups.last_mut().unwrap().extend(rows.grant(wish));
        }
        let columns = "id, coalesce(a::text, 'null'), coalesce(b::text, 'null'), v";
        let [folded, ordered] = bench.write(&groups, columns, &mut count.borrow_mut());
        prop_assert_eq!(&ordered, &rows.content(), "written in order");
        prop_assert_eq!(&folded, &ordered, "written folded");
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let Count { sets, one_by_one } = count.into_inner();
    eprintln!("{sets} written in sets, {one_by_one} one by one");
    assert!(sets > CASES && one_by_one > CASES / 10, "one of the two ways is hardly tested: {sets}, {one_by_one}");
}

#[test]
fn in_a_table_without_key() {
    let bench = Bench::new("a int, v text", Identity::WholeRow);
    let count = std::cell::RefCell::new(Count::default());
    let mut runner = TestRunner::new(Config { cases: CASES / 3, ..Config::default() });
    let change = (0..3u8, 0..3u8, proptest::option::of(0..3u8), proptest::option::of(0..3u8));
    let outcome = runner.run(&proptest::collection::vec(change, 1..40), |changes| {
        // Rows as a multiset; a change of one that is not there is an insert.
        let mut rows: Vec<Tuple> = Vec::new();
        let mut ops = Vec::new();
        for (kind, a, v, new_v) in changes {
            let row = |v: Option<u8>| {
                let (a, v) = (a.to_string(), v.map(|v| v.to_string()));
                Tuple::from_cells(
                    [Cell::Text(a.as_bytes()), v.as_ref().map_or(Cell::Null, |v| Cell::Text(v.as_bytes()))].into_iter(),
                )
            };
            let old = row(v);
            match (kind, rows.iter().position(|there| *there == old)) {
                (1, Some(at)) => {
                    rows.remove(at);
                    ops.push(Op::Delete(Old::Full(old)));
                }
                (2, Some(at)) => {
                    let a = a.to_string();
                    let new = match new_v {
                        None => Tuple::from_cells([Cell::Text(a.as_bytes()), Cell::Unchanged].into_iter()),
                        new_v => row(new_v),
                    };
                    rows[at] = filled(&new, &old);
                    ops.push(Op::Update { old: Some(Old::Full(old)), new });
                }
                _ => {
                    rows.push(old.clone());
                    ops.push(Op::Insert(old));
                }
            }
        }
        let [folded, ordered] = bench.write(&[ops], "a, coalesce(v, 'null')", &mut count.borrow_mut());
        prop_assert_eq!(ordered.len(), rows.len());
        prop_assert_eq!(folded, ordered);
        Ok::<(), TestCaseError>(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(count.into_inner().sets > 0);
}
