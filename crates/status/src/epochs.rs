//! Cutovers and rollbacks, as the journals of both sides have them.

use pg::{PgError, Session};
use serde::Serialize;

use crate::model::Phase;

/// The rows of a journal, or of several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Epochs(Vec<Epoch>);

#[derive(Clone, Debug)]
struct Epoch {
    number: i64,
    back: bool,
    /// None of one that has just begun, or is cancelled: the migration is where it was.
    phase: Option<Phase>,
}

impl Epochs {
    /// Reads a journal; there may be none.
    pub async fn read(session: &Session) -> Result<Epochs, PgError> {
        if !session.query_one("SELECT to_regclass('crossfade.journal') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
            return Ok(Epochs::default());
        }
        let rows = session.query("SELECT epoch, direction = 'back', state FROM crossfade.journal", &[]).await?;
        let epochs = rows.iter().map(|row| {
            let phase = match row.get(2) {
                "fencing" => Some(Phase::Fencing),
                "fenced" => Some(Phase::Fenced),
                "drained" => Some(Phase::Drained),
                "prepared" => Some(Phase::Prepared),
                "committed" => Some(Phase::Committed),
                "routed" => Some(Phase::Routed),
                "reversing" => Some(Phase::Reversing),
                _ => None,
            };
            Epoch { number: row.get(0), back: row.get(1), phase }
        });
        Ok(Epochs(epochs.collect()))
    }

    /// Both together.
    pub fn with(mut self, other: Epochs) -> Epochs {
        self.0.extend(other.0);
        self.0.sort_by_key(|epoch| epoch.number);
        self
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.last().map_or(0, |epoch| epoch.number.unsigned_abs())
    }

    /// The phase that the last one has led to; none where the migration follows the source, or where it was never cut over.
    pub fn phase(&self) -> Option<Phase> {
        let last = self.0.last()?.phase;
        let decided = |epoch: &&Epoch| matches!(epoch.phase, Some(Phase::Committed | Phase::Routed | Phase::Reversing));
        match (last, self.0.iter().rev().find(decided)) {
            (Some(Phase::Fencing | Phase::Fenced | Phase::Drained | Phase::Prepared), _) => last,
            (_, Some(Epoch { back: true, phase: Some(Phase::Routed), .. })) => None,
            (_, Some(decided)) => decided.phase,
            (_, None) => None,
        }
    }
}

/// A cutover or a rollback that was decided, and how long it took.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Which.
    pub epoch: i64,
    /// It is a rollback.
    pub back: bool,
    /// When it was decided, RFC 3339.
    pub at: Option<String>,
    /// Behind the last write of the (first) side that it closed.
    pub lsn: Option<String>,
    /// For how long nobody could write, in milliseconds.
    pub write_gap_ms: Option<i64>,
    /// Its steps in their order, each with its milliseconds.
    pub steps: Vec<(String, i64)>,
}

/// Those that a journal has.
pub(crate) async fn measured(session: &Session) -> Result<Vec<Measured>, PgError> {
    if !session.query_one("SELECT to_regclass('crossfade.journal_step') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let query = "SELECT j.epoch, j.direction = 'back', j.lsn::text, j.write_gap_ms,
                        (SELECT to_char(min(s.at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM crossfade.journal_step s
                          WHERE s.epoch = j.epoch AND NOT s.hook AND s.step = 'committed'),
                        ARRAY(SELECT s.step FROM crossfade.journal_step s WHERE s.epoch = j.epoch AND NOT s.hook ORDER BY s.at),
                        ARRAY(SELECT s.ms FROM crossfade.journal_step s WHERE s.epoch = j.epoch AND NOT s.hook ORDER BY s.at)
                   FROM crossfade.journal j WHERE j.state IN ('committed', 'routed', 'reversing') ORDER BY 1";
    let rows = session.query(query, &[]).await?;
    let one = |row: &pg::tokio_postgres::Row| Measured {
        epoch: row.get(0),
        back: row.get(1),
        lsn: row.get(2),
        write_gap_ms: row.get(3),
        at: row.get(4),
        steps: row.get::<_, Vec<String>>(5).into_iter().zip(row.get::<_, Vec<i64>>(6)).collect(),
    };
    Ok(rows.iter().map(one).collect())
}
