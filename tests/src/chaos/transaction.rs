use crate::{Dice, mixed};

/// How a transaction ends, if nothing goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    Rollback,
    /// Prepared, and decided on a moment later.
    Prepared {
        commit: bool,
    },
}

/// One statement, or a few that belong together.
pub(super) struct Step {
    pub sql: String,
    /// Under a savepoint, so that an error costs this step alone.
    pub guarded: bool,
    /// Rolled back to the savepoint although it went well.
    pub undone: bool,
    /// Then the client thinks for so many milliseconds.
    pub pause: u64,
}

/// What a client does at once.
pub(super) enum Work {
    /// A transaction as `mixed` has them: its `BEGIN` and `COMMIT`, if any, are in the text.
    Line(String),
    Transaction(Vec<Step>, End),
}

/// Rolls what a client does. It has ids of its own to insert, so that its inserts do not meet those of others.
pub(super) struct Writer {
    dice: Dice,
    next_id: u64,
}

/// Rows that one client may insert before it comes into the range of the next.
const IDS: u64 = 100_000_000;

impl Writer {
    pub(super) fn new(seed: u64, number: u64) -> Writer {
        Writer { dice: Dice::of(seed, number), next_id: (number + 1) * IDS }
    }

    pub(super) fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    pub(super) fn work(&mut self) -> Work {
        if self.dice.chance(30) {
            return Work::Line(mixed::statement(&mut self.dice));
        }
        let count = if self.dice.chance(40) { 1 } else { self.dice.between(2, 7) };
        let slow = self.dice.chance(15);
        let steps = (0..count)
            .map(|_| {
                let guarded = self.dice.chance(40);
                Step {
                    sql: self.statement(),
                    guarded,
                    undone: guarded && self.dice.chance(30),
                    pause: if slow { self.dice.below(30) } else { 0 },
                }
            })
            .collect();
        let end = match self.dice.below(100) {
            0..7 => End::Rollback,
            7..15 => End::Prepared { commit: self.dice.chance(80) },
            _ => End::Commit,
        };
        Work::Transaction(steps, end)
    }

    /// Mostly few, now and then 5,000.
    fn rows(&mut self) -> u64 {
        match self.dice.below(100) {
            0..60 => 1,
            60..90 => self.dice.between(2, 40),
            90..98 => self.dice.between(40, 800),
            _ => self.dice.between(2000, 5001),
        }
    }

    fn fresh(&mut self, count: u64) -> u64 {
        self.next_id += count;
        self.next_id - count
    }

    fn statement(&mut self) -> String {
        let n = self.rows();
        let (id, from, to) = (self.fresh(n), self.dice.below(30_000), self.dice.below(15_000));
        let (a, b) = (1 + self.dice.below(100), 1 + self.dice.below(100));
        let (few, number) = (n.min(50), self.dice.below(1_000_000));
        match self.dice.below(26) {
            0..3 => format!(
                "UPDATE purse SET amount = amount - {a} WHERE id = {b}; UPDATE purse SET amount = amount + {a} WHERE id = {}",
                100 + a
            ),
            3..5 => format!("INSERT INTO entry SELECT {id} + i, 1 + (i * 7 + {to}) % 15000, i, 'new {number}' FROM generate_series(0, {n} - 1) AS i"),
            5 => format!("UPDATE entry SET amount = amount + 1, what = 'changed {number}' WHERE id BETWEEN {from} AND {from} + {n}"),
            6 => format!("DELETE FROM entry WHERE id BETWEEN {from} AND {from} + {few}"),
            7 => format!("DELETE FROM entry WHERE id = {from}; INSERT INTO entry VALUES ({from}, NULL, {number}, 'again')"),
            8 => format!("UPDATE entry SET id = -id WHERE id = {from} OR id = -{from}"),
            9 => format!("UPDATE account SET balance = balance + {a} WHERE id BETWEEN {to} AND {to} + {n}"),
            10 => format!("UPDATE account SET note = repeat(md5('{number}'), 300) WHERE id = {to}"),
            11 => format!("UPDATE account SET id = id + 1000000 WHERE id = {to}"),
            12 => format!("DELETE FROM account WHERE id = {to}; INSERT INTO account VALUES ({to}, {b} % 10 + 1, 0, 'born again')"),
            13 => format!(
                "UPDATE seat SET place = CASE id WHEN {a} THEN (SELECT place FROM seat WHERE id = {b}) ELSE (SELECT place FROM seat WHERE id = {a}) END WHERE id IN ({a}, {b})"
            ),
            14 => format!(
                "SET CONSTRAINTS ALL DEFERRED; UPDATE seat SET place = place + 1000 WHERE id = {a}; UPDATE seat SET place = (SELECT place - 1000 FROM seat WHERE id = {a}) WHERE id = {b};
                 UPDATE seat SET place = (SELECT min(i) FROM generate_series(1, 100) AS i WHERE i NOT IN (SELECT place FROM seat)) WHERE id = {a}"
            ),
            15 => format!(
                "UPDATE seat SET holder = -{a} WHERE holder = {a}; UPDATE seat SET holder = {a} WHERE holder = {b}; UPDATE seat SET holder = {b} WHERE holder = -{a}"
            ),
            16 => format!("UPDATE document_of SET title = 'new {number}' WHERE id % 300 BETWEEN {a} AND {a} + {few}"),
            17 => format!("UPDATE document_of SET id = CASE WHEN id > 1000 THEN id - 1000 ELSE id + 1000 END WHERE id % 1000 = {a}"),
            18 => format!("DELETE FROM document_of WHERE id = {a}; INSERT INTO document_of VALUES ({a}, 'again {number}', repeat(md5('{number}'), {number} % 500 + 1))"),
            19 => self.emptied(id, few),
            20 => format!(
                "INSERT INTO item VALUES ({}, NULL, 'sku') ON CONFLICT (id) DO UPDATE SET count = item.count + 1; UPDATE item SET sku = 'sku {number}' WHERE id % 50 = {a} % 50",
                number % 700
            ),
            21 => format!("INSERT INTO loose SELECT {a} % 30, CASE WHEN i % 2 = 0 THEN 'b1' END FROM generate_series(1, {few}) AS i; DELETE FROM loose WHERE ctid = (SELECT ctid FROM loose WHERE a = {b} % 30 LIMIT 1)"),
            22 => format!("UPDATE loose SET b = 'b{}' WHERE ctid = (SELECT ctid FROM loose WHERE a = {a} % 30 LIMIT 1)", b % 4),
            23 => format!("INSERT INTO trace (what) SELECT 'trace {number} ' || i FROM generate_series(1, {few}) AS i"),
            24 => format!(
                "UPDATE reading SET at = {}, value = 'moved {number}' WHERE id BETWEEN {to} % 2000 AND {to} % 2000 + {few}; INSERT INTO reading VALUES ({id}, {}, 'new')",
                a % 30,
                b % 30
            ),
            _ => format!("UPDATE bulk SET n = n + 1 WHERE id BETWEEN {from} AND {from} + {n}"),
        }
    }

    /// TRUNCATE in its forms; rare, as each makes everybody wait.
    fn emptied(&mut self, id: u64, few: u64) -> String {
        match self.dice.below(8) {
            0 => format!(
                "TRUNCATE basket CASCADE; INSERT INTO basket SELECT {id} + i, 'basket' FROM generate_series(1, {few}) AS i; INSERT INTO item SELECT {id} + i, {id} + i, 'sku' FROM generate_series(1, {few}) AS i"
            ),
            1 => format!("TRUNCATE item; INSERT INTO item VALUES ({id}, NULL, 'after')"),
            2 => "TRUNCATE basket, item".to_owned(),
            3 => "TRUNCATE reading_high".to_owned(),
            4 => "TRUNCATE loose, trace".to_owned(),
            _ => format!("DELETE FROM item WHERE id % 7 = {few} % 7"),
        }
    }
}
