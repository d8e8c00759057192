//! Reading the catalogs: which tables there are, what identifies their rows, what they look like to COPY.

use model::{CopyColumn, Identity, Lsn, Oid, ReplicaIdentity, TableName, quote};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// A table that holds rows: an ordinary one, or a partition at the bottom of its tree.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its `pg_class.oid`.
    pub oid: Oid,
    /// Its name.
    pub name: TableName,
    /// Survives a crash and reaches the WAL.
    pub logged: bool,
    /// What the WAL holds of old row versions.
    pub identity: ReplicaIdentity,
    /// Every column that COPY and the tail carry: all but the generated ones.
    pub columns: Vec<CopyColumn>,
    /// What identifies a row: the replica identity's columns, or with a full one the primary key's. Empty if nothing does.
    pub key: Vec<String>,
    /// There is a primary key, but it is deferrable and so identifies nothing to replication.
    pub key_deferrable: bool,
    /// Of a partition: the table at the top.
    pub root: Option<TableName>,
    /// It has inheritance children.
    pub heirs: bool,
    /// By the last ANALYZE; negative where there was none.
    pub rows_estimated: i64,
    /// Of the heap.
    pub bytes: i64,
    /// Of the heap, in blocks, now.
    pub blocks: i64,
    /// Changes when the heap is written anew (TRUNCATE, VACUUM FULL, some ALTER TABLE).
    pub filenode: u32,
    /// Changes with columns, types, constraints, inheritance.
    pub shape: String,
}

impl Table {
    /// Whether an UPDATE or DELETE can be published: with neither key nor full identity Postgres refuses it to the application.
    pub fn has_identity(&self) -> bool {
        match self.identity {
            ReplicaIdentity::Full => true,
            ReplicaIdentity::Nothing => false,
            ReplicaIdentity::Default | ReplicaIdentity::Index => !self.key.is_empty(),
        }
    }
}

/// Which database this session is in.
///
/// # Errors
/// The query fails.
pub async fn identity(client: &Client) -> Result<Identity, tokio_postgres::Error> {
    let row = client
        .query_one("SELECT system_identifier::text, current_database()::text FROM pg_control_system()", &[])
        .await?;
    Ok(Identity { system_identifier: row.get(0), database: row.get(1) })
}

/// The server's version as a number: 150018 is 15.18.
///
/// # Errors
/// The query fails.
pub async fn server_version(client: &Client) -> Result<i32, tokio_postgres::Error> {
    Ok(client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?.get(0))
}

/// How far the WAL of a writable server has been written.
///
/// # Errors
/// The query fails.
pub async fn wal_position(client: &Client) -> Result<Lsn, tokio_postgres::Error> {
    let row = client.query_one("SELECT (pg_current_wal_lsn() - '0/0')::int8", &[]).await?;
    Ok(Lsn(row.get::<_, i64>(0) as u64))
}

/// Every table with rows outside of the system's schemas, extensions' own tables and crossfade's left out, ordered by name.
///
/// # Errors
/// The query fails; not in a transaction, it is asked again where it is the victim of a deadlock.
pub async fn tables(client: &Client) -> Result<Vec<Table>, tokio_postgres::Error> {
    loop {
        match client.query(TABLES, &[]).await {
            Ok(rows) => return Ok(rows.iter().map(table).collect()),
            // It waits behind the application's locks and holds none; where those are a deadlock, it may be the victim nevertheless.
            Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
            Err(error) => return Err(error),
        }
    }
}

/// One of them, by name; `None` if there is no such table.
///
/// # Errors
/// The query fails.
pub async fn table_named(client: &Client, name: &TableName) -> Result<Option<Table>, tokio_postgres::Error> {
    let query = format!("SELECT * FROM ({TABLES}) t WHERE t.nspname = $1::text AND t.relname = $2::text");
    let rows = client.query(&query, &[&name.schema, &name.name]).await?;
    Ok(rows.first().map(table))
}

/// Of a partition, the condition that its rows meet; empty of other tables. Locks the partition and, behind it, those that it is a partition of until
/// the transaction's end, in the order opposite to that of TRUNCATE: in a transaction of its own, then, and with a `lock_timeout`.
///
/// # Errors
/// The query fails.
pub async fn partition_bound(client: &Client, name: &TableName) -> Result<String, tokio_postgres::Error> {
    let query = "SELECT coalesce(pg_get_partition_constraintdef(c.oid), '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = $1::text AND c.relname = $2::text";
    let row = client.query_opt(query, &[&name.schema, &name.name]).await?;
    Ok(row.map(|row| row.get(0)).unwrap_or_default())
}

/// Keeps no lock on any of them: it is asked again and again while the application writes.
const TABLES: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relpersistence = 'p' AS logged, c.relreplident::text AS replident,
       coalesce(a.names, '{}') AS names, coalesce(a.types, '{}') AS types, coalesce(a.not_nulls, '{}') AS not_nulls,
       EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid) AS heirs, coalesce(k.names, '{}') AS key,
       coalesce(k.deferrable, false) AS key_deferrable, rn.nspname::text AS root_schema, rc.relname::text AS root_name,
       c.reltuples::int8 AS tuples,
       pg_relation_size(c.oid) AS bytes, pg_relation_size(c.oid) / current_setting('block_size')::int8 AS blocks,
       c.relfilenode, md5(concat_ws(E'\\x01', c.relreplident, c.relkind, a.shape, x.constraints, i.parents)) AS shape
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_class rc ON c.relispartition AND rc.oid = pg_partition_root(c.oid)
  LEFT JOIN pg_namespace rn ON rn.oid = rc.relnamespace
  LEFT JOIN LATERAL (
       SELECT array_agg(att.attname::text ORDER BY att.attnum) FILTER (WHERE att.attgenerated = '') AS names,
              array_agg(format_type(att.atttypid, att.atttypmod) ORDER BY att.attnum) FILTER (WHERE att.attgenerated = '') AS types,
              array_agg(att.attnotnull ORDER BY att.attnum) FILTER (WHERE att.attgenerated = '') AS not_nulls,
              string_agg(concat_ws(',', att.attnum, att.attname, att.atttypid, att.atttypmod, att.attnotnull, att.attgenerated,
                                   att.attidentity, att.attcollation), ';' ORDER BY att.attnum) AS shape
         FROM pg_attribute att WHERE att.attrelid = c.oid AND att.attnum > 0 AND NOT att.attisdropped) a ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(att.attname::text ORDER BY cols.place) FILTER (WHERE ind.indimmediate) AS names,
              bool_or(NOT ind.indimmediate) AS deferrable
         FROM pg_index ind, unnest(ind.indkey::int2[]) WITH ORDINALITY cols(attnum, place), pg_attribute att
        WHERE ind.indrelid = c.oid AND cols.place <= ind.indnkeyatts AND att.attrelid = c.oid AND att.attnum = cols.attnum
          AND ind.indisvalid
          AND CASE c.relreplident WHEN 'i' THEN ind.indisreplident WHEN 'n' THEN false ELSE ind.indisprimary END) k ON true
  LEFT JOIN LATERAL (
       SELECT string_agg(con.conname || pg_get_constraintdef(con.oid), ';' ORDER BY con.conname) AS constraints
         FROM pg_constraint con WHERE con.conrelid = c.oid AND con.contype <> 't') x ON true
  LEFT JOIN LATERAL (
       SELECT string_agg(inh.inhparent::text, ',' ORDER BY inh.inhseqno) AS parents
         FROM pg_inherits inh WHERE inh.inhrelid = c.oid) i ON true
 WHERE c.relkind = 'r' AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'crossfade') AND n.nspname !~ '^pg_(toast|temp)'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY n.nspname, c.relname";

fn table(row: &tokio_postgres::Row) -> Table {
    let names: Vec<String> = row.get("names");
    let types: Vec<String> = row.get("types");
    let not_nulls: Vec<bool> = row.get("not_nulls");
    let root: Option<String> = row.get("root_schema");
    let letter: String = row.get("replident");
    Table {
        oid: Oid(row.get("oid")),
        name: TableName::new(row.get::<_, String>("nspname"), row.get::<_, String>("relname")),
        logged: row.get("logged"),
        // The catalog knows these four letters only.
        identity: letter.chars().next().and_then(ReplicaIdentity::from_letter).unwrap_or(ReplicaIdentity::Nothing),
        columns: names
            .into_iter()
            .zip(types)
            .zip(not_nulls)
            .map(|((name, type_name), not_null)| CopyColumn { name, type_name, not_null })
            .collect(),
        key: row.get("key"),
        key_deferrable: row.get("key_deferrable"),
        heirs: row.get("heirs"),
        root: root.map(|schema| TableName::new(schema, row.get::<_, String>("root_name"))),
        rows_estimated: row.get("tuples"),
        bytes: row.get("bytes"),
        blocks: row.get("blocks"),
        filenode: row.get("relfilenode"),
        shape: row.get("shape"),
    }
}

/// `ONLY ` for an ordinary table, whose inheritance children are tables of their own; nothing for a partitioned one, which has no rows
/// but its partitions'.
///
/// # Errors
/// The query fails.
pub async fn only(client: &Client, table: &TableName) -> Result<&'static str, tokio_postgres::Error> {
    let query = "SELECT coalesce((SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass($1::text)), false)";
    Ok(if client.query_one(query, &[&table.quoted()]).await?.get(0) { "ONLY " } else { "" })
}

/// A column of a table that apply writes to.
#[derive(Clone, Debug)]
pub struct TargetColumn {
    /// Its name.
    pub name: String,
    /// Its type for a cast, quoted, without length or precision: a cast to `varchar(3)` would cut silently, the
    /// assignment to the column raises. Domains are named by what they are made of.
    pub cast: String,
    /// Its type's equality, for SQL. The search path is empty, so an extension's operator has to be named with its schema.
    pub equals: String,
    /// GENERATED ALWAYS AS IDENTITY: may be inserted with OVERRIDING SYSTEM VALUE, never updated.
    pub identity_always: bool,
    /// GENERATED ALWAYS AS (…) STORED: never written.
    pub generated: bool,
}

/// The columns of a table (of any kind that takes rows), in order; empty if there is no such table.
///
/// # Errors
/// The query fails.
pub async fn target_columns(client: &Client, table: &TableName) -> Result<Vec<TargetColumn>, tokio_postgres::Error> {
    let rows = client
        .query(
            "WITH RECURSIVE base AS (
               SELECT a.attnum, a.attname::text, a.attidentity = 'a' AS always, a.attgenerated <> '' AS generated, t.*
                 FROM pg_attribute a
                 JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                 JOIN LATERAL (SELECT oid AS typ, typtype, typbasetype FROM pg_type WHERE oid = a.atttypid) t ON true
                WHERE n.nspname = $1::text AND c.relname = $2::text AND c.relkind IN ('r', 'p', 'f')
                  AND a.attnum > 0 AND NOT a.attisdropped
               UNION ALL
               SELECT b.attnum, b.attname, b.always, b.generated, t.oid, t.typtype, t.typbasetype
                 FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd')
             SELECT b.attname, n.nspname::text, t.typname::text, b.always, b.generated, coalesce(e.schema, 'pg_catalog')
               FROM base b JOIN pg_type t ON t.oid = b.typ JOIN pg_namespace n ON n.oid = t.typnamespace
               LEFT JOIN LATERAL (
                    SELECT en.nspname::text AS schema
                      FROM pg_opclass oc JOIN pg_am am ON am.oid = oc.opcmethod AND am.amname = 'btree'
                      JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3
                           AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
                      JOIN pg_operator op ON op.oid = ao.amopopr AND op.oprname = '=' JOIN pg_namespace en ON en.oid = op.oprnamespace
                     WHERE oc.opcdefault AND oc.opcintype = t.oid LIMIT 1) e ON true
              WHERE b.typtype <> 'd' ORDER BY b.attnum",
            &[&table.schema, &table.name],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| TargetColumn {
            name: row.get(0),
            // Quoted with its schema: a bare `bit` or `char` would mean one of length 1.
            cast: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)).quoted(),
            identity_always: row.get(3),
            generated: row.get(4),
            equals: format!("OPERATOR({}.=)", quote::ident(row.get(5))),
        })
        .collect())
}
