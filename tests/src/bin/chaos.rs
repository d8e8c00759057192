//! `make chaos`: whole migrations under faults, one after the other, each of the next seed.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use crossfade_tests::chaos::{self, Counts, Shape};

/// What is asked for.
struct Arguments {
    runs: u64,
    seed: u64,
    /// Keep the folders of good runs, too.
    keep: bool,
    /// Show what the seeds decide, and do nothing.
    show: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    // Servers and folders go away with the future that owns them, also when a person gives up.
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => ExitCode::from(130),
        good = run(&arguments) => if good { ExitCode::SUCCESS } else { ExitCode::FAILURE },
    }
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments { runs: 4, seed: 1, keep: false, show: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse().ok()).context("a number is missing");
        match word.as_str() {
            "--runs" => arguments.runs = number()?,
            "--seed" => arguments.seed = number()?,
            "--keep" => arguments.keep = true,
            "--show" => arguments.show = true,
            _ => bail!("usage: chaos [--runs n] [--seed s] [--keep] [--show]"),
        }
    }
    if arguments.runs == 0 {
        bail!("no run shows nothing");
    }
    Ok(arguments)
}

async fn run(arguments: &Arguments) -> bool {
    let (begun, mut sum, mut good) = (Instant::now(), Counts::default(), true);
    for seed in arguments.seed..arguments.seed + arguments.runs {
        if arguments.show {
            println!("{}", Shape::of(seed));
            continue;
        }
        let report = chaos::of_seed(seed, arguments.keep).await;
        println!("  {report}");
        sum.add(&report.counts);
        good &= report.good();
    }
    if arguments.show {
        return true;
    }
    println!("  {sum}; {} s", begun.elapsed().as_secs());
    println!(
        "chaos: {} runs, {} kills, {} cuts, {} differences, seed {}",
        arguments.runs, sum.kills, sum.cuts, sum.differences, arguments.seed
    );
    good
}
