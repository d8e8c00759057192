use model::Identity;
use pg::Session;
use pg::catalog::{self, Table};
use plan::Source;

use crate::{CaptureError, select};

/// What a target must have, or be able to make, for a source.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Which database the source is.
    pub identity: Identity,
    /// The tables that the plan selects.
    pub tables: Vec<Table>,
    /// Roles that own something.
    pub owners: Vec<String>,
    /// Roles that something is granted to.
    pub grantees: Vec<String>,
    /// Extensions.
    pub extensions: Vec<String>,
}

/// The objects that a dump of the schema would name, with owner and privileges.
const OBJECTS: &str = "
WITH object AS (
  SELECT relowner AS owner, relacl AS acl, relnamespace AS schema, 'pg_class'::regclass AS class, oid FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't'
  UNION ALL SELECT proowner, proacl, pronamespace, 'pg_proc'::regclass, oid FROM pg_proc
  UNION ALL SELECT typowner, typacl, typnamespace, 'pg_type'::regclass, oid FROM pg_type WHERE typtype IN ('e', 'd', 'r') OR (typtype = 'c' AND typrelid IN (SELECT oid FROM pg_class WHERE relkind = 'c'))
  UNION ALL SELECT nspowner, nspacl, oid, 'pg_namespace'::regclass, oid FROM pg_namespace),
dumped AS (
  SELECT o.* FROM object o JOIN pg_namespace n ON n.oid = o.schema
   WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'crossfade') AND n.nspname !~ '^pg_(toast|temp)'
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e'))
SELECT coalesce(array_agg(DISTINCT r.rolname::text) FILTER (WHERE owns), '{}'), coalesce(array_agg(DISTINCT r.rolname::text) FILTER (WHERE NOT owns), '{}')
  FROM (SELECT owner AS role, true AS owns FROM dumped UNION ALL SELECT (aclexplode(acl)).grantee, false FROM dumped) x
  JOIN pg_roles r ON r.oid = x.role WHERE r.rolname !~ '^pg_'";

/// Reads from the source what the target will need.
///
/// # Errors
/// The source cannot be asked.
pub async fn needs(source: &Source, session: &Session) -> Result<Needs, CaptureError> {
    let objects = session.query_one(OBJECTS, &[]).await?;
    let extensions =
        session.query("SELECT extname::text FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1", &[]).await?;
    Ok(Needs {
        identity: catalog::identity(session).await?,
        tables: select::tables(session, source).await?,
        owners: objects.get(0),
        grantees: objects.get(1),
        extensions: extensions.iter().map(|row| row.get(0)).collect(),
    })
}
