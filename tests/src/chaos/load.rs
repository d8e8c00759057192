use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::transaction::{End, Step, Work, Writer};
use crate::connect;

/// Between two tries to reach a source that is down.
const AGAIN: Duration = Duration::from_millis(50);

/// An application: clients that write, come back when the source was away, and leave no prepared transaction behind.
pub struct Load {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts `count` clients; `seed` makes them do the same again.
    pub fn start(dsn: &str, seed: u64, count: u64) -> Load {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..count)
            .map(|number| {
                let application = Application {
                    dsn: dsn.to_owned(),
                    number,
                    writer: Writer::new(seed, number),
                    stop: Arc::clone(&stop),
                    committed: Arc::clone(&committed),
                    prepared: 0,
                };
                tokio::spawn(application.run())
            })
            .collect();
        Load { stop, committed, clients }
    }

    /// # Errors
    /// A client has ended, which none does by itself: [`Load::stop`] says why.
    pub fn expect_alive(&self) -> Result<()> {
        ensure!(!self.clients.iter().any(JoinHandle::is_finished), "a client of the load has ended");
        Ok(())
    }

    /// Stops them, and tells how many transactions they committed. The source must be there.
    pub async fn stop(self, dsn: &str) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await?.context("a client of the load")?;
        }
        let left = connect(dsn).await?.query("SELECT gid FROM pg_prepared_xacts", &[]).await?;
        ensure!(left.is_empty(), "the load left {} prepared transactions behind", left.len());
        Ok(self.committed.load(Ordering::Relaxed))
    }
}

/// One client.
struct Application {
    dsn: String,
    number: u64,
    writer: Writer,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    prepared: u64,
}

/// What a piece of work came to.
enum Came {
    /// To its end.
    Committed,
    /// To nothing: rolled back, by itself or by a constraint or a lock.
    Nothing,
    /// The connection is gone, and perhaps the work with it.
    Lost,
}

impl Application {
    async fn run(mut self) -> Result<()> {
        loop {
            let client = self.reach().await?;
            loop {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let work = self.writer.work();
                match self.perform(&client, work).await? {
                    Came::Committed => drop(self.committed.fetch_add(1, Ordering::Relaxed)),
                    Came::Nothing => {}
                    Came::Lost => break,
                }
                let pause = Duration::from_micros(self.writer.dice().between(500, 12_000));
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Connects, whenever that is possible again, and ends what an earlier connection left prepared.
    async fn reach(&mut self) -> Result<Client> {
        // Some applications do not wait for their commits to be flushed. None waits for a standby, which a test may require of others: it would keep its locks meanwhile.
        let commit = if self.number % 3 == 2 { "off" } else { "local" };
        let settings = format!("SET synchronous_commit = {commit}; SET lock_timeout = '3s'; SET search_path = public");
        loop {
            let Ok(client) = connect(&self.dsn).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            if client.batch_execute(&settings).await.is_err() {
                continue;
            }
            let gid = format!("chaos-{}-%", self.number);
            let Ok(left) = client.query("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE $1::text", &[&gid]).await
            else {
                continue;
            };
            let mut all_ended = true;
            for row in left {
                let how = if self.writer.dice().chance(50) { "COMMIT" } else { "ROLLBACK" };
                let end = format!("{how} PREPARED '{}'", row.get::<_, String>(0));
                all_ended &= client.batch_execute(&end).await.is_ok();
            }
            if all_ended {
                return Ok(client);
            }
        }
    }

    async fn perform(&mut self, client: &Client, work: Work) -> Result<Came> {
        match work {
            Work::Line(sql) => match outcome(client.batch_execute(&sql).await, &sql)? {
                // What is inside of BEGIN and COMMIT is to be ended by us.
                Came::Nothing => rolled_back(client).await,
                came => Ok(came),
            },
            Work::Transaction(steps, end) => self.transaction(client, steps, end).await,
        }
    }

    async fn transaction(&mut self, client: &Client, steps: Vec<Step>, end: End) -> Result<Came> {
        if let Came::Lost = outcome(client.batch_execute("BEGIN").await, "BEGIN")? {
            return Ok(Came::Lost);
        }
        for step in steps {
            match self.step(client, &step).await? {
                Came::Committed => {}
                Came::Nothing => return rolled_back(client).await,
                Came::Lost => return Ok(Came::Lost),
            }
        }
        let commit = match end {
            End::Commit => return ended(client, "COMMIT").await,
            End::Rollback => return rolled_back(client).await,
            End::Prepared { commit } => commit,
        };
        self.prepared += 1;
        let gid = format!("chaos-{}-{}", self.number, self.prepared);
        match ended(client, &format!("PREPARE TRANSACTION '{gid}'")).await? {
            Came::Committed => {}
            other => return Ok(other),
        }
        tokio::time::sleep(Duration::from_millis(self.writer.dice().below(100))).await;
        let decision = format!("{} PREPARED '{gid}'", if commit { "COMMIT" } else { "ROLLBACK" });
        match ended(client, &decision).await? {
            Came::Committed if !commit => Ok(Came::Nothing),
            came => Ok(came),
        }
    }

    async fn step(&mut self, client: &Client, step: &Step) -> Result<Came> {
        let sql = if step.guarded { format!("SAVEPOINT s; {}", step.sql) } else { step.sql.clone() };
        let came = outcome(client.batch_execute(&sql).await, &sql)?;
        let undo = match came {
            Came::Lost => return Ok(Came::Lost),
            Came::Nothing if step.guarded => true,
            Came::Nothing => return Ok(Came::Nothing),
            Came::Committed => step.undone,
        };
        tokio::time::sleep(Duration::from_millis(step.pause)).await;
        if !step.guarded {
            return Ok(Came::Committed);
        }
        let end = if undo { "ROLLBACK TO s; RELEASE s" } else { "RELEASE s" };
        // A deadlock ends the whole transaction, and there is no savepoint to go back to.
        outcome(client.batch_execute(end).await, end)
    }
}

/// A statement that ends the transaction, whatever it says.
async fn ended(client: &Client, sql: &str) -> Result<Came> {
    match outcome(client.batch_execute(sql).await, sql)? {
        Came::Nothing => rolled_back(client).await,
        came => Ok(came),
    }
}

async fn rolled_back(client: &Client) -> Result<Came> {
    Ok(match outcome(client.batch_execute("ROLLBACK").await, "ROLLBACK")? {
        Came::Lost => Came::Lost,
        Came::Committed | Came::Nothing => Came::Nothing,
    })
}

/// Clients collide on keys and locks, as those of applications do, and servers go away. Anything else is a mistake in
/// the load.
fn outcome(answer: Result<(), tokio_postgres::Error>, sql: &str) -> Result<Came> {
    let Err(error) = answer else { return Ok(Came::Committed) };
    let Some(code) = error.code().map(|code| code.code().to_owned()) else { return Ok(Came::Lost) };
    match code.as_str() {
        // Too long a wait for a lock; a statement that was cancelled; a prepared transaction that another session is ending.
        "55P03" | "57014" | "55006" => Ok(Came::Nothing),
        // A constraint; a serialization failure or deadlock.
        code if code.starts_with("23") || code.starts_with("40") => Ok(Came::Nothing),
        // The server stops, crashed, or starts.
        code if code.starts_with("57") => Ok(Came::Lost),
        _ => Err(error).with_context(|| sql.to_owned()),
    }
}
