use std::fmt;

use crate::TableName;

/// A `pg_class` or `pg_type` oid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid(pub u32);

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the source's WAL holds of a row's old version (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// No old version.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of a chosen unique index.
    Index,
}

impl ReplicaIdentity {
    /// From the catalog's letter.
    pub fn from_letter(letter: char) -> Option<Self> {
        match letter {
            'd' => Some(Self::Default),
            'n' => Some(Self::Nothing),
            'f' => Some(Self::Full),
            'i' => Some(Self::Index),
            _ => None,
        }
    }

    /// The catalog's letter.
    pub fn letter(self) -> char {
        match self {
            Self::Default => 'd',
            Self::Nothing => 'n',
            Self::Full => 'f',
            Self::Index => 'i',
        }
    }
}

/// A table as the tail describes it: the columns that changes carry, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid` at the source.
    pub id: Oid,
    /// Its name when the change was made.
    pub table: TableName,
    /// What old versions hold.
    pub identity: ReplicaIdentity,
    /// Every column but the generated ones.
    pub columns: Vec<Column>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Whether it is part of the replica identity.
    pub key: bool,
    /// `pg_type.oid` at the source.
    pub type_oid: Oid,
    /// `atttypmod`; -1 for none.
    pub modifier: i32,
}
