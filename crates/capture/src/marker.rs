use model::{Marker, MarkerKind};
use tokio_postgres::Client;

use crate::CaptureError;

/// Writes a marker into the source's WAL. Transactional: non-transactional ones come up to 0.15 s later and are sent
/// even if their transaction rolls back.
///
/// # Errors
/// The source refuses or is gone.
pub async fn emit(client: &Client, marker: &Marker) -> Result<(), CaptureError> {
    client
        .execute("SELECT pg_logical_emit_message(true, $1::text, $2::text)", &[&MarkerKind::PREFIX, &marker.content()])
        .await?;
    Ok(())
}

/// The id of the marker before a table's snapshot.
pub(crate) fn copy_id(table: &model::TableName, epoch: u32) -> String {
    format!("{epoch} {table}")
}
