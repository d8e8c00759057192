//! What became of the subtransactions of a transaction that was streamed.
//!
//! A message of the stream tells of each that rolled back, but for some: one whose rows Postgres had put on its own disk, more than 4,096 of them, before it could stream
//! them (it had sent a part of the WAL before, and its connection was made anew meanwhile) comes without (seen on 15.18: `ReorderBufferTruncateTXN` goes by how many
//! changes are in memory, and behind the last piece from disk there are none). So before a transaction is handed on, the source's commit log is asked.
//!
//! It knows: a subtransaction that rolls back is noted there before its transaction can commit, and the commit log is kept as far back as the slot holds back the catalogs.

use model::{Code, Problem, Xid};
use pg::Session;

use crate::CaptureError;
use crate::run::Job;

/// So many are asked for at once.
const AT_ONCE: usize = 10_000;

/// Asks the source; connects when it is first needed.
#[derive(Default)]
pub(super) struct Outcomes {
    session: Option<Session>,
}

impl Outcomes {
    /// Those of these subtransactions of a committed transaction that rolled back.
    ///
    /// # Errors
    /// The source; or its commit log does not go back as far.
    pub async fn rolled_back(&mut self, job: &Job, subtransactions: &[Xid]) -> Result<Vec<Xid>, CaptureError> {
        if subtransactions.is_empty() {
            return Ok(Vec::new());
        }
        let session = match self.session.take() {
            Some(session) if !session.is_closed() => session,
            _ => pg::connect_read_only(&job.endpoint, "outcome").await?,
        };
        let mut rolled_back = Vec::new();
        for some in subtransactions.chunks(AT_ONCE) {
            let xids: Vec<String> = some.iter().map(|xid| xid.0.to_string()).collect();
            let query = "SELECT x::int8, s IS NULL FROM unnest($1::text[]) AS x, pg_xact_status(x::xid8) AS s WHERE s IS NULL OR s = 'aborted'";
            for row in session.query(query, &[&xids]).await? {
                let xid: i64 = row.get(0);
                if row.get(1) {
                    return Err(Problem::new(
                        Code::Internal,
                        format!("subtransaction {xid} of source {:?}", job.source.name),
                        "its source no longer knows whether it rolled back, so the rows of its transaction are not known",
                        "copy all tables again: `crossfade recopy`",
                    )
                    .into());
                }
                rolled_back.push(Xid(xid as u64));
            }
        }
        self.session = Some(session);
        Ok(rolled_back)
    }
}
