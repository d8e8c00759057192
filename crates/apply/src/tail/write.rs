use std::collections::BTreeMap;
use std::sync::Arc;

use model::{Code, Lsn, MarkerKind, Problem};
use pg::Session;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::checkpoint::{self, Checkpoint};
use super::gather::{Group, Passed, Step};
use super::hold::Hold;
use super::mend;
use super::touched::Touched;
use crate::derived::Derivations;
use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job};

mod gate;
#[cfg(test)]
mod one_by_one;
mod rows;

pub(super) use gate::gates;
pub(super) use rows::Writer;

use gate::gate;

/// Writes groups as they come. Each transaction holds the lease and moves the checkpoint from where it was.
pub(super) async fn run(
    job: &Job,
    session: &Session,
    lease: Lease,
    mut checkpoints: BTreeMap<String, Checkpoint>,
    mut ready: mpsc::Receiver<Group>,
    passed: watch::Sender<Passed>,
    stop: &CancellationToken,
) -> Result<(), ApplyError> {
    let mut writer = Writer::new(session);
    let mut derived = Derivations::open(job, session, lease).await?;
    let mut open = false;
    let mut markers = Vec::new();
    let mut held: Option<Hold> = None;
    mend::apply(&mut writer, &mut derived, session, lease).await?;
    loop {
        let looks = derived.looks().filter(|_| !open);
        let group = tokio::select! {
            biased;
            () = stop.cancelled() => {
                if open {
                    session.batch_execute("ROLLBACK").await?;
                }
                return Ok(());
            }
            () = at(looks) => {
                derived.fill().await?;
                continue;
            }
            group = ready.recv() => match group {
                Some(group) => group,
                // The gathering has ended; its own result says why.
                None => return std::future::pending().await,
            },
        };
        if !open {
            lease.begin(session).await?;
            writer.begins();
            derived.begins();
            if group.steps.iter().any(|step| matches!(step, Step::Truncate { .. })) {
                // A transaction that is streamed has the origin of its first change; what a TRUNCATE writes first has none.
                session.batch_execute("UPDATE crossfade.checkpoint SET rows = rows").await?;
            }
        }
        let touched = Touched::of(&group.steps, derived.read())?;
        derived.before(&touched).await?;
        for step in &group.steps {
            writer.step(step).await?;
        }
        derived.after(&touched).await?;
        if !group.partial {
            derived.finish().await?;
        }
        model::failpoint!("batch_written");
        for (source, advance) in &group.advances {
            checkpoint::advance(session, source, advance, &mut checkpoints, group.partial).await?;
        }
        model::failpoint!("checkpoint_moved");
        markers.extend(group.markers.iter().cloned());
        open = group.partial;
        if open {
            model::failpoint!("piece_written");
            continue;
        }
        let markers = std::mem::take(&mut markers);
        for (source, lsn, marker) in markers.iter().filter(|(_, _, marker)| is_awaited(marker.kind)) {
            checkpoint::reached(session, source, *lsn, &marker.id, marker.kind).await?;
            model::failpoint!("marker_noted");
        }
        let end = if markers.is_empty() { "COMMIT".to_owned() } else { format!("NOTIFY {CHANNEL}; COMMIT") };
        session.batch_execute(&end).await.map_err(|error| at_commit(error.into(), &group))?;
        model::failpoint!("batch_committed");
        let mut copied = false;
        for (source, _, marker) in markers.iter().filter(|(_, _, marker)| marker.kind == MarkerKind::Copy) {
            gate(job, session, lease, source, &marker.id).await?;
            copied = true;
        }
        if copied {
            // Their rows are others now.
            derived.reload().await?;
        }
        if let Some((source, _, marker)) = markers.iter().find(|(_, _, marker)| marker.kind == MarkerKind::Hold) {
            held = Some(Hold::new(source, &marker.id));
        }
        if group.pauses() {
            let mut through = None;
            if let Some(hold) = &held {
                let at = checkpoints.get(&*hold.source).map_or(Lsn(0), |checkpoint| checkpoint.lsn);
                through =
                    hold.stand(&job.endpoint, session, at, stop).await?.map(|lsn| (Arc::clone(&hold.source), lsn));
            }
            held = held.filter(|_| through.is_some());
            mend::apply(&mut writer, &mut derived, session, lease).await?;
            let mut stands = mend::next(session).await?;
            if let Some((source, through)) = through {
                let stand = stands.entry(source).or_insert(through);
                *stand = through.min(*stand);
            }
            passed.send_modify(|passed| {
                passed.pauses += 1;
                passed.stands = stands;
            });
        }
    }
}

/// At that time; never if there is none.
async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether somebody looks for it in the target.
fn is_awaited(kind: MarkerKind) -> bool {
    match kind {
        MarkerKind::Copy | MarkerKind::Joined | MarkerKind::Fence | MarkerKind::Hold => true,
        MarkerKind::Catalog | MarkerKind::Verified => false,
    }
}

/// Deferred constraints speak up at the commit.
fn at_commit(error: ApplyError, group: &Group) -> ApplyError {
    if !error.is_constraint() {
        return error;
    }
    let lsn = group.advances.values().map(|advance| advance.lsn).max().unwrap_or_default();
    Problem::new(
        Code::Divergence,
        format!("the transactions up to {lsn}"),
        format!("the target refuses them: {error}"),
        LOOK_AT_TARGET,
    )
    .into()
}

const LOOK_AT_TARGET: &str = "somebody else wrote to the target, or it lacks rows: find out who, mend the row, or copy the table again (`crossfade recopy TABLE`), and start again; nothing was skipped";
