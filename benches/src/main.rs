//! `make bench`: crossfade against what a user would use instead, measured in one run on the same servers and data.
//!
//! - [`rivals`]: crossfade and a subscription, each from the same source into a database of its own on the same target
//! - [`copy`]: the initial copy, also against a raw pipe of binary COPY
//! - [`drain`]: a backlog of 20 s of writes
//! - [`lag`]: how far behind at 1,000 transactions/s
//! - [`verify`]: against what somebody would type, and beside a load
//! - [`rehearse`]: the log once more, against the live run
//! - [`derived`]: one changed row over large mirrors, against small ones; a streamed table, against one that goes over as it is
//! - [`report`]: the table, and `benches/results/latest.json`
//!
//! `BENCH_RUNS` (default 5) alternating runs; the median counts.
//!
//! And `make bounds`: [`bounds`], memory where much comes at once.

mod bounds;
mod copy;
mod derived;
mod drain;
mod lag;
mod rehearse;
mod report;
mod rivals;
mod verify;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::{Cluster, Nats, Pgbench, World, compare};

use crate::report::{Entry, Report};
use crate::rivals::{Ours, Theirs};

/// pgbench's unit: 100,000 accounts each.
const SCALE: u32 = 20;

/// The same, for what verify reads.
const SCALE_OF_VERIFY: u32 = 50;

/// Longer than anything measured here may take.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let work = async {
        match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => compared().await,
            ["follow"] => followed().await,
            ["verify"] => verified().await,
            ["rehearse"] => rehearsed().await,
            ["derived"] => derived_alone().await,
            ["bounds"] => bounded(None).await,
            ["bounds", case] => bounded(Some(case)).await,
            _ => bail!("usage: crossfade-benches [follow | verify | rehearse | derived | bounds [case]]"),
        }
    };
    // Servers and folders go away with the future that owns them, also when a person gives up.
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => ExitCode::from(130),
        outcome = work => match outcome {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{error:#}");
                println!("bench: failed");
                ExitCode::from(2)
            }
        },
    }
}

async fn compared() -> Result<bool> {
    let runs = runs()?;
    let mut report = follow(runs).await?;
    report.entries.extend(verify_entries(runs).await?);
    report.entries.push(rehearse_entry().await?);
    report.entries.extend(derived_entries(runs).await?);
    report.write()?;
    println!("{report}");
    Ok(report.within_bounds())
}

/// Copy and tail alone.
async fn followed() -> Result<bool> {
    let report = follow(runs()?).await?;
    println!("{report}");
    Ok(report.within_bounds())
}

/// What belongs to verify alone.
async fn verified() -> Result<bool> {
    let report = Report { entries: verify_entries(runs()?).await?, growing: false };
    println!("{report}");
    Ok(report.within_bounds())
}

/// What belongs to rehearsals alone.
async fn rehearsed() -> Result<bool> {
    let report = Report { entries: vec![rehearse_entry().await?], growing: false };
    println!("{report}");
    Ok(report.within_bounds())
}

/// What belongs to derived tables alone.
async fn derived_alone() -> Result<bool> {
    let report = Report { entries: derived_entries(runs()?).await?, growing: false };
    println!("{report}");
    Ok(report.within_bounds())
}

async fn derived_entries(runs: usize) -> Result<Vec<Entry>> {
    let entry = |cost: &derived::Cost| Entry::ratio(cost.of, "small mirrors", &cost.large, &cost.small, 2.0, cost.rss);
    let mut entries: Vec<Entry> = derived::measure().await?.iter().map(entry).collect();
    let derived::Streamed { copy, drain, rss } = derived::streamed(runs).await?;
    entries.push(Entry::ratio("copy, streamed", "as it is", &copy[0], &copy[1], 1.3, rss));
    entries.push(Entry::ratio("drain, streamed", "as it is", &drain[0], &drain[1], 1.3, rss));
    Ok(entries)
}

async fn rehearse_entry() -> Result<Entry> {
    let times = rehearse::measure().await?;
    Ok(Entry::ratio("rehearse", "live run", &times.ours, &times.live, 0.5, times.rss))
}

async fn verify_entries(runs: usize) -> Result<Vec<Entry>> {
    let times = verify::measure(runs).await?;
    Ok(vec![
        Entry::ratio("verify", "count and hashtext", &times.ours, &times.theirs, 3.5, times.rss),
        Entry::ratio("1000 tx beside verify", "without", &times.beside, &times.alone, 1.5, times.rss),
    ])
}

fn runs() -> Result<usize> {
    match std::env::var("BENCH_RUNS") {
        Ok(text) => Ok(text.parse::<usize>().context("BENCH_RUNS is a number")?.max(1)),
        Err(_) => Ok(5),
    }
}

async fn bounded(case: Option<&str>) -> Result<bool> {
    let all = bounds::measure(case).await?;
    let good = all.iter().filter(|taken| taken.within_bound()).count();
    println!("bounds: {good} of {} cases within their bound", all.len());
    Ok(good == all.len())
}

async fn follow(runs: usize) -> Result<Report> {
    // Workers of subscriptions start at most every five seconds by default: a pause that says nothing of the work.
    let cluster = || {
        Cluster::build().durable().set("shared_buffers", "256MB").set("wal_retrieve_retry_interval", "100ms").start()
    };
    let world = World::of(cluster()?, cluster()?, Some(Nats::start()?))?;
    say(&format!("filling the source: pgbench, scale {SCALE}"));
    let load = Pgbench::new(&world.source, "app").clients(8).simple_update();
    load.fill(SCALE)?;
    world.at_source("CREATE TABLE probe (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())")?;

    let mut copies = [Vec::new(), Vec::new(), Vec::new()];
    let mut drains = [Vec::new(), Vec::new()];
    let mut rss = [0; 3];
    let mut lags = None;
    for run in 1..=runs {
        let (ours, theirs) = (Ours::prepare(&world)?, Theirs::prepare(&world)?);
        // Who goes first changes with every run.
        let we_first = run % 2 == 1;

        copies[2].push(copy::raw(&world)?);
        if we_first {
            copies[0].push(copy::ours(&world, &ours, &mut rss[0]).await?);
            copies[1].push(copy::theirs(&world, &theirs).await?);
        } else {
            copies[1].push(copy::theirs(&world, &theirs).await?);
            copies[0].push(copy::ours(&world, &ours, &mut rss[0]).await?);
        }
        let last = |of: &Vec<f64>| of.last().copied().unwrap_or_default();
        say(&format!(
            "run {run}: copy {:.2} s, subscription {:.2} s, raw pipe {:.2} s",
            last(&copies[0]),
            last(&copies[1]),
            last(&copies[2])
        ));

        let backlog = drain::backlog(&world, &load).await?;
        if we_first {
            drains[0].push(drain::ours(&world, &ours, &mut rss[1]).await?);
            drains[1].push(drain::theirs(&world, &theirs).await?);
        } else {
            drains[1].push(drain::theirs(&world, &theirs).await?);
            drains[0].push(drain::ours(&world, &ours, &mut rss[1]).await?);
        }
        say(&format!(
            "run {run}: backlog of {backlog} transactions: {:.2} s, subscription {:.2} s",
            last(&drains[0]),
            last(&drains[1])
        ));

        if run >= runs {
            let ours = lag::ours(&world, &ours, &load, &mut rss[2]).await?;
            let theirs = lag::theirs(&world, &theirs, &load).await?;
            say(&format!("lag: {ours}; subscription {theirs}"));
            lags = Some((ours, theirs));
        }
        // A fast program that loses rows would be no use.
        drain::catch_up(&world, &ours).await?;
        compare::databases(&world.source_url(), &ours.url(&world)).await?.expect_equal()?;
        theirs.remove(&world)?;
        ours.remove(&world).await?;
    }

    let (our_lag, their_lag) = lags.context("lag is measured in the last run")?;
    let [ours, theirs, raw] = &copies;
    let entries = vec![
        Entry::ratio("copy", "subscription", ours, theirs, 1.5, rss[0]),
        Entry::ratio("copy", "raw COPY pipe", ours, raw, 0.0, rss[0]),
        Entry::ratio("drain", "subscription", &drains[0], &drains[1], 0.7, rss[1]),
        Entry::lag(our_lag.p99, their_lag.p99, rss[2]),
    ];
    Ok(Report { entries, growing: our_lag.growing })
}

fn say(line: &str) {
    println!("  {line}");
}
