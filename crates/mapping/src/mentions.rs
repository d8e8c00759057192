use pg_query::ParserOptions;
use plan::{Derived, Rows, Sql};

use crate::catalog::SourceTable;

/// Whether what gives a table's rows can mean this source table, by its name as it may be written: in any part, and in what is said of which rows affect which.
pub fn mentions(derived: &Derived, table: &SourceTable) -> bool {
    let in_part = |part: &plan::Part| match &part.rows {
        Rows::Query(sql) => mentions_of(sql, table),
        Rows::Cut(cut) => {
            let mut texts = cut.filter.iter().chain(cut.masks.iter().map(|(_, mask)| mask));
            (cut.source == table.source && cut.table == table.table)
                || texts.any(|sql| stands(&sql.text, ParserOptions::PLPGSQL_EXPR, table))
        }
    };
    derived.parts.iter().any(in_part) || derived.affected_by.iter().any(|said| mentions_of(&said.sql, table))
}

/// The same of one query. True of one that has the name in it and cannot be parsed; a CTE of that name counts as well, as inside itself it can mean the table.
pub fn mentions_of(sql: &Sql, table: &SourceTable) -> bool {
    stands(&sql.text, ParserOptions::DEFAULT, table)
}

fn stands(sql: &str, how: ParserOptions, table: &SourceTable) -> bool {
    // There may be many tables, and most queries read a few of them.
    let name = table.table.name.replace('"', "\"\"").to_ascii_lowercase();
    if !sql.to_ascii_lowercase().contains(&name) {
        return false;
    }
    let Ok(parsed) = pg_query::parse(sql, how) else { return true };
    // The parse tree's own text shows every node that there is, in whatever construct it stands.
    let tree = format!("{:?}", parsed.protobuf);
    let written = |source: &str, schema: &str| {
        let name = &table.table.name;
        tree.contains(&format!("RangeVar {{ catalogname: {source:?}, schemaname: {schema:?}, relname: {name:?},"))
    };
    let schema = &table.table.schema;
    written("", "") || written("", schema) || written(&table.source, schema)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::TableName;

    #[test]
    fn a_table_is_found_wherever_it_stands_and_a_column_is_none() {
        let order = SourceTable::new("shop", TableName::new("public", "Or\"der"));
        for from in ["shop.public.\"Or\"\"der\" AS o", "public.\"Or\"\"der\"", "\"Or\"\"der\""] {
            for sql in [
                format!("SELECT 1 FROM {from}"),
                format!("SELECT CASE WHEN a THEN (SELECT max(x) FROM b, LATERAL (SELECT 1 FROM {from}) l) END FROM c"),
                format!("WITH w AS (SELECT 1 UNION SELECT 2 FROM {from}) SELECT * FROM w"),
                format!("SELECT 1 FROM a GROUP BY (SELECT 1 FROM {from}) HAVING NOT EXISTS (SELECT FROM {from})"),
            ] {
                assert!(mentions_of(&sql.as_str().into(), &order), "{sql}");
            }
        }
        for sql in [
            "SELECT \"Or\"\"der\", o.\"Or\"\"der\" FROM o",
            "SELECT 'FROM \"Or\"\"der\"' FROM shop.other.\"Or\"\"der\"",
            "SELECT 1 FROM order",
            "SELECT 1 FROM \"Or\"\"der\" WHERE",
            "SELECT 1 FROM \"order\"",
        ] {
            assert!(mentions_of(&sql.into(), &order) == sql.ends_with("WHERE"), "{sql}");
        }
    }

    #[test]
    fn a_part_names_its_table_without_sql_and_others_within() {
        let named = |name: &str| SourceTable::new("shop", TableName::new("public", name));
        let cut = plan::Cut {
            source: "shop".to_owned(),
            table: TableName::new("public", "users"),
            from: "shop.public.users".into(),
            columns: vec!["note".into()],
            filter: Some("id IN (SELECT user_id FROM shop.public.member)".into()),
            masks: vec![("email".to_owned(), "(SELECT max(at) FROM seen)".into())],
            mask_in: plan::MaskIn::Everywhere,
        };
        let mut derived = Derived::new(TableName::new("public", "users"), &[], "SELECT 1 FROM shop.public.first");
        derived.parts.push(plan::Part { rows: Rows::Cut(cut), line: 1 });
        for name in ["users", "member", "seen", "first"] {
            assert!(mentions(&derived, &named(name)), "{name}");
        }
        for name in ["note", "email", "user_id"] {
            assert!(!mentions(&derived, &named(name)), "{name}");
        }
        assert!(!mentions(&derived, &SourceTable::new("other", TableName::new("public", "users"))));
    }
}
