use std::borrow::Cow;

pub use plan::{Derived, OnConflict, WhenMissing};
use plan::{Rows, Sql};

use crate::catalog::{Catalog, SourceTable};

/// The declaration with a key, where it has none and its rows are those of source tables that have all the same one.
pub(crate) fn keyed<'a>(derived: &'a Derived, catalog: &Catalog) -> Cow<'a, Derived> {
    let identity = |part: &plan::Part| {
        let Rows::Cut(cut) = &part.rows else { return None };
        let is = |name: &SourceTable| name.source == cut.source && name.table == cut.table;
        let table = catalog.tables.iter().find(|table| is(&table.name))?;
        // With FULL all columns are what is told of old rows, and need not tell rows apart.
        (!table.full || table.identity.len() < table.columns.len()).then(|| table.identity.clone())
    };
    let mut keys: Vec<Option<Vec<String>>> = derived.parts.iter().map(identity).collect();
    keys.dedup();
    match keys.as_slice() {
        [Some(key)] if derived.unit().is_empty() => Cow::Owned(Derived { key: key.clone(), ..derived.clone() }),
        _ => Cow::Borrowed(derived),
    }
}

/// What `affected_by` says, and of which tables.
pub(crate) fn said(derived: &Derived) -> impl Iterator<Item = (SourceTable, &Sql)> {
    derived.affected_by.iter().map(|said| (SourceTable::new(&*said.source, said.table.clone()), &said.sql))
}
