//! The schema `crossfade` in the target: everything that another process must know of apply.

use model::{Code, Header, Problem};
use pg::Session;

use crate::ApplyError;

/// Notified whenever there is new work, a marker was reached, or a table came further.
pub const CHANNEL: &str = "crossfade";

/// Created in one transaction, under a lock that keeps two processes from doing it at once.
const DDL: &str = "
CREATE SCHEMA IF NOT EXISTS crossfade;
COMMENT ON SCHEMA crossfade IS 'state of a crossfade migration; removed by `crossfade complete`';

CREATE TABLE crossfade.plan (
    name text PRIMARY KEY,
    nonce text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());

-- Who applies the tail. Every transaction of its holder locks the row with its token.
CREATE TABLE crossfade.lease (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    token bigint NOT NULL DEFAULT 0,
    worker text,
    pid int,
    backend_start timestamptz,
    taken_at timestamptz,
    taken_from text);                           -- the worker that held it before and was silent, though its session was there
INSERT INTO crossfade.lease DEFAULT VALUES;

-- Apply processes, each of which says every two seconds that it lives. What came later: stopped_code and stopped, what stopped it for good.
CREATE TABLE crossfade.worker (worker text PRIMARY KEY, seen_at timestamptz NOT NULL);

-- Per source: how far its copy stream's control records and its tail have been taken in.
CREATE TABLE crossfade.checkpoint (
    source text PRIMARY KEY,
    control_seq bigint NOT NULL DEFAULT 0,
    control_sum bigint,                         -- of that message, to know it again
    copier text,                                -- id of the writer whose records of copies count
    schema bool NOT NULL DEFAULT false,         -- the source's schema was taken in
    join_marker text,                           -- reaching it joins copy and tail
    started bool NOT NULL DEFAULT false,        -- the copy is in, the tail runs
    joined bool NOT NULL DEFAULT false,
    lsn pg_lsn NOT NULL DEFAULT '0/0',          -- end of the last applied commit
    seq bigint NOT NULL DEFAULT 0,              -- the tail message that holds it
    tail_begin bigint NOT NULL DEFAULT 0,       -- the message with which the tail started anew; 0: it never did
    recopy text,                                -- for which recopy
    asked text,                                 -- a recopy of everything, for which the tail has still to start anew
    commit_time timestamptz,
    transactions bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    applied_at timestamptz);

-- The tables of the plan, as their copies begin and end.
CREATE TABLE crossfade.tables (
    source text, schema text, name text,
    into_schema text NOT NULL, into_name text NOT NULL,
    epoch int NOT NULL,                         -- 0: no copy has begun; negative: that copy is void, its rows are to go
    begin bytea,                                -- the log's TableBegin of that epoch
    next_epoch int, next_begin bytea,           -- begins when the tail reaches its marker
    rows_estimated bigint NOT NULL, bytes_estimated bigint NOT NULL,
    chunks bigint, rows bigint,                 -- known once the copy is complete in the log
    PRIMARY KEY (source, schema, name));

-- The copy's ledger: a line a chunk, done once it names its worker.
CREATE TABLE crossfade.copied (
    source text, schema text, name text, epoch int, chunk bigint,
    seq bigint NOT NULL, rows bigint NOT NULL, bytes bigint NOT NULL,
    worker text, done_at timestamptz,
    PRIMARY KEY (source, schema, name, epoch, chunk));
CREATE INDEX copied_open ON crossfade.copied (seq) WHERE worker IS NULL;

-- What of the source's schema is created after the copy.
CREATE TABLE crossfade.schema_item (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text NOT NULL, name text NOT NULL, kind text NOT NULL,
    table_schema text, table_name text,
    stage text NOT NULL,                        -- table, final, foreign, trigger
    sql text NOT NULL, done_at timestamptz);

-- Markers that the target has reached.
CREATE TABLE crossfade.marker (
    source text, id text, lsn pg_lsn NOT NULL, reached_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, id));
";

/// What came later: a migration may have begun before.
const LATER: &str = "
SET LOCAL client_min_messages = warning;
-- Who compares both sides has the tail stand still at a marker: a line each, there for as long as it is to stand.
CREATE TABLE IF NOT EXISTS crossfade.hold (
    source text, id text,                       -- the marker
    pid int NOT NULL, backend_start timestamptz NOT NULL, -- whose session asked for it: gone, it holds nothing
    seconds float8 NOT NULL,                    -- for how long at most
    through pg_lsn,                             -- it is to go on up to here, and stand again
    PRIMARY KEY (source, id));

-- What some rows are at one commit: put right when the tail stands there.
CREATE TABLE IF NOT EXISTS crossfade.mend (
    source text, id text,
    lsn pg_lsn NOT NULL, record bytea NOT NULL, -- the log's
    done_at timestamptz, outcome text,          -- null: they are what they should be
    PRIMARY KEY (source, id));

-- What stopped a worker that only people can mend. Looked up first: ALTER TABLE takes its lock even where there is nothing to add, and behind it
-- every heartbeat would wait for who reads the table at length (pg_dump).
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'crossfade.worker'::regclass AND attname = 'stopped' AND NOT attisdropped) THEN
        ALTER TABLE crossfade.worker ADD COLUMN IF NOT EXISTS stopped_code text, ADD COLUMN IF NOT EXISTS stopped text;
    END IF;
    -- Nobody may hold the lease while the application writes here; and since which cutover or rollback that is so.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'crossfade.lease'::regclass AND attname = 'barred' AND NOT attisdropped) THEN
        ALTER TABLE crossfade.lease ADD COLUMN IF NOT EXISTS barred bool NOT NULL DEFAULT false, ADD COLUMN IF NOT EXISTS since bigint NOT NULL DEFAULT 0;
    END IF;
END $$;

-- Derived tables: what the plan said of each when it was filled last, and the source tables that it is made of.
CREATE TABLE IF NOT EXISTS crossfade.derived (
    into_schema text, into_name text,
    declared text NOT NULL, reads text[] NOT NULL,
    filled bool NOT NULL, why text,             -- why it is to be filled anew
    filled_at timestamptz, at text,             -- at which commit of each source
    PRIMARY KEY (into_schema, into_name));

-- Rows that rules leave out, or let be less than they were: how many each finding has.
CREATE TABLE IF NOT EXISTS crossfade.finding (
    name text NOT NULL, severity text NOT NULL, reason text NOT NULL,
    count bigint, error text,                   -- no count: why there is none
    samples json NOT NULL, lsns json NOT NULL,  -- some of the rows; the last commit of each source that the count knows of
    declared text,                              -- the plan's query that this is the answer to; null: crossfade counts it by itself
    at timestamptz NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS finding_name ON crossfade.finding (name, (declared IS NULL));

-- Statements that let triggers fire again which fire for apply's rows as well, and do not while it writes here.
CREATE TABLE IF NOT EXISTS crossfade.quieted (statement text PRIMARY KEY);

-- Up to where the tail of the way back has been looked through for rows that somebody else has written here.
CREATE TABLE IF NOT EXISTS crossfade.watched (source text PRIMARY KEY, lsn pg_lsn NOT NULL DEFAULT '0/0', seq bigint NOT NULL DEFAULT 0);

-- Those rows, by table: the last of them, and how many there were since the table was last compared in full.
CREATE TABLE IF NOT EXISTS crossfade.rogue (
    source text, schema text, name text,
    rows bigint NOT NULL, key text NOT NULL, lsn pg_lsn NOT NULL,
    at timestamptz NOT NULL,                    -- of their commit
    PRIMARY KEY (source, schema, name));
";

/// What somebody is told who writes to the target before a cutover.
const NOT_YET: &str = "This database is the target of a migration, and gets its rows from there: write to the source until `crossfade cutover` has been run.";

/// Any number, the same in every version: taken while the schema is created.
const CREATE_LOCK: i64 = 0x63_66_73_74;

/// Whether the schema is there.
pub(crate) async fn exists(session: &Session) -> Result<bool, ApplyError> {
    // By reading the catalog: to_regclass may remember what was not there before another process made it.
    let query = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                                 WHERE n.nspname = 'crossfade' AND c.relname = 'plan')";
    Ok(session.query_one(query, &[]).await?.get(0))
}

/// Whether the schema is there and says that it is this plan's.
///
/// # Errors
/// The target.
pub async fn knows(session: &Session, plan: &str) -> Result<bool, ApplyError> {
    if !exists(session).await? {
        return Ok(false);
    }
    Ok(session.query_one("SELECT EXISTS (SELECT FROM crossfade.plan WHERE name = $1::text)", &[&plan]).await?.get(0))
}

/// Whether something of the source's copy stream was taken in.
pub(crate) async fn has_taken(session: &Session, source: &str) -> Result<bool, ApplyError> {
    if !exists(session).await? {
        return Ok(false);
    }
    let query = "SELECT EXISTS (SELECT FROM crossfade.checkpoint WHERE source = $1::text AND control_seq > 0)";
    Ok(session.query_one(query, &[&source]).await?.get(0))
}

/// Says that the plan's log is the one of this nonce from now on, where everything is copied again into a log that was made anew.
///
/// # Errors
/// The target.
pub async fn adopt(session: &Session, plan: &str, nonce: &str) -> Result<(), ApplyError> {
    if knows(session, plan).await? {
        session.execute("UPDATE crossfade.plan SET nonce = $2::text WHERE name = $1::text", &[&plan, &nonce]).await?;
    }
    Ok(())
}

/// Creates the schema, or finds it to be this plan's.
pub(crate) async fn open(session: &Session, headers: &[Header], back: bool) -> Result<(), ApplyError> {
    let Some(header) = headers.first() else { return Ok(()) };
    let begin = format!(
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'; SELECT pg_advisory_xact_lock({CREATE_LOCK})"
    );
    session.batch_execute(&begin).await?;
    if !exists(session).await? {
        session.batch_execute(DDL).await?;
        session
            .execute(
                "INSERT INTO crossfade.plan (name, nonce) VALUES ($1::text, $2::text)",
                &[&header.plan, &header.nonce],
            )
            .await?;
        for header in headers {
            session.execute("INSERT INTO crossfade.checkpoint (source) VALUES ($1::text)", &[&header.source]).await?;
        }
        if back {
            session.batch_execute(LATER).await?;
            // Until a cutover is decided.
            session.batch_execute("UPDATE crossfade.lease SET barred = true").await?;
        }
    }
    let row = session.query_one("SELECT name, nonce FROM crossfade.plan", &[]).await?;
    let (name, nonce): (String, String) = (row.get(0), row.get(1));
    if name == header.plan {
        session.batch_execute(LATER).await?;
        // On the way back the fence is the cutover's.
        if !back {
            pg::fence::create(session, &plan::target_side(&name), pg::fence::FROM_THE_START, NOT_YET).await?;
        }
    }
    session.batch_execute("COMMIT").await?;
    model::failpoint!("state_opened");
    if name != header.plan {
        return Err(Problem::new(
            Code::TargetNotEmpty,
            "the target's schema crossfade",
            format!("it belongs to plan {name:?}, this is plan {:?}", header.plan),
            format!("use another database, or end plan {name:?} with `crossfade complete`"),
        )
        .into());
    }
    if nonce != header.nonce {
        return Err(Problem::new(
            Code::Gap,
            format!("plan {name:?} on the target"),
            "what was applied here came from another log, which is gone or was made anew",
            "`crossfade recopy` copies everything anew, into this log and this target; then start again",
        )
        .into());
    }
    Ok(())
}
