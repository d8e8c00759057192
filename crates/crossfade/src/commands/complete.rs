use std::sync::Arc;
use std::time::Duration;

use ::log::Log;
use model::{Code, Identity, Problem, Seq};
use pg::Session;
use plan::Plan;
use serde_json::{Value, json};

use crate::report::{self, Output};
use crate::wiring;

/// How long the servers may take to notice that a process, stopped a moment ago, has ended.
const ENDING: Duration = Duration::from_secs(2);

const LOOK: Duration = Duration::from_millis(100);

/// Lists what crossfade created, and with `yes` removes it. Works at any phase, and again.
pub(crate) async fn run(plan: Arc<Plan>, yes: bool, output: Output) -> Result<u8, Problem> {
    // Everything must be there to be asked before anything is removed: what would stay behind is told now.
    let target = pg::connect(&wiring::target(&plan)?, "complete").await?;
    let mut sources = Vec::new();
    for source in &plan.sources {
        sources.push((source.name.clone(), pg::connect(&wiring::source(source)?, "complete").await?));
    }
    let log = wiring::read_log(&plan).await?;
    let mut live = live(&plan, &target, &sources).await?;
    let begun = tokio::time::Instant::now();
    while yes && !live.is_empty() && begun.elapsed() < ENDING {
        tokio::time::sleep(LOOK).await;
        live = self::live(&plan, &target, &sources).await?;
    }
    if yes && !live.is_empty() {
        return Err(Problem::new(
            Code::WriterRefused,
            format!("plan {:?}", plan.name),
            format!("it is running: {}", live.join(", ")),
            "stop `crossfade run`, `capture` and `apply` of the plan (SIGTERM), then run `crossfade complete --yes` again",
        ));
    }
    let log = match log {
        Some(_) if yes => Some(wiring::open_log(&plan).await?),
        log => log,
    };
    // While it is known which side the application writes to.
    let mut archive = Vec::new();
    for (source, (_, session)) in plan.sources.iter().zip(&sources) {
        archive.extend(cutover::archive(&plan, source, session, &target).await?);
    }
    let stands = cutover::stands(sources.iter().map(|(_, session)| session), &target).await?;
    // The source first: it is what the WAL is kept back at.
    let mut found = Vec::new();
    for (name, session) in &sources {
        let removed = capture::remove(session, &plan.name, name, yes).await?;
        found.extend(removed.iter().map(|removal| entry(&format!("source {name}"), &removal.to_string())));
        let removed = apply::remove_origins(session, &plan.name, yes).await?;
        found.extend(removed.iter().map(|removal| entry(&format!("source {name}"), &removal.to_string())));
        let removed = cutover::remove(session, &plan, name, stands, yes).await?;
        found.extend(removed.iter().map(|removal| entry(&format!("source {name}"), &removal.to_string())));
    }
    let back = plan.back();
    for source in back.iter().flat_map(|back| &back.sources) {
        let removed = capture::remove(&target, &plan.name, &source.name, yes).await?;
        found.extend(removed.iter().map(|removal| entry("target", &removal.to_string())));
    }
    let removed = cutover::open_target(&target, &plan, stands, yes).await?;
    found.extend(removed.iter().map(|removal| entry("target", &removal.to_string())));
    let removed = apply::remove(&target, &plan.name, yes).await?;
    found.extend(removed.iter().map(|removal| entry("target", &removal.to_string())));
    if let Some(log) = log {
        let identity = async |session| pg::catalog::identity(session).await.map_err(pg::PgError::from);
        if let (Some(back), Some((_, source))) = (&back, sources.first()) {
            found.extend(streams(back, &*log, &identity(source).await?, yes).await?);
        }
        found.extend(streams(&plan, &*log, &identity(&target).await?, yes).await?);
    }
    let document = json!({ "plan": plan.name, "removed": yes, "found": found, "running": live, "archive": archive });
    if output.json {
        output.print(&document);
    } else {
        output.text(&text(&found, &live, &archive, yes));
    }
    if yes {
        report::keep(&plan, "complete", &document);
    }
    Ok(0)
}

fn entry(place: &str, thing: &str) -> Value {
    json!({ "where": place, "what": thing })
}

/// Processes of the plan that work now.
async fn live(plan: &Plan, target: &Session, sources: &[(String, Session)]) -> Result<Vec<String>, Problem> {
    let mut live: Vec<String> =
        apply::live_workers(target, &plan.name).await?.into_iter().map(|worker| format!("apply {worker}")).collect();
    if cutover::acts_at_target(target, &plan.name).await? {
        live.push("a rollback, at the target".to_owned());
    }
    for source in plan.back().iter().flat_map(|back| &back.sources) {
        let name = capture::slot_name(&plan.name, &source.name);
        let slot = capture::slot_state(target, &name).await.map_err(pg::PgError::from)?;
        live.extend(
            slot.and_then(|slot| slot.active_pid)
                .map(|pid| format!("capture of the way back (the target's walsender {pid})")),
        );
    }
    for (name, session) in sources {
        live.extend(
            apply::live_workers(session, &plan.name).await?.into_iter().map(|worker| format!("apply {worker}, back")),
        );
        if cutover::acts(session, &plan.name, name).await? {
            live.push(format!("a cutover, at source {name}"));
        }
        let slot =
            capture::slot_state(session, &capture::slot_name(&plan.name, name)).await.map_err(pg::PgError::from)?;
        live.extend(
            slot.and_then(|slot| slot.active_pid)
                .map(|pid| format!("capture of {name} (the source's walsender {pid})")),
        );
    }
    Ok(live)
}

/// The bucket with the stage, whether or not the plan still has stages.
async fn bucket(plan: &Plan, log: &dyn Log, yes: bool) -> Result<Option<Value>, Problem> {
    if matches!(plan.log, plan::Log::Embedded) {
        return Ok(None);
    }
    let bucket = wiring::bucket(plan).await?;
    if !bucket.exists().await? {
        return Ok(None);
    }
    if yes {
        bucket.remove().await?;
    }
    Ok(Some(entry(&format!("log {}", log.describe()), &format!("KV bucket {}", bucket.name()))))
}

/// The plan's streams on the log, and its bucket. Those that another plan of this name has written are left alone.
async fn streams(plan: &Plan, log: &dyn Log, target: &Identity, yes: bool) -> Result<Vec<Value>, Problem> {
    let mut found = Vec::new();
    let mut others = false;
    for source in &plan.sources {
        let copy = capture::streams(&plan.name, &source.name).copy;
        others |= capture::header(log, &copy).await?.is_some_and(|header| header.target_identity != *target);
    }
    // Before the streams that say whose it is.
    if !others && !plan.is_back() {
        found.extend(bucket(plan, log, yes).await?);
    }
    for source in &plan.sources {
        let capture::Streams { copy, chunks, tail } = capture::streams(&plan.name, &source.name);
        if capture::header(log, &copy).await?.is_some_and(|header| header.target_identity != *target) {
            tracing::warn!("streams {copy} and {tail} lead into another target: they are another plan's, and stay");
            continue;
        }
        // The one that says whose they are goes last.
        for stream in [chunks, tail, copy] {
            let Some(state) = log.state(&stream).await? else { continue };
            if yes {
                log.remove(&stream).await?;
                model::failpoint!("stream_removed");
            }
            if state.last > Seq::ZERO || !yes {
                found.push(entry(
                    &format!("log {}", log.describe()),
                    &format!("stream {stream}, {} messages", state.messages),
                ));
            }
        }
    }
    Ok(found)
}

fn text(found: &[Value], live: &[String], archive: &[String], yes: bool) -> String {
    let line = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut text: String =
        found.iter().map(|entry| format!("{:<14} {}\n", line(entry, "where"), line(entry, "what"))).collect();
    for process in live {
        text += &format!("running: {process}; stop it first\n");
    }
    text += match (found.is_empty(), yes) {
        (true, _) => "nothing of this plan is left\n",
        (false, true) => "removed; the application's tables are as they were\n",
        (false, false) => "`crossfade complete --yes` removes this, and no table of the application\n",
    };
    if !archive.is_empty() {
        text += "\nThe source's tables, once nobody needs them under their names. crossfade does not run this:\n";
        text.extend(archive.iter().map(|statement| format!("  {statement}\n")));
    }
    text
}
