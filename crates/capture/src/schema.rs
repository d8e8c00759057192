//! The source's schema, by pg_dump, entry by entry.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use model::{Code, Problem, SchemaItem, TableName};
use pg::Session;
use tokio::process::Command;
use tracing::warn;

use crate::CaptureError;
use crate::left_out::LeftOut;
use crate::run::Running;

/// Dumps the schema: all of it but what the plan leaves out, or, with `only`, just these tables. `None` if the application has one of them locked.
pub(crate) async fn dump(
    running: &Running,
    session: &Session,
    only: Option<&Vec<TableName>>,
) -> Result<Option<Vec<SchemaItem>>, CaptureError> {
    let version = pg::catalog::server_version(session).await?;
    let program = pg_dump(version / 10_000)?;
    let mut arguments =
        vec!["--schema-only".to_owned(), "--no-publications".to_owned(), "--no-subscriptions".to_owned()];
    let left_out = LeftOut::find(session, &running.job.source).await?;
    match only {
        Some(tables) => arguments.extend(tables.iter().map(|table| format!("--table={}", table.quoted()))),
        None => {
            arguments.push("--exclude-schema=crossfade".to_owned());
            arguments.extend(left_out.relations.iter().map(|table| format!("--exclude-table={}", table.quoted())));
        }
    }
    let dumped = tokio::try_join!(
        run(running, &program, &arguments, "pre-data"),
        run(running, &program, &arguments, "post-data")
    );
    if dumped.is_err() {
        // pg_dump tells a server that went away as text only; this session tells it as what it is, which is tried again.
        session.execute("SELECT 1", &[]).await?;
    }
    let (Some(before), Some(after)) = dumped? else {
        let unreadable = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')
                             AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND NOT has_table_privilege(c.oid, 'SELECT') LIMIT 1";
        if let Some(row) = session.query_opt(unreadable, &[]).await? {
            return Err(failed(&program, format!("the role may not read table {}", row.get::<_, String>(0))).into());
        }
        return Ok(None);
    };
    let tables = owners(session).await?;
    let mut items = entries(&before, false);
    items.extend(entries(&after, true));
    let ours = |item: &SchemaItem| item.kind == "TRIGGER" && item.name.contains(&format!(" {}", pg::fence::TRIGGERS));
    items.retain(|item| !left_out.has(item) && !ours(item));
    if only.is_some() {
        // Its root has keys and indexes by now, and attaching it would make them for it; its own are taken over if they come first.
        let (attach, rest): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.kind == "TABLE ATTACH");
        items = rest;
        items.extend(attach.into_iter().map(|item| SchemaItem { post_data: true, ..item }));
    }
    for item in &mut items {
        item.table = tables.get(&(item.schema.clone(), class(item), item.name.clone())).cloned();
    }
    Ok(Some(items))
}

/// What an entry's name is a name of: a table, an index, or "table object".
fn class(item: &SchemaItem) -> &'static str {
    match item.kind.as_str() {
        "TABLE" | "TABLE ATTACH" => "table",
        "INDEX" => "index",
        _ => "part",
    }
}

/// Which table an entry stands on: tables by name, indexes by name, and what pg_dump names "table object".
async fn owners(session: &Session) -> Result<HashMap<(String, &'static str, String), TableName>, CaptureError> {
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text, o.class, o.name
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN LATERAL (
                    SELECT 'table' AS class, c.relname::text AS name
                    UNION ALL SELECT 'index', ic.relname::text FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid WHERE i.indrelid = c.oid
                    UNION ALL SELECT 'part', c.relname || ' ' || conname FROM pg_constraint WHERE conrelid = c.oid
                    UNION ALL SELECT 'part', c.relname || ' ' || tgname FROM pg_trigger WHERE tgrelid = c.oid
                    UNION ALL SELECT 'part', c.relname || ' ' || rulename FROM pg_rewrite WHERE ev_class = c.oid) o ON true
              WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let class = match row.get::<_, &str>(2) {
                "table" => "table",
                "index" => "index",
                _ => "part",
            };
            ((table.schema.clone(), class, row.get(3)), table)
        })
        .collect())
}

/// How long pg_dump, which holds one table after the other, waits for the next, in ms: a deadlock with the application, of which either could be the victim, lasts no
/// longer than this, and Postgres looks for one only after a second.
const LOCK_WAIT: u32 = 100;

/// One section of the dump; `None` if it could not lock a table.
async fn run(
    running: &Running,
    program: &Path,
    arguments: &[String],
    section: &str,
) -> Result<Option<String>, CaptureError> {
    let endpoint = &running.job.endpoint;
    let output = Command::new(program)
        .args(arguments)
        .arg(format!("--section={section}"))
        .arg(format!("--lock-wait-timeout={LOCK_WAIT}"))
        // Host, user and password go by the environment: arguments can be seen by everybody on the machine.
        .envs(endpoint.environment())
        // Set by whoever started us, these would win over the plan's.
        .env_remove("PGHOSTADDR")
        .env_remove("PGSERVICE")
        .env_remove("PGPASSFILE")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failed(program, error.to_string()))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // It tells no SQLSTATE, and the server's words are in its own language; statements and settings are not.
        if !why.contains("LOCK TABLE") || why.contains("max_locks_per_transaction") {
            return Err(failed(program, why).into());
        }
        warn!(
            "pg_dump gave way to a lock of the application and starts over: {}",
            why.lines().next().unwrap_or_default()
        );
        return Ok(None);
    }
    let dump = String::from_utf8(output.stdout).map_err(|error| failed(program, error.to_string()))?;
    Ok(Some(dump))
}

fn failed(program: &Path, why: String) -> Problem {
    let next = "install the client programs of the source's Postgres version (Debian: postgresql-client) and give the role the right to read all it dumps";
    Problem::new(Code::ProgramFailed, program.display().to_string(), why, next)
}

/// A pg_dump of the source's major version or newer: on the PATH, or where Debian keeps the versions.
pub(crate) fn pg_dump(major: i32) -> Result<PathBuf, Problem> {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(i32, PathBuf)> = debian
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin/pg_dump"))))
        .filter(|(version, path)| *version >= major && path.exists())
        .collect();
    found.sort();
    if let Some((_, path)) = found.into_iter().next() {
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("pg_dump")).find(|path| path.exists()).ok_or_else(|| {
        failed(
            Path::new("pg_dump"),
            format!("there is none on this machine, version {major} or newer is needed for the source's schema"),
        )
    })
}

/// Cuts pg_dump's text at the comments that it puts before each entry. Quotes are followed, so that a function's body that
/// looks like such a comment stays whole.
fn entries(text: &str, post_data: bool) -> Vec<SchemaItem> {
    let mut items: Vec<SchemaItem> = Vec::new();
    let mut quotes = Quotes::default();
    for line in text.split_inclusive('\n') {
        if quotes.outside() {
            if let Some(item) = header(line, post_data) {
                items.push(item);
                continue;
            }
            // Comments, and what is meant for psql (`\\restrict`).
            if line.starts_with("--") || line.starts_with('\\') {
                continue;
            }
        }
        quotes.follow(line);
        if let Some(item) = items.last_mut() {
            item.sql.push_str(line);
        }
    }
    for item in &mut items {
        item.sql = item.sql.trim().to_owned();
    }
    // Entries without a statement of their own, and what names the whole database, are nothing to run.
    items.retain(|item| !item.sql.is_empty() && item.kind != "DATABASE" && item.kind != "DATABASE PROPERTIES");
    items
}

/// `-- Name: x; Type: TABLE; Schema: public; Owner: me`, after an optional `-- TOC entry` line.
fn header(line: &str, post_data: bool) -> Option<SchemaItem> {
    let rest = line.strip_prefix("-- Name: ")?.trim_end();
    let (rest, owner) = rest.rsplit_once("; Owner: ")?;
    let (rest, schema) = rest.rsplit_once("; Schema: ")?;
    let (name, kind) = rest.rsplit_once("; Type: ")?;
    let absent = |text: &str| if text == "-" { String::new() } else { text.to_owned() };
    let owner = owner.split("; Tablespace: ").next().unwrap_or(owner);
    Some(SchemaItem {
        name: name.to_owned(),
        kind: kind.to_owned(),
        schema: absent(schema),
        owner: absent(owner),
        sql: String::new(),
        post_data,
        table: None,
    })
}

/// Where in SQL's quoting a text stands at the end of a line.
#[derive(Default)]
struct Quotes {
    /// The quote that is open: `'`, `"`, or a dollar quote's tag with its dollars.
    open: Option<String>,
}

impl Quotes {
    fn outside(&self) -> bool {
        self.open.is_none()
    }

    fn follow(&mut self, line: &str) {
        let mut rest = line;
        while !rest.is_empty() {
            match &self.open {
                Some(quote) => match rest.find(quote.as_str()) {
                    Some(at) => {
                        rest = &rest[at + quote.len()..];
                        self.open = None;
                    }
                    None => return,
                },
                None => {
                    let Some(at) = rest.find(['\'', '"', '$', '-']) else { return };
                    let after = &rest[at..];
                    if after.starts_with("--") {
                        return;
                    }
                    let quote = match after.as_bytes()[0] {
                        b'\'' => Some("'".to_owned()),
                        b'"' => Some("\"".to_owned()),
                        b'$' => dollar_tag(after),
                        _ => None,
                    };
                    rest = &after[quote.as_ref().map_or(1, String::len)..];
                    self.open = quote;
                }
            }
        }
    }
}

/// `$tag$` at the front of `text`.
fn dollar_tag(text: &str) -> Option<String> {
    let end = text[1..].find('$')? + 1;
    text[1..end].chars().all(|c| c.is_alphanumeric() || c == '_').then(|| text[..=end].to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DUMP: &str = "--\n-- PostgreSQL database dump\n--\n\nSET statement_timeout = 0;\n\n\
--\n-- Name: f(); Type: FUNCTION; Schema: public; Owner: me\n--\n\nCREATE FUNCTION public.f() RETURNS text\n    AS $_$\n\
--\n-- Name: not an entry; Type: TABLE; Schema: public; Owner: me\n--\n'it''s' \"\n$_$;\n\n\n\
--\n-- Name: t t_pkey; Type: CONSTRAINT; Schema: public; Owner: me; Tablespace: fast\n--\n\nALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id);\n\n\
--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict key\n";

    #[test]
    fn a_dump_is_cut_at_its_entries_and_not_inside_of_a_function() {
        let items = entries(DUMP, true);
        assert_eq!(items.iter().map(|item| item.kind.as_str()).collect::<Vec<_>>(), ["FUNCTION", "CONSTRAINT"]);
        assert!(items[0].sql.ends_with("$_$;") && items[0].sql.contains("not an entry"));
        assert_eq!((items[1].name.as_str(), items[1].owner.as_str()), ("t t_pkey", "me"));
        assert!(items[1].sql.starts_with("ALTER TABLE ONLY") && items[1].sql.ends_with("(id);"));
    }
}
