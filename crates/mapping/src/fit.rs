//! Whether the target's relation takes what the query gives.

use crate::catalog::TargetColumn;
use crate::compile::{Subject, of};
use crate::query::{Body, Expr, From, Item, Query};
use crate::trouble::{Trouble, TroubleKind};

pub(crate) fn troubles(subject: &Subject<'_>) -> Vec<Trouble> {
    let (derived, target) = (subject.derived, &subject.catalog.target);
    let into = &derived.into;
    let names = subject.names();
    let mut troubles = Vec::new();
    let mut unfit = |what: String, why: &str, next: String| {
        troubles.push(of(TroubleKind::TargetUnfit, what, why, next));
    };
    for (number, name) in names.iter().enumerate() {
        let what = format!("column {into}.{name}");
        match target.columns.iter().find(|column| column.name == *name) {
            None => unfit(what, "the target does not have it", format!("add it, or take {name} out of the query")),
            Some(column) if column.generated => {
                unfit(what, "the target generates it", format!("take {name} out of the query"));
            }
            Some(column) => {
                if let Some(given) = given(subject, number).filter(|given| !fits(given, column)) {
                    let why = format!("it is {}, and the query gives {given}", column.type_name);
                    unfit(what, &why, format!("write CAST({name} AS {}) in the query", column.type_name));
                }
            }
        }
    }
    for column in &target.columns {
        if column.not_null && !column.has_default && !column.generated && !names.contains(&column.name) {
            let what = format!("column {into}.{}", column.name);
            unfit(what, "it is NOT NULL without a default, and the query does not give it", "select it".to_owned());
        }
    }
    let mut key = derived.key.clone();
    key.sort();
    let has = target.unique.iter().any(|unique| {
        let mut unique = unique.clone();
        unique.sort();
        unique == key
    });
    if !key.is_empty() && !has {
        let columns = derived.key.join(", ");
        let next = format!("ALTER TABLE {} ADD PRIMARY KEY ({columns})", into.quoted());
        unfit(
            format!("the key ({columns}) of {into}"),
            "the target has no unique index on exactly these columns",
            next,
        );
    }
    troubles
}

/// The type of a column of the result, where it is a column of a table as it is.
fn given(subject: &Subject<'_>, number: usize) -> Option<String> {
    let (table, column) = origin(subject.query(), number)?;
    let columns = &subject.catalog.tables.get(table)?.columns;
    columns.iter().find(|known| known.name == column).map(|column| column.type_name.clone())
}

/// The table's column that a column of the result is, as it is.
pub(crate) fn origin(query: &Query, number: usize) -> Option<(usize, String)> {
    let Body::Block(block) = &query.body else { return None };
    match &block.targets.get(number)?.expr {
        Expr::Column(item, name) => column(&block.from, *item, name),
        _ => None,
    }
}

/// The table's column that a column of an item is.
pub(crate) fn column(from: &[From], item: Item, name: &str) -> Option<(usize, String)> {
    let leaf = from.iter().flat_map(From::leaves).find(|leaf| leaf.item() == Some(item))?;
    match leaf {
        From::Table { table, .. } => Some((*table, name.to_owned())),
        From::Query { query, .. } => {
            let number = query.names().iter().position(|known| *known == name)?;
            origin(query, number)
        }
        From::Function { .. } | From::Join { .. } => None,
    }
}

/// Types whose values go into those of another one, with the same `=`.
const WIDER: &[(&str, &[&str])] = &[
    ("smallint", &["integer", "bigint", "numeric"]),
    ("integer", &["bigint", "numeric"]),
    ("bigint", &["numeric"]),
    ("real", &["double precision"]),
    ("text", &["character varying"]),
    ("character varying", &["text"]),
    ("date", &["timestamp without time zone"]),
    ("json", &["jsonb"]),
];

fn fits(given: &str, column: &TargetColumn) -> bool {
    given == column.type_name
        || WIDER.iter().any(|(from, to)| *from == given && to.contains(&column.type_name.as_str()))
}
