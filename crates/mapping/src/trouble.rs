use std::fmt;

use plan::Sql;

use crate::catalog::SourceTable;

/// Something about a derived table that a person has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind it is.
    pub kind: TroubleKind,
    /// Where in the plan, if at one place.
    pub at: Option<Place>,
    /// The table that no source has, as the SQL names it; only of [`TroubleKind::UnknownTable`].
    pub table: Option<Box<Named>>,
    /// The thing: a column, a function, a clause.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// What to write instead.
    pub next: String,
}

/// A table as a query names it: source and schema may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The source, if it is named.
    pub source: Option<String>,
    /// The schema, if it is named.
    pub schema: Option<String>,
    /// Its name.
    pub name: String,
}

impl Named {
    /// Whether that table can be meant.
    fn can_be(&self, table: &SourceTable) -> bool {
        self.name == table.table.name
            && self.schema.as_ref().is_none_or(|schema| *schema == table.table.schema)
            && self.source.as_ref().is_none_or(|source| *source == table.source)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.source, &self.schema].into_iter().flatten() {
            write!(f, "{part}.")?;
        }
        f.write_str(&self.name)
    }
}

impl Trouble {
    /// Whether it says that this table is not there, however the query names it.
    pub fn misses(&self, table: &SourceTable) -> bool {
        self.table.as_ref().is_some_and(|named| named.can_be(table))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = self.at {
            write!(f, "line {}, column {}: ", at.line, at.column)?;
        }
        write!(f, "{}: {}; {}", self.what, self.why, self.next)
    }
}

/// A place in SQL of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the beginning of that SQL.
    pub offset: usize,
    /// Of the plan's file, from 1.
    pub line: usize,
    /// Characters from that line's beginning, from 1.
    pub column: usize,
}

impl Place {
    /// The place `offset` bytes into `sql`; none behind its end.
    pub fn of(sql: &Sql, offset: usize) -> Option<Place> {
        sql.text.get(..offset)?;
        let (line, column) = sql.place(offset);
        Some(Place { offset, line, column })
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal;)+) => {
        /// The kinds of [`Trouble`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum TroubleKind { $($(#[doc = $doc])+ $name,)+ }

        impl TroubleKind {
            /// All of them.
            pub const ALL: &'static [TroubleKind] = &[$(TroubleKind::$name),+];

            /// As scripts see it.
            pub fn as_str(self) -> &'static str {
                match self { $(TroubleKind::$name => $text),+ }
            }
        }
    };
}

kinds! {
    /// Postgres's parser refuses it.
    Syntax = "sql_syntax";
    /// It is not one SELECT.
    NotSelect = "sql_not_select";
    /// A construct that is not known to be handled.
    Unsupported = "sql_unsupported";
    /// A table that no source has.
    UnknownTable = "unknown_table";
    /// A column that its table does not have, or that several have.
    UnknownColumn = "unknown_column";
    /// A function that the target does not have, or that is of two kinds.
    UnknownFunction = "unknown_function";
    /// A function that gives another result each time.
    Volatile = "volatile";
    /// WITH RECURSIVE.
    Recursive = "recursive";
    /// LIMIT or OFFSET of the whole query.
    Limit = "limit";
    /// The declaration contradicts itself or the query.
    Declaration = "declaration";
    /// A key column that is not in the result.
    KeyMissing = "key_missing";
    /// A key column that can be null.
    KeyNull = "key_null";
    /// A unit that does not follow from the rows that contribute.
    UnitUnclear = "unit_unclear";
    /// The target's relation does not have what is needed.
    TargetUnfit = "target_unfit";
    /// A change of this table affects all units.
    Unbounded = "unbounded";
    /// The query is too large to be derived from.
    TooLarge = "too_large";
    /// The rows alone do not fix the result.
    NotDeterministic = "not_deterministic";
}

impl fmt::Display for TroubleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters() {
        let text = &Sql::from("SELECT 'ü',\n  x");
        assert_eq!(Place::of(text, 0), Some(Place { offset: 0, line: 1, column: 1 }));
        assert_eq!(Place::of(text, 11).map(|at| (at.line, at.column)), Some((1, 11)));
        assert_eq!(Place::of(text, 15).map(|at| (at.line, at.column)), Some((2, 3)));
        assert_eq!(Place::of(text, 99), None);
    }
}
