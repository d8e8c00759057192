//! Given random transactions over few rows, so that keys and unique values collide, with savepoints and rollbacks, from several sessions, while the
//! migration runs: the target ends equal. `SEED=n` repeats one.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Crossfade, World, follow, until};
use tokio_postgres::Client;

const MINUTE: Duration = Duration::from_secs(60);
const SESSIONS: u64 = 3;
const WRITING: Duration = Duration::from_secs(3);

const SCHEMA: &str = "CREATE TABLE keyed (id integer PRIMARY KEY, a integer UNIQUE, b integer UNIQUE DEFERRABLE INITIALLY DEFERRED, v text, n integer DEFAULT 0); ALTER TABLE keyed ALTER v SET STORAGE EXTERNAL;
    CREATE TABLE keyless (a integer, v text); ALTER TABLE keyless REPLICA IDENTITY FULL; ALTER TABLE keyless ALTER v SET STORAGE EXTERNAL;
    CREATE TABLE parted (id integer, at integer, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10); CREATE TABLE parted_mid PARTITION OF parted FOR VALUES FROM (10) TO (20); CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
    INSERT INTO keyed SELECT i, i, i, repeat(md5(i::text), 100) FROM generate_series(1, 15) AS i; INSERT INTO keyless SELECT i % 5, NULL FROM generate_series(1, 20) AS i;
    INSERT INTO parted SELECT i, i, 'p' FROM generate_series(1, 25) AS i";

/// Numbers that look random: the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn value(&mut self) -> String {
        match self.below(4) {
            0 => "NULL".into(),
            1 => "''".into(),
            2 => format!("'v{}'", self.below(3)),
            _ => format!("repeat(md5('{}'), 100)", self.below(9)),
        }
    }

    fn statement(&mut self) -> String {
        let (i, j, k) = (self.below(20), self.below(20), self.below(20));
        let one =
            |table: &str, column: &str| format!("ctid = (SELECT ctid FROM {table} WHERE {column} = {i} % 5 LIMIT 1)");
        match self.below(16) {
            0 | 1 => format!("INSERT INTO keyed VALUES ({i}, {j}, {k}, {})", self.value()),
            2 => format!(
                "INSERT INTO keyed VALUES ({i}, NULL, NULL, {}) ON CONFLICT (id) DO UPDATE SET n = keyed.n + 1",
                self.value()
            ),
            3 => format!("UPDATE keyed SET n = n + 1 WHERE id % 4 = {i} % 4"),
            4 => format!("UPDATE keyed SET v = {} WHERE id = {i}", self.value()),
            5 => format!("UPDATE keyed SET a = {j} WHERE id = {i}"),
            6 => "UPDATE keyed SET b = 19 - b".into(),
            7 => format!("UPDATE keyed SET id = {j} WHERE id = {i}"),
            8 => format!("UPDATE keyed SET id = {j}, a = NULL, n = n + 1 WHERE id = {i}"),
            9 => format!("DELETE FROM keyed WHERE id = {i}"),
            10 => format!("INSERT INTO keyless SELECT {i} % 5, {} FROM generate_series(1, 1 + {j} % 3)", self.value()),
            11 => format!("UPDATE keyless SET v = {} WHERE {}", self.value(), one("keyless", "a")),
            12 => format!("DELETE FROM keyless WHERE {}", one("keyless", "a")),
            13 => {
                format!("INSERT INTO parted VALUES ({i}, {}, {}) ON CONFLICT DO NOTHING", self.below(30), self.value())
            }
            14 => format!("UPDATE parted SET at = {}, v = {} WHERE id = {i}", self.below(30), self.value()),
            _ => match self.below(12) {
                0 => "TRUNCATE keyless".into(),
                1 => "TRUNCATE parted_mid".into(),
                _ => format!("DELETE FROM parted WHERE id = {i} OR id = {j}"),
            },
        }
    }

    /// Statements that a constraint refuses are undone, as an application with savepoints does it; some more are undone at will.
    async fn transaction(&mut self, client: &Client) -> Result<()> {
        let mut sql = String::from("BEGIN;\n");
        client.batch_execute("BEGIN").await?;
        for _ in 0..1 + self.below(8) * self.below(4) {
            let statement = self.statement();
            writeln!(sql, "{statement};")?;
            client.batch_execute("SAVEPOINT s").await?;
            let undo = match client.batch_execute(&statement).await {
                // Two sessions met: the whole transaction is gone.
                Err(error) if error.code().is_some_and(|code| code.code().starts_with("40")) => {
                    return Ok(client.batch_execute("ROLLBACK").await?);
                }
                Err(error) if error.code().is_some_and(|code| code.code().starts_with("23")) => true,
                other => other.map(|()| self.below(8) == 0).with_context(|| sql.clone())?,
            };
            client.batch_execute(if undo { "ROLLBACK TO s; RELEASE s" } else { "RELEASE s" }).await?;
        }
        let end = if self.below(10) == 0 { "ROLLBACK" } else { "COMMIT" };
        match client.batch_execute(end).await {
            // The deferred constraint speaks up.
            Err(error)
                if error.code().is_some_and(|code| code.code().starts_with("23") || code.code().starts_with("40")) =>
            {
                Ok(())
            }
            other => other.with_context(|| sql),
        }
    }
}

/// Several sessions at once, for a while.
async fn write(world: &World, seed: u64) -> Result<()> {
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let (client, mut dice) = (world.source.client("app").await?, Dice(seed ^ number << 32));
        sessions.push(tokio::spawn(async move {
            let (begun, mut count) = (Instant::now(), 0_u32);
            while begun.elapsed() < WRITING {
                dice.transaction(&client).await?;
                count += 1;
            }
            anyhow::Ok(count)
        }));
    }
    let mut transactions = 0;
    for session in sessions {
        transactions += session.await??;
    }
    eprintln!("{transactions} transactions");
    Ok(())
}

fn seed() -> Result<u64> {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_nanos() as u64);
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).map_or_else(now, Ok)?;
    eprintln!("SEED={seed}");
    Ok(seed)
}

/// Both copy and tail meet them, mostly one by one.
#[tokio::test(flavor = "multi_thread")]
async fn and_all_that_is_committed_does_and_nothing_else() -> Result<()> {
    let seed = seed()?;
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let crossfade = Crossfade::new(&world.plan().identity("public.keyless", "full"))?;
    let (written, run) = tokio::join!(write(&world, seed), follow::following(&crossfade));
    written?;
    let mut run = run?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await.with_context(|| format!("SEED={seed}"))?;
    run.stop().await
}

/// All of them wait in the log before any is applied, so that they are folded by the thousand.
#[tokio::test(flavor = "multi_thread")]
async fn also_when_they_are_applied_at_once() -> Result<()> {
    let seed = seed()?;
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let plan = world.plan().identity("public.keyless", "full");
    let (here, there) = (Crossfade::new(&plan)?, Crossfade::new(&plan)?);
    let mut capture = here.start(&["capture"])?;
    let mut apply = there.start(&["apply"])?;
    here.wait_for_lag_zero(&mut capture, MINUTE).await?;
    apply.stop().await?;
    let before = world.at_target("SELECT lsn FROM crossfade.checkpoint")?;
    write(&world, seed).await?;
    let end = world.at_source("SELECT pg_current_wal_insert_lsn()")?;
    let logged =
        format!("SELECT bool_or(write_lsn >= '{end}') FROM pg_stat_replication WHERE application_name LIKE '%tail%'");
    until("all of it in the log", MINUTE, || async { Ok((world.at_source(&logged)? == "t").then_some(())) }).await?;
    ensure!(world.at_target("SELECT lsn FROM crossfade.checkpoint")? == before, "some of it is applied already");
    let mut apply = there.start(&["apply"])?;
    here.wait_for_lag_zero(&mut capture, MINUTE).await?;
    world.expect_equal().await.with_context(|| format!("SEED={seed}"))?;
    apply.stop().await?;
    capture.stop().await
}
