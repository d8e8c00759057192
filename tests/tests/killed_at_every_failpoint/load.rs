//! What an application does meanwhile: one session, a transaction every few milliseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use crossfade_tests::connect;
use tokio::task::JoinHandle;

/// Between two transactions: a dozen of these loads run side by side, and must leave the processors to what is tested.
const PAUSE: Duration = Duration::from_millis(25);

/// `:r` is the number of the transaction. Unique values change places, keys move, rows go and come again.
const TRANSACTIONS: &[&str] = &[
    "UPDATE keyed SET n = n + 1 WHERE id % 50 = :r % 50; INSERT INTO journal VALUES (:r, 'update')",
    "DO $$ DECLARE one integer; other integer; BEGIN
       SELECT a INTO one FROM keyed WHERE id = 1 + :r % 100; SELECT a INTO other FROM keyed WHERE id = 101 + :r % 100;
       UPDATE keyed SET a = NULL WHERE id = 1 + :r % 100; UPDATE keyed SET a = one WHERE id = 101 + :r % 100;
       UPDATE keyed SET a = other WHERE id = 1 + :r % 100; INSERT INTO journal VALUES (:r, 'swap'); END $$",
    "UPDATE keyed SET id = id + 1000, n = n + 1 WHERE id = 201 + :r % 50; UPDATE keyed SET id = id - 1000 WHERE id = 1201 + (:r + 25) % 50",
    "DELETE FROM keyed WHERE id = 251 + :r % 50; INSERT INTO keyed VALUES (251 + :r % 50, 251 + :r % 50, NULL, 'again'); INSERT INTO refers (keyed) VALUES (251 + :r % 50)",
    "TRUNCATE emptied; INSERT INTO emptied SELECT :r + i FROM generate_series(1, 10) AS i",
    "UPDATE parted SET at = (at + 60) % 200, v = 'r:r' WHERE id = 1 + :r % 200; UPDATE later SET n = :r WHERE id = 1 + :r % 100",
    "BEGIN; INSERT INTO journal VALUES (:r, 'kept'); SAVEPOINT s; INSERT INTO journal VALUES (:r, 'undone'); ROLLBACK TO s; INSERT INTO later VALUES (1000 + :r); COMMIT",
    "BEGIN; INSERT INTO journal VALUES (:r, 'undone'); UPDATE keyed SET v = 'undone'; ROLLBACK",
];

/// A load under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    task: JoinHandle<Result<()>>,
}

impl Load {
    /// Goes on from transaction `from`.
    pub async fn start(dsn: &str, from: u64) -> Result<Load> {
        let client = connect(dsn).await?;
        let (stop, transactions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(from)));
        let (stopped, count) = (stop.clone(), transactions.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let sql = TRANSACTIONS[number as usize % TRANSACTIONS.len()].replace(":r", &number.to_string());
                client.batch_execute(&sql).await.with_context(|| sql)?;
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        });
        Ok(Load { stop, transactions, task })
    }

    /// Transactions so far.
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Ends it; an error is one of its transactions'.
    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.transactions.load(Ordering::Relaxed))
    }
}
