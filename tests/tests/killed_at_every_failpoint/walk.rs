//! How each failpoint is reached. One that is not named here is reached by a first start.

use std::fmt;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{PlanFile, Running, until};
use model::failpoint;

use crate::migration::{LIMIT, Migration, Servers};

/// Only the embedded log has them: what a nats-server does between two durable things is its own.
const EMBEDDED: &[&str] = &["log_stored", "log_synced"];

/// Deaths of one migration that follows: its copy need not be made for each.
const AT_ONCE: usize = 5;

/// How a process is brought to a failpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// By a first start, after so many passages.
    First(u32),
    /// By the start after one that died in the middle of a table, after so many passages.
    NextEpoch(u32),
    /// By a start whose plan has one table more.
    Added,
    /// By the application, which locks a table that is about to be copied.
    Locked,
    /// By a start of a migration that follows, after so many passages.
    Follows(u32, Provoked),
    /// By `complete --yes`.
    Complete,
}

/// What the application does, or somebody else.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Provoked {
    /// The load is enough.
    Nothing,
    /// Writes values that no message holds.
    LargeValues,
    /// Writes a transaction that apply does not hold.
    LargeTransaction,
    /// Writes nothing.
    Rests,
    /// The lease is taken from under the process.
    LeaseTaken,
    /// The process is told to stop.
    Stopped,
}

use Provoked::{LargeTransaction, LargeValues, LeaseTaken, Nothing, Rests, Stopped};
use Way::{Added, Complete, First, Follows, Locked, NextEpoch};

/// The first passage is not always the interesting one: behind it there is nothing yet that could be done twice.
fn ways(failpoint: &str) -> Vec<Way> {
    match failpoint {
        "publication_set" => vec![First(0), First(1)],
        "publication_altered" | "gated_epoch_begun" => vec![Added],
        "copy_marker_emitted"
        | "chunk_appended"
        | "chunk_logged"
        | "chunk_copied"
        | "ledger_written"
        | "ledger_committed"
        | "index_built"
        | "index_committed" => vec![First(0), First(3)],
        "next_epoch_announced" => vec![Locked],
        "epoch_begun" => vec![First(0), NextEpoch(1)],
        "epoch_emptied" => vec![NextEpoch(0)],
        "gate_reached" | "gate_passed" => vec![First(0), Added],
        "tail_begun" | "holder_ended" | "lease_taken" => vec![First(0), Follows(0, Nothing)],
        "spill_written" | "blob_pushed" => vec![Follows(0, LargeValues)],
        "piece_written" => vec![Follows(0, LargeTransaction)],
        "heartbeat_sent" => vec![Follows(0, Rests)],
        "lease_lost" => vec![Follows(0, LeaseTaken)],
        "lease_released" => vec![Follows(0, Stopped)],
        "log_stored" | "log_synced" => vec![First(3), Follows(3, Nothing)],
        // The first is that of the tail's beginning.
        "log_acknowledged" | "offset_saved" => vec![Follows(2, Nothing)],
        "wal_acknowledged" => vec![Follows(5, Nothing)],
        "batch_sent" | "batch_written" | "checkpoint_moved" | "batch_committed" => {
            vec![Follows(0, Nothing), Follows(3, Nothing)]
        }
        "set_undone" | "tables_emptied" => vec![Follows(0, Nothing)],
        "slot_dropped" | "publication_dropped" | "target_schema_dropped" | "origin_dropped" | "stream_removed" => {
            vec![Complete]
        }
        _ => vec![First(0)],
    }
}

/// What one migration goes through: one death, or several of the same kind, each with an end that is compared.
pub struct Walk(Vec<(&'static str, Way)>);

/// All of them, or those to the failpoint `only`.
pub fn all(servers: &Servers, only: Option<&str>) -> Vec<Walk> {
    let (mut alone, mut follows, mut complete) = (Vec::new(), Vec::new(), Vec::new());
    for (failpoint, _) in failpoint::MIGRATION.iter().copied() {
        if only.is_some_and(|only| only != failpoint) || servers.nats.is_some() && EMBEDDED.contains(&failpoint) {
            continue;
        }
        for way in ways(failpoint) {
            match way {
                First(_) | NextEpoch(_) | Added | Locked => alone.push(Walk(vec![(failpoint, way)])),
                Follows(..) => follows.push((failpoint, way)),
                Complete => complete.push((failpoint, way)),
            }
        }
    }
    // The longest first.
    let mut walks: Vec<Walk> = follows.chunks(AT_ONCE).map(|steps| Walk(steps.to_vec())).collect();
    walks.extend((!complete.is_empty()).then_some(Walk(complete)));
    walks.extend(alone);
    walks
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.0.iter().map(|(failpoint, way)| format!("{failpoint} {way:?}")).collect();
        f.write_str(&steps.join(", "))
    }
}

impl Walk {
    /// How often a process dies.
    pub fn deaths(&self) -> usize {
        self.0.len()
    }

    /// Makes a migration, lets it die, and sees it to its end each time.
    pub async fn go(&self, servers: &Servers) -> Result<()> {
        let adds = matches!(self.0[..], [(_, Added)]);
        let without_later = |plan: PlanFile| if adds { plan.tables(&["public.*", "!public.later"]) } else { plan };
        let mut migration = Migration::new(servers, without_later).await?;
        match self.0[0] {
            (failpoint, First(passages)) => {
                if failpoint == "blob_appended" {
                    migration.source.batch_execute(LARGE_VALUES).await?;
                }
                migration.dies_at(failpoint, passages).await?;
                migration.ends_equal().await?;
            }
            (failpoint, NextEpoch(passages)) => {
                migration.dies_at("chunk_logged", 0).await?;
                migration.dies_at(failpoint, passages).await?;
                migration.ends_equal().await?;
                let epochs = "SELECT max(epoch) FROM crossfade.tables";
                let epochs: i32 = migration.target.query_one(epochs, &[]).await?.get(0);
                ensure!(epochs > 1, "no table was copied as a second epoch");
            }
            (failpoint, Added) => {
                let whole = |plan: PlanFile| plan.tables(&["public.*"]);
                migration.follows().await?.kill9()?;
                migration.replan(whole)?;
                migration.dies_at(failpoint, 0).await?;
                migration.ends_equal().await?;
            }
            (failpoint, Locked) => {
                locked(&migration, failpoint).await?;
                migration.ends_equal().await?;
            }
            (_, Follows(..)) => self.follows(&mut migration).await?,
            (_, Complete) => self.complete(&mut migration).await?,
        }
        migration.clear().await
    }

    async fn follows(&self, migration: &mut Migration<'_>) -> Result<()> {
        migration.follows().await?.kill9()?;
        for (failpoint, way) in &self.0 {
            let Follows(passages, provoked) = *way else { continue };
            migration.write().await?;
            match provoked {
                LargeValues => migration.source.batch_execute(LARGE_VALUES).await?,
                LargeTransaction => migration.source.batch_execute(LARGE_TRANSACTION).await?,
                Rests => migration.rest().await?,
                Nothing | LeaseTaken | Stopped => {}
            }
            let mut run = migration.crossfade.start_armed(&["run"], failpoint, passages)?;
            match provoked {
                LeaseTaken => lease_taken(migration, &run).await?,
                Stopped => {
                    lease_held(migration, &run).await?;
                    run.term()?;
                }
                Nothing | LargeValues | LargeTransaction | Rests => {}
            }
            run.died_at(failpoint, LIMIT).await.with_context(|| failpoint.to_string())?;
            migration.ends_equal().await.with_context(|| failpoint.to_string())?.kill9()?;
            migration.source.batch_execute("DELETE FROM keyed WHERE id >= 100000").await?;
        }
        Ok(())
    }

    /// Removing goes on where it ended, until nothing is left but the tables.
    async fn complete(&self, migration: &mut Migration<'_>) -> Result<()> {
        migration.follows().await?.kill9()?;
        migration.ends_equal().await?.stop().await?;
        let complete = ["complete", "--yes"];
        for (failpoint, _) in &self.0 {
            // Two publications, three streams; the next time the first of them is another one.
            let times = match *failpoint {
                "publication_dropped" => 2,
                "stream_removed" => 3,
                _ => 1,
            };
            for _ in 0..times {
                migration.crossfade.start_armed(&complete, failpoint, 0)?.died_at(failpoint, LIMIT).await?;
            }
        }
        let done = migration.crossfade.run(&complete).await?;
        ensure!(done.status.success(), "{done:?}");
        let listed = migration.crossfade.run(&["complete"]).await?;
        ensure!(listed.stdout.contains("nothing of this plan is left"), "{listed:?}");
        migration.is_removed().await
    }
}

/// Larger together than what capture holds of transactions in progress, and each larger than a message.
const LARGE_VALUES: &str =
    "INSERT INTO keyed SELECT 100000 + i, NULL, NULL, repeat(md5(i::text), 294912) FROM generate_series(1, 3) AS i";

/// Larger than what apply holds of a transaction.
const LARGE_TRANSACTION: &str =
    "INSERT INTO keyed SELECT 100000 + i, NULL, NULL, repeat(md5(i::text), 64) FROM generate_series(1, 4000) AS i";

/// Waits until `run` holds the lease.
async fn lease_held(migration: &Migration<'_>, run: &Running) -> Result<()> {
    let held = "SELECT FROM crossfade.lease WHERE worker LIKE '%:' || $1::text";
    let pid = run.pid().to_string();
    until("the lease is held", LIMIT, || async { Ok(migration.target.query_opt(held, &[&pid]).await?.map(drop)) }).await
}

/// Takes the lease as soon as `run` holds it.
async fn lease_taken(migration: &Migration<'_>, run: &Running) -> Result<()> {
    let take = "UPDATE crossfade.lease SET token = token + 1 WHERE worker LIKE '%:' || $1::text RETURNING token";
    let pid = run.pid().to_string();
    until("the lease is held", LIMIT, || async { Ok(migration.target.query_opt(take, &[&pid]).await?.map(drop)) }).await
}

/// An open transaction keeps the copy at its barrier, until the application has its lock.
async fn locked(migration: &Migration<'_>, failpoint: &str) -> Result<()> {
    let source = &migration.source;
    let run = migration.crossfade.start_armed(&["run"], failpoint, 0)?;
    // The slot's barrier is behind it then: it would wait for the open transaction, too.
    let reads = "SELECT FROM pg_stat_replication WHERE application_name LIKE '% tail ' || $1::text";
    until("the tail", LIMIT, || async { Ok(source.query_opt(reads, &[&migration.name]).await?.map(drop)) }).await?;
    let (writer, locker) = (migration.another().await?, migration.another().await?);
    writer.batch_execute("BEGIN; INSERT INTO journal VALUES (0, 'open')").await?;
    let waits =
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'crossfade copy'
                    AND query LIKE '%pg_snapshot_xmin%'";
    until("the copy's barrier", LIMIT, || async { Ok(source.query_opt(waits, &[]).await?.map(drop)) }).await?;
    locker.batch_execute("BEGIN; LOCK TABLE still IN ACCESS EXCLUSIVE MODE").await?;
    writer.batch_execute("COMMIT").await?;
    run.died_at(failpoint, LIMIT).await
}
