//! Whose streams these are. The first record of a copy stream says it; everybody who comes later compares.

use log::{Log, LogError, StreamKind, StreamName};
use model::{Code, Header, Identity, Problem, Record, Seq};

use crate::{CaptureError, chain};

/// The streams of a source.
#[derive(Clone, Debug)]
pub struct Streams {
    /// How its copies come along.
    pub copy: StreamName,
    /// Their rows.
    pub chunks: StreamName,
    /// Its tail.
    pub tail: StreamName,
}

/// The streams of a source.
pub fn streams(plan: &str, source: &str) -> Streams {
    let name = |kind| StreamName::new(plan, source, kind);
    Streams { copy: name(StreamKind::Copy), chunks: name(StreamKind::Chunks), tail: name(StreamKind::Tail) }
}

/// The header of an existing copy stream; `None` if there is no stream, or it is empty.
///
/// # Errors
/// The log, or a first record that is something else.
pub async fn header(log: &dyn Log, copy: &StreamName) -> Result<Option<Header>, LogError> {
    let Some(state) = log.state(copy).await? else { return Ok(None) };
    if state.last == Seq::ZERO {
        return Ok(None);
    }
    match log::get_record(log, copy, Seq::ZERO.next()).await? {
        Record::Header(header) => Ok(Some(header)),
        _ => Err(LogError::Damaged(model::DecodeError::Field("the copy stream does not begin with a header"))),
    }
}

fn describe(identity: &Identity) -> String {
    format!("database {:?} of cluster {}", identity.database, identity.system_identifier)
}

/// Compares an existing header with where this plan leads.
///
/// # Errors
/// The streams are another plan's.
pub(crate) fn compare_target(found: &Header, target: &Identity) -> Result<(), Problem> {
    if found.target_identity == *target {
        return Ok(());
    }
    Err(Problem::new(
        Code::PlanNameTaken,
        format!("plan {:?} on the log", found.plan),
        format!(
            "its streams lead into {}, this plan's target is {}",
            describe(&found.target_identity),
            describe(target)
        ),
        "give this plan another name, or end the other one with `crossfade complete`",
    ))
}

/// Compares where the log's data comes from (`expected`) with the source that is there now.
///
/// # Errors
/// It is another cluster than before.
pub(crate) fn compare_source(found: &Header, expected: &Identity, source: &Identity) -> Result<(), Problem> {
    if expected == source {
        return Ok(());
    }
    Err(Problem::new(
        Code::SourceChanged,
        format!("source {:?} of plan {:?}", found.source, found.plan),
        format!("the log holds the data of {}, this is {}", describe(expected), describe(source)),
        "point the plan at the old cluster again; or, if the data is to come from this one from now on, `crossfade recopy --new-source` copies everything from it, into the same log and target",
    ))
}

/// Makes the streams and puts the header first, or finds it there.
pub(crate) async fn claim(log: &dyn Log, header: Header) -> Result<Header, CaptureError> {
    let Streams { copy, chunks, tail } = streams(&header.plan, &header.source);
    let found = self::header(log, &copy).await?;
    if found.is_none() && log.state(&tail).await?.is_some_and(|state| state.last > Seq::ZERO) {
        return Err(chain::gap(&header, "the copy stream is gone, while the tail is there").into());
    }
    log.create(&copy).await?;
    model::failpoint!("copy_stream_created");
    log.create(&chunks).await?;
    log.create(&tail).await?;
    model::failpoint!("streams_created");
    let found = match found {
        Some(found) => found,
        None => match log.append_first(&copy, Record::Header(header.clone()).encode()).await {
            Ok(_) => {
                model::failpoint!("header_claimed");
                return Ok(header);
            }
            Err(LogError::Conflict { .. }) => self::header(log, &copy).await?.ok_or(LogError::NoStream)?,
            Err(error) => return Err(error.into()),
        },
    };
    compare_target(&found, &header.target_identity)?;
    Ok(found)
}
