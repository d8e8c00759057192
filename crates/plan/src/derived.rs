use std::collections::BTreeMap;

use model::TableName;

/// A table of the target whose rows a query over source tables gives. All `[[table]]`s into it are one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derived {
    /// The relation of the target that they go into; no other [`Derived`] has it, and no source's table goes there as itself.
    pub into: TableName,
    /// The columns that tell its rows apart; empty if nothing is said. Rows of [`Rows::Cut`]s alone then keep the key of their tables.
    pub key: Vec<String>,
    /// What gives its rows, at least one, in the order of the file: the table has the rows of all, and all give the same columns.
    pub parts: Vec<Part>,
    /// For each column that is not of the key an aggregate over it, which makes one row of those that share a key. Empty: no two rows share one.
    pub merge: Vec<Sql>,
    /// The columns whose values name what changes together; empty: the key.
    pub recompute_by: Vec<String>,
    /// What happens to columns of rows that are there already, where something is said.
    pub on_conflict: BTreeMap<String, OnConflict>,
    /// What happens to rows that the query no longer gives.
    pub when_missing: WhenMissing,
    /// Which units a source table's changed rows affect, whatever part reads it; each table once.
    pub affected_by: Vec<AffectedBy>,
    /// The line of the plan that its first part begins in.
    pub line: usize,
}

/// One `[[table]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The rows that it gives.
    pub rows: Rows,
    /// The line of the plan that it begins in.
    pub line: usize,
}

/// Where the rows of a [`Part`] come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// A query.
    Query(Sql),
    /// A source's table, in part or masked.
    Cut(Cut),
}

/// What goes over of a source's table. Whether it has these columns, its catalog tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The name of the source.
    pub source: String,
    /// Its table.
    pub table: TableName,
    /// The same as it is written, for its place.
    pub from: Sql,
    /// The names of the columns, each once; empty: all. They are no SQL, and know where they stand.
    pub columns: Vec<Sql>,
    /// The condition on its rows.
    pub filter: Option<Sql>,
    /// Columns by name, with the expression that takes the place of their values.
    pub masks: Vec<(String, Sql)>,
    /// Where the masks hold.
    pub mask_in: MaskIn,
}

/// Where masks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskIn {
    /// Wherever the plan leads.
    Everywhere,
    /// In rehearsals alone.
    Rehearsals {
        /// Whether the plan is that of one.
        is_one: bool,
    },
}

impl MaskIn {
    /// Whether they hold in this plan.
    pub fn holds(self) -> bool {
        match self {
            MaskIn::Everywhere => true,
            MaskIn::Rehearsals { is_one } => is_one,
        }
    }
}

impl Derived {
    /// One that says no more than it must.
    pub fn new(into: TableName, key: &[&str], sql: impl Into<Sql>) -> Self {
        let sql = sql.into();
        Derived {
            into,
            key: key.iter().map(|&name| name.to_owned()).collect(),
            line: sql.line,
            parts: vec![Part { line: sql.line, rows: Rows::Query(sql) }],
            merge: Vec::new(),
            recompute_by: Vec::new(),
            on_conflict: BTreeMap::new(),
            when_missing: WhenMissing::Delete,
            affected_by: Vec::new(),
        }
    }

    /// The columns of the unit: what changes together.
    pub fn unit(&self) -> &[String] {
        if self.recompute_by.is_empty() { &self.key } else { &self.recompute_by }
    }

    /// What is said of a source's table.
    pub fn affected_by(&self, source: &str, table: &TableName) -> Option<&AffectedBy> {
        self.affected_by.iter().find(|said| said.source == source && said.table == *table)
    }

    /// The same as a rehearsal has it, where that is something else: there are masks that hold in rehearsals alone.
    pub fn rehearsal(&self) -> Option<Derived> {
        let mut rehearsed = self.clone();
        for part in &mut rehearsed.parts {
            if let Rows::Cut(Cut { mask_in: MaskIn::Rehearsals { is_one }, .. }) = &mut part.rows {
                *is_one = true;
            }
        }
        (rehearsed != *self).then_some(rehearsed)
    }

    /// Whether masks of it hold in rehearsals alone.
    pub fn is_masked_in_rehearsals(&self) -> bool {
        let of_part = |part: &Part| matches!(&part.rows, Rows::Cut(Cut { mask_in: MaskIn::Rehearsals { .. }, .. }));
        self.parts.iter().any(of_part)
    }

    /// Line and character of the file where what gives its rows begins.
    pub fn place(&self) -> (usize, usize) {
        self.parts.first().map_or((self.line, 1), |part| part.sql().place(0))
    }
}

impl Part {
    /// The query, or the name of the table.
    pub fn sql(&self) -> &Sql {
        match &self.rows {
            Rows::Query(sql) => sql,
            Rows::Cut(cut) => &cut.from,
        }
    }

    /// All that decides on its rows, wherever it stands.
    pub fn text(&self) -> String {
        let Rows::Cut(cut) = &self.rows else { return self.sql().text.clone() };
        let mut text = format!("from {}.{}", cut.source, cut.table);
        cut.columns.iter().for_each(|column| text += &format!("\u{1e}{}", column.text));
        cut.filter.iter().for_each(|filter| text += &format!("\u{1e}where {}", filter.text));
        if cut.mask_in.holds() {
            cut.masks.iter().for_each(|(column, mask)| text += &format!("\u{1e}{column}={}", mask.text));
        }
        text
    }
}

/// What a [`Derived`] says of one source table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedBy {
    /// The name of the source.
    pub source: String,
    /// Its table.
    pub table: TableName,
    /// The query of the units.
    pub sql: Sql,
}

/// What happens to a column of a row that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// It becomes what the query gives.
    #[default]
    Overwrite,
    /// It stays what it is.
    Keep,
    /// It becomes the greater of both.
    Greatest,
    /// It becomes the lesser of both.
    Least,
}

/// What happens to a row that the query no longer gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenMissing {
    /// It goes.
    #[default]
    Delete,
    /// It stays.
    Keep,
}

/// SQL as it stands in the plan: a string that knows where each of its characters is in the file. Two are equal that say the same, wherever they stand.
#[derive(Clone, Debug)]
pub struct Sql {
    /// What it says.
    pub text: String,
    /// The string as it is written, quotes and escapes included; empty where it is not known.
    written: String,
    /// The line that it begins in, from 1.
    pub line: usize,
    /// The character of that line, from 1.
    column: usize,
}

impl PartialEq for Sql {
    fn eq(&self, other: &Sql) -> bool {
        self.text == other.text
    }
}

impl Eq for Sql {}

/// SQL that stands in no file: its places are those in itself.
impl From<&str> for Sql {
    fn from(text: &str) -> Sql {
        Sql::at_line(text, 1)
    }
}

impl From<&String> for Sql {
    fn from(text: &String) -> Sql {
        text.as_str().into()
    }
}

impl Sql {
    /// SQL that is the whole of some lines of a file, from `line` on.
    pub fn at_line(text: &str, line: usize) -> Sql {
        // What stands in front of the first character is no character of the line.
        Sql::new(text, &format!("'{text}'"), line, 0)
    }

    /// What `written`, which begins at `line` and `column`, says.
    pub(crate) fn new(text: &str, written: &str, line: usize, column: usize) -> Sql {
        Sql { text: text.to_owned(), written: written.to_owned(), line, column }
    }

    /// Line and character of the file, both from 1, where the byte `offset` of the text stands.
    pub fn place(&self, offset: usize) -> (usize, usize) {
        let before = &self.written[..self.behind(offset)];
        match before.rsplit_once('\n') {
            Some((_, last)) => (self.line + before.matches('\n').count(), 1 + last.chars().count()),
            None => (self.line, self.column + before.chars().count()),
        }
    }

    /// How many bytes are written before the byte `offset` of the text.
    fn behind(&self, offset: usize) -> usize {
        let written = &self.written;
        let quotes = if written.starts_with("\"\"\"") || written.starts_with("'''") { 3 } else { 1 };
        let escapes = written.starts_with('"');
        let mut at = quotes.min(written.len());
        if quotes == 3 {
            // A line's end directly behind the quotes is not part of the string.
            at += ["\r\n", "\n"].into_iter().find(|end| written[at..].starts_with(end)).map_or(0, str::len);
        }
        let mut text = self.text.get(..offset).unwrap_or(&self.text).chars();
        loop {
            if escapes {
                at += joined(&written[at..]);
            }
            let Some(next) = text.next() else { return at };
            at += match written[at..].chars().next() {
                Some('\\') if escapes => escape(&written[at..]),
                Some('\r') if next == '\n' => 2,
                Some(c) => c.len_utf8(),
                None => return at,
            };
        }
    }
}

/// The bytes at the beginning of `written` that say nothing: a backslash at a line's end, and all white space behind it.
fn joined(written: &str) -> usize {
    let Some(rest) = written.strip_prefix('\\') else { return 0 };
    let line = rest.trim_start_matches([' ', '\t', '\r']);
    if line.starts_with('\n') { written.len() - line.trim_ascii_start().len() } else { 0 }
}

/// The bytes of the escape that `written` begins with.
fn escape(written: &str) -> usize {
    let digits = match written.as_bytes().get(1) {
        Some(b'x') => 2,
        Some(b'u') => 4,
        Some(b'U') => 8,
        _ => 0,
    };
    (2 + digits).min(written.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_character_of_the_sql_is_found_in_the_file() {
        let of = |written: &str, text: &str, part: &str| {
            Sql::new(text, written, 7, 7).place(text.find(part).unwrap_or_default())
        };
        assert_eq!(of("\"SELECT x\"", "SELECT x", "x"), (7, 15));
        assert_eq!(of("'SELECT x'", "SELECT x", "SELECT"), (7, 8));
        assert_eq!(of("\"\"\"\nSELECT 'ü',\n  x\"\"\"", "SELECT 'ü',\n  x", "x"), (9, 3));
        assert_eq!(of("\"\"\"SELECT 'ü',\n  x\"\"\"", "SELECT 'ü',\n  x", "'"), (7, 17));
        assert_eq!(of("'''\r\nSELECT\r\n  x'''", "SELECT\n  x", "x"), (9, 3));
        assert_eq!(of(r#""SELECT \"id\", \u00fc\nx""#, "SELECT \"id\", ü\nx", "x"), (7, 31));
        assert_eq!(of("\"\"\"SELECT \\\n    \n  x\"\"\"", "SELECT x", "x"), (9, 3));
        assert_eq!(Sql::new("SELECT", "\"SELECT\"", 7, 7).place(99), (7, 14));
        assert_eq!((Sql::from("SELECT 'ü',\n  x").place(15), Sql::from("SELECT x").place(7)), ((2, 3), (1, 8)));
    }
}
