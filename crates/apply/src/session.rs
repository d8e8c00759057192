//! Sessions that write to the target.

use model::{Code, Problem};
use pg::Session;

use crate::{ApplyError, Job, state};

/// A session whose rows are taken as already triggered and checked, and whose commits carry an origin of the plan's, so that a way
/// back can leave them out.
///
/// Commits are not waited for: rows and checkpoint, or rows and ledger, are in the same transaction and are lost together, and what
/// is lost is read from the log again.
pub(crate) async fn writer(job: &Job, purpose: &str) -> Result<Session, ApplyError> {
    let session = pg::connect(&job.endpoint, purpose).await?;
    session
        .batch_execute("SET synchronous_commit = off; SET jit = off; SET plan_cache_mode = force_generic_plan")
        .await?;
    session.batch_execute("SET session_replication_role = replica").await?;
    // The fence of a side that was closed by a cutover or a rollback holds back the replica role as well.
    pg::fence::exempt(&session).await?;
    if !job.alone {
        take_origin(&session, &job.plan.name).await?;
    }
    Ok(session)
}

/// Lets a session write to the target as apply does: past the fence and, as long as apply writes there, as none that the way back would carry on.
///
/// # Errors
/// The database; it has no origin left, or this role may not have one.
pub async fn join_in(session: &Session, plan: &str) -> Result<(), ApplyError> {
    pg::fence::exempt(session).await?;
    if !state::knows(session, plan).await? {
        return Ok(());
    }
    let applies = "SELECT coalesce(to_jsonb(l) ->> 'barred', 'false') = 'false' FROM crossfade.lease l";
    if session.query_one(applies, &[]).await?.get(0) { take_origin(session, plan).await } else { Ok(()) }
}

/// Takes the first origin of the plan that no other session has: an origin serves one session at a time.
async fn take_origin(session: &Session, plan: &str) -> Result<(), ApplyError> {
    for number in 0.. {
        let name = format!("{}{number}", plan::origins(plan));
        // Two sessions may want to create it at once: the second finds it there.
        let create = session
            .execute(
                "SELECT pg_replication_origin_create($1::text) WHERE pg_replication_origin_oid($1::text) IS NULL",
                &[&name],
            )
            .await;
        if let Err(error) = create
            && error.code() != Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION)
        {
            return Err(error.into());
        }
        model::failpoint!("origin_created");
        match session.execute("SELECT pg_replication_origin_session_setup($1::text)", &[&name]).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE) => {}
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::CONFIGURATION_LIMIT_EXCEEDED) => {
                return Err(Problem::new(
                    Code::SlotsExhausted,
                    "the target's replication origins",
                    error.to_string(),
                    "raise max_replication_slots on the target and restart it, or lower limits.copy_workers",
                )
                .into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
