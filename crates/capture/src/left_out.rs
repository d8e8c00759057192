//! What a clone has to do without because the plan leaves tables out, or only queries them.

use model::{Code, Finding, SchemaItem, TableName};
use pg::Session;
use plan::Source;

use crate::{CaptureError, select};

/// What is not created at the target.
pub(crate) struct LeftOut {
    /// Tables that do not go into the target as they are, and the views that read them; partitioned tables where none of their partitions is
    /// selected.
    pub relations: Vec<TableName>,
    /// Foreign keys of selected tables that reference one of them.
    keys: Vec<Key>,
    /// Views among `relations`.
    views: Vec<TableName>,
}

struct Key {
    table: TableName,
    name: String,
    references: TableName,
}

impl LeftOut {
    /// Reads the source's catalogs.
    pub async fn find(session: &Session, source: &Source) -> Result<LeftOut, CaptureError> {
        let relations = tables(session, source).await?;
        let oids: Vec<u32> = relations.iter().map(|(oid, _)| *oid).collect();
        let rows = session
            .query(
                "SELECT tn.nspname::text, t.relname::text, k.conname::text, rn.nspname::text, r.relname::text
                   FROM pg_constraint k
                   JOIN pg_class t ON t.oid = k.conrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
                   JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
                  WHERE k.contype = 'f' AND k.confrelid = ANY ($1) AND k.conrelid <> ALL ($1) ORDER BY 1, 2, 3",
                &[&oids],
            )
            .await?;
        let name = |row: &tokio_postgres::Row, at: usize| {
            TableName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1))
        };
        let keys =
            rows.iter().map(|row| Key { table: name(row, 0), name: row.get(2), references: name(row, 3) }).collect();
        let rows = session
            .query(
                "WITH RECURSIVE gone AS (
                        SELECT unnest($1::oid[]) AS oid
                     UNION
                        SELECT r.ev_class FROM gone g
                          JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = g.oid AND d.classid = 'pg_rewrite'::regclass
                          JOIN pg_rewrite r ON r.oid = d.objid)
                 SELECT n.nspname::text, c.relname::text FROM gone g JOIN pg_class c ON c.oid = g.oid JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relkind IN ('v', 'm') ORDER BY 1, 2",
                &[&oids],
            )
            .await?;
        let views: Vec<TableName> = rows.iter().map(|row| name(row, 0)).collect();
        let mut relations: Vec<TableName> = relations.into_iter().map(|(_, table)| table).collect();
        relations.extend(views.iter().cloned());
        Ok(LeftOut { relations, keys, views })
    }

    /// Whether this entry of the dump is a foreign key to a table that is not there.
    pub fn has(&self, item: &SchemaItem) -> bool {
        item.kind == "FK CONSTRAINT"
            && self
                .keys
                .iter()
                .any(|key| item.schema == key.table.schema && item.name == format!("{} {}", key.table.name, key.name))
    }

    /// What people should know before they start.
    pub fn findings(&self) -> Vec<Finding> {
        let next = |table: &TableName| format!("add \"{table}\" to the source's `tables`, or leave it so");
        let keys = self.keys.iter().map(|key| {
            let why =
                format!("it references {}, which the plan leaves out: the target is built without it", key.references);
            Finding::warning(
                Code::NotCarried,
                format!("foreign key {} of table {}", key.name, key.table),
                why,
                next(&key.references),
            )
        });
        let views = self.views.iter().map(|view| {
            let why = "it reads a table that the plan leaves out: the target is built without it";
            let next = "add the tables that it reads to the source's `tables`, or leave it so";
            Finding::warning(Code::NotCarried, format!("view {view}"), why, next)
        });
        keys.chain(views).collect()
    }
}

async fn tables(session: &Session, source: &Source) -> Result<Vec<(u32, TableName)>, CaptureError> {
    let selected = select::as_is(session, source).await?;
    let rows = session
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', rn.nspname::text, r.relname::text
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid) LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
              WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'crossfade')",
            &[],
        )
        .await?;
    let mut out = Vec::new();
    for row in rows {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        let root = row.get::<_, Option<String>>(4).map(|schema| TableName::new(schema, row.get::<_, String>(5)));
        let partitioned: bool = row.get(3);
        let top = root.as_ref().unwrap_or(&name);
        let keep = select::goes_as_is(source, &name, root.as_ref())
            || (partitioned && selected.iter().any(|table| table.root.as_ref() == Some(top)));
        if !keep {
            out.push((row.get(0), name));
        }
    }
    Ok(out)
}
