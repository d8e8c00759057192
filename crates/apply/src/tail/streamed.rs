//! Rows of a table of which nothing is stored, written to a table that is streamed from it.

use std::collections::{BTreeMap, BTreeSet};

use mapping::Streamed;
use model::{Code, Old, Problem, Tuple, quote};
use pg::Session;
use tokio_postgres::types::ToSql;

use super::fold::Op;
use super::net::Net;
use super::prepared::Prepared;
use super::sets::{Statement, present, shifted};
use super::target::{Identity, Target};
use crate::ApplyError;

/// What becomes of a table's rows in a group.
pub(crate) struct Changed<'a> {
    target: &'a Target,
    net: Net,
}

/// A table's columns, in their order: name and type.
pub(crate) type Columns<'a> = [(&'a str, &'a str)];

/// Changed rows, or what of them is in these places, as a subquery; they come as arrays, from this parameter on.
fn rows(columns: &Columns<'_>, places: &[usize], parameter: usize) -> String {
    format!("(SELECT {} FROM {})", values(columns, places, 0), arrays(places, parameter))
}

fn arrays(places: &[usize], parameter: usize) -> String {
    let arrays: Vec<_> = (parameter..parameter + places.len()).map(|number| format!("${number}::text[]")).collect();
    let names: Vec<_> = places.iter().map(|place| format!("c{place}")).collect();
    format!("unnest({}) AS u({})", arrays.join(", "), names.join(", "))
}

fn values(columns: &Columns<'_>, places: &[usize], offset: usize) -> String {
    let value = |place: &usize| {
        let (name, cast) = columns[*place];
        format!("u.c{}::{cast} AS {}", place + offset, quote::ident(name))
    };
    places.iter().map(value).collect::<Vec<_>>().join(", ")
}

/// The statements that write changed rows of a table with these columns, each with what it does. Rows that come without all values, or under another key, have some of their own.
pub(crate) fn statements(streamed: &Streamed, columns: &Columns<'_>) -> Vec<(&'static str, String)> {
    let places = |names: BTreeSet<&str>| -> Vec<usize> {
        (0..columns.len()).filter(|place| names.contains(columns[*place].0)).collect()
    };
    let (key, all) = (rows(columns, &places(streamed.key_reads()), 1), rows(columns, &places(streamed.reads()), 1));
    let stay = match streamed.delete_filtered(&all) {
        Some(left_out) => vec![
            ("take away rows that the filter leaves out", left_out),
            ("write rows that changed", streamed.upsert_made(&streamed.made(&all))),
        ],
        None => streamed.update(|_| true, &all).map(|sql| ("write rows that changed", sql)).into_iter().collect(),
    };
    let gone = ("take away rows that are gone", streamed.delete(&key));
    std::iter::once(gone).chain(stay).chain([("write rows that are new", streamed.insert(&all))]).collect()
}

impl<'a> Changed<'a> {
    pub(super) fn of(target: &'a Target) -> Self {
        Changed { target, net: Net::default() }
    }

    fn key(&self) -> &[usize] {
        match &self.target.identity {
            Identity::Key(key) => key,
            Identity::WholeRow | Identity::None => &[],
        }
    }

    pub(super) fn op(&mut self, op: &Op) -> Result<(), ApplyError> {
        let key = self.key().to_vec();
        match self.net.op(op, &key) {
            true => Ok(()),
            false => Err(self.odd()),
        }
    }

    pub(super) fn moves(&mut self, old: &Old, new: &Tuple) -> Result<(), ApplyError> {
        let key = self.key().to_vec();
        match self.net.moves(old, new, &key) {
            true => Ok(()),
            false => Err(self.odd()),
        }
    }

    pub(super) fn empty(&mut self) {
        self.net.empty();
    }

    /// Rows with these keys are taken away, whichever are there, and others put in their place.
    pub(super) fn replace(&mut self, keys: &[Tuple], new: &[Tuple]) {
        let key = self.key().to_vec();
        self.net.replace(keys, new, &key);
    }

    fn odd(&self) -> ApplyError {
        let table = &self.target.origin;
        let why =
            "one change of a row does not follow the one before: it is inserted twice, or changed once it is gone";
        let next = format!("copy it again (`crossfade recopy {}`), and report it", table.table);
        Problem::new(Code::Divergence, format!("table {table}"), why, next).into()
    }

    /// All rows that were there before are gone.
    pub(crate) fn is_emptied(&self) -> bool {
        self.net.emptied
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.net.is_empty()
    }

    fn columns(&self) -> Vec<(&str, &str)> {
        self.target.columns.iter().map(|column| (column.name.as_str(), column.cast.as_str())).collect()
    }

    fn places<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Vec<usize> {
        let place = |name: &str| self.target.columns.iter().position(|column| column.name == name);
        let mut places: Vec<usize> = names.into_iter().filter_map(place).collect();
        places.sort_unstable();
        places
    }

    fn named(&self, present: &[usize], name: &str) -> bool {
        present.iter().any(|place| self.target.columns[*place].name == name)
    }

    /// What of a changed row's columns came with it.
    fn came(&self, places: &[usize], row: &Tuple) -> Vec<usize> {
        let present = present(row);
        places.iter().copied().filter(|place| present.contains(place)).collect()
    }

    fn statement(&self, places: &[usize], sql: impl FnOnce(&str) -> String) -> Statement {
        Statement { sql: sql(&rows(&self.columns(), places, 1)), columns: places.to_vec() }
    }

    /// Writes them. Says whether every row that had to be there was.
    ///
    /// # Errors
    /// The target: a constraint may be broken by the order, and not by what it comes to.
    pub(crate) async fn write(
        &self,
        session: &Session,
        prepared: &mut Prepared,
        streamed: &Streamed,
    ) -> Result<bool, ApplyError> {
        let mut writing = Writing { session, prepared };
        let (sorted, key) = (self.net.sorted(self.key()), self.places(streamed.key_reads()));
        let all = self.places(streamed.reads());
        // Rows that the filter leaves out are not there.
        let exact = streamed.filter.is_none() && !self.net.loose;
        let (whole, parted): (Vec<_>, Vec<_>) = sorted.come.iter().partition(|(_, now)| self.came(&all, now) == all);
        // They are taken from the rows under the old keys, which go next.
        let moved = self.moved(&parted);
        if moved.len() < parted.len() {
            return Ok(false);
        }
        if !moved.is_empty() && !self.merge(&mut writing, streamed, &moved, "moved").await? {
            return Ok(false);
        }
        if !sorted.gone.is_empty() {
            let gone = writing.run(&self.statement(&key, |rows| streamed.delete(rows)), &sorted.gone).await?;
            if exact && gone != sorted.gone.len() as u64 {
                return Ok(false);
            }
        }
        if !self.change(&mut writing, streamed, &sorted.stay, &all).await? {
            return Ok(false);
        }
        if !whole.is_empty() {
            let rows: Vec<&Tuple> = whole.iter().map(|(_, now)| *now).collect();
            writing.run(&self.statement(&all, |rows| streamed.insert(rows)), &rows).await?;
        }
        if !moved.is_empty() {
            let made = temp(streamed, "moved");
            session.batch_execute(&format!("{}; DROP TABLE {made}", streamed.insert_made(&made))).await?;
        }
        Ok(true)
    }

    /// Values that an update left out are those of the row that is there. Nothing else can be made of them: no filter, and no column that reads others with them. While old rows come
    /// whole they are known; that can have ended since the copy.
    fn enough(&self, streamed: &Streamed, came: &[usize]) -> Result<(), ApplyError> {
        let left_out = |reads: &[String]| reads.iter().find(|name| !self.named(came, name)).cloned();
        let some = |reads: &[String]| reads.iter().any(|name| self.named(came, name));
        let all: Vec<String> = streamed.reads().into_iter().map(str::to_owned).collect();
        let filtered = streamed.filter.as_ref().and_then(|_| left_out(&all));
        let mut columns = streamed.columns.iter().filter(|column| some(&column.reads));
        let Some(column) = filtered.or_else(|| columns.find_map(|column| left_out(&column.reads))) else {
            return Ok(());
        };
        let table = &self.target.origin;
        let why = format!(
            "an update came without a value of {column}, which {} cannot do without; when the table was copied it had REPLICA IDENTITY FULL",
            streamed.into
        );
        let next = format!(
            "copy it again (`crossfade recopy {}`), with a mirror, or without one after ALTER TABLE {} REPLICA IDENTITY FULL at the source, and start again; nothing was skipped",
            table.table,
            table.table.quoted()
        );
        Err(Problem::new(Code::SchemaChanged, format!("table {table}"), why, next).into())
    }

    /// Rows that stay under their keys.
    async fn change(
        &self,
        writing: &mut Writing<'_>,
        streamed: &Streamed,
        stay: &[&Tuple],
        all: &[usize],
    ) -> Result<bool, ApplyError> {
        if stay.is_empty() {
            return Ok(true);
        }
        let mut groups: BTreeMap<Vec<usize>, Vec<&Tuple>> = BTreeMap::new();
        for row in stay {
            groups.entry(self.came(all, row)).or_default().push(row);
        }
        groups.keys().try_for_each(|came| self.enough(streamed, came))?;
        if streamed.filter.is_some() {
            let delete = |rows: &str| streamed.delete_filtered(rows).unwrap_or_default();
            writing.run(&self.statement(all, delete), stay).await?;
            writing.run(&self.statement(all, |rows| streamed.upsert_made(&streamed.made(rows))), stay).await?;
            return Ok(true);
        }
        for (came, group) in groups {
            let rows = rows(&self.columns(), &came, 1);
            let Some(sql) = streamed.update(|name| self.named(&came, name), &rows) else { continue };
            if writing.run(&Statement { sql, columns: came }, &group).await? != group.len() as u64 && !self.net.loose {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Rows that did not bring all values, with their old keys behind them.
    fn moved(&self, parted: &[&(Option<&Tuple>, &Tuple)]) -> Vec<Tuple> {
        parted.iter().filter_map(|(was, now)| Some(shifted((*was)?, now))).collect()
    }

    /// Makes the target's rows of such as did not bring all values, in a temp table. Says whether all of them were there.
    async fn merge(
        &self,
        writing: &mut Writing<'_>,
        streamed: &Streamed,
        rows: &[Tuple],
        name: &str,
    ) -> Result<bool, ApplyError> {
        let made = temp(streamed, name);
        let names = quote::idents(streamed.columns.iter().map(|column| column.name.as_str()));
        let create = format!(
            "DROP TABLE IF EXISTS {made}; CREATE TEMP TABLE {} AS SELECT {names} FROM {} WITH NO DATA",
            made.trim_start_matches("pg_temp."),
            streamed.into.quoted()
        );
        writing.session.batch_execute(&create).await?;
        let (key, all, columns) = (self.places(streamed.key_reads()), self.places(streamed.reads()), self.columns());
        let offset = columns.len();
        let mut groups: BTreeMap<Vec<usize>, Vec<&Tuple>> = BTreeMap::new();
        for row in rows {
            groups.entry(self.came(&all, row)).or_default().push(row);
        }
        for (came, group) in groups {
            self.enough(streamed, &came)?;
            let both: Vec<usize> = came.iter().copied().chain(key.iter().map(|place| place + offset)).collect();
            let new = format!("(SELECT {})", values(&columns, &came, 0));
            let old = format!("(SELECT {})", values(&columns, &key, offset));
            let merged = streamed.merged(|name| self.named(&came, name), &arrays(&both, 1), &new, &old);
            let sql = format!("INSERT INTO {made} ({names}) SELECT {names} FROM {merged} AS m");
            if writing.run(&Statement { sql, columns: both }, &group).await? != group.len() as u64 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts all rows as they are to be into one temp table, and all keys that they had into another. Says whether all of them were there.
    pub(crate) async fn apart(
        &self,
        session: &Session,
        prepared: &mut Prepared,
        streamed: &Streamed,
    ) -> Result<Option<Apart>, ApplyError> {
        let mut writing = Writing { session, prepared };
        let (sorted, key) = (self.net.sorted(self.key()), self.places(streamed.key_reads()));
        let all = self.places(streamed.reads());
        let mut whole: Vec<&Tuple> = Vec::new();
        let mut parted: Vec<Tuple> = Vec::new();
        let stay = sorted.stay.iter().map(|now| (*now, *now));
        let come = sorted.come.iter().map(|(was, now)| (was.unwrap_or(now), *now));
        for (was, now) in stay.chain(come) {
            match self.came(&all, now) == all {
                true => whole.push(now),
                false => parted.push(shifted(was, now)),
            }
        }
        if !self.merge(&mut writing, streamed, &parted, "result").await? {
            return Ok(None);
        }
        let (made, keys) = (temp(streamed, "result"), temp(streamed, "keys"));
        let names = quote::idents(streamed.columns.iter().map(|column| column.name.as_str()));
        if !whole.is_empty() {
            let insert =
                |rows: &str| format!("INSERT INTO {made} ({names}) SELECT {names} FROM {} AS m", streamed.made(rows));
            writing.run(&self.statement(&all, insert), &whole).await?;
        }
        let names = quote::idents(streamed.key.iter().map(String::as_str));
        let create = format!(
            "DROP TABLE IF EXISTS {keys}; CREATE TEMP TABLE {} AS SELECT {names} FROM {} WITH NO DATA",
            keys.trim_start_matches("pg_temp."),
            streamed.into.quoted()
        );
        session.batch_execute(&create).await?;
        let was: Vec<&Tuple> = sorted.gone.iter().chain(&sorted.stay).copied().collect();
        if !was.is_empty() {
            let insert =
                |rows: &str| format!("INSERT INTO {keys} ({names}) SELECT {names} FROM {} AS o", streamed.keys(rows));
            writing.run(&self.statement(&key, insert), &was).await?;
        }
        Ok(Some(Apart { made, keys }))
    }

    /// A row that had to be there and is not.
    pub(crate) async fn missing(&self, session: &Session, streamed: &Streamed) -> Result<ApplyError, ApplyError> {
        let sorted = self.net.sorted(self.key());
        let was: Vec<&Tuple> = sorted.gone.into_iter().chain(sorted.stay).collect();
        let statement = self.statement(&self.places(streamed.key_reads()), |rows| streamed.missing(rows));
        let arrays = statement.arrays(&was);
        let parameters: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
        let row = session.query_opt(&statement.sql, &parameters).await?;
        let key = row.map_or_else(String::new, |row| row.get(0));
        let named = format!("table {}, row {} = {key}", streamed.into, streamed.key.join(", "));
        let next = format!(
            "somebody else wrote to the target, or it lacks rows: find out who, mend the row, or copy its source table again (`crossfade recopy {}`), and start again; nothing was skipped",
            streamed.source.table
        );
        let why = format!("an update or a delete in {} meets no such row", streamed.source);
        Ok(Problem::new(Code::Divergence, named, why, next).into())
    }
}

/// Temp tables with what a batch comes to.
pub(crate) struct Apart {
    /// Rows as they are to be.
    pub made: String,
    /// Keys of rows that were there.
    pub keys: String,
}

/// A temp table for what is made of a streamed table.
fn temp(streamed: &Streamed, name: &str) -> String {
    use mapping::{Places, Usual};
    format!("pg_temp.{}", quote::ident(&Usual.scratch(&streamed.into, name).name))
}

struct Writing<'w> {
    session: &'w Session,
    prepared: &'w mut Prepared,
}

impl Writing<'_> {
    /// Runs a statement over rows; says how many it touched.
    async fn run(&mut self, statement: &Statement, rows: &[&Tuple]) -> Result<u64, ApplyError> {
        let prepared = self.prepared.get(self.session, &statement.sql).await?;
        let arrays = statement.arrays(rows);
        let parameters: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
        Ok(self.session.execute(&prepared, &parameters).await?)
    }
}
