use crate::catalog::SourceTable;

/// Whether a query can mean this table, by its name as it may be written. True of a query that cannot be parsed; a CTE of that name counts as well, as inside
/// itself it can mean the table.
pub fn mentions(sql: &str, table: &SourceTable) -> bool {
    let Ok(parsed) = pg_query::parse(sql, 0) else { return true };
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
                assert!(mentions(&sql, &order), "{sql}");
            }
        }
        for sql in [
            "SELECT \"Or\"\"der\", o.\"Or\"\"der\" FROM o",
            "SELECT 'FROM \"Or\"\"der\"' FROM shop.other.\"Or\"\"der\"",
            "SELECT 1 FROM order",
            "SELECT 1 FROM \"order\"",
        ] {
            assert!(mentions(sql, &order) == (sql == "SELECT 1 FROM order"), "{sql}");
        }
    }
}
