//! Two queries that must give the same rows, each asked in a transaction that sees one instant. Sums of hashes are compared; where they differ both are read in the order of the hashes of
//! their keys, some rows at a time, and only the rows that are shown are fetched, all of them at once, and of long values the beginning.

use std::cmp::Ordering;

use model::quote;
use pg::Session;

use crate::error::VerifyError;
use crate::report::SHOWN_OF_A_VALUE;
use crate::side::{Row, rows};
use crate::sums::{Hash, Sum};

/// Lines of hashes that are fetched with one statement, of about a hundred bytes each.
const FETCH: usize = 5_000;

/// Different rows with one key that are fetched to be shown: without a key's index there may be any number.
const ALIKE: usize = 10;

/// One of the two.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub session: &'a Session,
    pub query: &'a str,
}

/// Both, of the same columns.
pub(crate) struct Queries<'a> {
    pub want: Asked<'a>,
    pub have: Asked<'a>,
    pub columns: &'a [String],
    /// What tells rows apart, as positions in `columns`; empty where nothing does.
    pub key: &'a [usize],
    /// Rows that only the second has are right where the first has none of their key.
    pub more: bool,
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Rows of the first.
    pub rows: i64,
    pub missing: u64,
    pub extra: u64,
    pub different: u64,
    /// Of some that differ, what only one of the two has.
    pub samples: Vec<Only>,
}

/// Rows with one key that only one of the two has, or has more often.
#[derive(Debug, Default)]
pub(crate) struct Only {
    pub want: Vec<Row>,
    pub have: Vec<Row>,
}

impl Queries<'_> {
    /// Compares; of rows that differ, `samples` are fetched.
    pub async fn compare(&self, samples: usize) -> Result<Found, VerifyError> {
        let mut found = Found::default();
        if !self.more {
            let hash = Hash::of(self.want.session, self.have.session).await?;
            let want = self.sum(self.want, hash).await?;
            if want == self.sum(self.have, hash).await? {
                found.rows = want.rows;
                return Ok(found);
            }
        }
        let keys = self.walk(samples, &mut found).await?;
        let any = found.missing + found.extra + found.different > 0;
        if !(any || self.more) {
            return Err(VerifyError::Again("sums differ and no rows do".to_owned()));
        }
        if keys.is_empty() {
            return Ok(found);
        }
        let (want, have) = (self.fetch(self.want, &keys).await?, self.fetch(self.have, &keys).await?);
        for key in &keys {
            found.samples.push(Only { want: only(key, &want, &have), have: only(key, &have, &want) });
        }
        Ok(found)
    }

    /// The same text for the same row everywhere.
    fn text(&self, of: impl Iterator<Item = usize>) -> String {
        let cells: Vec<String> = of.map(|at| format!("q.{}::text", quote::ident(&self.columns[at]))).collect();
        format!("ROW({})::text", cells.join(", "))
    }

    fn md5(text: &str) -> String {
        format!("md5(convert_to({text}, 'UTF8'))")
    }

    fn row(&self) -> String {
        self.text(0..self.columns.len())
    }

    /// The hash of what tells rows apart.
    fn key(&self) -> String {
        match self.key.is_empty() {
            true => Self::md5(&self.row()),
            false => Self::md5(&self.text(self.key.iter().copied())),
        }
    }

    async fn sum(&self, of: Asked<'_>, hash: Hash) -> Result<Sum, VerifyError> {
        let texts = format!("SELECT {} COLLATE \"C\" AS r FROM ({}) AS q", self.row(), of.query);
        Sum::of_texts(of.session, hash, &texts).await
    }

    /// Reads both in the order of the keys' hashes, and counts what differs; returns the first keys' hashes of which rows do.
    async fn walk(&self, samples: usize, found: &mut Found) -> Result<Vec<String>, VerifyError> {
        let mut want = self.open(self.want, "crossfade_want").await?;
        let mut have = self.open(self.have, "crossfade_have").await?;
        let mut keys = Vec::new();
        loop {
            let key = match (want.key().await?, have.key().await?) {
                (None, None) => break,
                (Some(one), None) | (None, Some(one)) => one.to_owned(),
                (Some(one), Some(other)) => one.min(other).to_owned(),
            };
            let (given, missing, extra) = with_key(&mut want, &mut have, &key).await?;
            found.rows += given;
            let (missing, extra) = (missing, if self.more && given == 0 { 0 } else { extra });
            let both = if self.key.is_empty() { 0 } else { missing.min(extra) };
            found.different += both;
            found.missing += missing - both;
            found.extra += extra - both;
            if missing + extra > 0 && keys.len() < samples {
                keys.push(key);
            }
        }
        want.close().await?;
        have.close().await?;
        Ok(keys)
    }

    async fn open<'c>(&self, of: Asked<'c>, name: &'static str) -> Result<Cursor<'c>, VerifyError> {
        // All of it will be read.
        let declare = format!(
            "SET LOCAL cursor_tuple_fraction = 1; DECLARE {name} NO SCROLL CURSOR FOR
             SELECT k, h, count(*) FROM (SELECT {} COLLATE \"C\" AS k, {} COLLATE \"C\" AS h FROM ({}) AS q) AS r GROUP BY k, h ORDER BY k, h",
            self.key(),
            Self::md5(&self.row()),
            of.query
        );
        of.session.batch_execute(&declare).await?;
        Ok(Cursor { session: of.session, name, lines: Vec::new().into_iter(), next: None, over: false })
    }

    /// Different rows with these hashes of their keys, [`ALIKE`] of each at most, by one run of the query.
    async fn fetch(&self, of: Asked<'_>, keys: &[String]) -> Result<Vec<Shown>, VerifyError> {
        let cells: Vec<String> =
            self.columns.iter().map(|name| shown(&format!("q.{}::text", quote::ident(name)))).collect();
        let places: Vec<String> = (1..=cells.len()).map(|place| format!("c{place}")).collect();
        let named: Vec<String> = cells.iter().zip(&places).map(|(cell, place)| format!("{cell} AS {place}")).collect();
        let keys: Vec<String> = keys.iter().map(|key| quote::literal(key)).collect();
        let comma = if places.is_empty() { "" } else { ", " };
        // By their places: a name would mean the query's own column, if it has one of that name.
        let grouped: String = (0..cells.len()).map(|cell| format!(", {}", cell + 4)).collect();
        let query = format!(
            "SELECT k, h, n{comma}{1} FROM (
               SELECT r.*, row_number() OVER (PARTITION BY k ORDER BY h) AS place FROM (
                 SELECT {2} COLLATE \"C\" AS k, {3} COLLATE \"C\" AS h, count(*) AS n{comma}{0} FROM ({4}) AS q WHERE {2} IN ({5}) GROUP BY 1, 2{grouped}) AS r) AS r
              WHERE place <= {ALIKE} ORDER BY k, h",
            named.join(", "),
            places.join(", "),
            self.key(),
            Self::md5(&self.row()),
            of.query,
            keys.join(", ")
        );
        let line = |row: Row| {
            let mut cells = row.into_iter();
            let (key, hash, times) = (cells.next()??, cells.next()??, cells.next()??.parse().ok()?);
            Some(Shown { key, hash, times, row: cells.collect() })
        };
        Ok(rows(of.session, &query).await?.into_iter().filter_map(line).collect())
    }
}

/// What people look at of a value, as a query gives it: of a long one the beginning, its size, and what tells it apart from another one that begins so.
fn shown(value: &str) -> String {
    format!(
        "CASE WHEN length({value}) > {SHOWN_OF_A_VALUE} THEN left({value}, {SHOWN_OF_A_VALUE}) || '… (' || octet_length({value}) || ' bytes, md5 ' || md5(convert_to({value}, 'UTF8')) || ')' ELSE {value} END"
    )
}

/// Of a key's rows on one side those that the other side lacks, or has less often.
fn only(key: &str, ours: &[Shown], theirs: &[Shown]) -> Vec<Row> {
    let there = |row: &&Shown| {
        theirs.iter().find(|other| other.hash == row.hash && other.key == row.key).map_or(0, |other| other.times)
    };
    ours.iter().filter(|row| row.key == key && row.times > there(row)).map(|row| row.row.clone()).collect()
}

/// A row that is shown.
struct Shown {
    /// The hash of its key.
    key: String,
    /// The hash of all of it.
    hash: String,
    /// How often there is such a row.
    times: u64,
    /// Long values cut.
    row: Row,
}

/// A line: the hash of the key, of the row, and how often there is that.
type Line = (String, String, i64);

/// Lines of one query, in the order of their hashes.
struct Cursor<'a> {
    session: &'a Session,
    name: &'static str,
    lines: std::vec::IntoIter<Row>,
    next: Option<Line>,
    over: bool,
}

impl Cursor<'_> {
    /// The next line stays the next one.
    async fn peek(&mut self) -> Result<Option<&Line>, VerifyError> {
        if self.next.is_none() && !self.over {
            if self.lines.len() == 0 {
                self.lines = rows(self.session, &format!("FETCH {FETCH} FROM {}", self.name)).await?.into_iter();
            }
            self.next = self.lines.next().and_then(|line| {
                let [key, row, times] = <[Option<String>; 3]>::try_from(line).ok()?;
                Some((key?, row?, times?.parse().ok()?))
            });
            self.over = self.next.is_none();
        }
        Ok(self.next.as_ref())
    }

    async fn key(&mut self) -> Result<Option<&str>, VerifyError> {
        Ok(self.peek().await?.map(|(key, ..)| key.as_str()))
    }

    /// The hash of the next row, if it has this key.
    async fn of(&mut self, key: &str) -> Result<Option<String>, VerifyError> {
        Ok(self.peek().await?.filter(|(next, ..)| next == key).map(|(_, row, _)| row.clone()))
    }

    fn take(&mut self) -> i64 {
        self.next.take().map_or(0, |(.., times)| times)
    }

    async fn close(self) -> Result<(), VerifyError> {
        Ok(self.session.batch_execute(&format!("CLOSE {}", self.name)).await?)
    }
}

/// Of the rows with a key: how many are wanted, how many are missing, and how many there are on top.
async fn with_key(want: &mut Cursor<'_>, have: &mut Cursor<'_>, key: &str) -> Result<(i64, u64, u64), VerifyError> {
    let (mut given, mut missing, mut extra) = (0, 0, 0);
    loop {
        let side = match (want.of(key).await?, have.of(key).await?) {
            (None, None) => return Ok((given, missing, extra)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.cmp(&other),
        };
        let ours = if side.is_le() { want.take() } else { 0 };
        let theirs = if side.is_ge() { have.take() } else { 0 };
        given += ours;
        missing += (ours - theirs).max(0).unsigned_abs();
        extra += (theirs - ours).max(0).unsigned_abs();
    }
}
