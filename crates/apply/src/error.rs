use log::LogError;
use model::{Code, Problem};
use pg::PgError;

/// Apply could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The target.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Another process took the lease.
    #[error("another apply process holds the lease now: {0}")]
    LeaseLost(String),
    /// It has to start again from what the target says, for this reason.
    #[error("{0}")]
    Again(String),
    /// A decision has given this database to the application: nothing is applied until another one takes it back.
    #[error("the application writes to this database now")]
    Barred,
    /// Something that a person has to decide.
    #[error(transparent)]
    Stop(#[from] Problem),
}

impl From<tokio_postgres::Error> for ApplyError {
    fn from(error: tokio_postgres::Error) -> Self {
        ApplyError::Pg(error.into())
    }
}

impl ApplyError {
    /// Whether trying again, after a while, can help.
    pub fn retry(&self) -> bool {
        match self {
            ApplyError::Pg(error) => pg::policy(error) == pg::Policy::Retry,
            ApplyError::Log(error) => error.retry(),
            ApplyError::Again(_) | ApplyError::Barred => true,
            // Whoever has it goes on. This process was stopped for too long, or cut off.
            ApplyError::LeaseLost(_) | ApplyError::Stop(_) => false,
        }
    }

    /// One of the rows cannot be had as it is: a constraint, or a value that does not fit.
    pub(crate) fn is_row(&self) -> bool {
        let unfit = |error: &PgError| pg::policy(error) == pg::Policy::Tell(Code::RowRefused);
        self.is_constraint() || matches!(self, ApplyError::Pg(error) if unfit(error))
    }

    /// The target refused the rows, not the connection.
    pub(crate) fn is_constraint(&self) -> bool {
        match self {
            ApplyError::Pg(error) => pg::policy(error) == pg::Policy::Constraint,
            ApplyError::Log(_)
            | ApplyError::LeaseLost(_)
            | ApplyError::Again(_)
            | ApplyError::Barred
            | ApplyError::Stop(_) => false,
        }
    }
}

impl From<ApplyError> for Problem {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Pg(error) => error.into(),
            ApplyError::Log(error) => error.into(),
            ApplyError::Stop(problem) => problem,
            ApplyError::Again(_) | ApplyError::Barred => {
                let why = error.to_string();
                Problem::new(Code::Internal, "apply", why, "start it again; if it comes back, report it")
            }
            ApplyError::LeaseLost(_) => Problem::new(
                Code::WriterRefused,
                "the target's lease",
                error.to_string(),
                "nothing: that process goes on; this one waits for its end when it is started again",
            ),
        }
    }
}

pub(crate) fn panicked(error: tokio::task::JoinError) -> ApplyError {
    Problem::new(Code::Internal, "a worker", error.to_string(), "report it with the log of this run").into()
}
