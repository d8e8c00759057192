//! `make demo`: a live migration on servers of its own, under load, compared in full, verified, cut over, and rolled back.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use crossfade_tests::{Cluster, Crossfade, Nats, Pgbench, Running, World, compare, lag, until};
use serde_json::Value;

/// 100,000 accounts each.
const SCALE: u32 = 20;
/// What the application writes at the least, in transactions per second, and for how long.
const LEAST_TPS: f64 = 500.0;
const LEAST_LOAD: Duration = Duration::from_secs(20);
/// What pgbench is told to aim at: enough to be above the least on a small machine that does everything else as well.
const RATE: u32 = 800;
/// How long the load goes on after copy and tail are joined.
const TAIL_UNDER_LOAD: Duration = Duration::from_secs(10);
/// The whole demo takes less than three minutes; what hangs is told as such before.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    let log = match log_of_arguments() {
        Ok(log) => log,
        Err(error) => return failed(&error),
    };
    // Servers and folders go away with the future that owns them, also when a person gives up.
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => ExitCode::from(130),
        outcome = demo(log) => match outcome {
            Ok(summary) => {
                println!("{}", summary.line());
                if summary.differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(error) => failed(&error),
        },
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("{error:#}");
    println!("demo: failed");
    ExitCode::from(2)
}

#[derive(Clone, Copy, PartialEq)]
enum LogKind {
    Nats,
    Embedded,
}

fn log_of_arguments() -> Result<LogKind> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["--log", "nats"] => Ok(LogKind::Nats),
        ["--log", "embedded"] => Ok(LogKind::Embedded),
        _ => bail!("usage: demo [--log nats|embedded]"),
    }
}

struct Summary {
    rows: u64,
    transactions: u64,
    elapsed: Duration,
    worst_lag: f64,
    differences: u64,
}

impl Summary {
    fn line(&self) -> String {
        format!(
            "demo: {} rows copied, {} transactions applied, {:.0} s, worst lag {:.1} s, {} differences",
            self.rows,
            self.transactions,
            self.elapsed.as_secs_f64(),
            self.worst_lag,
            self.differences
        )
    }
}

async fn demo(log: LogKind) -> Result<Summary> {
    say("starting a source, a target and the log");
    let nats = if log == LogKind::Nats { Some(Nats::start()?) } else { None };
    let world = World::of(Cluster::build().durable().start()?, Cluster::build().durable().start()?, nats)?;
    say(&format!("filling the source: pgbench, scale {SCALE}"));
    let bench = Pgbench::new(&world.source, "app").clients(8).rate(RATE);
    bench.fill(SCALE)?;

    say(&format!("the application starts writing, {RATE} transactions/s; then `crossfade run`"));
    let load_started = Instant::now();
    let mut load = bench.start(PATIENCE.as_secs() as u32)?;
    let plan = world.plan().identity("public.pgbench_history", "insert_only");
    let crossfade = Crossfade::new(&plan)?;
    let mut running = crossfade.start(&["run"])?;
    let started = Instant::now();

    let mut watch = Watch::new(&crossfade, started);
    let deadline = started + PATIENCE;
    watch.until(&mut running, deadline, |status| status["phase"] == "following").await?;
    let enough = (Instant::now() + TAIL_UNDER_LOAD).max(load_started + LEAST_LOAD);
    watch.until(&mut running, deadline, |_| Instant::now() >= enough).await?;
    ensure!(load.is_running()?, "pgbench ended before it was told to");
    let wrote = load_started.elapsed().as_secs_f64();
    load.stop()?;
    let history: f64 = world.at_source("SELECT count(*) FROM pgbench_history")?.parse()?;
    let tps = history / wrote;
    say(&format!("the application stops: {history} transactions in {wrote:.0} s, {tps:.0}/s"));
    let caught_up = |status: &Value| status["phase"] == "following" && lag(status) == Some((0, 0.0, 0));
    let status = watch.until(&mut running, deadline, caught_up).await?;
    let elapsed = started.elapsed();

    say("comparing every table in full");
    let found = compare::databases(&world.source.socket_dsn("app"), &world.target.socket_dsn("app")).await?;
    say(&found.to_string());
    ensure!(found.tables == 4, "{} tables compared, pgbench has 4", found.tables);

    let late = cut_over(&world, &crossfade, &mut running, &bench).await?;

    say(&format!("peak memory of crossfade run: {} MiB", running.peak_rss_mib().unwrap_or_default()));
    running.stop().await?;
    complete(&world, &crossfade).await?;
    ensure!(tps >= LEAST_TPS, "the load was {tps:.0} transactions/s, less than {LEAST_TPS}: is the machine busy?");
    running.hush();
    let tables = status["tables"].as_array().context("the status lists tables")?;
    Ok(Summary {
        rows: tables.iter().filter_map(|table| table["rows_copied"].as_u64()).sum(),
        transactions: status["apply"]["transactions"].as_u64().context("the status counts transactions")?,
        elapsed,
        worst_lag: watch.worst_lag,
        differences: found.differences + late,
    })
}

/// The application writes again; both sides are compared meanwhile, it is cut over under load, and back again. How many rows differ then.
async fn cut_over(world: &World, crossfade: &Crossfade, running: &mut Running, bench: &Pgbench) -> Result<u64> {
    say("the application writes again; crossfade verify");
    let load = bench.start(PATIENCE.as_secs() as u32)?;
    let verified = crossfade.start(&["verify", "--json"])?.finish(PATIENCE).await?;
    ensure!(verified.status.success(), "verify: {}\n{}{}", verified.status, verified.stdout, verified.stderr);
    let report = verified.json()?;
    let (seconds, held) = (report["seconds"].as_f64().unwrap_or_default(), &report["held_ms"]);
    say(&format!("{} in {seconds:.1} s; apply was held for {held} ms", report["verdict"]));
    changes_sides(crossfade, "cutover").await?;
    load.stop()?;
    say("the application writes to the target");
    let load = Pgbench::new(&world.target, "app").clients(8).rate(RATE).start(PATIENCE.as_secs() as u32)?;
    let count = || Ok::<i64, anyhow::Error>(world.target.psql("app", "SELECT count(*) FROM pgbench_history")?.parse()?);
    let before = count()?;
    until("writes at the target", PATIENCE, || async { Ok((count()? > before + 1_000).then_some(())) }).await?;
    changes_sides(crossfade, "rollback").await?;
    load.stop()?;
    world.at_source("UPDATE pgbench_branches SET bbalance = bbalance WHERE bid = 1")?;
    let caught_up = |status: &Value| status["phase"] == "following" && lag(status) == Some((0, 0.0, 0));
    crossfade.wait_for(running, "the target caught up", PATIENCE, caught_up).await?;
    say("comparing every table in full");
    let found = compare::databases(&world.source.socket_dsn("app"), &world.target.socket_dsn("app")).await?;
    say(&found.to_string());
    Ok(found.differences)
}

/// Cuts over, or back, while the application writes.
async fn changes_sides(crossfade: &Crossfade, command: &str) -> Result<()> {
    say(&format!("crossfade {command}, under load"));
    let begun = Instant::now();
    let done = crossfade.start(&[command, "--json"])?.finish(PATIENCE).await?;
    ensure!(done.status.success(), "{command}: {}\n{}{}", done.status, done.stdout, done.stderr);
    let report = done.json()?;
    let (outcome, gap) = (&report["outcome"], &report["write_gap_ms"]);
    say(&format!("{outcome} in {:.1} s: nobody could write for {gap} ms", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Ends the migration, and sees that nothing of it stays behind at the source.
async fn complete(world: &World, crossfade: &Crossfade) -> Result<()> {
    say("crossfade complete --yes");
    let done = crossfade.run(&["complete", "--yes"]).await?;
    ensure!(done.status.success(), "complete: {}\n{}{}", done.status, done.stdout, done.stderr);
    let left = world.at_source(
        "SELECT 'slot ' || slot_name FROM pg_replication_slots UNION ALL SELECT 'publication ' || pubname FROM pg_publication
         UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'crossfade'",
    )?;
    ensure!(left.is_empty(), "left behind at the source: {left}");
    Ok(())
}

/// Follows the migration for a person, a line a second.
struct Watch<'a> {
    crossfade: &'a Crossfade,
    started: Instant,
    worst_lag: f64,
}

impl<'a> Watch<'a> {
    fn new(crossfade: &'a Crossfade, started: Instant) -> Self {
        Watch { crossfade, started, worst_lag: 0.0 }
    }

    async fn until(
        &mut self,
        running: &mut Running,
        deadline: Instant,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut shown = String::new();
        loop {
            tick.tick().await;
            ensure!(running.is_running()?, "crossfade run has ended: see above");
            ensure!(Instant::now() < deadline, "it takes too long; last: {shown}");
            // In its first moments there is nothing yet that a status could be read from.
            let Ok(status) = self.crossfade.status().await else { continue };
            if status["phase"] == "following" {
                self.worst_lag = self.worst_lag.max(lag(&status).map_or(0.0, |(_, seconds, _)| seconds));
            }
            shown = progress(&status);
            say(&format!("{:>3} s  {shown}", self.started.elapsed().as_secs()));
            if condition(&status) {
                return Ok(status);
            }
        }
    }
}

fn progress(status: &Value) -> String {
    let sum = |key: &str| -> u64 {
        let tables = status["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
        tables.iter().filter_map(|table| table[key].as_u64()).sum()
    };
    let lag = lag(status).map_or("unknown".to_owned(), |(bytes, seconds, transactions)| {
        format!("{seconds:.1} s, {transactions} transactions, {} KiB", bytes / 1024)
    });
    format!(
        "{:<10} {:>8} of about {} rows copied, {} transactions applied, lag {lag}",
        status["phase"].as_str().unwrap_or("?"),
        sum("rows_copied"),
        sum("rows_estimated"),
        status["apply"]["transactions"]
    )
}

fn say(line: &str) {
    println!("  {line}");
}
