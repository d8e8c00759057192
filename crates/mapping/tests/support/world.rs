//! Three tables `a`, `b` and `c`, small enough that everything happens to every row: as a source's tables, as mirrors, and
//! as a model here, from which batches of changes are rolled.

use std::collections::BTreeMap;

use crossfade_mapping::{
    Catalog, Column, Function, FunctionKind, Places, Side, SourceTable, Table, Target, TargetColumn, Usual, Volatility,
};
use model::TableName;

use super::dice::Dice;
use super::server::Session;

pub const TABLES: [&str; 3] = ["a", "b", "c"];

/// `id, k, x, g, arr` as SQL; `id` is the key.
pub type Row = [String; 5];
pub type Rows = BTreeMap<i32, Row>;

/// What a batch does to one table.
#[derive(Clone, Debug)]
pub struct Changes {
    pub table: usize,
    pub old: Vec<Row>,
    pub new: Vec<Row>,
}

#[derive(Clone, Debug, Default)]
pub struct World {
    pub rows: [Rows; 3],
}

pub fn source(table: usize) -> SourceTable {
    SourceTable::new("shop", TableName::new("public", TABLES[table]))
}

/// Whether a column is NOT NULL: `id` everywhere, and two of `c`.
fn is_not_null(table: usize, column: &str) -> bool {
    column == "id" || TABLES[table] == "c" && ["x", "g"].contains(&column)
}

fn row(dice: &mut Dice, table: usize, id: i32) -> Row {
    let mut value = |column: &str| {
        let choices: &[&str] =
            if is_not_null(table, column) { &["0", "1", "2"] } else { &["NULL", "0", "1", "1", "2", "2", "3"] };
        dice.one_of(choices).to_owned()
    };
    let (k, x, g) = (value("k"), value("x"), value("g"));
    let arr = dice.one_of(&["NULL", "'{}'", "'{1}'", "'{1,2}'", "'{2,NULL}'", "'{3,3}'"]).to_owned();
    [id.to_string(), k, x, g, arr]
}

impl World {
    pub fn roll(dice: &mut Dice) -> World {
        let mut world = World::default();
        for table in 0..TABLES.len() {
            for id in 1..7 {
                if dice.chance(60) {
                    world.rows[table].insert(id, row(dice, table, id));
                }
            }
        }
        world
    }

    /// Rolls a transaction over one or more tables and applies it here.
    pub fn batch(&mut self, dice: &mut Dice) -> Vec<Changes> {
        let mut tables: Vec<usize> = (0..TABLES.len()).filter(|_| dice.chance(60)).collect();
        if tables.is_empty() {
            tables.push(dice.below(3) as usize);
        }
        let mut all = Vec::new();
        for table in tables {
            let mut after = self.rows[table].clone();
            for _ in 0..=dice.below(3) {
                let id = 1 + dice.below(6) as i32;
                let what = dice.below(100);
                if !after.contains_key(&id) {
                    after.insert(id, row(dice, table, id));
                } else if what < 35 {
                    after.remove(&id);
                } else if what < 45 {
                    let mut moved = after.remove(&id).unwrap();
                    let to = 1 + dice.below(6) as i32;
                    moved[0] = to.to_string();
                    after.insert(to, moved);
                } else {
                    let column = 1 + dice.below(4) as usize;
                    let fresh = row(dice, table, id)[column].clone();
                    after.get_mut(&id).unwrap()[column] = fresh;
                }
            }
            let changes = self.change(table, after);
            if !changes.old.is_empty() || !changes.new.is_empty() {
                all.push(changes);
            }
        }
        all
    }

    /// Makes `after` the rows of a table.
    pub fn change(&mut self, table: usize, after: Rows) -> Changes {
        let before = std::mem::replace(&mut self.rows[table], after);
        let after = &self.rows[table];
        let old = before.iter().filter(|(id, row)| after.get(id) != Some(row)).map(|(_, row)| row.clone()).collect();
        let new = after.iter().filter(|(id, row)| before.get(id) != Some(row)).map(|(_, row)| row.clone()).collect();
        Changes { table, old, new }
    }
}

pub fn insert(into: &str, rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let rows: Vec<String> = rows.iter().map(|row| format!("({})", row.join(", "))).collect();
    format!("INSERT INTO {into} VALUES {};", rows.join(", "))
}

/// Where a table lies at the source, and its mirror.
pub fn homes(table: usize) -> [String; 2] {
    [source(table).table.quoted(), Usual.mirror(&source(table)).quoted()]
}

pub fn changed(table: usize, side: Side) -> String {
    Usual.changed(&source(table), side).quoted()
}

/// Creates the tables.
pub async fn create(session: &Session) {
    session.run("CREATE SCHEMA crossfade").await;
    for (table, name) in TABLES.iter().enumerate() {
        let null = |column| if is_not_null(table, column) { "NOT NULL" } else { "" };
        let columns =
            format!("(id int PRIMARY KEY, k int {}, x int {}, g int {}, arr int[])", null("k"), null("x"), null("g"));
        for home in homes(table) {
            session.run(&format!("CREATE UNLOGGED TABLE {home} {columns}")).await;
        }
        for side in [Side::Old, Side::New] {
            let plain = "(id int, k int, x int, g int, arr int[])";
            session.run(&format!("CREATE TEMP TABLE {} {plain}", changed(table, side))).await;
        }
        assert_eq!(*name, TABLES[table]);
    }
}

/// Puts a world's rows into the source's tables and the mirrors.
pub async fn load(session: &Session, world: &World) {
    let mut sql = String::new();
    for table in 0..TABLES.len() {
        let rows: Vec<Row> = world.rows[table].values().cloned().collect();
        for home in homes(table) {
            sql += &format!("DELETE FROM {home}; {}", insert(&home, &rows));
        }
    }
    session.run(&sql).await;
}

/// What the three tables are, and the functions that there are.
pub async fn catalog(session: &Session) -> Catalog {
    let tables = (0..TABLES.len())
        .map(|table| Table {
            name: source(table),
            columns: ["id", "k", "x", "g", "arr"]
                .map(|name| Column {
                    name: name.to_owned(),
                    type_name: if name == "arr" { "integer[]" } else { "integer" }.to_owned(),
                    not_null: is_not_null(table, name),
                    toastable: name == "arr",
                })
                .to_vec(),
            identity: vec!["id".to_owned()],
            full: false,
        })
        .collect();
    Catalog { tables, functions: functions(session).await, target: Target::default() }
}

pub async fn functions(session: &Session) -> Vec<Function> {
    let sql = "SELECT n.nspname, p.proname, p.prokind, p.provolatile, p.proretset FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.prokind <> 'p'";
    let rows = session.rows(sql).await;
    rows.into_iter()
        .map(|row| {
            let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
            Function {
                name: TableName::new(&row[0], &row[1]),
                kind: match row[2].as_str() {
                    "a" => FunctionKind::Aggregate,
                    "w" => FunctionKind::Window,
                    _ => FunctionKind::Plain,
                },
                volatility: match row[3].as_str() {
                    "i" => Volatility::Immutable,
                    "s" => Volatility::Stable,
                    _ => Volatility::Volatile,
                },
                returns_set: row[4] == "t",
                columns: Vec::new(),
            }
        })
        .collect()
}

/// The columns of a relation of the target.
pub async fn target(session: &Session, into: &TableName, key: &[String]) -> Target {
    let sql = format!(
        "SELECT attname, format_type(atttypid, NULL), format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = {}::regclass AND attnum > 0 ORDER BY attnum",
        model::quote::literal(&into.quoted())
    );
    let columns = session.rows(&sql).await.into_iter().map(|row| TargetColumn {
        name: row[0].clone().unwrap(),
        type_name: row[1].clone().unwrap(),
        cast: row[2].clone(),
        not_null: false,
        has_default: false,
        generated: false,
        identity_always: false,
    });
    Target { columns: columns.collect(), unique: if key.is_empty() { Vec::new() } else { vec![key.to_vec()] } }
}
