use std::collections::BTreeMap;

use model::{Lsn, Seq};
use pg::Session;

use crate::ApplyError;

/// How far the target has applied a source's tail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// End of the last applied commit.
    pub lsn: Lsn,
    /// The tail message that holds its last part.
    pub seq: Seq,
    /// The message with which the tail started anew; zero if it never did.
    pub begin: Seq,
    /// Reaching this marker joins copy and tail.
    pub join_marker: String,
}

/// What one target transaction adds to a source's checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Advance {
    pub lsn: Lsn,
    pub seq: Seq,
    /// Microseconds since 1970.
    pub commit_time: i64,
    pub transactions: i64,
    pub rows: i64,
}

pub(super) async fn load(session: &Session) -> Result<BTreeMap<String, Checkpoint>, ApplyError> {
    let rows = session
        .query(
            "SELECT source, (lsn - '0/0')::int8, seq, coalesce(join_marker, ''), tail_begin FROM crossfade.checkpoint",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (lsn, seq) = (Lsn(row.get::<_, i64>(1) as u64), Seq(row.get::<_, i64>(2) as u64));
            let begin = Seq(row.get::<_, i64>(4) as u64);
            (row.get(0), Checkpoint { lsn, seq, begin, join_marker: row.get(3) })
        })
        .collect())
}
