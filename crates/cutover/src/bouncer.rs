//! The PgBouncers of a plan: paused before the source is closed, and led over once it is decided.
//!
//! A pool that is paused keeps its clients waiting: they see no error, only a commit that takes longer. Whoever cancels resumes it, and whoever rolls forward [switches its line](line), reloads and
//! resumes it; each of these may be done twice.

mod line;

use std::time::Duration;

use model::{Code, Problem};
use pg::{Console, ConsoleRow, Endpoint, PgError};
use plan::{PgBouncer, Plan, Secret};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::report::Refusal;

/// How long PgBouncer may take to answer what it does at once.
const ANSWER: Duration = Duration::from_secs(5);

/// Keeps everybody from beginning a transaction, and waits for those that are open. What is paused when this fails is resumed.
///
/// # Errors
/// A console, or transactions that take longer than `pause_timeout`.
pub(crate) async fn pause(plan: &Plan) -> Result<(), Problem> {
    let begun = Instant::now();
    let mut paused = JoinSet::new();
    for bouncer in plan.cutover.bouncers.clone() {
        paused.spawn(async move { pause_one(&bouncer).await });
    }
    let result = all(paused).await;
    if result.is_err() {
        // Even if it is not known for a while what becomes of the cutover.
        let _ = resume(plan).await;
    } else if !plan.cutover.bouncers.is_empty() {
        info!("PgBouncer is paused, after {} ms", begun.elapsed().as_millis());
    }
    result
}

async fn pause_one(bouncer: &PgBouncer) -> Result<(), Problem> {
    let console = console(bouncer).await?;
    let command = format!("PAUSE {}", bouncer.database);
    match tokio::time::timeout(bouncer.pause_timeout, console.command(&command)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failed(bouncer, format!("{command}: {error}"))),
        Err(_) => Err(failed(
            bouncer,
            format!(
                "transactions were still open {} ms after {command}: SHOW SERVERS there tells whose; with pool_mode = session every client that is connected is waited for",
                bouncer.pause_timeout.as_millis()
            ),
        )),
    }
}

/// Lets everybody go on where they were, within [`ANSWER`]. Each one is tried, also where one fails; those that are not paused stay as they are.
///
/// # Errors
/// The first one that may be paused still.
pub(crate) async fn resume(plan: &Plan) -> Result<(), Problem> {
    if plan.cutover.bouncers.is_empty() {
        return Ok(());
    }
    let mut tries = JoinSet::new();
    for bouncer in plan.cutover.bouncers.clone() {
        // One that is silent must not keep the others waiting.
        tries.spawn(async move {
            let twice = async {
                match reach_and_resume(&bouncer).await {
                    Ok(()) => Ok(()),
                    Err(_) => reach_and_resume(&bouncer).await,
                }
            };
            let silent = || Err(failed(&bouncer, format!("RESUME was not answered within {} s", ANSWER.as_secs())));
            tokio::time::timeout(ANSWER, twice).await.unwrap_or_else(|_| silent())
        });
    }
    let result = all(tries).await;
    if let Err(problem) = &result {
        warn!("{problem}");
    }
    model::failpoint!("pgbouncer_resumed");
    result
}

/// Waits for all of them; the first problem counts.
async fn all(mut tries: JoinSet<Result<(), Problem>>) -> Result<(), Problem> {
    let mut result = Ok(());
    while let Some(ended) = tries.join_next().await {
        let panicked = |error: tokio::task::JoinError| {
            Err(Problem::new(Code::Internal, "PgBouncer", error.to_string(), "report this"))
        };
        result = result.and(ended.unwrap_or_else(panicked));
    }
    result
}

async fn reach_and_resume(bouncer: &PgBouncer) -> Result<(), Problem> {
    resume_one(bouncer, &console(bouncer).await?).await
}

async fn resume_one(bouncer: &PgBouncer, console: &Console) -> Result<(), Problem> {
    match ask(bouncer, console, &format!("RESUME {}", bouncer.database)).await {
        Err(problem) if problem.why.contains("is not paused") => Ok(()),
        resumed => resumed.map(drop),
    }
}

/// Switches the lines to the side that the plan leads to, and lets everybody go on there. One that fails stays paused, for what it would go on with is closed.
///
/// # Errors
/// The first one that could not be led over, or the switch of a later epoch.
pub(crate) async fn lead_over(plan: &Plan, epoch: i64) -> Result<(), Problem> {
    let mut result = Ok(());
    for bouncer in &plan.cutover.bouncers {
        let begun = Instant::now();
        let mut led = lead_one(plan, bouncer, epoch).await;
        if led.is_err() {
            led = lead_one(plan, bouncer, epoch).await;
        }
        match &led {
            Ok(()) => info!(epoch, "PgBouncer is led over, in {} ms", begun.elapsed().as_millis()),
            Err(problem) => warn!(epoch, "{problem}"),
        }
        result = result.and(led);
    }
    result
}

async fn lead_one(plan: &Plan, bouncer: &PgBouncer, epoch: i64) -> Result<(), Problem> {
    let line = side(plan, bouncer);
    line::switch(&bouncer.file, &bouncer.database, line.expose(), &plan.name, epoch)
        .await
        .map_err(|why| failed(bouncer, why))?;
    model::failpoint!("pgbouncer_switched");
    let console = console(bouncer).await?;
    ask(bouncer, &console, "RELOAD").await?;
    model::failpoint!("pgbouncer_reloaded");
    if let Some(other) = differs(&shown(bouncer, &console).await?, line.expose()) {
        return Err(failed(bouncer, format!("after RELOAD it does not connect to where the line leads ({other})")));
    }
    resume_one(bouncer, &console).await
}

/// The line for the side that becomes writable.
fn side<'a>(plan: &Plan, bouncer: &'a PgBouncer) -> &'a Secret {
    if plan.is_back() { &bouncer.source } else { &bouncer.target }
}

/// What is in the way of pausing and leading them over; `epoch` is the last one that the journals know. Nothing is changed by looking.
pub(crate) async fn find(plan: &Plan, epoch: i64, found: &mut Vec<Refusal>) {
    for bouncer in &plan.cutover.bouncers {
        if let Err(problem) = ready(bouncer, epoch).await {
            let Problem { what, why, next, .. } = problem;
            found.push(Refusal { code: "pgbouncer", text: format!("{what}: {why}; {next}") });
        }
    }
}

async fn ready(bouncer: &PgBouncer, epoch: i64) -> Result<(), Problem> {
    let (says, switched) = line::look(&bouncer.file, &bouncer.database).map_err(|why| failed(bouncer, why))?;
    if let Some(later) = switched.filter(|later| *later > epoch) {
        let why = format!("its line in {} was switched by epoch {later}, of another migration", bouncer.file.display());
        let next = "take the comment above the line out, if that migration is over".to_owned();
        return Err(Problem { next, ..failed(bouncer, why) });
    }
    if ![&bouncer.source, &bouncer.target].iter().any(|line| line::same(line.expose(), &says)) {
        let why =
            format!("what its line in {} says is neither the plan's `source` nor its `target`", bouncer.file.display());
        return Err(Problem { next: "let the plan say what the line says".to_owned(), ..failed(bouncer, why) });
    }
    let shown = shown(bouncer, &console(bouncer).await?).await?;
    if let Some(other) = differs(&shown, &says) {
        let why = format!("it does not connect to where the line in {} leads ({other})", bouncer.file.display());
        let next = "RELOAD it, or name the file that it reads".to_owned();
        return Err(Problem { next, ..failed(bouncer, why) });
    }
    Ok(())
}

/// The row of the database in what PgBouncer has in memory.
async fn shown(bouncer: &PgBouncer, console: &Console) -> Result<ConsoleRow, Problem> {
    let rows = ask(bouncer, console, "SHOW DATABASES").await?;
    rows.into_iter()
        .find(|row| row.get("name") == Some(&bouncer.database))
        .ok_or_else(|| failed(bouncer, "it does not know that database".to_owned()))
}

/// What of host, port and name of the database is another one than a line says; where the line says nothing, nothing is.
fn differs(shown: &ConsoleRow, line: &str) -> Option<String> {
    for (key, column) in [("host", "host"), ("port", "port"), ("dbname", "database")] {
        if let Some(value) = line::value(line, key)
            && let now = shown.get(column).map(String::as_str).unwrap_or_default()
            && now != value
        {
            return Some(format!("{key} is {now:?}, and {value:?} there"));
        }
    }
    None
}

async fn console(bouncer: &PgBouncer) -> Result<Console, Problem> {
    let endpoint = Endpoint::parse(bouncer.url.expose())?;
    match tokio::time::timeout(ANSWER, Console::open(&endpoint)).await {
        Ok(Ok(console)) => Ok(console),
        Ok(Err(error)) => Err(failed(bouncer, format!("its admin console cannot be used: {error}"))),
        Err(_) => Err(failed(bouncer, "its admin console does not answer".to_owned())),
    }
}

async fn ask(bouncer: &PgBouncer, console: &Console, command: &str) -> Result<Vec<ConsoleRow>, Problem> {
    match tokio::time::timeout(ANSWER, console.command(command)).await {
        Ok(Ok(rows)) => Ok(rows),
        Ok(Err(PgError::Server(error))) => Err(failed(bouncer, format!("{command}: {}", error.message))),
        Ok(Err(error)) => Err(failed(bouncer, format!("{command}: {error}"))),
        Err(_) => Err(failed(bouncer, format!("{command} was not answered within {} s", ANSWER.as_secs()))),
    }
}

fn failed(bouncer: &PgBouncer, why: String) -> Problem {
    let place = Endpoint::parse(bouncer.url.expose()).map(|endpoint| endpoint.describe()).unwrap_or_default();
    let what = format!("database {:?} of the PgBouncer at {place}", bouncer.database);
    Problem::new(
        Code::PgBouncerFailed,
        what,
        why,
        "mend that, or correct the plan's [cutover.pgbouncer], then start it again",
    )
}
