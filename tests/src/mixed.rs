//! A schema with something of everything that Postgres users have, and writers that change all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::{Cluster, Dice, PlanFile};

/// Types, constraints, partitions, heirs, tables without key, triggers, odd names, and some rows.
pub const SCHEMA: &str = include_str!("mixed/schema.sql");

/// Statements that a writer runs again and again; `:r` is a random number below 1,000,000, another one each time it
/// stands there. Each line is a transaction.
const STATEMENTS: &str = include_str!("mixed/writes.sql");

/// Between two transactions of a session: an application that writes as fast as it can takes the processors from what is tested.
const PAUSE: Duration = Duration::from_millis(4);

/// Creates the schema and fills it.
pub fn create(cluster: &Cluster, database: &str) -> Result<()> {
    cluster.psql(database, SCHEMA).map(drop)
}

/// What a plan must say of its tables.
pub fn plan(plan: PlanFile) -> PlanFile {
    plan.tables(&["public.*", "Odd Schema.*"])
        .identity("public.keyless", "full")
        .identity("public.journal", "insert_only")
}

/// Sessions that write until they are told to stop.
pub struct Writers {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    /// Starts `count` sessions; `seed` makes them choose the same statements again.
    pub async fn start(cluster: &Cluster, database: &str, count: u64, seed: u64) -> Result<Writers> {
        let (stop, transactions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for number in 0..count {
            let client = cluster.client(database).await?;
            let dice = Dice::of(seed, number);
            tasks.push(tokio::spawn(write(client, dice, stop.clone(), transactions.clone())));
        }
        Ok(Writers { stop, transactions, tasks })
    }

    /// Transactions so far, including those that a constraint rolled back.
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Stops them, and tells how many transactions they made.
    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(self.transactions.load(Ordering::Relaxed))
    }
}

async fn write(client: Client, mut dice: Dice, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let sql = statement(&mut dice);
        match client.batch_execute(&sql).await {
            // Two writers collide on keys and locks, as applications do: the transaction is rolled back, that is all.
            Err(error) if error.code().is_some_and(|code| ["23", "40"].contains(&&code.code()[..2])) => {
                client.batch_execute("ROLLBACK").await?;
            }
            other => other.with_context(|| sql.clone())?,
        }
        count.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// One of the statements, with its numbers filled in.
pub fn statement(dice: &mut Dice) -> String {
    let statements: Vec<&str> = STATEMENTS.lines().filter(|line| !line.is_empty() && !line.starts_with("--")).collect();
    let mut parts = dice.one_of(&statements).split(":r");
    let mut sql = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        sql += &dice.below(1_000_000).to_string();
        sql += part;
    }
    sql
}
