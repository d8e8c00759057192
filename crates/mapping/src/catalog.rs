use std::fmt;

use model::TableName;

/// A table of a source, as a query names it: `source.schema.table`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceTable {
    /// The source's name in the plan.
    pub source: String,
    /// Schema and name there.
    pub table: TableName,
}

impl SourceTable {
    /// Puts the two together.
    pub fn new(source: impl Into<String>, table: TableName) -> Self {
        SourceTable { source: source.into(), table }
    }
}

impl fmt::Display for SourceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.source, self.table)
    }
}

/// What a query may read and where its rows go, as the caller found it in the databases.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// All captured tables of all sources.
    pub tables: Vec<Table>,
    /// The functions of the target, by `pg_proc`; those of `pg_catalog` included.
    pub functions: Vec<Function>,
    /// The relation that the rows go into.
    pub target: Target,
}

/// A table of a source.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: SourceTable,
    /// Its columns, in their order, dropped ones left out.
    pub columns: Vec<Column>,
    /// The columns of its replica identity; all of them with `FULL`, none without identity.
    pub identity: Vec<String>,
    /// Whether the identity is `FULL`: old rows then arrive whole, and equal rows may exist twice.
    pub full: bool,
}

/// A column of a source's table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as `format_type` without a typmod has it.
    pub type_name: String,
    /// Whether it is NOT NULL.
    pub not_null: bool,
    /// Whether its values can be stored out of line (`attstorage <> 'p'`): an update that leaves such a value alone
    /// arrives without it.
    pub toastable: bool,
}

/// A function of the target.
#[derive(Clone, Debug)]
pub struct Function {
    /// Schema and name.
    pub name: TableName,
    /// `prokind`.
    pub kind: FunctionKind,
    /// `provolatile`.
    pub volatility: Volatility,
    /// `proretset`.
    pub returns_set: bool,
    /// The names of its OUT and TABLE columns, where it has more than one.
    pub columns: Vec<String>,
}

/// `pg_proc.prokind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FunctionKind {
    /// `f`
    Plain,
    /// `a`
    Aggregate,
    /// `w`
    Window,
}

/// `pg_proc.provolatile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Volatility {
    /// `i`
    Immutable,
    /// `s`
    Stable,
    /// `v`
    Volatile,
}

/// The relation that a derived table's rows go into.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Its columns.
    pub columns: Vec<TargetColumn>,
    /// The columns of each unique index that ON CONFLICT can name: not partial, not on expressions, not deferrable.
    pub unique: Vec<Vec<String>>,
}

/// A column of the target.
#[derive(Clone, Debug)]
pub struct TargetColumn {
    /// Its name.
    pub name: String,
    /// Its type, as `format_type` without a typmod has it.
    pub type_name: String,
    /// Its type with its typmod, if it is one of Postgres's own: a CAST to it means the same at every server.
    pub cast: Option<String>,
    /// Whether it is NOT NULL.
    pub not_null: bool,
    /// Whether an insert may leave it out: it has a default or is an identity column.
    pub has_default: bool,
    /// Whether it is generated from others, and cannot be written.
    pub generated: bool,
    /// Whether it is an identity column that is always generated: it can be inserted and not updated.
    pub identity_always: bool,
}

/// Old or new versions of the rows that a batch changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// As they were before it.
    Old,
    /// As they are after it.
    New,
}

/// Where things lie in the target.
pub trait Places {
    /// The copy of a source's table inside the target.
    fn mirror(&self, table: &SourceTable) -> TableName;

    /// The temp table of the batch's changed rows of a source's table, with that table's columns.
    fn changed(&self, table: &SourceTable, side: Side) -> TableName;

    /// A temp table of one derived table; `name` says what for.
    fn scratch(&self, into: &TableName, name: &str) -> TableName;
}

/// All in the schemas that crossfade owns, with names that say what they are; too long ones end in a hash.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usual;

impl Places for Usual {
    fn mirror(&self, table: &SourceTable) -> TableName {
        TableName::new("crossfade", short(&format!("mirror {table}")))
    }

    fn changed(&self, table: &SourceTable, side: Side) -> TableName {
        let side = match side {
            Side::Old => "old",
            Side::New => "new",
        };
        TableName::new("pg_temp", short(&format!("{side} {table}")))
    }

    fn scratch(&self, into: &TableName, name: &str) -> TableName {
        TableName::new("pg_temp", short(&format!("{name} {into}")))
    }
}

/// The bytes that Postgres keeps of an identifier (`NAMEDATALEN - 1`).
const NAME: usize = 63;

/// `name`, or, where Postgres would cut it, what fits of it and a hash of the whole.
fn short(name: &str) -> String {
    if name.len() <= NAME {
        return name.to_owned();
    }
    // FNV-1a: the same in every version of the program, as mirrors stay.
    let hash = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    let mut cut = NAME - 17;
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{} {hash:016x}", &name[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_postgres_would_cut_stay_different() {
        let table = |name: &str| SourceTable::new("shop", TableName::new("public", name));
        let long = "ü".repeat(40);
        let (one, other) = (Usual.mirror(&table(&format!("{long}1"))), Usual.mirror(&table(&format!("{long}2"))));
        assert!(one.name.len() <= NAME && other.name.len() <= NAME && one != other, "{one} {other}");
        assert_eq!(Usual.changed(&table("a"), Side::Old).name, "old shop.public.a");
    }
}
