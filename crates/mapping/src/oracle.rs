use model::quote;

use crate::catalog::Side;
use crate::compile::Subject;
use crate::derived::{OnConflict, WhenMissing};
use crate::print::Printer;

/// A derived table's query in full, to compare the target with.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Over the sources' own tables; right where all of `sources` are one database.
    pub over_sources: String,
    /// The sources that it reads.
    pub sources: Vec<String>,
    /// Over the mirrors.
    pub over_mirrors: String,
    /// The target's rows, in the same columns.
    pub target: String,
    /// Columns that depend on what was there before, and are in none of these.
    pub left_out: Vec<String>,
    /// Whether the target may have rows that the query no longer gives.
    pub more_in_target: bool,
}

impl Oracle {
    pub(crate) fn of(subject: &Subject<'_>) -> Oracle {
        let derived = subject.derived;
        let by_history =
            |name: &String| derived.on_conflict.get(name).is_some_and(|rule| *rule != OnConflict::Overwrite);
        let (left_out, compared): (Vec<String>, Vec<String>) = subject.names().into_iter().partition(by_history);
        let columns = quote::idents(compared.iter().map(String::as_str));
        // What the target's column makes of a value: 5 in numeric(10,2) is 5.00.
        let as_there = |name: &String| {
            let column = subject.catalog.target.columns.iter().find(|column| column.name == *name);
            let quoted = quote::ident(name);
            match column.and_then(|column| column.cast.as_ref()) {
                Some(cast) => format!("CAST(q.{quoted} AS {cast}) AS {quoted}"),
                None => format!("q.{quoted}"),
            }
        };
        let given = compared.iter().map(as_there).collect::<Vec<_>>().join(", ");
        let table = |table: usize, _| subject.source(table).table.quoted();
        let own = Printer { aliases: &subject.reading.aliases, table: &table }.query(subject.query());
        let mirrored = subject.over_mirrors(Side::New, |printer| printer.query(subject.query()));
        let mut sources: Vec<String> = subject.sources().into_iter().map(|source| source.source).collect();
        sources.dedup();
        Oracle {
            over_sources: format!("SELECT {given} FROM ({own}) AS q"),
            sources,
            over_mirrors: format!("SELECT {given} FROM ({mirrored}) AS q"),
            target: format!("SELECT {columns} FROM {}", derived.into.quoted()),
            left_out,
            more_in_target: derived.when_missing == WhenMissing::Keep,
        }
    }
}
