//! The SQL that writes many rows of one table at once. Values come as text arrays, one a column, and are cast in the projection, so that
//! any type goes over.

use model::{Cell, Tuple, quote};

use super::target::{Identity, Target};
use super::text_array::TextArray;

/// A statement, and which columns its arrays hold, by their position in the relation.
pub(super) struct Statement {
    pub sql: String,
    pub columns: Vec<usize>,
}

impl Statement {
    /// The arrays for `rows`.
    pub fn arrays<'a>(&self, rows: &[&'a Tuple]) -> Vec<TextArray<'a>> {
        let mut arrays: Vec<TextArray<'a>> =
            self.columns.iter().map(|_| TextArray(Vec::with_capacity(rows.len()))).collect();
        let last = self.columns.iter().max().map_or(0, |last| last + 1);
        let mut cells: Vec<Option<&'a [u8]>> = Vec::with_capacity(last);
        for row in rows {
            cells.clear();
            cells.extend(row.cells().take(last).map(Cell::text));
            for (array, column) in arrays.iter_mut().zip(&self.columns) {
                array.0.push(cells.get(*column).copied().flatten());
            }
        }
        arrays
    }
}

impl Target {
    fn name(&self, column: usize) -> String {
        quote::ident(&self.columns[column].name)
    }

    /// `u.cN::type`.
    fn value(&self, column: usize) -> String {
        format!("u.c{column}::{}", self.columns[column].cast)
    }

    /// Its name where rows are changed or removed.
    fn rows_of(&self) -> String {
        format!("{}{}", self.only, self.into.quoted())
    }

    fn equal(&self, column: usize, value: &str) -> String {
        format!("t.{} {} {value}", self.name(column), self.columns[column].equals)
    }

    fn rows(columns: &[usize]) -> String {
        let arrays: Vec<_> = (1..=columns.len()).map(|n| format!("${n}::text[]")).collect();
        let names: Vec<_> = columns.iter().map(|column| format!("c{column}")).collect();
        format!("unnest({}) AS u({})", arrays.join(", "), names.join(", "))
    }

    fn key(&self) -> &[usize] {
        match &self.identity {
            Identity::Key(key) => key,
            Identity::WholeRow | Identity::None => &[],
        }
    }

    /// `t.key = u.key AND …`.
    fn matched(&self) -> String {
        let equal: Vec<_> = self.key().iter().map(|column| self.equal(*column, &self.value(*column))).collect();
        equal.join(" AND ")
    }

    fn all(&self) -> Vec<usize> {
        (0..self.columns.len()).collect()
    }

    pub fn insert(&self) -> Statement {
        let columns = self.all();
        let sql = if columns.is_empty() {
            format!("INSERT INTO {} DEFAULT VALUES", self.into.quoted())
        } else {
            let names: Vec<_> = columns.iter().map(|column| self.name(*column)).collect();
            let values: Vec<_> = columns.iter().map(|column| self.value(*column)).collect();
            format!(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
                self.into.quoted(),
                names.join(", "),
                values.join(", "),
                Self::rows(&columns)
            )
        };
        Statement { sql, columns }
    }

    /// The same for [`copy_text`](super::copy_text); `None` for a table without columns, which COPY does not fill.
    pub fn copy(&self) -> Option<String> {
        let names = quote::idents(self.columns.iter().map(|column| column.name.as_str()));
        (!names.is_empty()).then(|| format!("COPY {} ({names}) FROM STDIN", self.into.quoted()))
    }

    /// By key; of a table without one, whole rows, each as often as it is given.
    pub fn delete(&self) -> Statement {
        let into = self.rows_of();
        let columns = match &self.identity {
            Identity::Key(key) => key.clone(),
            Identity::WholeRow | Identity::None => self.all(),
        };
        let sql = if let Identity::Key(_) = self.identity {
            format!("DELETE FROM {into} t USING {} WHERE {}", Self::rows(&columns), self.matched())
        } else {
            // A row's text tells null from empty, and any type has one. Equal rows are numbered on both sides, so that n given
            // ones take n; a join alone would take all.
            let here: Vec<_> = columns.iter().map(|column| format!("t.{}::text", self.name(*column))).collect();
            let given: Vec<_> = columns.iter().map(|column| format!("({})::text", self.value(*column))).collect();
            format!(
                "DELETE FROM {into} WHERE (tableoid, ctid) IN (
                   SELECT t.tableoid, t.ctid
                     FROM (SELECT t.tableoid, t.ctid, ROW({here})::text AS r, row_number() OVER (PARTITION BY ROW({here})::text) AS n FROM {into} t) t
                     JOIN (SELECT ROW({given})::text AS r, row_number() OVER (PARTITION BY ROW({given})::text) AS n FROM {rows}) u
                       ON u.r = t.r AND u.n = t.n)",
                here = here.join(", "),
                given = given.join(", "),
                rows = Self::rows(&columns)
            )
        };
        Statement { sql, columns }
    }

    /// Sets `present` columns of the rows with these keys. `None` if there is nothing to set.
    pub fn update(&self, present: &[usize]) -> Option<Statement> {
        let set: Vec<usize> = present
            .iter()
            .copied()
            .filter(|column| !self.key().contains(column) && !self.columns[*column].identity_always)
            .collect();
        let mut columns = self.key().to_vec();
        columns.extend(&set);
        let assignments: Vec<_> =
            set.iter().map(|column| format!("{} = {}", self.name(*column), self.value(*column))).collect();
        // Without anything to set the row must still be there.
        let assignments = match (assignments.is_empty(), self.key().first()) {
            (false, _) => assignments.join(", "),
            (true, Some(key)) if !self.columns[*key].identity_always => format!("{0} = t.{0}", self.name(*key)),
            (true, _) => return None,
        };
        let sql = format!(
            "UPDATE {} t SET {assignments} FROM {} WHERE {}",
            self.rows_of(),
            Self::rows(&columns),
            self.matched()
        );
        Some(Statement { sql, columns })
    }

    /// GENERATED ALWAYS columns beside the key: they cannot be updated, so a row that has another value is written anew.
    pub fn identity_columns(&self, present: &[usize]) -> Vec<usize> {
        present
            .iter()
            .copied()
            .filter(|column| self.columns[*column].identity_always && !self.key().contains(column))
            .collect()
    }

    /// Gives the row with the old key (the arrays' first columns) the `present` values, its key among them. What is not present stays: the
    /// row moves, it is not written anew from what was sent. Columns that cannot be updated make it DELETE … RETURNING and INSERT.
    pub fn shift(&self, present: &[usize]) -> Statement {
        let key = self.key();
        let offset = self.columns.len();
        // Old keys stand behind the columns: position offset + k.
        let mut columns: Vec<usize> = key.iter().map(|column| offset + column).collect();
        columns.extend(present);
        let matched: Vec<_> = key
            .iter()
            .map(|column| self.equal(*column, &format!("u.c{}::{}", offset + column, self.columns[*column].cast)))
            .collect();
        let (into, rows, matched) = (self.rows_of(), Self::rows(&columns), matched.join(" AND "));
        let sql = if present.iter().any(|column| self.columns[*column].identity_always) {
            let all = self.all();
            let names: Vec<_> = all.iter().map(|column| self.name(*column)).collect();
            let returned: Vec<_> = all
                .iter()
                .map(|column| {
                    let value = if present.contains(column) {
                        self.value(*column)
                    } else {
                        format!("t.{}", self.name(*column))
                    };
                    format!("{value} AS c{column}")
                })
                .collect();
            let taken: Vec<_> = all.iter().map(|column| format!("gone.c{column}")).collect();
            format!(
                "WITH gone AS (DELETE FROM {into} t USING {rows} WHERE {matched} RETURNING {})
                 INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM gone",
                returned.join(", "),
                self.into.quoted(),
                names.join(", "),
                taken.join(", ")
            )
        } else {
            let set: Vec<_> =
                present.iter().map(|column| format!("{} = {}", self.name(*column), self.value(*column))).collect();
            format!("UPDATE {into} t SET {} FROM {rows} WHERE {matched}", set.join(", "))
        };
        Statement { sql, columns }
    }
}

/// Which columns a row was sent with.
pub(super) fn present(row: &Tuple) -> Vec<usize> {
    row.cells().enumerate().filter(|(_, cell)| *cell != Cell::Unchanged).map(|(column, _)| column).collect()
}

/// A move's row: the new columns, and behind them the old ones.
pub(super) fn shifted(old: &Tuple, new: &Tuple) -> Tuple {
    let cells: Vec<Cell<'_>> = new.cells().chain(old.cells()).collect();
    Tuple::from_cells(cells.into_iter())
}
