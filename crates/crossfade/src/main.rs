//! The program: one file per command in [`commands`], the wiring of plan to parts in [`wiring`], what is checked before anything
//! starts in [`checks`], the HTTP server in [`serve`], signals in [`stop`], what people and scripts are told in [`report`]. No logic of its own.

mod checks;
mod commands;
mod report;
mod serve;
mod stop;
mod wiring;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use model::{Code, Problem};
use plan::Plan;
use tracing_subscriber::EnvFilter;

use crate::report::Output;
use crate::stop::Stop;

/// Moves a live Postgres database into another one while the application keeps writing.
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Arguments {
    /// The plan file.
    #[arg(long, global = true, value_name = "FILE", default_value = "crossfade.toml")]
    plan: PathBuf,
    /// Print one JSON document on stdout; logs go to stderr.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a commented plan.
    Init,
    /// Look at sources, log and target, changing nothing: what blocks, what warns, what to run.
    Survey,
    /// How the plan's tables are kept current: the way and its reason, the SQL that runs, and what of it reads a whole table.
    Explain,
    /// Capture and apply in one process.
    Run(Http),
    /// Read the sources into the log.
    Capture(Http),
    /// Apply the log to the target; on as many machines as wanted.
    Apply(Http),
    /// Show phase, progress, lag, and the WAL that the source keeps back.
    Status {
        /// Go on showing it, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Compare both sides at one instant, while everybody writes: equal, different (with the rows), or inconclusive.
    Verify {
        /// A table, as schema.table; may be given several times. All of the plan if it is not.
        #[arg(long = "table", value_name = "TABLE")]
        tables: Vec<String>,
        /// Per cent of the parts of large tables to compare. Never enough for a cutover.
        #[arg(long, value_name = "PERCENT", value_parser = percent)]
        sample: Option<f64>,
        /// Go on with the last comparison, which was cut off.
        #[arg(long, conflicts_with_all = ["tables", "sample"])]
        resume: bool,
        /// Of tables that were equal compare only the rows that were changed at the source since; what was changed at the target alone is not seen.
        #[arg(long, conflicts_with_all = ["sample", "resume"])]
        recheck: bool,
        /// Show no values but those of keys.
        #[arg(long)]
        mask: bool,
    },
    /// Do it once more from the log alone, into a database that nobody needs: whether it comes out equal, and what takes how long.
    Rehearse {
        /// An empty database, as `postgres://…`: it is filled, and can be dropped afterwards. One with a password stands in the environment variable CROSSFADE_INTO instead.
        #[arg(long, value_name = "URL")]
        into: Option<String>,
        /// How far: an LSN, or a time in UTC (2026-01-31T12:00:00Z). As far as a verify has recorded what tables were, if it is not given.
        #[arg(long, value_name = "LSN|TIME")]
        until: Option<cutover::rehearse::Until>,
        /// What to compare with: what verifies have recorded in the log, or the target as it is now.
        #[arg(long, value_enum, default_value_t = Against::Log, conflicts_with = "until")]
        against: Against,
        /// Then cut over and roll back between two such databases, while rows are written: --into plays the target.
        #[arg(long)]
        drill: bool,
        /// What plays the source, as `postgres://…`: an empty database. Without it one is made beside --into, and dropped. One with a password stands in the environment variable CROSSFADE_DRILL_SOURCE instead.
        #[arg(long, value_name = "URL", requires = "drill")]
        drill_source: Option<String>,
    },
    /// Make the target the writable side: close the source to writes, wait until the target has everything, open the target.
    Cutover {
        /// Look only: what is in the way, and for how long nobody could write.
        #[arg(long)]
        dry_run: bool,
        /// Cancel the cutover that is under way, whoever runs it, unless it is decided.
        #[arg(long, conflicts_with = "dry_run")]
        cancel: bool,
        /// How long it may take; then it is cancelled.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
        timeout: Duration,
        /// How far the target may be behind the source at the beginning.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "5s")]
        max_lag: Duration,
        /// How long ago each table may have been compared.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "24h")]
        max_verify_age: Duration,
        /// What is written to the target afterwards need not be carried back to the source.
        #[arg(long)]
        no_way_back: bool,
    },
    /// Go back after a cutover: close the target to writes, wait until the source has everything, open the source.
    Rollback {
        /// Look only: what is in the way, and for how long nobody could write.
        #[arg(long)]
        dry_run: bool,
        /// Cancel the rollback that is under way, whoever runs it, unless it is decided.
        #[arg(long, conflicts_with = "dry_run")]
        cancel: bool,
        /// How long it may take; then it is cancelled.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
        timeout: Duration,
        /// How far the source may be behind the target at the beginning.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "5s")]
        max_lag: Duration,
    },
    /// Copy everything, or the named tables, again into the same log and target: the way out where something is lost.
    Recopy {
        /// Tables, as schema.table; a partitioned one stands for its partitions. None for everything.
        #[arg(value_name = "TABLE")]
        tables: Vec<String>,
        /// The source is another database cluster than before, and the data is to come from it from now on.
        #[arg(long, conflicts_with = "tables")]
        new_source: bool,
        /// Only these rows: a file of rows that `crossfade verify` found to differ, a JSON object a line.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["tables", "new_source"])]
        rows: Option<PathBuf>,
    },
    /// Run the plan's checks on source and target, and show what they find.
    Reconcile {
        /// Run the fixes that are marked safe, each in a transaction that is rolled back unless its check then passes.
        #[arg(long)]
        fix: bool,
    },
    /// Show or move the stage of applications that switch by flags: `crossfade stage` shows it, `crossfade stage set NAME` moves.
    Stage {
        #[command(subcommand)]
        asked: Option<commands::stage::Stage>,
    },
    /// Print a document with the plan's own names, positions, sizes and times in it, or which there are.
    Runbook {
        /// Which one.
        #[arg(value_parser = status::runbook::DOCUMENTS.map(|document| document.name))]
        name: Option<String>,
    },
    /// End the migration: list what crossfade created and what will be removed.
    Complete {
        /// Remove it.
        #[arg(long)]
        yes: bool,
    },
}

/// What a rehearsal is compared with.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    /// What verifies have recorded there.
    Log,
    /// As it is now.
    Target,
}

/// Where a process is asked how it stands.
#[derive(clap::Args)]
struct Http {
    /// Serve status, metrics and stage here, in place of the plan's [http] listen.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

/// Threads for async work: waiting for servers is most of it, and more of them cost memory.
const THREADS: usize = 4;

/// How long work that cannot be cancelled (a disk) may hold up the end of the process.
const FAREWELL: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    #[cfg(debug_assertions)]
    if let Err(why) = model::failpoint::arm() {
        eprintln!("crossfade: FAILPOINTS: {why}");
        return ExitCode::from(2);
    }
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, THREADS));
    let output = Output { json: arguments.json };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let problem =
                Problem::new(Code::Internal, "the process", error.to_string(), "allow it more threads or files");
            return ExitCode::from(output.failed(&problem));
        }
    };
    let code = runtime.block_on(dispatch(arguments, output));
    runtime.shutdown_timeout(FAREWELL);
    ExitCode::from(code)
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
    percent.ok_or_else(|| "it is no number above 0, and 100 at most".to_owned())
}

fn rehearsal(
    into: &Option<String>,
    until: Option<cutover::rehearse::Until>,
    against: Against,
) -> commands::rehearse::Asked {
    commands::rehearse::Asked { into: into.clone(), until, against_target: against == Against::Target }
}

async fn dispatch(arguments: Arguments, output: Output) -> u8 {
    let stop = match Stop::on_signals() {
        Ok(stop) => stop,
        Err(problem) => return output.failed(&problem),
    };
    let token = stop.token();
    let plan = || Plan::load(&arguments.plan).map(std::sync::Arc::new);
    let done = |()| 0;
    // These end by themselves when they are told to, the first three with 0.
    let ended = async {
        Ok(Some(match &arguments.command {
            Command::Run(http) => commands::run::run(plan()?, http.listen, token.clone()).await.map(done)?,
            Command::Capture(http) => commands::capture::run(plan()?, http.listen, token.clone()).await.map(done)?,
            Command::Apply(http) => commands::apply::run(plan()?, http.listen, token.clone()).await.map(done)?,
            &Command::Verify { ref tables, sample, resume, recheck, mask } => {
                let options = verify::Options { tables: report::tables(tables)?, sample, resume, recheck, mask };
                commands::verify::run(plan()?, options, output, &stop).await?
            }
            &Command::Cutover { dry_run, cancel, timeout, max_lag, max_verify_age, no_way_back } => {
                let options = cutover::Options { dry_run, timeout, max_lag, max_verify_age, no_way_back };
                // It undoes itself when it is told to stop: the source must not stay closed.
                let code = commands::cutover::run(plan()?, false, &options, cancel, &token, output).await?;
                if token.is_cancelled() && code != 0 { stop.exit_code() } else { code }
            }
            &Command::Rollback { dry_run, cancel, timeout, max_lag } => {
                // What the cutover has compared holds; since then every row that was touched is known.
                let max_verify_age = Duration::MAX;
                let options = cutover::Options { dry_run, timeout, max_lag, max_verify_age, no_way_back: true };
                let code = commands::cutover::run(plan()?, true, &options, cancel, &token, output).await?;
                if token.is_cancelled() && code != 0 { stop.exit_code() } else { code }
            }
            Command::Rehearse { into, until, against, drill: true, drill_source } => {
                let asked = rehearsal(into, *until, *against);
                // It takes away what it has made when it is told to stop.
                commands::rehearse::drill(plan()?, asked, drill_source.clone(), &stop, output).await?
            }
            Command::Init
            | Command::Survey
            | Command::Explain
            | Command::Status { .. }
            | Command::Recopy { .. }
            | Command::Reconcile { .. }
            | Command::Rehearse { .. }
            | Command::Stage { .. }
            | Command::Runbook { .. }
            | Command::Complete { .. } => return Ok(None),
        }))
    };
    match ended.await {
        Ok(None) => {}
        Ok(Some(code)) => return code,
        Err(problem) => return output.failed(&problem),
    }
    let once = async {
        match arguments.command {
            Command::Init => commands::init::run(&arguments.plan, output),
            Command::Survey => commands::survey::run(plan()?, output).await,
            Command::Explain => commands::explain::run(plan()?, output).await,
            Command::Status { watch } => commands::status::run(plan()?, watch, output).await,
            Command::Recopy { rows: Some(file), .. } => commands::recopy::rows(plan()?, &file, output).await,
            Command::Recopy { tables, new_source, rows: None } => {
                commands::recopy::run(plan()?, tables, new_source, output).await
            }
            Command::Reconcile { fix } => commands::reconcile::run(plan()?, fix, output).await,
            Command::Rehearse { into, until, against, .. } => {
                commands::rehearse::run(plan()?, rehearsal(&into, until, against), output).await
            }
            Command::Stage { asked } => {
                let asked = asked.unwrap_or(commands::stage::Stage::Show { env: false });
                commands::stage::run(plan()?, asked, output).await
            }
            Command::Runbook { name } => commands::runbook::run(plan()?, name.as_deref(), output).await,
            Command::Complete { yes } => commands::complete::run(plan()?, yes, output).await,
            Command::Run(_)
            | Command::Capture(_)
            | Command::Apply(_)
            | Command::Verify { .. }
            | Command::Cutover { .. }
            | Command::Rollback { .. } => Ok(0),
        }
    };
    tokio::select! {
        biased;
        () = token.cancelled() => stop.exit_code(),
        result = once => result.unwrap_or_else(|problem| output.failed(&problem)),
    }
}
