//! Cutovers and rollbacks, as the journals of both sides have them.

use pg::{PgError, Session};

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
