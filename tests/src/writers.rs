//! An application that numbers its rows: who wrote what, which side acknowledged it, and when, by one clock.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::{Cluster, World, connect};

/// The table that they write to.
pub const TABLE: &str =
    "CREATE TABLE numbered (id bigserial PRIMARY KEY, writer integer NOT NULL, number bigint NOT NULL)";

/// A pool would wait, too, before it connects anew.
const AGAIN: Duration = Duration::from_millis(5);

/// An application that was refused asks where to write, and tries again where it was if that has not changed.
const REFUSED: Duration = Duration::from_millis(20);

/// How a writer gets to the side that takes writes.
#[derive(Clone)]
pub enum Route {
    /// By what this connection string leads to.
    Fixed(String),
    /// By the connection string that stands in a file, read again for each connection.
    File(PathBuf),
}

impl Route {
    fn dsn(&self) -> Result<String> {
        match self {
            Route::Fixed(dsn) => Ok(dsn.clone()),
            Route::File(file) => Ok(std::fs::read_to_string(file)?),
        }
    }
}

/// A row that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Who wrote it.
    pub writer: i32,
    /// Its number there.
    pub number: i64,
    /// The port of the server that has it.
    pub port: u16,
    /// Before it was sent.
    pub sent: Instant,
    /// Behind its acknowledgement.
    pub acknowledged: Instant,
}

/// Writers that are at it until they are stopped.
pub struct Writers {
    ended: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<Row>>>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Default for Writers {
    fn default() -> Self {
        Writers { ended: Arc::new(AtomicBool::new(false)), log: Arc::default(), tasks: Vec::new() }
    }
}

impl Writers {
    /// Adds one, under a number of its own, that writes once in each `pause` at the most.
    pub fn add(&mut self, writer: i32, route: Route, pause: Duration) {
        let (ended, log) = (Arc::clone(&self.ended), Arc::clone(&self.log));
        self.tasks.push(tokio::spawn(async move { write(writer, &route, pause, &ended, &log).await }));
    }

    /// What was acknowledged so far.
    pub fn rows(&self) -> Vec<Row> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many rows a server has acknowledged since then.
    pub fn count(&self, port: u16, since: Instant) -> usize {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().rev().take_while(|row| row.acknowledged >= since).filter(|row| row.port == port).count()
    }

    /// Stops them, and says what was acknowledged.
    pub async fn stop(mut self) -> Result<Vec<Row>> {
        self.ended.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await??;
        }
        Ok(self.rows())
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

async fn write(writer: i32, route: &Route, pause: Duration, ended: &AtomicBool, log: &Mutex<Vec<Row>>) -> Result<()> {
    let mut number = 0;
    let mut tick = tokio::time::interval(pause.max(Duration::from_micros(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while !ended.load(Ordering::Relaxed) {
        let dsn = route.dsn()?;
        let Ok(client) = connect(&dsn).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        while !ended.load(Ordering::Relaxed) {
            tick.tick().await;
            // A row that was refused, or whose acknowledgement was lost, gets a number of its own.
            number += 1;
            let sent = Instant::now();
            match insert(&client, writer, number).await {
                Ok(port) => {
                    let row = Row { writer, number, port, sent, acknowledged: Instant::now() };
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(row);
                }
                Err(_) if client.is_closed() || route.dsn()? != dsn => break,
                Err(_) if matches!(route, Route::File(_)) => tokio::time::sleep(REFUSED).await,
                Err(_) => {}
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
    Ok(())
}

/// Writes a row, and says to which server. By the simple protocol: behind a pool, prepared statements are somebody else's.
async fn insert(client: &Client, writer: i32, number: i64) -> Result<u16> {
    let sql =
        format!("INSERT INTO numbered (writer, number) VALUES ({writer}, {number}) RETURNING current_setting('port')");
    for message in client.simple_query(&sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            return Ok(row.get(0).context("the port")?.parse()?);
        }
    }
    anyhow::bail!("no row was written")
}

/// A change of sides, as the writers have seen it.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// From the last acknowledgement of the old side to the first one of the new side; zero if they cross.
    pub gap: Duration,
    /// A write to the old side was sent after the new one had acknowledged one, and was acknowledged: both took writes.
    pub both: bool,
}

/// The change from one server to another among these rows. An acknowledgement may be read late: what counts against both sides is when a write was sent.
pub fn change(rows: &[Row], from: u16, to: u16) -> Result<Change> {
    let old = || rows.iter().filter(|row| row.port == from);
    let new = || rows.iter().filter(|row| row.port == to);
    let last = old().map(|row| row.acknowledged).max().context("the old side has acknowledged nothing")?;
    let sent = old().map(|row| row.sent).max().context("the old side has acknowledged nothing")?;
    let first = new().map(|row| row.acknowledged).min().context("the new side has acknowledged nothing")?;
    Ok(Change { gap: first.saturating_duration_since(last), both: first < sent })
}

/// What became of acknowledged rows on a side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// They are not there.
    pub lost: usize,
    /// They are there more than once.
    pub twice: usize,
}

/// Looks for each acknowledged row on a side.
pub async fn fate(cluster: &Cluster, rows: &[Row]) -> Result<Fate> {
    let client = cluster.client("app").await?;
    let there = client.query("SELECT writer, number, count(*) FROM numbered GROUP BY 1, 2", &[]).await?;
    let there: BTreeMap<(i32, i64), i64> = there.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let lost = rows.iter().filter(|row| !there.contains_key(&(row.writer, row.number))).count();
    Ok(Fate { lost, twice: there.values().filter(|count| **count > 1).count() })
}

/// The fate on both sides together, which have to be equal besides.
pub async fn fates(world: &World, rows: &[Row]) -> Result<Fate> {
    ensure!(!rows.is_empty(), "nothing was acknowledged");
    let (source, target) = (fate(&world.source, rows).await?, fate(&world.target, rows).await?);
    Ok(Fate { lost: source.lost + target.lost, twice: source.twice + target.twice })
}
