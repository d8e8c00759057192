//! From the plan to what the commands work with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::log::{Bucket, Embedded, Log, LogError, Nats, NatsOptions};
use model::{Code, Identity, Problem};
use offsets::Store;
use pg::Endpoint;
use plan::{Plan, Source};
use tokio_util::sync::CancellationToken;

/// Makes the state folder, and sees that it can be written.
pub(crate) fn state_dir(plan: &Plan) -> Result<(), Problem> {
    let dir = &plan.state_dir;
    let probe = dir.join(".writable");
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&probe, ""))
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|error| not_writable(dir, &error.to_string()))
}

pub(crate) fn not_writable(dir: &Path, why: &str) -> Problem {
    Problem::new(
        Code::StateNotWritable,
        format!("the state folder {}", dir.display()),
        why,
        "give this user the right to write it, or name another folder: [state] dir = \"…\"",
    )
}

fn embedded_folder(plan: &Plan) -> PathBuf {
    plan.state_dir.join("log")
}

/// The log, to write it. The embedded one is created where there is none.
pub(crate) async fn open_log(plan: &Plan) -> Result<Arc<dyn Log>, Problem> {
    match nats_options(plan) {
        Some(options) => Ok(Arc::new(Nats::connect(&options).await?)),
        None => Ok(Arc::new(Embedded::open(embedded_folder(plan))?)),
    }
}

/// The log, to read what is in it now; `None` if it is an embedded one that has not been written yet.
pub(crate) async fn read_log(plan: &Plan) -> Result<Option<Arc<dyn Log>>, Problem> {
    match nats_options(plan) {
        Some(options) => Ok(Some(Arc::new(Nats::connect(&options).await?))),
        None => read_embedded(plan),
    }
}

fn read_embedded(plan: &Plan) -> Result<Option<Arc<dyn Log>>, Problem> {
    let folder = embedded_folder(plan);
    match Embedded::open_read_only(&folder) {
        Ok(log) => Ok(Some(Arc::new(log))),
        Err(LogError::StateNotWritable { .. }) if !folder.join("CURRENT").exists() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn nats_options(plan: &Plan) -> Option<NatsOptions> {
    match &plan.log {
        plan::Log::Nats { url, replicas, sync, ca_file, cert_file, key_file, credentials_file, max_bytes } => {
            Some(NatsOptions {
                url: url.expose().to_owned(),
                replicas: *replicas,
                sync: *sync,
                ca_file: ca_file.clone(),
                cert_file: cert_file.clone(),
                key_file: key_file.clone(),
                credentials_file: credentials_file.clone(),
                max_bytes: *max_bytes,
            })
        }
        plan::Log::Embedded => None,
    }
}

/// Where the stage of the plan is kept.
pub(crate) async fn bucket(plan: &Plan) -> Result<Bucket, Problem> {
    let options = nats_options(plan).ok_or_else(no_bucket)?;
    Ok(Nats::connect(&options).await?.bucket(&plan.name, cutover::stages::KEY))
}

/// The embedded log has no place for the stage.
pub(crate) fn no_bucket() -> Problem {
    Problem::new(
        Code::EmbeddedLog,
        "the stage",
        "it is kept in a KV bucket of NATS JetStream, where applications watch it, and the plan's log is embedded",
        "give the plan a NATS log: [log] url = \"nats://…\"",
    )
}

/// Refuses the embedded log, which one process has to itself.
pub(crate) fn shared_log(plan: &Plan, command: &str) -> Result<(), Problem> {
    match plan.log {
        plan::Log::Nats { .. } => Ok(()),
        plan::Log::Embedded => Err(Problem::new(
            Code::EmbeddedLog,
            format!("crossfade {command}"),
            "the plan's log is embedded, which only one process can have open",
            "use `crossfade run`, or give the plan a NATS log: [log] url = \"nats://…\"",
        )),
    }
}

/// The local store of this process.
pub(crate) fn offsets(plan: &Plan) -> Result<Store, Problem> {
    Ok(Store::open(&plan.state_dir.join("offsets"))?)
}

/// How to reach a source.
pub(crate) fn source(source: &Source) -> Result<Endpoint, Problem> {
    named(&format!("source {:?}", source.name), source.url.expose())
}

/// How to reach the target.
pub(crate) fn target(plan: &Plan) -> Result<Endpoint, Problem> {
    named("the target", plan.target.url.expose())
}

fn named(what: &str, url: &str) -> Result<Endpoint, Problem> {
    Endpoint::parse(url).map_err(|problem| Problem { what: format!("{what}: {}", problem.what), ..problem })
}

/// What captures the plan's sources.
pub(crate) fn captures(plan: &Arc<Plan>, log: &Arc<dyn Log>, target: &Identity) -> Result<Vec<capture::Job>, Problem> {
    let offsets = offsets(plan)?;
    // One for all sources: what is the plan's own is told by it.
    let nonce = uuid::Uuid::new_v4().to_string();
    plan.sources
        .iter()
        .map(|source| {
            Ok(capture::Job {
                plan: Arc::clone(plan),
                source: source.clone(),
                endpoint: self::source(source)?,
                log: Arc::clone(log),
                offsets: offsets.clone(),
                target: target.clone(),
                nonce: nonce.clone(),
                worker: worker(),
            })
        })
        .collect()
}

/// What applies the log to the target.
pub(crate) fn applier(plan: &Arc<Plan>, log: &Arc<dyn Log>) -> Result<apply::Job, Problem> {
    Ok(apply::Job {
        plan: Arc::clone(plan),
        endpoint: target(plan)?,
        log: Arc::clone(log),
        worker: worker(),
        cut_off: apply::CutOff::default(),
        alone: false,
    })
}

/// What compares both sides.
pub(crate) async fn comparison(plan: &Arc<Plan>) -> Result<verify::Job, Problem> {
    Ok(verify::Job {
        sources: plan.sources.iter().map(source).collect::<Result<_, _>>()?,
        target: target(plan)?,
        log: match plan.log {
            plan::Log::Embedded => verify::LogAccess::Embedded(embedded_folder(plan)),
            plan::Log::Nats { .. } => verify::LogAccess::Live(open_log(plan).await?),
        },
        plan: Arc::clone(plan),
    })
}

/// What captures the target for the way back; none where there is no way back.
pub(crate) fn capture_back(captures: &[capture::Job], stop: CancellationToken) -> Result<Option<Part>, Problem> {
    let [job] = captures else { return Ok(None) };
    let target = target(&job.plan)?;
    let back = capture::Job { endpoint: target, ..job.clone() };
    Ok(Some(Box::pin(cutover::capture_back(back, job.endpoint.clone(), stop))))
}

/// What applies the way back to the source; none where there is no way back.
pub(crate) fn apply_back(applier: &apply::Job, stop: CancellationToken) -> Result<Option<Part>, Problem> {
    let Some(back) = applier.plan.back() else { return Ok(None) };
    let job = apply::Job {
        endpoint: target(&back)?,
        plan: Arc::new(back),
        cut_off: apply::CutOff::default(),
        ..applier.clone()
    };
    Ok(Some(Box::pin(cutover::apply_back(job, stop))))
}

/// Something that a process runs until it is told to stop.
pub(crate) type Part = std::pin::Pin<Box<dyn Future<Output = Result<(), Problem>> + Send>>;

/// The comparison that is of use now: of the way back, while the application writes to the target and there is one.
pub(crate) async fn comparison_now(plan: &Arc<Plan>) -> Result<verify::Job, Problem> {
    let job = comparison(plan).await?;
    match cutover::reversed(&job).await? {
        Some(back) if cutover::is_reversing(&job).await? => Ok(back),
        _ => Ok(job),
    }
}

/// Opens a source again that a cutover has closed and left; runs until `stop`, beside the parts of a process.
pub(crate) fn guard(
    plan: &Arc<Plan>,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), Problem>> + use<>, Problem> {
    let sources = plan.sources.iter().map(source).collect::<Result<_, _>>()?;
    let guard = cutover::guard(Arc::clone(plan), sources, target(plan)?);
    Ok(async move {
        stop.run_until_cancelled(guard).await;
        Ok(())
    })
}

/// `host:pid`.
pub(crate) fn worker() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}:{}", host.as_deref().unwrap_or("localhost"), std::process::id())
}
