mod bouncers;
mod cutover;
mod derived;
mod finding;
mod questions;
mod sources;
mod stages;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use model::{Code, Problem, TableName};

use crate::server::Server;
use crate::written::{Entry, File, Section};
use crate::{Direction, Identity, Limits, Log, OnWalCritical, Plan, SchemaMode, Secret, Target, Verify};

pub use stages::{is_flag, is_flag_value};

type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// JetStream's default `sync_interval` is two minutes; the rest is margin for a loaded server.
const SYNC: Duration = Duration::from_secs(150);
/// Below this, buffers for several connections and RocksDB's own caches do not fit.
const LEAST_MEMORY: u64 = 64 << 20;
/// A NATS stream smaller than this would be full before the first table is in.
const LEAST_LOG: u64 = 16 << 20;

pub(crate) fn check(text: &str, path: &Path, env: Env<'_>) -> Result<Plan, Problem> {
    let file = File::new(path, text);
    let table = file.parse()?;
    let top = Section::top(&file, table.get_ref(), &KNOWN)?;
    checked(&top, path, env).map_err(|problem| match problem.code {
        Code::SecretMissing => all_missing(&top, env, problem),
        _ => problem,
    })
}

const KNOWN: [&str; 16] = [
    "name", "sources", "log", "target", "state", "limits", "identity", "verify", "cutover", "check", "stages", "http",
    "table", "mirror", "ignore", "finding",
];

fn checked(top: &Section<'_>, path: &Path, env: Env<'_>) -> Result<Plan, Problem> {
    let name =
        top.get("name").ok_or_else(|| top.lacks("name", "name the plan, at the top of the file: name = \"shop\""))?;
    let target = top.get("target").ok_or_else(|| {
        top.lacks("target", "add a [target] section with url_env = \"TARGET_URL\" and schema = \"clone\"")
    })?;
    let (target, target_server) = check_target(&target, env)?;
    let sources = top.get("sources").ok_or_else(|| top.lacks("sources", NO_SOURCES))?;
    let sources = sources::check(top, &sources, &target_server, env)?;
    let log = top
        .get("log")
        .ok_or_else(|| top.lacks("log", "add a [log] section with url = \"nats://127.0.0.1:4222\" or \"embedded\""))?;

    Ok(Plan {
        name: checked_name(&name, name.text("shop")?)?,
        path: path.to_owned(),
        direction: Direction::Forward,
        log: check_log(&log, env)?,
        target,
        state_dir: match top.get("state").map(|entry| entry.section(&["dir"])).transpose()?.and_then(|s| s.get("dir")) {
            Some(dir) => dir.path(".crossfade")?,
            None => path.parent().unwrap_or(Path::new("")).join(".crossfade"),
        },
        derived: top.get("table").map(|entry| derived::check(&entry, &sources)).transpose()?.unwrap_or_default(),
        findings: top.get("finding").map(|entry| finding::check(&entry)).transpose()?.unwrap_or_default(),
        limits: check_limits(top.get("limits"))?,
        identity: top.get("identity").map(|entry| check_identity(&entry)).transpose()?.unwrap_or_default(),
        verify: check_verify(top.get("verify"))?,
        cutover: cutover::check(top.get("cutover"), env)?,
        checks: top.get("check").map(|entry| questions::check(&entry, &sources)).transpose()?.unwrap_or_default(),
        stages: top.get("stages").map(|entry| stages::check(&entry)).transpose()?,
        http: top.get("http").map(|entry| check_http(&entry)).transpose()?,
        sources,
    })
}

const NO_SOURCES: &str = "add a section for the database that the data leaves: [sources.shop] with url_env = \"SHOP_URL\" \
                          and tables = [\"public.*\"]";

/// Names go into the names of slots (63 characters of a-z, 0-9 and _), publications, streams and SQL.
fn checked_name(entry: &Entry<'_>, name: &str) -> Result<String, Problem> {
    let right = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 40
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if right {
        return Ok(name.to_owned());
    }
    Err(entry
        .problem(format!("{name:?} cannot be a name here"), "use at most 40 of a-z, 0-9 and _, the first a letter"))
}

/// `url`, or what stands in the environment variable that `url_env` names. Comes with the key it was read from.
fn secret<'a>(section: &Section<'a>, example: &str, env: Env<'_>) -> Result<(Entry<'a>, Secret), Problem> {
    let (entry, value) = match (section.get("url"), section.get("url_env")) {
        (Some(entry), None) => {
            let value = entry.text(example)?.to_owned();
            (entry, value)
        }
        (None, Some(entry)) => {
            let name = entry.text("SHOP_URL")?;
            if name.is_empty() || name.contains(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
                // What stands there may be the URL itself, so it is not shown.
                return Err(entry.problem(
                    "it is not the name of an environment variable",
                    format!("write the variable's name here, or the URL itself as url = \"{example}\""),
                ));
            }
            let value = env(name).filter(|value| !value.trim().is_empty()).ok_or_else(|| Problem {
                code: Code::SecretMissing,
                ..entry.problem(
                    format!("the environment variable {name} is not set"),
                    format!("set it before crossfade starts: export {name}='{example}'"),
                )
            })?;
            (entry, value)
        }
        (Some(_), Some(entry)) => {
            return Err(entry.problem("both `url` and `url_env` are given", "keep one of them"));
        }
        (None, None) => {
            return Err(section.lacks(
                "url",
                format!("write url = \"{example}\", or url_env = \"NAME\" to take it from the environment"),
            ));
        }
    };
    Ok((entry, Secret::new(value.trim())))
}

/// Who has forgotten one variable has often forgotten the others: all of them are told, in the order in which they are asked for.
fn all_missing(top: &Section<'_>, env: Env<'_>, first: Problem) -> Problem {
    let sources = top.get("sources").and_then(|sources| sources.open().ok());
    let bouncer = top.get("cutover").and_then(|cutover| cutover.open().ok()?.get("pgbouncer"));
    let sections = top.get("target").into_iter().chain(sources.iter().flat_map(Section::entries)).chain(top.get("log"));
    let sections = sections.chain(bouncer);
    let names: Vec<String> = sections
        .filter_map(|entry| Some(entry.open().ok()?.get("url_env")?.text("").ok()?.to_owned()))
        .filter(|name| env(name).is_none_or(|value| value.trim().is_empty()))
        .collect();
    // One that stands there twice is one; what is no name may be the URL itself, and is told of in its turn.
    let mut missing: Vec<&str> = Vec::new();
    for name in names.iter().filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) {
        if !missing.contains(&name.as_str()) && !name.is_empty() {
            missing.push(name);
        }
    }
    if missing.len() < 2 {
        return first;
    }
    let exports: Vec<String> = missing.iter().map(|name| format!("{name}='…'")).collect();
    Problem {
        why: format!("the environment variables {} are not set", missing.join(", ")),
        next: format!("set them before crossfade starts: export {}", exports.join(" ")),
        ..first
    }
}

fn check_target(entry: &Entry<'_>, env: Env<'_>) -> Result<(Target, Server), Problem> {
    let section = entry.section(&["url", "url_env", "schema"])?;
    let (url, server) = postgres(&section, env)?;
    let schema = match section.get("schema") {
        Some(entry) => entry.word(&[("clone", SchemaMode::Clone), ("exists", SchemaMode::Exists)])?,
        None => {
            return Err(section.lacks("schema", "write schema = \"clone\" to have the tables created, or \"exists\""));
        }
    };
    Ok((Target { url, schema }, server))
}

fn postgres(section: &Section<'_>, env: Env<'_>) -> Result<(Secret, Server), Problem> {
    postgres_like(section, "postgres://user:password@host:5432/database", env)
}

fn postgres_like(section: &Section<'_>, example: &str, env: Env<'_>) -> Result<(Secret, Server), Problem> {
    let (entry, url) = secret(section, example, env)?;
    let server = Server::parse(url.expose()).map_err(|why| {
        entry.problem(format!("this is not the URL of a Postgres database: {why}"), format!("write it like {example}"))
    })?;
    Ok((url, server))
}

fn check_log(entry: &Entry<'_>, env: Env<'_>) -> Result<Log, Problem> {
    const NATS_ONLY: [&str; 7] =
        ["max_bytes", "replicas", "sync", "ca_file", "cert_file", "key_file", "credentials_file"];
    let section = entry.section(&[&["url", "url_env"][..], &NATS_ONLY].concat())?;
    let (entry, url) = secret(&section, "nats://127.0.0.1:4222", env)?;
    let max_bytes = section.get("max_bytes").map(|entry| at_least(&entry, LEAST_LOG, "100GiB")).transpose()?;

    if url.expose() == "embedded" {
        return match NATS_ONLY.iter().find_map(|key| section.get(key)) {
            None => Ok(Log::Embedded),
            Some(key) => Err(key.problem("the embedded log has no such setting", "take it out, or use a nats:// URL")),
        };
    }
    let is_nats =
        |url: &str| ["nats://", "tls://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme));
    if !url.expose().split(',').all(|url| is_nats(url.trim())) {
        return Err(entry.problem(
            "this is neither the URL of a NATS server nor the embedded log",
            "write it like nats://user:password@host:4222 (tls:// demands TLS; commas between the servers of a cluster), or \"embedded\"",
        ));
    }
    let replicas = section.get("replicas").map(|entry| entry.number(1..=5)).transpose()?.unwrap_or(1);
    let path = |key: &str, example: &str| section.get(key).map(|entry| entry.path(example)).transpose();
    let (cert_file, key_file) = (path("cert_file", "client.pem")?, path("key_file", "client.key")?);
    if cert_file.is_some() != key_file.is_some() {
        let missing = if cert_file.is_some() { "key_file" } else { "cert_file" };
        return Err(section.lacks(missing, "a client certificate needs both cert_file and key_file"));
    }
    let sync = section.get("sync").map(|entry| entry.duration("150s")).transpose()?;
    Ok(Log::Nats {
        url,
        replicas,
        // With three replicas an acknowledgement means that two servers have it; one power failure loses nothing.
        sync: sync.unwrap_or(if replicas >= 3 { Duration::ZERO } else { SYNC }),
        ca_file: path("ca_file", "ca.pem")?,
        cert_file,
        key_file,
        credentials_file: path("credentials_file", "crossfade.creds")?,
        max_bytes,
    })
}

fn at_least(entry: &Entry<'_>, least: u64, example: &str) -> Result<u64, Problem> {
    let bytes = entry.bytes(example)?;
    if bytes < least {
        return Err(entry.problem("it is too small to work with", format!("give it at least {}MiB", least >> 20)));
    }
    Ok(bytes)
}

fn check_limits(entry: Option<Entry<'_>>) -> Result<Limits, Problem> {
    const KNOWN: [&str; 7] =
        ["memory", "wal_warn", "wal_critical", "on_wal_critical", "copy_workers", "barrier_timeout", "lock_timeout"];
    let mut limits = Limits::default();
    let Some(section) = entry.map(|entry| entry.section(&KNOWN)).transpose()? else { return Ok(limits) };
    for entry in section.entries() {
        match entry.key {
            "memory" => limits.memory = at_least(&entry, LEAST_MEMORY, "256MiB")?,
            "wal_warn" => limits.wal_warn = entry.bytes("10GiB")?,
            "wal_critical" => limits.wal_critical = entry.bytes("50GiB")?,
            "on_wal_critical" => {
                limits.on_wal_critical =
                    entry.word(&[("keep", OnWalCritical::Keep), ("drop_slot", OnWalCritical::DropSlot)])?;
            }
            "copy_workers" => limits.copy_workers = entry.number(1..=64)?,
            "barrier_timeout" => limits.barrier_timeout = positive(&entry, "10min")?,
            "lock_timeout" => limits.lock_timeout = positive(&entry, "5s")?,
            _ => {}
        }
    }
    if limits.wal_warn >= limits.wal_critical {
        let entry = section.get("wal_warn").or(section.get("wal_critical"));
        return Err(entry.map_or_else(
            || section.lacks("wal_warn", "give wal_warn and wal_critical"),
            |entry| {
                entry.problem(
                    "wal_warn is not below wal_critical",
                    "write wal_warn smaller than wal_critical (10GiB and 50GiB if not given)",
                )
            },
        ));
    }
    Ok(limits)
}

fn positive(entry: &Entry<'_>, example: &str) -> Result<Duration, Problem> {
    let duration = entry.duration(example)?;
    if duration.is_zero() {
        return Err(entry
            .problem("it is zero, so nothing would ever get through", format!("write {} = {example:?}", entry.key)));
    }
    Ok(duration)
}

impl Default for Limits {
    /// What holds where the plan says nothing.
    fn default() -> Self {
        Limits {
            memory: 256 << 20,
            wal_warn: 10 << 30,
            wal_critical: 50 << 30,
            on_wal_critical: OnWalCritical::Keep,
            copy_workers: 4,
            barrier_timeout: Duration::from_secs(600),
            lock_timeout: Duration::from_secs(5),
        }
    }
}

fn check_verify(entry: Option<Entry<'_>>) -> Result<Verify, Problem> {
    const KNOWN: [&str; 5] = ["connections", "rows_per_second", "rest", "hold", "renew"];
    let mut verify = Verify::default();
    let Some(section) = entry.map(|entry| entry.section(&KNOWN)).transpose()? else { return Ok(verify) };
    for entry in section.entries() {
        match entry.key {
            "connections" => verify.connections = entry.number(1..=64)?,
            "rows_per_second" => verify.rows_per_second = Some(entry.number(1..=usize::MAX)? as u64),
            "rest" => verify.rest = entry.number(0..=10_000)? as u32,
            "hold" => verify.hold = positive(&entry, "5s")?,
            "renew" => verify.renew = positive(&entry, "5min")?,
            _ => {}
        }
    }
    Ok(verify)
}

impl Default for Verify {
    /// What holds where the plan says nothing.
    fn default() -> Self {
        Verify {
            // One on each side, and rest: the application that works there goes first.
            connections: 1,
            rows_per_second: None,
            rest: 100,
            hold: Duration::from_secs(5),
            renew: Duration::from_secs(300),
        }
    }
}

fn check_http(entry: &Entry<'_>) -> Result<SocketAddr, Problem> {
    const EXAMPLE: &str = "127.0.0.1:7654";
    let section = entry.section(&["listen"])?;
    let next = format!("write where to listen: listen = {EXAMPLE:?}");
    let listen = section.get("listen").ok_or_else(|| section.lacks("listen", next.as_str()))?;
    let text = listen.text(EXAMPLE)?;
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() > 0);
    address.ok_or_else(|| listen.problem(format!("{text:?} is not an IP address with a port"), next))
}

fn check_identity(entry: &Entry<'_>) -> Result<BTreeMap<TableName, Identity>, Problem> {
    let mut identity = BTreeMap::new();
    for entry in entry.open()?.entries() {
        let (schema, name) = entry
            .key
            .split_once('.')
            .filter(|(schema, name)| !schema.is_empty() && !name.is_empty() && !entry.key.contains('*'))
            .ok_or_else(|| {
                let why = format!("{:?} is not the name of a table with its schema", entry.key);
                entry.problem(why, "write it in quotes, one line a table: \"public.history\" = \"insert_only\"")
            })?;
        let kind = entry.word(&[("insert_only", Identity::InsertOnly), ("full", Identity::Full)])?;
        identity.insert(TableName::new(schema, name), kind);
    }
    Ok(identity)
}

#[cfg(test)]
mod tests;
