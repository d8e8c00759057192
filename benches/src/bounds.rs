//! `make bounds`: the most memory that capture and apply have resident, each with the plan's default budget, where much comes at once. The log is NATS.
//!
//! Each case ends with a comparison of both sides in full. `make bounds CASE=name` does one of them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Cluster, Crossfade, Nats, PlanFile, Running, Shutdown, World, until};
use serde::Serialize;

use crate::say;

/// In MiB: the plan's default, and what the program takes besides.
const BUDGET: u64 = 256;
const BESIDES: u64 = 64;

/// Longer than any case takes.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A case's name, what it adds to its bound in MiB, and what it does.
struct Case {
    name: &'static str,
    more: u64,
    work: Work,
}

enum Work {
    /// One transaction that updates so many rows.
    Transaction { rows: u64 },
    /// Two values of so many MiB, one in the copy, one in the tail, which is then changed.
    Value { mib: u64 },
    /// A table of so many columns.
    Columns(u64),
    /// So many tables.
    Tables(u64),
    /// So many transactions in the slot while nobody reads it.
    Backlog(u64),
    /// So many transactions while the target is down.
    TargetDown(u64),
}

const CASES: [Case; 6] = [
    Case { name: "transaction", more: 0, work: Work::Transaction { rows: 5_000_000 } },
    Case { name: "value", more: 3 * 200, work: Work::Value { mib: 200 } },
    Case { name: "columns", more: 0, work: Work::Columns(1_600) },
    Case { name: "tables", more: 0, work: Work::Tables(5_000) },
    Case { name: "backlog", more: 0, work: Work::Backlog(10_000_000) },
    Case { name: "target-down", more: 0, work: Work::TargetDown(2_000_000) },
];

/// What a case took, as `bounds.json` has it.
#[derive(Debug, Serialize)]
pub struct Taken {
    case: &'static str,
    capture_mib: u64,
    apply_mib: u64,
    bound_mib: u64,
    /// The most that capture's state folder held.
    disk_mib: u64,
    seconds: u64,
}

impl Taken {
    /// Whether both kept to it.
    pub fn within_bound(&self) -> bool {
        self.capture_mib.max(self.apply_mib) <= self.bound_mib
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.within_bound() { "" } else { "  <- above its bound" };
        write!(
            f,
            "{:<12} capture {:>4} MiB, apply {:>4} MiB, bound {:>4} MiB; {:>5} MiB on disk, {:>4} s{verdict}",
            self.case, self.capture_mib, self.apply_mib, self.bound_mib, self.disk_mib, self.seconds
        )
    }
}

/// Measures all cases, or the one of that name, and writes `benches/results/bounds.json` if it was all.
pub async fn measure(name: Option<&str>) -> Result<Vec<Taken>> {
    let mut all = Vec::new();
    for case in CASES.iter().filter(|case| name.is_none_or(|name| case.name == name)) {
        let taken = of(case).await.with_context(|| format!("case {}", case.name))?;
        say(&taken.to_string());
        all.push(taken);
    }
    match name {
        None => {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/bounds.json");
            std::fs::write(&file, serde_json::to_string_pretty(&all)? + "\n")?;
        }
        Some(name) if all.is_empty() => {
            bail!("no case {name:?}; there are {}", CASES.map(|case| case.name).join(", "))
        }
        Some(_) => {}
    }
    Ok(all)
}

async fn of(case: &Case) -> Result<Taken> {
    let begun = Instant::now();
    let (mut peaks, disk) = match case.work {
        Work::Transaction { rows } => transaction(rows).await?,
        Work::Value { mib } => value(mib).await?,
        Work::Columns(count) => columns(count).await?,
        Work::Tables(count) => tables(count).await?,
        Work::Backlog(count) => backlog(count).await?,
        Work::TargetDown(count) => target_down(count).await?,
    };
    peaks.sort_by_key(|(name, _)| *name);
    let [(_, apply_mib), (_, capture_mib)] = peaks;
    Ok(Taken {
        case: case.name,
        capture_mib,
        apply_mib,
        bound_mib: BUDGET + BESIDES + case.more,
        disk_mib: disk,
        seconds: begun.elapsed().as_secs(),
    })
}

type Peaks = ([(&'static str, u64); 2], u64);

/// A migration by one capture and one apply process, each with the plan's defaults.
struct Scene {
    world: World,
    here: Crossfade,
    there: Crossfade,
    capture: Running,
    apply: Running,
    disk: Disk,
}

impl Scene {
    /// Starts it; the source holds what `sql` makes.
    fn start(sql: &str) -> Result<Scene> {
        let cluster =
            || Cluster::build().set("shared_buffers", "256MB").set("max_locks_per_transaction", "256").start();
        let world = World::of(cluster()?, cluster()?, Some(Nats::start()?))?;
        world.at_source(sql)?;
        let plan: PlanFile = world.plan();
        let (here, there) = (Crossfade::new(&plan)?, Crossfade::new(&plan)?);
        let (mut capture, mut apply) = (here.start(&["capture"])?, there.start(&["apply"])?);
        capture.hush();
        apply.hush();
        let disk = Disk::watch(&here);
        Ok(Scene { world, here, there, capture, apply, disk })
    }

    async fn follows(&mut self) -> Result<()> {
        self.there.wait_for_phase(&mut self.apply, "following", PATIENCE).await.map(drop)
    }

    async fn begun(sql: &str) -> Result<Scene> {
        let mut scene = Scene::start(sql)?;
        scene.follows().await?;
        Ok(scene)
    }

    /// Waits until all is at the target, and equal.
    async fn ends(mut self) -> Result<Peaks> {
        let end = self.there.wait_for_lag_zero(&mut self.apply, PATIENCE).await;
        end.map_err(|error| error.context(self.capture.log_tail()).context(self.apply.log_tail()))?;
        let peak = |running: &Running| running.peak_rss_mib().context("it runs");
        let peaks = [("capture", peak(&self.capture)?), ("apply", peak(&self.apply)?)];
        self.capture.stop().await?;
        self.apply.stop().await?;
        self.world.expect_equal().await?;
        Ok((peaks, self.disk.most()))
    }
}

/// One transaction, which the server streams while it is in progress.
async fn transaction(rows: u64) -> Result<Peaks> {
    let scene = Scene::begun(&format!(
        "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL, v text);
         INSERT INTO t SELECT i, 0, md5(i::text) FROM generate_series(1, {rows}) AS i"
    ))
    .await?;
    scene.world.at_source("UPDATE t SET n = n + 1")?;
    scene.ends().await
}

async fn value(mib: u64) -> Result<Peaks> {
    // 32 bytes that no compression shortens by much, again and again: a value of another size on disk than as text.
    let value = |seed: &str| {
        format!("(SELECT string_agg(md5({seed} || i::text), '') FROM generate_series(1, {mib} * 32768) AS i)")
    };
    let scene = Scene::begun(&format!(
        "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0, v text); INSERT INTO t (id, v) VALUES (1, {})",
        value("'a'")
    ))
    .await?;
    scene.world.at_source(&format!("INSERT INTO t (id, v) VALUES (2, {})", value("'b'")))?;
    scene.world.at_source(&format!("UPDATE t SET v = {} WHERE id = 1", value("'c'")))?;
    scene.world.at_source("UPDATE t SET n = n + 1")?;
    scene.ends().await
}

async fn columns(count: u64) -> Result<Peaks> {
    let rest: Vec<String> = (1..count).map(|n| format!("c{n} smallint")).collect();
    let values = vec!["(i % 100)::smallint"; rest.len()].join(", ");
    let scene = Scene::begun(&format!(
        "CREATE TABLE t (id integer PRIMARY KEY, {}); INSERT INTO t SELECT i, {values} FROM generate_series(1, 20000) AS i",
        rest.join(", ")
    ))
    .await?;
    scene.world.at_source(&format!("INSERT INTO t SELECT i, {values} FROM generate_series(20001, 40000) AS i"))?;
    scene.world.at_source("UPDATE t SET c1 = c1 + 1, c1500 = NULL")?;
    scene.world.at_source("DELETE FROM t WHERE id % 3 = 0")?;
    scene.ends().await
}

async fn tables(count: u64) -> Result<Peaks> {
    let create = |n| {
        format!(
            "CREATE TABLE t{n} (id integer PRIMARY KEY, v text); INSERT INTO t{n} SELECT i, 'row' FROM generate_series(1, 10) AS i;\n"
        )
    };
    let scene = Scene::begun(&(1..=count).map(create).collect::<String>()).await?;
    let change = |n| format!("UPDATE t{n} SET v = 'changed' WHERE id % 2 = 0; INSERT INTO t{n} VALUES (11, 'new');\n");
    scene.world.at_source(&(1..=count).map(change).collect::<String>())?;
    scene.ends().await
}

const COUNTERS: &str = "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
    INSERT INTO t SELECT generate_series(0, 999999)";

async fn backlog(count: u64) -> Result<Peaks> {
    let mut scene = Scene::begun(COUNTERS).await?;
    scene.capture.stop().await?;
    scene.apply.stop().await?;
    small_transactions(&scene.world, count).await?;
    scene.capture = scene.here.start(&["capture"])?;
    scene.apply = scene.there.start(&["apply"])?;
    scene.capture.hush();
    scene.apply.hush();
    scene.ends().await
}

async fn target_down(count: u64) -> Result<Peaks> {
    let mut scene = Scene::begun(COUNTERS).await?;
    scene.world.target.stop(Shutdown::Immediate)?;
    small_transactions(&scene.world, count).await?;
    let end = scene.world.at_source("SELECT pg_current_wal_lsn()")?;
    let source = scene.world.source.client("app").await?;
    let read = format!("SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn >= '{end}'");
    until("all of it in the log", PATIENCE, || async { Ok(source.query_opt(&read, &[]).await?) }).await?;
    ensure!(scene.capture.is_running()?, "{}", scene.capture.log_tail());
    ensure!(scene.apply.is_running()?, "{}", scene.apply.log_tail());
    scene.world.target.boot()?;
    scene.ends().await
}

/// So many transactions of one row each, by two sessions.
async fn small_transactions(world: &World, count: u64) -> Result<()> {
    let mut sessions = Vec::new();
    for session in 0..2 {
        let client = world.source.client("app").await?;
        client.batch_execute("SET synchronous_commit = off").await?;
        // A statement of its own: in a transaction it could not commit.
        let sql = format!(
            "DO $$ BEGIN FOR i IN 1..{} LOOP UPDATE t SET n = n + 1 WHERE id = (i * 7919::bigint * 2 + {session}) % 1000000; COMMIT; END LOOP; END $$",
            count / 2
        );
        sessions.push(tokio::spawn(async move { client.batch_execute(&sql).await }));
    }
    for session in sessions {
        session.await??;
    }
    Ok(())
}

/// Looks again and again how much a state folder holds.
struct Disk {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    looks: std::thread::JoinHandle<()>,
}

impl Disk {
    fn watch(crossfade: &Crossfade) -> Disk {
        let (most, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (folder, seen, end) = (crossfade.state_dir(), most.clone(), stop.clone());
        let looks = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                seen.fetch_max(size(&folder), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Disk { most, stop, looks }
    }

    /// In MiB.
    fn most(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // It cannot panic; and what it has seen counts in any case.
        let _ = self.looks.join();
        self.most.load(Ordering::Relaxed) >> 20
    }
}

/// Bytes of the files of a folder, whose files come and go.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => size(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    bytes.sum()
}
