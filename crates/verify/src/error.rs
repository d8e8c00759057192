use log::LogError;
use model::{Code, Problem, TableName};
use pg::PgError;

/// A comparison could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// Source or target.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Another try may do, for this reason.
    #[error("{0}")]
    Again(String),
    /// No other try will do: nothing can be said of any table.
    #[error("{0}")]
    Still(String),
    /// Of this table nothing can be said.
    #[error("table {0}: {1}")]
    Table(TableName, String),
    /// Something that a person has to decide.
    #[error(transparent)]
    Stop(#[from] Problem),
}

impl From<tokio_postgres::Error> for VerifyError {
    fn from(error: tokio_postgres::Error) -> Self {
        VerifyError::Pg(error.into())
    }
}

impl From<apply::ApplyError> for VerifyError {
    fn from(error: apply::ApplyError) -> Self {
        match error {
            apply::ApplyError::Pg(error) => VerifyError::Pg(error),
            apply::ApplyError::Log(error) => VerifyError::Log(error),
            error => VerifyError::Stop(error.into()),
        }
    }
}

impl From<capture::CaptureError> for VerifyError {
    fn from(error: capture::CaptureError) -> Self {
        match error {
            capture::CaptureError::Pg(error) => VerifyError::Pg(error),
            capture::CaptureError::Log(error) => VerifyError::Log(error),
            error => VerifyError::Stop(error.into()),
        }
    }
}

impl VerifyError {
    /// Somebody's locks were in the way: it was the victim of a deadlock, or has waited for long enough.
    pub fn locked_out(&self) -> bool {
        matches!(self, VerifyError::Pg(error) if matches!(error.sqlstate(), Some("40P01" | "55P03")))
    }

    /// Whether trying again, after a while, can help.
    pub fn retry(&self) -> bool {
        match self {
            VerifyError::Pg(error) => pg::policy(error) == pg::Policy::Retry,
            VerifyError::Log(error) => error.retry(),
            VerifyError::Again(_) => true,
            VerifyError::Still(_) | VerifyError::Table(..) | VerifyError::Stop(_) => false,
        }
    }
}

impl From<VerifyError> for Problem {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Pg(error) => error.into(),
            VerifyError::Log(error) => error.into(),
            VerifyError::Stop(problem) => problem,
            VerifyError::Again(why) | VerifyError::Still(why) => {
                Problem::new(Code::Internal, "verify", why, "start it again with --resume")
            }
            VerifyError::Table(table, why) => {
                Problem::new(Code::Internal, format!("table {table}"), why, "start it again with --resume")
            }
        }
    }
}
