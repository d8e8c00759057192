use model::{Code, DecodeError, Problem};
use offsets::OffsetsError;
use pg::PgError;
use pg::pgoutput::PgOutputError;

/// Capture could not go on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The source.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The log.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// The local store.
    #[error(transparent)]
    Offsets(#[from] OffsetsError),
    /// The source sent what pgoutput never sends.
    #[error("the source's tail cannot be read: {0}")]
    Decode(#[from] PgOutputError),
    /// A spilled piece cannot be read back.
    #[error("a spilled transaction cannot be read back: {0}")]
    Spilled(#[from] DecodeError),
    /// Somebody waited too long for a table that is being copied; its copy starts over.
    #[error("gave way to the application's lock on {0}")]
    GaveWay(model::TableName),
    /// It has to start from the beginning, for this reason.
    #[error("{0}")]
    Again(String),
    /// Something that a person has to decide.
    #[error(transparent)]
    Stop(#[from] Problem),
}

impl From<tokio_postgres::Error> for CaptureError {
    fn from(error: tokio_postgres::Error) -> Self {
        CaptureError::Pg(error.into())
    }
}

impl CaptureError {
    /// Older transactions did not end in time: after a first start that is a reason to go on waiting.
    pub(crate) fn is_barrier_timeout(&self) -> bool {
        matches!(self, CaptureError::Stop(problem) if problem.code == Code::BarrierTimeout)
    }

    /// Whether trying again, after a while, can help.
    pub fn retry(&self) -> bool {
        match self {
            CaptureError::Pg(error) => pg::policy(error) == pg::Policy::Retry,
            CaptureError::Log(error) => error.retry(),
            CaptureError::Offsets(error) => error.retry(),
            CaptureError::GaveWay(_) | CaptureError::Again(_) => true,
            CaptureError::Decode(_) | CaptureError::Spilled(_) | CaptureError::Stop(_) => false,
        }
    }
}

impl From<CaptureError> for Problem {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Pg(error) => error.into(),
            CaptureError::Log(error) => error.into(),
            CaptureError::Offsets(error) => error.into(),
            CaptureError::Stop(problem) => problem,
            CaptureError::Decode(_) | CaptureError::Spilled(_) | CaptureError::GaveWay(_) | CaptureError::Again(_) => {
                Problem::new(
                    Code::Internal,
                    "capture",
                    error.to_string(),
                    "start it again; if it comes back, report it with the log of this run",
                )
            }
        }
    }
}
