use std::time::Duration;

use tokio_postgres::Client;

use crate::PgError;

/// Whether somebody has waited longer than `limit` for a table that a session of this `application_name` keeps locked; for this `table`, quoted, or
/// for any.
///
/// # Errors
/// The query fails.
pub async fn somebody_waits(
    client: &Client,
    application: &str,
    table: Option<&str>,
    limit: Duration,
) -> Result<bool, PgError> {
    let query = "SELECT EXISTS (SELECT FROM pg_locks l
          WHERE NOT l.granted AND ($1::text IS NULL OR l.relation = to_regclass($1::text))
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND clock_timestamp() - l.waitstart > make_interval(secs => $2::float8)
            AND EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids(l.pid)) AND a.application_name = $3::text))";
    Ok(client.query_one(query, &[&table, &limit.as_secs_f64(), &application]).await?.get(0))
}
