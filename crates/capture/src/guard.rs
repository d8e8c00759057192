//! Protection of the source: a log that is down, or too slow, makes it keep back WAL until its disk is full. At the plan's limit the plan says what
//! counts more, the migration or the source. Looks beside everything else, whatever that waits for.

use std::time::Duration;

use model::{Code, Problem};
use pg::Session;
use plan::OnWalCritical;
use tracing::{error, warn};

use crate::run::Job;
use crate::{CaptureError, slot};

/// Between two looks: a fast source writes some GiB meanwhile, a small part of any sensible limit.
const LOOK: Duration = Duration::from_secs(5);

/// Returns, with the bytes kept back, once the slot has to go.
pub(crate) async fn watch(job: &Job) -> i64 {
    let name = slot::slot_name(&job.plan.name, &job.source.name);
    let limits = &job.plan.limits;
    let mut session: Option<Session> = None;
    let mut said = false;
    loop {
        match kept(job, &mut session, &name).await {
            Ok(kept) => {
                let critical = u64::try_from(kept).unwrap_or_default() >= limits.wal_critical;
                match limits.on_wal_critical {
                    OnWalCritical::DropSlot if critical => return kept,
                    OnWalCritical::Keep if critical && !said => warn!(
                        source = job.source.name,
                        "the source keeps back {} MiB of WAL, limits.wal_critical is {} MiB; the plan says to keep the slot",
                        kept >> 20,
                        limits.wal_critical >> 20
                    ),
                    OnWalCritical::DropSlot | OnWalCritical::Keep => {}
                }
                said = critical;
            }
            // Who captures says that the source is not there.
            Err(_) => session = None,
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn kept(job: &Job, session: &mut Option<Session>, name: &str) -> Result<i64, CaptureError> {
    let session = match session {
        Some(session) => session,
        none => none.insert(pg::connect(&job.endpoint, "wal watch").await?),
    };
    Ok(slot::state(session, name).await?.map_or(0, |slot| slot.wal_kept))
}

/// Gives up the slot: tries until the source has heard it.
pub(crate) async fn give_up(job: &Job, kept: i64) -> Problem {
    let name = slot::slot_name(&job.plan.name, &job.source.name);
    while let Err(error) = drop_slot(job, &name).await {
        error!(slot = name, "it has to go, and cannot be dropped yet: {error}");
        tokio::time::sleep(LOOK).await;
    }
    Problem::new(
        Code::SlotGivenUp,
        format!("slot {name} of source {:?}", job.source.name),
        format!(
            "the source kept back {} MiB of WAL for it, limits.wal_critical is {} MiB and on_wal_critical is \"drop_slot\": the slot was dropped to save the source's disk",
            kept >> 20,
            job.plan.limits.wal_critical >> 20
        ),
        "mend what held up the log, then `crossfade recopy` copies everything anew, into the same log and target; then start again",
    )
}

async fn drop_slot(job: &Job, name: &str) -> Result<(), CaptureError> {
    let session = pg::connect(&job.endpoint, "wal watch").await?;
    let reader = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = $1::text AND active_pid IS NOT NULL";
    session.execute(reader, &[&name]).await?;
    slot::give_up(&session, name).await
}
