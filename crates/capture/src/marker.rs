use model::{Marker, MarkerKind, Xid};
use tokio_postgres::Client;

use crate::CaptureError;

/// Writes a marker into the source's WAL. Transactional: non-transactional ones come up to 0.15 s later and are sent
/// even if their transaction rolls back. Returns its transaction's id.
///
/// # Errors
/// The source refuses or is gone.
pub async fn emit(client: &Client, marker: &Marker) -> Result<Xid, CaptureError> {
    let query = "SELECT pg_current_xact_id()::text FROM pg_logical_emit_message(true, $1::text, $2::text)";
    let row = client.query_one(query, &[&MarkerKind::PREFIX, &marker.content()]).await?;
    // The server prints a number.
    Ok(Xid(row.get::<_, String>(0).parse().unwrap_or_default()))
}

/// The id of the marker before a table's snapshot.
pub(crate) fn copy_id(table: &model::TableName, epoch: u32) -> String {
    format!("{epoch} {table}")
}
