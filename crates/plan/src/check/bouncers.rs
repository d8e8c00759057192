use std::time::Duration;

use model::Problem;

use super::{Env, positive, postgres_like};
use crate::written::{Entry, Section};
use crate::{PgBouncer, Secret};

/// Nobody of the application gets a transaction begun meanwhile: what takes longer is not to be waited for.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The plan's `[cutover.pgbouncer]`, or several of them.
pub(super) fn check(entry: &Entry<'_>, env: Env<'_>) -> Result<Vec<PgBouncer>, Problem> {
    const KNOWN: [&str; 7] = ["url", "url_env", "database", "file", "source", "target", "pause_timeout"];
    entry.section_or_more(&KNOWN)?.iter().map(|section| one(section, env)).collect()
}

fn one(section: &Section<'_>, env: Env<'_>) -> Result<PgBouncer, Problem> {
    let (url, _) = postgres_like(section, "postgres://user:password@host:6432/pgbouncer", env)?;
    let needed = |key: &str, next: &str| section.get(key).ok_or_else(|| section.lacks(key, next));
    let database = needed("database", "say what PgBouncer calls it: database = \"shop\"")?;
    let file = needed("file", "say which file has its line: file = \"/etc/pgbouncer/pgbouncer.ini\"")?;
    let side = |key: &str| {
        let next = format!("say what its line says for that side: {key} = {LINE:?}");
        section.get(key).ok_or_else(|| section.lacks(key, next)).and_then(|entry| line(&entry))
    };
    Ok(PgBouncer {
        url,
        database: name(&database)?,
        file: file.path("/etc/pgbouncer/pgbouncer.ini")?,
        source: side("source")?,
        target: side("target")?,
        pause_timeout: match section.get("pause_timeout") {
            Some(entry) => positive(&entry, "2s")?,
            None => PAUSE_TIMEOUT,
        },
    })
}

const LINE: &str = "host=db1 port=5432 dbname=shop";

/// It stands in commands to PgBouncer and in its file, in both without quotes.
fn name(entry: &Entry<'_>) -> Result<String, Problem> {
    let name = entry.text("shop")?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match !name.is_empty() && name.chars().all(word) && name != "pgbouncer" {
        true => Ok(name.to_owned()),
        false => Err(entry.problem(
            format!("{name:?} is no database that can be paused here"),
            "give the database a name of letters, digits and _ in PgBouncer's [databases], and write it here",
        )),
    }
}

/// What stands behind the `=`. It may hold a password, so it is not shown.
fn line(entry: &Entry<'_>) -> Result<Secret, Problem> {
    let text = entry.text(LINE)?.trim();
    match text.contains('=') && !text.contains(char::is_control) {
        true => Ok(Secret::new(text)),
        false => Err(entry.problem(
            "it is not what PgBouncer's line of a database says",
            format!("write what stands behind the = there: {} = {LINE:?}", entry.key),
        )),
    }
}
