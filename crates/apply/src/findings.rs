//! The plan's findings, counted: rows that its rules leave out, or let be less than they were. They are asked over what the target has of the sources' tables, as of
//! one commit of each source, in a session of their own that cannot write. Who applies the tail asks now and then, and leaves the answer in `crossfade.finding` for
//! whoever wants to know without asking. A line there that no finding of the plan has left, with `declared` null, is counted by crossfade itself.

mod answer;

use std::sync::Arc;
use std::time::Duration;

use mapping::{Places, Question};
use model::{TableName, quote};
use pg::{Endpoint, PgError, Session};
use plan::{Finding, Plan};
use tokio::time::Instant;
use tracing::warn;

pub use answer::{Counted, answers};

use crate::derived::Known;
use crate::{ApplyError, Job, state, tables};

/// What sessions are called that ask.
const PURPOSE: &str = "findings";

/// Between two rounds: what people and alarms look at need not be younger.
const EVERY: Duration = Duration::from_secs(10);

/// As long as nothing can be counted yet, which costs next to nothing.
const SOON: Duration = Duration::from_secs(1);

/// A round is followed by a rest of so many times what it took: the target is kept busy with it for a twentieth of the time at most.
const REST: u32 = 19;

/// Rows that are kept of a finding.
const SAMPLES: usize = 10;

/// Of a value, in characters, as of what a check finds.
const SHOWN: usize = 500;

/// How long somebody may wait for a lock that a question holds, above all the tail that is to apply a TRUNCATE, and how often it is looked.
const PATIENCE: Duration = Duration::from_millis(100);

/// See [`PATIENCE`].
const LOOK: Duration = Duration::from_millis(300);

/// How long a lock is waited for that somebody else holds.
const LOCK: Duration = Duration::from_secs(2);

/// SQLSTATE query_canceled: by us, or because it took too long.
const CANCELED: &str = "57014";

/// Counts the rows of all findings of the plan now, and adds what crossfade has counted itself. That one cannot be asked, or none of them, is their answer.
pub async fn count(endpoint: &Endpoint, plan: &Plan) -> Vec<Counted> {
    let counted = async {
        let session = pg::connect_read_only(endpoint, PURPOSE).await?;
        let mut all = ask_all(endpoint, &session, plan).await?;
        all.extend(answers(&session, plan).await?.into_iter().filter(|answer| !answer.declared));
        Ok::<_, ApplyError>(all)
    };
    counted.await.unwrap_or_else(|error| {
        warn!("findings cannot be counted: {error}");
        plan.findings.iter().map(|finding| Counted::open(finding, error.to_string())).collect()
    })
}

/// Counts now and then, for ever. What goes wrong is said once and tried again: the tail does not depend on it.
pub(crate) async fn watch(job: Arc<Job>) -> Result<(), ApplyError> {
    let mut said = String::new();
    loop {
        let begun = Instant::now();
        let pause = match round(&job).await {
            Ok(true) => EVERY.max(begun.elapsed() * REST),
            Ok(false) => SOON,
            Err(error) => {
                if said != error.to_string() {
                    said = error.to_string();
                    warn!("findings are not counted now: {error}");
                }
                EVERY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Counts, and leaves the answers. Whether all of them could be had.
async fn round(job: &Job) -> Result<bool, ApplyError> {
    let session = pg::connect(&job.endpoint, PURPOSE).await?;
    session.batch_execute("SET synchronous_commit = off").await?;
    let all = ask_all(&job.endpoint, &session, &job.plan).await?;
    for (finding, counted) in job.plan.findings.iter().zip(&all) {
        answer::keep(&session, counted, Some(&finding.sql.text)).await?;
    }
    answer::forget(&session, &job.plan).await?;
    Ok(all.iter().all(|counted| counted.error.is_none()))
}

async fn ask_all(endpoint: &Endpoint, session: &Session, plan: &Plan) -> Result<Vec<Counted>, ApplyError> {
    let mut all = Vec::new();
    if plan.findings.is_empty() {
        return Ok(all);
    }
    if !state::knows(session, &plan.name).await? {
        let why = "nothing has been copied yet";
        return Ok(plan.findings.iter().map(|finding| Counted::open(finding, why)).collect());
    }
    let known = Known::load(session).await?;
    for finding in &plan.findings {
        all.push(match known.question(finding) {
            Ok(question) => ask(endpoint, session, &known, finding, &question).await?,
            Err(why) => Counted::open(finding, why),
        });
    }
    Ok(all)
}

/// Asks one, and gives way to who waits for its locks.
async fn ask(
    endpoint: &Endpoint,
    session: &Session,
    known: &Known,
    finding: &Finding,
    question: &Question,
) -> Result<Counted, ApplyError> {
    let canceller = session.canceller();
    let answer = {
        let asked = within(session, known, finding, question);
        tokio::pin!(asked);
        tokio::select! {
            biased;
            answer = &mut asked => answer.map_err(|error| (error, false)),
            () = somebody_waits(endpoint) => {
                canceller.cancel().await?;
                asked.await.map_err(|error| (error, true))
            }
        }
    };
    session.batch_execute("ROLLBACK").await?;
    let why = match answer {
        Ok(counted) => return Ok(counted),
        Err((ApplyError::Pg(error), gave_way)) if error.sqlstate() == Some(CANCELED) => match gave_way {
            true => "somebody waited for a lock that it held, and it gave way; it is counted again".to_owned(),
            false => format!("it took longer than {} s, its `timeout`", finding.timeout.as_secs_f64()),
        },
        Err((ApplyError::Pg(PgError::Server(error)), _)) => PgError::Server(error).to_string(),
        Err((error, _)) => return Err(error),
    };
    Ok(Counted::open(finding, why))
}

/// Counts in one snapshot, which also says how far the target was.
async fn within(
    session: &Session,
    known: &Known,
    finding: &Finding,
    question: &Question,
) -> Result<Counted, ApplyError> {
    let reads: Vec<String> = question.sources.iter().map(|source| known.homes.mirror(source).quoted()).collect();
    // 0 would mean no limit, and what is larger than a signed 32-bit number is refused.
    let timeout = finding.timeout.as_millis().clamp(1, i32::MAX as u128);
    let mut begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off; SET LOCAL statement_timeout = {timeout}; SET LOCAL lock_timeout = {}",
        LOCK.as_millis()
    );
    if !reads.is_empty() {
        // A snapshot older than a TRUNCATE would read nothing of what it emptied.
        begin += &format!("; LOCK TABLE {} IN ACCESS SHARE MODE", reads.join(", "));
    }
    session.batch_execute(&begin).await?;
    let (at, lsns) = match seen(session, known, question).await? {
        Ok(seen) => seen,
        Err(why) => return Ok(Counted::open(finding, why)),
    };
    let row = session.query_one(&counting(question), &[]).await?;
    Ok(Counted {
        count: Some(row.get::<_, i64>(0).unsigned_abs()),
        samples: answer::objects(row.get(1)),
        at: Some(at),
        age: Some(0.0),
        lsns: answer::texts(&lsns),
        error: None,
        ..Counted::open(finding, String::new())
    })
}

/// When that is, and how far the target has each source then; or why what it reads is not whole.
async fn seen(
    session: &Session,
    known: &Known,
    question: &Question,
) -> Result<Result<(String, String), String>, ApplyError> {
    let query = "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), coalesce(bool_and(joined), false),
                        coalesce(json_object_agg(source, lsn::text ORDER BY source), '{}')::text
                   FROM crossfade.checkpoint";
    let row = session.query_one(query, &[]).await?;
    if !row.get::<_, bool>(1) {
        return Ok(Err("copy and tail are not joined yet".to_owned()));
    }
    let whole = format!(
        "SELECT format('%s.%s', t.schema, t.name) FROM crossfade.tables t WHERE t.source = $1::text AND (t.into_schema, t.into_name) = ($2::text, $3::text) AND NOT {}",
        tables::COPIED
    );
    for (source, TableName { schema, name }) in question.sources.iter().flat_map(|source| known.mirrors(source)) {
        if let Some(copied) = session.query_opt(&whole, &[&source, &schema, &name]).await? {
            return Ok(Err(format!("table {} of source {source:?} is being copied", copied.get::<_, &str>(0))));
        }
    }
    Ok(Ok((row.get(0), row.get(2))))
}

/// How many rows there are, and the first of them as objects of texts.
fn counting(question: &Question) -> String {
    let columns: Vec<String> = (1..=question.columns.len()).map(|place| format!("c{place}")).collect();
    // Names that no two columns share, which those of the query may do.
    let names = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    let keys: Vec<String> = question.columns.iter().map(|column| quote::literal(column)).collect();
    let text = |column: &String| {
        format!(
            "CASE WHEN length(s.{column}::text) > {SHOWN} THEN left(s.{column}::text, {SHOWN}) || '…' ELSE s.{column}::text END"
        )
    };
    let values: Vec<String> = columns.iter().map(text).collect();
    format!(
        "SELECT count(*), coalesce(json_agg(json_object(ARRAY[{}]::text[], ARRAY[{}]::text[]) ORDER BY s.n) FILTER (WHERE s.n <= {SAMPLES}), '[]')::text
           FROM (SELECT row_number() OVER () AS n, q.* FROM ({}) AS q{names}) AS s",
        keys.join(", "),
        values.join(", "),
        question.sql
    )
}

/// Ends once somebody waits for a lock of a session that asks. Where it cannot be looked, the question's own limit has to do.
async fn somebody_waits(endpoint: &Endpoint) {
    let waits = async {
        tokio::time::sleep(LOOK).await;
        // Calls itself what the other one does, whatever the URL makes of that.
        let session = pg::connect_read_only(endpoint, PURPOSE).await?;
        let name: String = session.query_one("SELECT current_setting('application_name')", &[]).await?.get(0);
        while !pg::somebody_waits(&session, &name, None, PATIENCE).await? {
            tokio::time::sleep(LOOK).await;
        }
        Ok::<_, ApplyError>(())
    };
    if waits.await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_one_name_and_none_at_all_can_be_asked_for() {
        let question = |columns: &[&str]| {
            let columns = columns.iter().map(|&column| column.to_owned()).collect();
            counting(&Question { sql: "SELECT".to_owned(), columns, sources: Vec::new() })
        };
        let twice = question(&["id", "id"]);
        assert!(twice.contains("AS q (c1, c2)") && twice.contains("ARRAY['id', 'id']"), "{twice}");
        assert!(question(&[]).contains("AS q) AS s"), "{}", question(&[]));
    }
}
