//! The way out of a gap, and of a target that is not what it should be: tables are copied again, as their next epoch, into the same log.
//! What is asked for is a record in the copy stream; capture and apply act on it when they get there.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Log, LogError};
use model::{Code, Header, Identity, Problem, Recopy, Record, TableName};
use plan::{Plan, Source};

use crate::{CaptureError, Streams, claim, copy};

/// What was asked for of one source.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The recopy's id.
    pub id: String,
    /// These tables; none for all, whose tail starts anew.
    pub tables: Vec<TableName>,
    /// The nonce of the plan on the log.
    pub nonce: String,
}

/// Asks for everything of a source to be copied again. A copy stream that is not there, or lacks messages, is made anew, if the target
/// is `known` to hold something of the plan. `identity` is the source as it is now; with `new_source` it may be another one than before.
///
/// # Errors
/// The log; [`Code::SourceChanged`], [`Code::PlanNameTaken`], [`Code::NoTables`].
pub async fn recopy_all(
    log: &Arc<dyn Log>,
    plan: &Plan,
    source: &Source,
    identity: &Identity,
    target: &Identity,
    known: bool,
    new_source: bool,
) -> Result<Asked, CaptureError> {
    let streams = claim::streams(&plan.name, &source.name);
    let header = match claim::header(&**log, &streams.copy).await {
        Ok(header) => header,
        Err(LogError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let mut whole = false;
    if let Some(header) = &header {
        claim::compare_target(header, target)?;
        let progress = match copy::progress(log, header).await {
            Ok(progress) => Some(progress),
            Err(LogError::Missing { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        // What was taken out of its end shows as soon as something stands behind it.
        let state = log.state(&streams.copy).await?.unwrap_or_default();
        whole = progress.is_some() && state.messages == state.last.0 + 1 - state.first.0;
        if !new_source {
            let before = progress.as_ref().map_or(&header.source_identity, |progress| progress.source_identity(header));
            claim::compare_source(header, before, identity)?;
        }
    }
    let header = match header {
        Some(header) if whole => header,
        None if !known => return Err(nothing(&plan.name).into()),
        Some(_) | None => begin(&**log, &streams, plan, source, identity, target).await?,
    };
    ask(log, &streams, header, Vec::new(), Some(identity.clone())).await
}

/// Asks for some tables of a source to be copied again: those that `names` name, and the partitions of roots that it names. `None` if no copy of any of
/// them has begun.
///
/// # Errors
/// The log; [`Code::PlanNameTaken`].
pub async fn recopy_tables(
    log: &Arc<dyn Log>,
    plan: &Plan,
    source: &Source,
    target: &Identity,
    names: &[TableName],
) -> Result<Option<Asked>, CaptureError> {
    let streams = claim::streams(&plan.name, &source.name);
    let Some(header) = claim::header(&**log, &streams.copy).await? else { return Ok(None) };
    claim::compare_target(&header, target)?;
    let progress = copy::progress(log, &header).await?;
    let mut tables: Vec<TableName> = names.iter().flat_map(|name| progress.named(name)).collect();
    tables.sort();
    tables.dedup();
    if tables.is_empty() {
        return Ok(None);
    }
    ask(log, &streams, header, tables, None).await.map(Some)
}

async fn ask(
    log: &Arc<dyn Log>,
    streams: &Streams,
    header: Header,
    tables: Vec<TableName>,
    source_identity: Option<Identity>,
) -> Result<Asked, CaptureError> {
    let id = uuid::Uuid::new_v4().to_string();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
    let record = Recopy { id: id.clone(), tables: tables.clone(), time, source_identity };
    log::append_record(&**log, &streams.copy, Record::Recopy(record)).await?;
    Ok(Asked { id, tables, nonce: header.nonce })
}

/// Makes the copy stream anew, and the others if they are missing, and says whose they are.
async fn begin(
    log: &dyn Log,
    streams: &Streams,
    plan: &Plan,
    source: &Source,
    identity: &Identity,
    target: &Identity,
) -> Result<Header, CaptureError> {
    log.remove(&streams.copy).await?;
    for stream in [&streams.copy, &streams.chunks, &streams.tail] {
        log.create(stream).await?;
    }
    let header = Header {
        plan: plan.name.clone(),
        source: source.name.clone(),
        nonce: uuid::Uuid::new_v4().to_string(),
        source_identity: identity.clone(),
        target_identity: target.clone(),
    };
    log.append_first(&streams.copy, Record::Header(header.clone()).encode()).await?;
    Ok(header)
}

fn nothing(plan: &str) -> Problem {
    Problem::new(
        Code::NoTables,
        format!("plan {plan:?}"),
        "neither the log nor the target knows of it: nothing of it has been copied",
        "start `crossfade run`, or `crossfade capture` and `crossfade apply`",
    )
}
