use model::quote;
use pg::{Endpoint, Session};
use tokio::sync::{Mutex, Semaphore};
use tokio_postgres::SimpleQueryMessage;

use crate::error::VerifyError;

/// A row as its types print its values.
pub(crate) type Row = Vec<Option<String>>;

/// Sessions of one side that see the same instant. The leader keeps the locks and the snapshot; nothing counts that was read once it is gone.
pub(crate) struct Side {
    pub leader: Session,
    idle: Mutex<Vec<Session>>,
    permits: Semaphore,
}

/// How long a lock that somebody else holds is waited for, in milliseconds: Postgres looks for deadlocks after a second, unless told otherwise, and the
/// application could be the victim.
const LOCK: u64 = 200;

impl Side {
    /// Begins a transaction on a leader and `readers`, each of which has locked these tables and has no snapshot yet. A snapshot older
    /// than the lock could be older than a TRUNCATE, and would read nothing.
    pub async fn open(
        endpoint: &Endpoint,
        purpose: &str,
        readers: usize,
        relations: &[String],
    ) -> Result<Side, VerifyError> {
        let leader = locked(endpoint, purpose, relations).await?;
        let mut idle = Vec::with_capacity(readers);
        for _ in 0..readers {
            idle.push(locked(endpoint, purpose, relations).await?);
        }
        Ok(Side { leader, permits: Semaphore::new(idle.len()), idle: Mutex::new(idle) })
    }

    /// A leader and `readers` without a transaction: each of their statements sees what there is.
    pub async fn open_idle(endpoint: &Endpoint, purpose: &str, readers: usize) -> Result<Side, VerifyError> {
        let leader = pg::connect_read_only(endpoint, purpose).await?;
        let mut idle = Vec::with_capacity(readers);
        for _ in 0..readers {
            let reader = pg::connect_read_only(endpoint, purpose).await?;
            reader.batch_execute("SET jit = off").await?;
            idle.push(reader);
        }
        Ok(Side { leader, permits: Semaphore::new(idle.len()), idle: Mutex::new(idle) })
    }

    /// All readers see what the leader's snapshot sees.
    pub async fn share(&self, snapshot: &str) -> Result<(), VerifyError> {
        let set = format!("SET TRANSACTION SNAPSHOT {}", quote::literal(snapshot));
        for session in self.idle.lock().await.iter() {
            session.batch_execute(&set).await?;
        }
        Ok(())
    }

    /// Runs a query on a reader that is free.
    pub async fn rows(&self, query: &str) -> Result<Vec<Row>, VerifyError> {
        // Nobody closes it, and there is a session for each permit.
        let _permit = self.permits.acquire().await.map_err(|_| gone())?;
        let session = self.idle.lock().await.pop().ok_or_else(gone)?;
        let rows = rows(&session, query).await;
        self.idle.lock().await.push(session);
        rows
    }

    /// The leader's transaction is alive: what was read so far was read under its locks.
    pub async fn lives(&self) -> Result<(), VerifyError> {
        Ok(self.leader.batch_execute("SELECT 1").await?)
    }
}

fn gone() -> VerifyError {
    VerifyError::Again("a session is gone".to_owned())
}

async fn locked(endpoint: &Endpoint, purpose: &str, relations: &[String]) -> Result<Session, VerifyError> {
    let session = pg::connect_read_only(endpoint, purpose).await?;
    let lock = if relations.is_empty() {
        String::new()
    } else {
        format!("LOCK TABLE {} IN ACCESS SHARE MODE;", relations.join(", "))
    };
    session
        .batch_execute(&format!(
            "SET jit = off; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = {LOCK}; {lock} SET LOCAL lock_timeout = 0"
        ))
        .await?;
    Ok(session)
}

/// Runs a query; values come as their types print them.
pub(crate) async fn rows(session: &Session, query: &str) -> Result<Vec<Row>, VerifyError> {
    let messages = session.simple_query(query).await?;
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        })
        .collect())
}
