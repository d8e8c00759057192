//! What a query has to know of the tables that it reads. Asked by name, as databases can have many tables.

use model::TableName;
use tokio_postgres::{Client, Row};

/// A table, partitioned ones included.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Its name.
    pub name: TableName,
    /// Every column that COPY and the tail carry: all but the generated ones.
    pub columns: Vec<Column>,
    /// What identifies a row: the replica identity's columns, or with a full one the primary key's. Empty if nothing does.
    pub key: Vec<String>,
    /// Whether its replica identity is `FULL`; of a partitioned one, that of all its partitions.
    pub full: bool,
    /// Whether it has inheritance children, whose rows a query of it gives as well. Partitions are none.
    pub heirs: bool,
    /// Whether it, or one of its partitions, is partitioned by hash.
    pub hashed: bool,
    /// Whether one of its partitions has another key than it has itself.
    pub keyed_apart: bool,
}

/// A column of a [`Definition`].
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as `format_type` without a typmod has it.
    pub type_name: String,
    /// Whether it is NOT NULL.
    pub not_null: bool,
    /// Whether its values can be stored out of line, by its type: what is SET STORAGE since then leaves those that are there where they are.
    pub toastable: bool,
}

/// The columns of the replica identity of a `pg_class` by that alias.
macro_rules! key {
    ($class:literal) => {
        concat!(
            "SELECT array_agg(att.attname::text ORDER BY cols.place) AS names
         FROM pg_index ind, unnest(ind.indkey::int2[]) WITH ORDINALITY cols(attnum, place), pg_attribute att
        WHERE ind.indrelid = ",
            $class,
            ".oid AND cols.place <= ind.indnkeyatts AND att.attrelid = ",
            $class,
            ".oid AND att.attnum = cols.attnum
          AND ind.indisvalid AND ind.indimmediate
          AND CASE ",
            $class,
            ".relreplident WHEN 'i' THEN ind.indisreplident WHEN 'n' THEN false ELSE ind.indisprimary END"
        )
    };
}

const TABLES: &str = concat!(
    "\
SELECT n.nspname::text, c.relname::text,
       CASE WHEN c.relkind = 'p' THEN coalesce(l.whole, false) ELSE c.relreplident = 'f' END AS whole,
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid) AS heirs,
       coalesce(l.hashed, false) AS hashed, coalesce(p.apart, false) AS keyed_apart,
       coalesce(k.names, '{}') AS key, a.names, a.types, a.not_null, a.toastable
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN LATERAL (
       SELECT array_agg(att.attname::text ORDER BY att.attnum) AS names,
              array_agg(format_type(att.atttypid, NULL) ORDER BY att.attnum) AS types,
              array_agg(att.attnotnull ORDER BY att.attnum) AS not_null,
              array_agg(ty.typstorage <> 'p' ORDER BY att.attnum) AS toastable
         FROM pg_attribute att JOIN pg_type ty ON ty.oid = att.atttypid
        WHERE att.attrelid = c.oid AND att.attnum > 0 AND NOT att.attisdropped AND att.attgenerated = '') a ON a.names IS NOT NULL
  LEFT JOIN LATERAL (
       SELECT bool_and(leaf.relreplident = 'f') FILTER (WHERE t.isleaf) AS whole, bool_or(by.partstrat = 'h') AS hashed
         FROM pg_partition_tree(c.oid) t JOIN pg_class leaf ON leaf.oid = t.relid
         LEFT JOIN pg_partitioned_table by ON by.partrelid = t.relid WHERE c.relkind = 'p') l ON true
  LEFT JOIN LATERAL (
       ",
    key!("c"),
    ") k ON true
  LEFT JOIN LATERAL (
       SELECT bool_or(own.names IS DISTINCT FROM k.names) AS apart
         FROM pg_partition_tree(c.oid) t JOIN pg_class leaf ON leaf.oid = t.relid
         LEFT JOIN LATERAL (
       ",
    key!("leaf"),
    ") own ON true
        WHERE t.isleaf AND c.relkind = 'p') p ON true
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.relname = ANY ($1::text[])
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'crossfade') AND n.nspname !~ '^pg_(toast|temp)'
 ORDER BY 1, 2"
);

/// All tables of these names, in whatever schema.
///
/// # Errors
/// The query fails.
pub async fn tables(client: &Client, names: &[String]) -> Result<Vec<Definition>, tokio_postgres::Error> {
    Ok(client.query(TABLES, &[&names]).await?.iter().map(table).collect())
}

fn table(row: &Row) -> Definition {
    let (names, types): (Vec<String>, Vec<String>) = (row.get("names"), row.get("types"));
    let (not_null, toastable): (Vec<bool>, Vec<bool>) = (row.get("not_null"), row.get("toastable"));
    let flags = not_null.into_iter().zip(toastable);
    let column = |((name, type_name), (not_null, toastable))| Column { name, type_name, not_null, toastable };
    Definition {
        name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        columns: names.into_iter().zip(types).zip(flags).map(column).collect(),
        key: row.get("key"),
        full: row.get("whole"),
        heirs: row.get("heirs"),
        hashed: row.get("hashed"),
        keyed_apart: row.get("keyed_apart"),
    }
}

const NAMES: &str = "\
SELECT n.nspname::text, c.relname::text, rn.nspname::text, r.relname::text
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid)
  LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'crossfade') AND n.nspname !~ '^pg_(toast|temp)'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY 1, 2";

/// The names of all tables that hold rows, of a partition that of its root as well: those of
/// [`catalog::tables`](crate::catalog::tables).
///
/// # Errors
/// The query fails.
pub async fn names(client: &Client) -> Result<Vec<(TableName, Option<TableName>)>, tokio_postgres::Error> {
    let name = |row: &Row| {
        let root = row.get::<_, Option<String>>(2).map(|schema| TableName::new(schema, row.get::<_, String>(3)));
        (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), root)
    };
    Ok(client.query(NAMES, &[]).await?.iter().map(name).collect())
}
