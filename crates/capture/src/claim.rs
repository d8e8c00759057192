//! Whose streams these are. The first record of a copy stream says it; everybody who comes later compares.

use log::{Log, LogError, StreamKind, StreamName};
use model::{Code, Header, Identity, Problem, Record, Seq};

use crate::CaptureError;

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

/// Compares an existing header with what this run has before it.
///
/// # Errors
/// The streams are another plan's, or the source is another cluster than before.
pub(crate) fn compare(found: &Header, source: &Identity, target: &Identity) -> Result<(), Problem> {
    let other = |what: &Identity| format!("database {:?} of cluster {}", what.database, what.system_identifier);
    if found.target_identity != *target {
        return Err(Problem::new(
            Code::PlanNameTaken,
            format!("plan {:?} on the log", found.plan),
            format!("its streams lead into {}, this plan's target is {}", other(&found.target_identity), other(target)),
            "give this plan another name, or end the other one with `crossfade complete`",
        ));
    }
    if found.source_identity != *source {
        return Err(Problem::new(
            Code::SourceChanged,
            format!("source {:?} of plan {:?}", found.source, found.plan),
            format!("the log holds the data of {}, this is {}", other(&found.source_identity), other(source)),
            "point the plan at the old cluster again, or end the plan with `crossfade complete` and start anew",
        ));
    }
    Ok(())
}

/// Makes the streams and puts the header first, or finds it there.
pub(crate) async fn claim(log: &dyn Log, header: Header) -> Result<Header, CaptureError> {
    let Streams { copy, chunks, tail } = streams(&header.plan, &header.source);
    let found = self::header(log, &copy).await?;
    if found.is_none() && log.state(&tail).await?.is_some_and(|state| state.last > Seq::ZERO) {
        return Err(gap(&header, "the copy stream is gone, while the tail is there").into());
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
    compare(&found, &header.source_identity, &header.target_identity)?;
    Ok(found)
}

pub(crate) fn gap(header: &Header, why: impl Into<String>) -> Problem {
    Problem::new(
        Code::Gap,
        format!("plan {:?}, source {:?}", header.plan, header.source),
        why,
        "what is missing cannot be had again: end the plan with `crossfade complete`, empty the target, and start anew",
    )
}
