use std::collections::BTreeSet;

use plan::{Derived, Rows, Sql};

/// All that can be a name in what gives a table's rows, a table's or a function's among them: whoever asks a database what they are need not
/// ask it for all that it has. More than the names that are meant; of SQL that cannot be split into words, none.
///
/// Constructs that Postgres's grammar turns into calls of functions with other names need no entry: those are all in
/// `pg_catalog`.
pub fn words(derived: &Derived) -> BTreeSet<String> {
    let of_part = |part: &plan::Part| match &part.rows {
        Rows::Query(sql) => of(&sql.text),
        Rows::Cut(cut) => {
            let texts = cut.filter.iter().chain(cut.masks.iter().map(|(_, mask)| mask));
            texts.flat_map(|sql| of(&sql.text)).chain([cut.table.name.clone()]).collect()
        }
    };
    let more = derived.merge.iter().chain(derived.affected_by.iter().map(|said| &said.sql));
    derived.parts.iter().flat_map(of_part).chain(more.flat_map(|sql| of(&sql.text))).collect()
}

/// The same of one query.
pub fn words_of(sql: &Sql) -> BTreeSet<String> {
    of(&sql.text)
}

fn of(sql: &str) -> BTreeSet<String> {
    let Ok(scanned) = pg_query::scan(sql) else { return BTreeSet::new() };
    let tokens = scanned.tokens.iter().filter_map(|token| {
        let (start, end) = (usize::try_from(token.start).ok()?, usize::try_from(token.end).ok()?);
        sql.get(start..end)
    });
    tokens.filter_map(name).collect()
}

/// The name that a token is, quoted or not.
fn name(token: &str) -> Option<String> {
    if let Some(quoted) = token.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Some(quoted.replace("\"\"", "\""));
    }
    let first = token.chars().next()?;
    // Postgres folds ASCII letters alone where the server's encoding has several bytes a character.
    (first.is_alphabetic() || first == '_').then(|| token.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_among_the_words_as_the_catalogs_have_it() {
        let sql =
            "SELECT Lower(o.\"Größe\"), 'no /* name', \"a\"\"b\" -- nor this\nFROM shop.PUBLIC.\"my table\" o, value";
        let words = of(sql);
        for word in ["lower", "Größe", "a\"b", "shop", "public", "my table", "o", "value"] {
            assert!(words.contains(word), "{word} in {words:?}");
        }
        assert!(!words.iter().any(|word| word.contains("no")), "{words:?}");
        assert!(of("SELECT 'open").is_empty());
    }
}
