//! What both sides say of the epochs so far. The highest counts; a lower one is outdated, whatever it says.

use pg::Session;
use plan::Plan;

use crate::error::CutoverError;
use crate::journal::{self, Entry};

/// The journals of both sides, as one.
#[derive(Default)]
pub(crate) struct History {
    /// The last epoch.
    pub last: Option<Entry>,
    /// The last one that was decided.
    pub decided: Option<Entry>,
}

impl History {
    /// Of these sessions' databases. The side that `plan` leaves comes first: an epoch that begins meanwhile enters there, and has its row in the other's journal before.
    pub async fn read<'s>(
        olds: impl IntoIterator<Item = &'s Session>,
        new: &'s Session,
    ) -> Result<History, CutoverError> {
        let mut history = History::default();
        for session in olds.into_iter().chain([new]) {
            history.last = later(history.last, journal::last(session).await?);
            history.decided = later(history.decided, journal::last_decided(session).await?);
        }
        Ok(history)
    }

    /// The highest epoch.
    pub fn epoch(&self) -> i64 {
        self.last.as_ref().map_or(0, |entry| entry.epoch)
    }

    /// Whether the application writes to the side that `plan` leads out of.
    pub fn leaves(&self, plan: &Plan) -> bool {
        self.decided.as_ref().map_or(!plan.is_back(), |entry| entry.back != plan.is_back())
    }
}

fn later(one: Option<Entry>, other: Option<Entry>) -> Option<Entry> {
    one.into_iter().chain(other).max_by_key(|entry| entry.epoch)
}
