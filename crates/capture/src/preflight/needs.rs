use std::collections::BTreeSet;

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
    /// Who owns something in which schema.
    pub owned: Vec<(String, String)>,
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
SELECT r.rolname::text, x.owns, CASE WHEN x.owns AND x.class <> 'pg_namespace'::regclass THEN n.nspname::text END
  FROM (SELECT owner AS role, true AS owns, schema, class FROM dumped UNION SELECT (aclexplode(acl)).grantee, false, schema, class FROM dumped) x
  JOIN pg_roles r ON r.oid = x.role JOIN pg_namespace n ON n.oid = x.schema WHERE r.rolname !~ '^pg_'";

/// Reads from the source what the target will need.
///
/// # Errors
/// The source cannot be asked.
pub async fn needs(source: &Source, session: &Session) -> Result<Needs, CaptureError> {
    let (mut owners, mut grantees, mut owned) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for row in session.query(OBJECTS, &[]).await? {
        let role: String = row.get(0);
        owned.extend(row.get::<_, Option<String>>(2).map(|schema| (role.clone(), schema)));
        if row.get(1) {
            owners.insert(role)
        } else {
            grantees.insert(role)
        };
    }
    let extensions =
        session.query("SELECT extname::text FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1", &[]).await?;
    Ok(Needs {
        identity: catalog::identity(session).await?,
        tables: select::tables(session, source).await?,
        owners: owners.into_iter().collect(),
        owned: owned.into_iter().collect(),
        grantees: grantees.into_iter().collect(),
        extensions: extensions.iter().map(|row| row.get(0)).collect(),
    })
}
