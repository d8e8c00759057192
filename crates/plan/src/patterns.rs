use std::collections::BTreeSet;

use globset::{Glob, GlobMatcher};
use model::TableName;

/// Which tables of a source: `schema.table` patterns, in which `*` stands for any text, `?` for one character, `[ab]`
/// for one of them and `{a,b}` for alternatives. A table is selected if a pattern selects it and none with a leading
/// `!` does; their order does not matter. The schema ends at the first dot. System schemas and `crossfade` are never
/// selected, whatever the patterns say.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    written: Vec<String>,
    select: Vec<Pattern>,
    reject: Vec<Pattern>,
    /// Just these, whatever the patterns say.
    exactly: Option<BTreeSet<TableName>>,
    /// These as well.
    also: BTreeSet<TableName>,
    /// Only of those that these select, too.
    within: Option<Box<Patterns>>,
    /// None of those that these select.
    but: Option<Box<Patterns>>,
}

#[derive(Clone, Debug)]
struct Pattern {
    schema: GlobMatcher,
    table: GlobMatcher,
}

impl Patterns {
    /// Reads patterns; what is wrong with one comes back as (its position, why).
    pub(crate) fn parse(written: Vec<String>) -> Result<Patterns, (usize, String)> {
        let (mut select, mut reject) = (Vec::new(), Vec::new());
        for (i, text) in written.iter().enumerate() {
            let (list, text) = match text.strip_prefix('!') {
                Some(text) => (&mut reject, text),
                None => (&mut select, text.as_str()),
            };
            list.push(Pattern::parse(text).map_err(|why| (i, why))?);
        }
        Ok(Patterns { written, select, reject, ..Patterns::default() })
    }

    /// These tables and no others.
    pub(crate) fn exactly(tables: impl IntoIterator<Item = TableName>) -> Patterns {
        let tables: BTreeSet<TableName> = tables.into_iter().collect();
        let written = tables.iter().map(TableName::to_string).collect();
        Patterns { written, exactly: Some(tables), ..Patterns::default() }
    }

    /// The same, and `table`, whatever they say of it.
    pub(crate) fn and(&self, table: &TableName) -> Patterns {
        let mut also = self.also.clone();
        also.insert(table.clone());
        Patterns { also, ..self.clone() }
    }

    /// Of these those that `other` selects, too.
    pub(crate) fn within(&self, other: &Patterns) -> Patterns {
        Patterns { within: Some(Box::new(other.clone())), ..self.clone() }
    }

    /// Of these those that `other` does not select.
    pub(crate) fn but(&self, other: &Patterns) -> Patterns {
        Patterns { but: Some(Box::new(other.clone())), ..self.clone() }
    }

    /// Whether `table` is one of them.
    pub fn selects(&self, table: &TableName) -> bool {
        if self.also.contains(table) {
            return true;
        }
        if self.within.as_ref().is_some_and(|other| !other.selects(table))
            || self.but.as_ref().is_some_and(|other| other.selects(table))
        {
            return false;
        }
        if let Some(tables) = &self.exactly {
            return tables.contains(table);
        }
        let matches = |patterns: &[Pattern]| {
            patterns.iter().any(|p| p.schema.is_match(&table.schema) && p.table.is_match(&table.name))
        };
        !is_system(&table.schema) && matches(&self.select) && !matches(&self.reject)
    }

    /// The patterns as they stand in the plan.
    pub fn written(&self) -> &[String] {
        &self.written
    }

    /// Whether there is a pattern that selects anything.
    pub(crate) fn any(&self) -> bool {
        !self.select.is_empty()
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern, String> {
        let (schema, table) = text
            .split_once('.')
            .filter(|(schema, table)| !schema.is_empty() && !table.is_empty())
            .ok_or_else(|| format!("the pattern {text:?} is not of the form schema.table"))?;
        let glob = |part: &str| match Glob::new(part) {
            Ok(glob) => Ok(glob.compile_matcher()),
            Err(error) => Err(format!("the pattern {text:?} cannot be read ({})", error.kind())),
        };
        Ok(Pattern { schema: glob(schema)?, table: glob(table)? })
    }
}

/// Postgres reserves `pg_` for itself.
fn is_system(schema: &str) -> bool {
    schema.starts_with("pg_") || schema == "information_schema" || schema == "crossfade"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn patterns(written: &[&str]) -> Patterns {
        Patterns::parse(written.iter().map(|&text| text.to_owned()).collect()).unwrap()
    }

    #[test]
    fn a_table_is_selected_by_a_pattern_unless_another_rejects_it() {
        let patterns = patterns(&["!public.tmp_*", "public.*", "app_{a,b}.order?"]);
        for (schema, name, selected) in [
            ("public", "users", true),
            ("public", "with.dot", true),
            ("public", "tmp_x", false),
            ("app_a", "orders", true),
            ("app_c", "orders", false),
            ("app_a", "order", false),
            ("PUBLIC", "users", false),
        ] {
            assert_eq!(patterns.selects(&TableName::new(schema, name)), selected, "{schema}.{name}");
        }
    }

    #[test]
    fn what_others_take_out_is_not_selected() {
        let (all, a) = (patterns(&["public.*"]), TableName::new("public", "a"));
        let selects = |patterns: &Patterns| ["a", "b"].map(|name| patterns.selects(&TableName::new("public", name)));
        assert_eq!(selects(&all.but(&patterns(&["*.a"]))), [false, true]);
        assert_eq!(selects(&patterns(&["*.a"]).within(&all.but(&patterns(&["*.b"])))), [true, false]);
        assert_eq!(selects(&patterns(&["*.*"]).within(&Patterns::exactly([]))), [false, false]);
        assert_eq!(selects(&all.but(&all).and(&a)), [true, false]);
    }

    #[test]
    fn system_schemas_are_never_selected() {
        let all = patterns(&["*.*"]);
        assert!(all.selects(&TableName::new("public", "t")));
        for schema in ["pg_catalog", "pg_toast", "information_schema", "crossfade"] {
            assert!(!all.selects(&TableName::new(schema, "t")), "{schema}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for text in ["users", ".users", "public.", "", "!users", "public.[a"] {
            let (at, why) = Patterns::parse(vec!["a.b".into(), text.into()]).unwrap_err();
            assert_eq!(at, 1);
            assert!(why.contains(text.trim_start_matches('!')), "{why}");
        }
    }
}
