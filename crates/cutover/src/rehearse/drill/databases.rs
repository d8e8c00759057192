//! The two databases that a drill is played between: what may be one, and what is taken away at the end.

use model::{Code, Problem, TableName, quote};
use pg::{PgError, Session};
use plan::{Plan, SchemaMode};

use crate::rehearse::drill::{Job, load};
use crate::rehearse::refusals;

/// SQLSTATE duplicate_database.
const THERE: &str = "42P04";

/// Sees that both may be used, as far as they are there, and makes the copy of the source where it is not. Returns how the copy of the target is called.
///
/// # Errors
/// One of them is refused, or cannot be made.
pub(crate) async fn open(job: &Job) -> Result<String, Problem> {
    let target = pg::connect(&job.comparison.target, "drill").await?;
    look(job, &target, "--into").await?;
    if job.create {
        create(&target, job.rehearsal.into.database(), job.rehearsal.plan.target.schema).await?;
        return Ok(target.place().to_owned());
    }
    let source = pg::connect(&job.rehearsal.into, "drill").await?;
    let same = pg::catalog::identity(&source).await.map_err(PgError::from)?
        == pg::catalog::identity(&target).await.map_err(PgError::from)?;
    if same {
        let next = "name another empty database, or leave it out and have one made";
        return Err(Problem::new(Code::PlanInvalid, "--drill-source", "it is the database of --into", next));
    }
    look(job, &source, "--drill-source").await?;
    Ok(target.place().to_owned())
}

async fn look(job: &Job, session: &Session, option: &str) -> Result<(), Problem> {
    let live = &job.rehearsal.plan;
    let mut headers = Vec::new();
    for source in &live.sources {
        let stream = capture::streams(&live.name, &source.name).copy;
        headers.extend(capture::header(&*job.rehearsal.log, &stream).await?);
    }
    let selects = |name: &TableName| live.sources.iter().any(|source| source.tables.selects(name));
    let there = pg::catalog::tables(session).await.map_err(PgError::from)?.into_iter();
    let ours = there.filter(|table| selects(&table.name) || table.root.as_ref().is_some_and(selects));
    let ours = ours.map(|table| table.name).collect();
    let me = pg::catalog::identity(session).await.map_err(PgError::from)?;
    refusals::look(session, option, live.target.schema, &me, &headers, &ours).await?;
    let place = || format!("{option} ({})", session.place());
    let facts = "SELECT current_setting('wal_level'), to_regnamespace($1::text) IS NOT NULL";
    let row = session.query_one(facts, &[&load::SCHEMA]).await.map_err(PgError::from)?;
    let level: String = row.get(0);
    if level != "logical" {
        let why = format!(
            "wal_level of that server is {level:?}, and must be logical, for a drill captures both of its sides"
        );
        let next = "ALTER SYSTEM SET wal_level = 'logical' and restart that server; or rehearse without --drill";
        return Err(Problem::new(Code::WalLevel, place(), why, next));
    }
    if row.get(1) {
        let why = format!("it has a schema {}: a drill has been there", load::SCHEMA);
        return Err(Problem::new(Code::TargetNotEmpty, place(), why, "drop it and create it again"));
    }
    Ok(())
}

/// An empty one with the encoding and the collation of the other one; or that one as it is, with its tables, where they have to be there.
async fn create(target: &Session, name: &str, mode: SchemaMode) -> Result<(), Problem> {
    let like = match mode {
        SchemaMode::Exists => quote::ident(&database(target).await?),
        SchemaMode::Clone => format!("template0 {}", locale(target).await?),
    };
    let statement = format!("CREATE DATABASE {} TEMPLATE {like}", quote::ident(name));
    let Err(error) = target.batch_execute(&statement).await.map_err(PgError::from) else { return Ok(()) };
    let what = format!("--drill: database {name}");
    Err(match error.sqlstate() {
        Some(THERE) => Problem::new(
            Code::TargetNotEmpty,
            what,
            "it is there already; a drill makes it, and drops it",
            "drop it if nobody needs it; or name an empty database with --drill-source",
        ),
        _ => Problem::new(
            Code::PrivilegeMissing,
            what,
            format!("it cannot be made beside --into: {error}"),
            "ALTER ROLE … CREATEDB for the role of --into and, with schema = \"exists\", let it own that database and nobody else be connected to it; or name an empty database with --drill-source",
        ),
    })
}

/// As CREATE DATABASE says it. What the catalog calls the locale of a provider depends on the server's version.
async fn locale(session: &Session) -> Result<String, PgError> {
    let query = "SELECT pg_encoding_to_char(encoding), datcollate::text, datctype::text, to_jsonb(d) ->> 'datlocprovider', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale')
                   FROM pg_database d WHERE datname = current_database()";
    let row = session.query_one(query, &[]).await?;
    let (encoding, collate, ctype): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let (provider, own): (Option<String>, Option<String>) = (row.get(3), row.get(4));
    let like = format!(
        "ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        quote::literal(&encoding),
        quote::literal(&collate),
        quote::literal(&ctype)
    );
    Ok(match (provider.as_deref(), own) {
        (Some("i"), Some(own)) => format!("{like} LOCALE_PROVIDER icu ICU_LOCALE {}", quote::literal(&own)),
        (Some("b"), Some(own)) => format!("{like} LOCALE_PROVIDER builtin BUILTIN_LOCALE {}", quote::literal(&own)),
        _ => like,
    })
}

async fn database(session: &Session) -> Result<String, PgError> {
    Ok(session.query_one("SELECT current_database()::text", &[]).await?.get(0))
}

/// Takes away what a drill has made, apart from what it has filled --into with. Returns what is left, each with the next step.
pub(crate) async fn tidy(job: &Job) -> Vec<String> {
    let mut left = Vec::new();
    let mut note = |what: &str, next: &str, done: Result<(), Problem>| {
        if let Err(problem) = done {
            left.push(format!("{what} ({}: {}); {next}", problem.what, problem.why));
        }
    };
    let dropped = "dropping the database takes them away";
    let plan = &job.comparison.plan;
    // The side that is captured first: WAL is kept back there.
    note("what was made in the copy of the source", dropped, tidy_source(job, plan).await);
    note("what was made in --into", dropped, tidy_target(job, plan).await);
    if let Err(error) = tokio::fs::remove_dir_all(&plan.state_dir).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        left.push(format!("folder {} ({error}); remove it", plan.state_dir.display()));
    }
    left
}

async fn tidy_source(job: &Job, plan: &Plan) -> Result<(), Problem> {
    let source = pg::connect(&job.rehearsal.into, "drill").await?;
    for of in &plan.sources {
        capture::remove(&source, &plan.name, &of.name, true).await?;
        apply::remove_origins(&source, &plan.name, true).await?;
        if !job.create {
            // As far as this side knows: it is cleared away whatever has become of the other one.
            let stands = crate::stands([], &source).await?;
            crate::remove(&source, plan, &of.name, stands, true).await?;
            drop_schema(&source).await?;
        }
    }
    if job.create {
        drop(source);
        let target = pg::connect(&job.comparison.target, "drill").await?;
        let name = quote::ident(job.rehearsal.into.database());
        let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        target.batch_execute(&statement).await.map_err(PgError::from)?;
    }
    Ok(())
}

async fn tidy_target(job: &Job, plan: &Plan) -> Result<(), Problem> {
    let target = pg::connect(&job.comparison.target, "drill").await?;
    for of in plan.back().iter().flat_map(|back| &back.sources) {
        capture::remove(&target, &plan.name, &of.name, true).await?;
    }
    apply::remove(&target, &plan.name, true).await?;
    drop_schema(&target).await
}

async fn drop_schema(session: &Session) -> Result<(), Problem> {
    let drop =
        format!("SET client_min_messages = warning; DROP SCHEMA IF EXISTS {} CASCADE", quote::ident(load::SCHEMA));
    Ok(session.batch_execute(&drop).await.map_err(PgError::from)?)
}
