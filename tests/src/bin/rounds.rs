//! `make rounds`: cutovers and rollbacks of one migration under writers, seen from outside.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use crossfade_tests::rounds::{Via, rounds};

#[tokio::main]
async fn main() -> ExitCode {
    let (count, via) = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => return failed(&error),
    };
    // Servers and folders go away with the future that owns them, also when a person gives up.
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => ExitCode::from(130),
        summary = rounds(count, via, |line| println!("  {line}")) => match summary {
            Ok(summary) => {
                println!("{summary}");
                if summary.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(error) => failed(&error),
        },
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("{error:#}");
    println!("rounds: failed");
    ExitCode::from(2)
}

fn arguments() -> Result<(u32, Via)> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, count, via, way] = &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        bail!("usage: rounds --rounds N --via pgbouncer|route");
    };
    let way = match (*rounds, *via, *way) {
        ("--rounds", "--via", "pgbouncer") => Via::PgBouncer,
        ("--rounds", "--via", "route") => Via::Route,
        _ => bail!("usage: rounds --rounds N --via pgbouncer|route"),
    };
    Ok((count.parse().context("the number of rounds")?, way))
}
