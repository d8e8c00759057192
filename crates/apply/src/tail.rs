//! The tail on the target: many source transactions become one target transaction.
//!
//! [`read`] follows the log and puts whole transactions together; [`gather`] folds them ([`fold`]) into steps per table ([`target`] knows the
//! tables), while [`write`] writes the group before: set-wise ([`sets`]), or row by row where that meets a constraint, with the
//! checkpoint in the same transaction. [`hold`] makes it stand still for who compares both sides, [`mend`] puts rows right. What derived tables
//! need to know of a group, [`touched`] says; for tables of which nothing is stored, what becomes of their rows is worked out in [`net`] and written by [`streamed`].

mod checkpoint;
mod copy_text;
mod fold;
mod gather;
mod hold;
mod mend;
mod net;
mod prepared;
mod read;
mod sets;
mod streamed;
mod target;
mod text_array;
mod touched;
mod write;

use std::sync::Arc;

pub(crate) use mend::announce as announce_mend;
pub(crate) use prepared::Prepared;
pub use read::CutOff;
pub(crate) use streamed::{Changed, statements};
pub(crate) use touched::Touched;

use pg::Session;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::error::panicked;
use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job, schema, tables};

/// Batches read ahead of the folding, per source: 256 KiB each as a rule, so 4 MiB, and an eighth of the memory budget at most.
const READ_AHEAD: usize = 16;

/// Applies the tail until `stop`, once the copy is in.
pub(crate) async fn run(
    job: &Arc<Job>,
    session: &Session,
    lease: Lease,
    stop: &CancellationToken,
) -> Result<(), ApplyError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        result = async {
            start(job, session, lease).await?;
            write::gates(job, session, lease).await
        } => result?,
    }
    let checkpoints = checkpoint::load(session).await?;
    // One group is written while the next is gathered.
    let (groups, ready) = mpsc::channel(1);
    let mut tasks = tokio::task::JoinSet::new();
    let mut incoming = gather::Inbox::default();
    for (source, checkpoint) in &checkpoints {
        let (batches, receiver) = mpsc::channel(READ_AHEAD);
        tasks.spawn(read::follow(Arc::clone(job), source.clone(), checkpoint.clone(), batches, gather::large(job)));
        incoming.add(source, receiver);
    }
    let stands = mend::next(session).await?;
    let (passed, gate) = tokio::sync::watch::channel(gather::Passed { pauses: 0, stands });
    tasks.spawn(gather::run(Arc::clone(job), checkpoints.clone(), incoming, groups, gate));
    tokio::select! {
        biased;
        result = write::run(job, session, lease, checkpoints, ready, passed, stop) => result,
        Some(ended) = tasks.join_next() => ended.map_err(panicked)?,
    }
}

/// Waits until every source's copy is in and its keys are built, and says that the tail runs from now on.
async fn start(job: &Job, session: &Session, lease: Lease) -> Result<(), ApplyError> {
    let mut news = pg::connect(&job.endpoint, "apply news").await?;
    news.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
    let query = format!(
        "SELECT coalesce(bool_and(started), false),
                coalesce(bool_and(join_marker IS NOT NULL), false) AND NOT EXISTS (SELECT FROM crossfade.tables t WHERE NOT ({} AND {}))
           FROM crossfade.checkpoint",
        tables::COPIED,
        tables::BUILT
    );
    loop {
        let row = session.query_one(&query, &[]).await?;
        let (started, ready): (bool, bool) = (row.get(0), row.get(1));
        if started {
            return Ok(());
        }
        if ready {
            schema::finals(session, lease).await?;
            lease.begin(session).await?;
            session.batch_execute("UPDATE crossfade.checkpoint SET started = true; COMMIT").await?;
            model::failpoint!("tail_started");
            info!("the copy is in, the tail starts");
            return Ok(());
        }
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), news.notification()).await;
    }
}
