use std::collections::BTreeMap;

use model::TableName;

use crate::catalog::SourceTable;

/// A derived table as the plan declares it.
#[derive(Clone, Debug)]
pub struct Derived {
    /// The relation of the target that its rows go into.
    pub into: TableName,
    /// The columns that tell its rows apart. Empty: rows have no identity, and all of a unit's rows are written anew when
    /// one of them can have changed.
    pub key: Vec<String>,
    /// The query.
    pub sql: String,
    /// The columns whose values name what changes together; empty: the key.
    pub recompute_by: Vec<String>,
    /// What happens to columns of rows that are there already; [`OnConflict::Overwrite`] where nothing is said.
    pub on_conflict: BTreeMap<String, OnConflict>,
    /// What happens to rows that the query no longer gives.
    pub when_missing: WhenMissing,
    /// Per source table, a query of the units that its changed rows affect: it reads them as `changed`, and may read all
    /// source tables. It takes the place of what is derived for that table.
    pub affected_by: BTreeMap<SourceTable, String>,
}

impl Derived {
    /// One that says no more than it must.
    pub fn new(into: TableName, key: &[&str], sql: impl Into<String>) -> Self {
        Derived {
            into,
            key: key.iter().map(|&name| name.to_owned()).collect(),
            sql: sql.into(),
            recompute_by: Vec::new(),
            on_conflict: BTreeMap::new(),
            when_missing: WhenMissing::Delete,
            affected_by: BTreeMap::new(),
        }
    }

    /// The columns of the unit.
    pub fn unit(&self) -> &[String] {
        if self.recompute_by.is_empty() { &self.key } else { &self.recompute_by }
    }
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
