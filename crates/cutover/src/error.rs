use model::{Code, Problem};
use pg::PgError;

/// A cutover could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CutoverError {
    /// Source or target.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// Something that a person has to decide.
    #[error(transparent)]
    Stop(#[from] Problem),
    /// Another process acts in this one's place.
    #[error("{0}")]
    Overtaken(String),
    /// It is given up, for this reason.
    #[error("{0}")]
    GivenUp(String),
}

impl From<tokio_postgres::Error> for CutoverError {
    fn from(error: tokio_postgres::Error) -> Self {
        CutoverError::Pg(error.into())
    }
}

impl From<apply::ApplyError> for CutoverError {
    fn from(error: apply::ApplyError) -> Self {
        match error {
            apply::ApplyError::Pg(error) => CutoverError::Pg(error),
            error => CutoverError::Stop(error.into()),
        }
    }
}

impl From<capture::CaptureError> for CutoverError {
    fn from(error: capture::CaptureError) -> Self {
        CutoverError::Stop(error.into())
    }
}

impl From<CutoverError> for Problem {
    fn from(error: CutoverError) -> Self {
        match error {
            CutoverError::Pg(error) => error.into(),
            CutoverError::Stop(problem) => problem,
            CutoverError::Overtaken(why) => {
                Problem::new(Code::Overtaken, "this cutover or rollback", why, "`crossfade status` shows how it stands")
            }
            CutoverError::GivenUp(why) => {
                Problem::new(Code::CutoverCancelled, "this cutover or rollback", why, "mend that, then start it again")
            }
        }
    }
}
