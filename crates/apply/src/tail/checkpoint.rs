use std::collections::BTreeMap;

use log::LogError;
use model::{Lsn, MarkerKind, Seq};
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

/// Moves it on from where this process left it.
pub(super) async fn advance(
    session: &Session,
    source: &str,
    advance: &Advance,
    checkpoints: &mut BTreeMap<String, Checkpoint>,
    partial: bool,
) -> Result<(), ApplyError> {
    let Some(checkpoint) = checkpoints.get_mut(source) else { return Ok(()) };
    if advance.transactions == 0 && partial {
        // Nothing is complete yet; the rows are counted all the same.
        session
            .execute(
                "UPDATE crossfade.checkpoint SET rows = rows + $2 WHERE source = $1::text",
                &[&source, &advance.rows],
            )
            .await?;
        return Ok(());
    }
    let moved = session
        .execute(
            "UPDATE crossfade.checkpoint SET lsn = '0/0'::pg_lsn + $3::int8::numeric, seq = $4, transactions = transactions + $6, rows = rows + $7,
                    commit_time = to_timestamp($5::int8 / 1000000) + make_interval(secs => ($5::int8 % 1000000) / 1000000.0::float8),
                    applied_at = clock_timestamp()
              WHERE source = $1::text AND lsn = '0/0'::pg_lsn + $2::int8::numeric AND seq = $8",
            &[
                &source,
                &(checkpoint.lsn.0 as i64),
                &(advance.lsn.0 as i64),
                &(advance.seq.0 as i64),
                &advance.commit_time,
                &advance.transactions,
                &advance.rows,
                &(checkpoint.seq.0 as i64),
            ],
        )
        .await?;
    if moved != 1 {
        let why =
            format!("the checkpoint of source {source:?} is not at {}, where this process left it", checkpoint.lsn);
        return Err(LogError::Unavailable(why).into());
    }
    checkpoint.lsn = advance.lsn;
    checkpoint.seq = advance.seq;
    Ok(())
}

/// Notes a marker that was reached.
pub(super) async fn reached(
    session: &Session,
    source: &str,
    lsn: Lsn,
    id: &str,
    kind: MarkerKind,
) -> Result<(), ApplyError> {
    session
        .execute(
            "INSERT INTO crossfade.marker (source, id, lsn) VALUES ($1::text, $2::text, '0/0'::pg_lsn + $3::int8::numeric) ON CONFLICT DO NOTHING",
            &[&source, &id, &(lsn.0 as i64)],
        )
        .await?;
    if kind == MarkerKind::Joined {
        session
            .execute(
                "UPDATE crossfade.checkpoint SET joined = true WHERE source = $1::text AND join_marker = $2::text",
                &[&source, &id],
            )
            .await?;
    }
    Ok(())
}
