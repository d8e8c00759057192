//! Counts and sums of row hashes. A sum does not depend on the order of the rows, and does not cancel equal ones out as XOR would; of each row two hashes of 64 bits
//! are added up apart, so that two changes would have to hit both by chance.

use std::ops::{Add, Sub};

use pg::Session;

use crate::error::VerifyError;
use crate::pair::{At, Pair};
use crate::side::{Row, Side, rows};

/// How rows are hashed: the same text gives the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    /// `hashtextextended` with two seeds: quick, and the same between servers of one kind.
    Extended,
    /// The halves of an MD5 of the row in UTF-8: the same everywhere.
    Md5,
}

/// Any number but 0, which is the other one.
const SEED: u64 = 0x5EED;

impl Hash {
    /// The quick one, where a probe shows that both sides agree on it.
    pub async fn of(source: &Session, target: &Session) -> Result<Hash, VerifyError> {
        let probe = format!(
            "SELECT current_setting('server_encoding'), hashtextextended(p, 0), hashtextextended(p, {SEED})
               FROM unnest(ARRAY['', 'crossfade', repeat('0123456789', 100)]) p"
        );
        let alike = rows(source, &probe).await? == rows(target, &probe).await?;
        Ok(if alike { Hash::Extended } else { Hash::Md5 })
    }

    /// As the log has it.
    pub fn name(self) -> String {
        match self {
            Hash::Extended => format!("hashtextextended 0 {SEED}"),
            Hash::Md5 => "md5".to_owned(),
        }
    }

    /// What [`name`](Self::name) says of it.
    pub fn of_name(name: &str) -> Option<Hash> {
        [Hash::Extended, Hash::Md5].into_iter().find(|hash| hash.name() == name)
    }

    /// The same on all servers on which it gives the same for a row.
    pub async fn probe(self, session: &Session) -> Result<String, VerifyError> {
        match self {
            Hash::Extended => {
                let query = format!(
                    "SELECT concat_ws(' ', current_setting('server_encoding'), hashtextextended('crossfade', 0), hashtextextended('crossfade', {SEED}))"
                );
                Ok(session.query_one(&query, &[]).await?.get(0))
            }
            Hash::Md5 => Ok(String::new()),
        }
    }

    /// A query of the hashes `a` and `b` of the text `r`, and of columns `with`, from `rows`.
    fn over(self, with: &str, rows: &str) -> String {
        // OFFSET 0 keeps what is inside from being worked out twice.
        match self {
            Hash::Extended => {
                format!(
                    "SELECT hashtextextended(r, 0) AS a, hashtextextended(r, {SEED}) AS b{with} FROM ({rows} OFFSET 0) r"
                )
            }
            Hash::Md5 => format!(
                "SELECT ('x' || substr(m, 1, 16))::bit(64)::int8 AS a, ('x' || substr(m, 17))::bit(64)::int8 AS b{with}
                   FROM (SELECT md5(convert_to(r, 'UTF8')) AS m{with} FROM ({rows} OFFSET 0) r OFFSET 0) m"
            ),
        }
    }

    /// A query of the hashes `a` and `b`, and of these `cells`, of the rows of `pair` that meet a condition.
    pub fn rows(self, pair: &Pair, at: At, cells: &[String], condition: &str) -> String {
        let named: String = cells.iter().enumerate().map(|(number, cell)| format!(", {cell} AS k{number}")).collect();
        let with: String = (0..cells.len()).map(|number| format!(", k{number}")).collect();
        let rows = format!(
            "SELECT ROW({})::text COLLATE \"C\" AS r{named} FROM {} WHERE {condition}",
            pair.each_cell().join(", "),
            pair.from(at)
        );
        self.over(&with, &rows)
    }

    /// The hashes of rows that are given, one by one.
    pub async fn each(self, side: &Side, given: &[Row]) -> Result<Vec<[String; 2]>, VerifyError> {
        let mut found = Vec::with_capacity(given.len());
        for some in given.chunks(GIVEN) {
            let hashes = side.rows(&self.over("", &values(some))).await?;
            found.extend(
                hashes
                    .into_iter()
                    .filter_map(|row| <[Option<String>; 2]>::try_from(row).ok())
                    .filter_map(|[a, b]| Some([a?, b?])),
            );
        }
        Ok(found)
    }
}

/// Given rows as a query of the texts `r` that are hashed.
fn values(rows: &[Row]) -> String {
    let lines: Vec<String> = rows.iter().map(|row| format!("({})", text(row))).collect();
    format!("SELECT column1 COLLATE \"C\" AS r FROM (VALUES {}) v", lines.join(", "))
}

/// Rows in one statement, whose text takes memory on both ends.
const GIVEN: usize = 500;

/// A row as the text that is hashed, as SQL.
fn text(row: &Row) -> String {
    let cell = |value: &Option<String>| {
        value.as_ref().map_or("NULL::text".to_owned(), |value| format!("{}::text", model::quote::literal(value)))
    };
    format!("ROW({})::text", row.iter().map(cell).collect::<Vec<_>>().join(", "))
}

/// How many rows, and the sums of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub rows: i64,
    a: i128,
    b: i128,
}

impl Add for Sum {
    type Output = Sum;

    fn add(self, other: Sum) -> Sum {
        Sum { rows: self.rows + other.rows, a: self.a + other.a, b: self.b + other.b }
    }
}

impl Sub for Sum {
    type Output = Sum;

    fn sub(self, other: Sum) -> Sum {
        Sum { rows: self.rows - other.rows, a: self.a - other.a, b: self.b - other.b }
    }
}

impl Sum {
    /// Of the rows of `pair` that meet a condition.
    pub async fn of(side: &Side, at: At, pair: &Pair, hash: Hash, condition: &str) -> Result<Sum, VerifyError> {
        Sum::asked(side, &hash.rows(pair, at, &[], condition)).await
    }

    /// Of rows that are given.
    pub async fn given(side: &Side, hash: Hash, given: &[Row]) -> Result<Sum, VerifyError> {
        let mut sum = Sum::default();
        for some in given.chunks(GIVEN) {
            sum = sum + Sum::asked(side, &hash.over("", &values(some))).await?;
        }
        Ok(sum)
    }

    /// Of the texts `r` that a query gives.
    pub async fn of_texts(session: &Session, hash: Hash, texts: &str) -> Result<Sum, VerifyError> {
        Sum::found(rows(session, &Sum::query(&hash.over("", texts))).await?)
    }

    async fn asked(side: &Side, hashes: &str) -> Result<Sum, VerifyError> {
        Sum::found(side.rows(&Sum::query(hashes)).await?)
    }

    fn query(hashes: &str) -> String {
        format!("SELECT count(*), coalesce(sum(a), 0), coalesce(sum(b), 0) FROM ({hashes}) h")
    }

    fn found(found: Vec<Row>) -> Result<Sum, VerifyError> {
        found.first().and_then(|row| Sum::parse(row)).ok_or_else(|| VerifyError::Again("a sum is no number".to_owned()))
    }

    /// From three columns: how many, and the two sums.
    pub fn parse(row: &[Option<String>]) -> Option<Sum> {
        let number = |at: usize| row.get(at)?.as_ref()?.parse::<i128>().ok();
        Some(Sum { rows: number(0)? as i64, a: number(1)?, b: number(2)? })
    }

    /// Both sums in 128 bits, as hexadecimal digits.
    pub fn hex(self) -> String {
        // Modulo 2^64 each: what is cut off says nothing more about single rows.
        format!("{:016x}{:016x}", self.a as u64, self.b as u64)
    }
}
