//! Derived tables: whether they hold what their queries give, [at the source](at_source) where that can be asked. Else of the mirrors, in one snapshot of the target: apply changes both in
//! the same transactions, so any snapshot will do; that the mirrors are what the sources are is found out before.
//!
//! Rows are compared as texts, and counted where they are equal ([`queries`](crate::queries)).

use std::time::Duration;

use model::{Problem, TableName};
use pg::{Endpoint, Session};
use plan::Plan;
use tracing::info;

use crate::comparison::Comparison;
use crate::error::VerifyError;
use crate::queries::{Asked, Found, Only, Queries};
use crate::report::{Difference, Kind, TableReport, Values, Verdict};
use crate::round::give_way;
use crate::side::{Row, Side};
use crate::state;

mod at_source;

use at_source::Tried;

/// Derived tables have no source of their own.
const SOURCE: &str = "";

/// How often a comparison begins again that locks were in the way of.
const TRIES: u32 = 20;

/// Between two tries, at first.
const PAUSE: Duration = Duration::from_millis(200);

/// Differences that a report keeps.
const SAMPLES: usize = 20;

impl Comparison<'_> {
    /// Compares the plan's derived tables, or those of them that are named, once all that they read has its verdict.
    pub async fn derived(&self, only: &[TableName]) -> Result<Vec<TableReport>, VerifyError> {
        let plan = &self.job.plan;
        if plan.derived.is_empty() {
            return Ok(Vec::new());
        }
        let session = pg::connect_read_only(&self.job.target, "verify derived").await?;
        let notes = self.notes.session().await?;
        let mut reports = Vec::new();
        for derived in apply::derived(&session, plan).await? {
            let reads = |only: &TableName| derived.alone && derived.reads.iter().any(|read| read.table == *only);
            if !(only.is_empty() || only.iter().any(|only| *only == derived.into || reads(only))) {
                continue;
            }
            let mut compared = self.one(&session, &notes, &derived).await?;
            if compared.filled.is_empty() {
                compared =
                    Compared { why: compared.why, query: compared.query, ..Compared::at(&session, &derived).await? };
            }
            let (seq, copies) = (compared.seq, compared.filled.clone());
            let report = compared.report(&derived);
            for sample in &report.samples {
                self.watch.found(SOURCE, &derived.into, sample);
            }
            state::judge(&notes, self.id, None, &derived.into, seq, Some(&copies), &report).await?;
            reports.push(report);
        }
        Ok(reports)
    }

    async fn one(&self, session: &Session, notes: &Session, derived: &apply::Derived) -> Result<Compared, VerifyError> {
        let mut tries = 0;
        loop {
            match self.either(session, notes, derived).await {
                Err(error) if error.retry() && tries < TRIES => {
                    tries += 1;
                    info!("once more, derived table {}: {error}", derived.into);
                    tokio::time::sleep(PAUSE * tries).await;
                }
                Err(
                    error @ (VerifyError::Pg(pg::PgError::Server(_))
                    | VerifyError::Again(_)
                    | VerifyError::Still(_)
                    | VerifyError::Table(..)),
                ) => {
                    return Ok(Compared { why: Some(error.to_string()), ..Compared::default() });
                }
                compared => return compared,
            }
        }
    }

    async fn either(
        &self,
        session: &Session,
        notes: &Session,
        derived: &apply::Derived,
    ) -> Result<Compared, VerifyError> {
        let query = match self.at_source(notes, derived).await? {
            Tried::Compared(compared) => return Ok(compared),
            Tried::Impossible(why) if derived.alone => {
                let why = format!(
                    "its query cannot be asked at the source ({why}), and of {} nothing else is stored to ask it of",
                    listed(derived)
                );
                return Ok(Compared { why: Some(why), ..Compared::default() });
            }
            Tried::Impossible(why) => Some(format!("over the mirrors, for at the source it cannot be asked: {why}")),
        };
        Ok(Compared { query, ..self.over_mirrors(session, notes, derived).await? })
    }

    /// Nothing that is read can be emptied from before the snapshot on; who wants to need not wait for long.
    async fn over_mirrors(
        &self,
        session: &Session,
        notes: &Session,
        derived: &apply::Derived,
    ) -> Result<Compared, VerifyError> {
        let plan = &self.job.plan;
        let purpose = format!("verify {}", &self.id[..8]);
        let relations: Vec<String> =
            derived.mirrors.iter().map(|(_, mirror)| mirror).chain([&derived.into]).map(TableName::quoted).collect();
        if let Some(why) = waits(session, plan, derived).await? {
            return Ok(Compared { why: Some(why), ..Compared::default() });
        }
        tokio::select! {
            biased;
            given = give_way(&self.job.target, &purpose, plan.limits.lock_timeout) => {
                given?;
                Err(VerifyError::Again("nobody looks who waits any more".to_owned()))
            }
            compared = async {
                let side = Side::open(&self.job.target, &purpose, 0, &relations).await?;
                self.within(&side.leader, notes, derived).await
            } => compared,
        }
    }

    async fn within(
        &self,
        session: &Session,
        notes: &Session,
        derived: &apply::Derived,
    ) -> Result<Compared, VerifyError> {
        let mut compared = ready(session, &self.job.plan, derived).await?;
        for (source, mirror) in &derived.mirrors {
            let copies = state::epochs(notes, source).await?;
            if state::last_equal(notes, source, mirror, copies.get(mirror)).await?.is_none() {
                compared.why = Some(format!(
                    "it is made of {mirror}, which was not found to be equal; `crossfade verify` without table names compares all"
                ));
                return Ok(compared);
            }
        }
        over_mirrors(session, compared, derived, self.options.mask).await
    }
}

fn listed(derived: &apply::Derived) -> String {
    derived.reads.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The derived tables of a database that was filled from the log alone, against its mirrors. Those that are streamed from a table of which nothing is stored have none: they are held
/// against what was recorded.
///
/// # Errors
/// It could not be asked.
pub async fn derived(target: &Endpoint, plan: &Plan) -> Result<Vec<TableReport>, Problem> {
    let compared = async {
        let session = pg::connect_read_only(target, "verify derived").await?;
        let mut reports = Vec::new();
        for derived in apply::derived(&session, plan).await?.into_iter().filter(|derived| !derived.alone) {
            session.batch_execute("SET jit = off; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let ready = ready(&session, plan, &derived).await?;
            let compared = over_mirrors(&session, ready, &derived, false).await?;
            session.batch_execute("ROLLBACK").await?;
            reports.push(compared.report(&derived));
        }
        Ok::<_, VerifyError>(reports)
    };
    Ok(compared.await?)
}

/// Why there is nothing yet to compare.
async fn waits(session: &Session, plan: &Plan, derived: &apply::Derived) -> Result<Option<String>, VerifyError> {
    let unfilled = apply::unfilled(session, plan).await?;
    let unfilled = unfilled.into_iter().find(|unfilled| unfilled.into == derived.into);
    Ok(unfilled.map(|unfilled| format!("it is not filled: {}", unfilled.why)))
}

/// Nothing is compared yet, and perhaps nothing can be, as this session's snapshot has it.
async fn ready(session: &Session, plan: &Plan, derived: &apply::Derived) -> Result<Compared, VerifyError> {
    let mut compared = Compared::at(session, derived).await?;
    compared.why = match &derived.oracle {
        None => Some("it reads a table that the log has not told of".to_owned()),
        Some(_) => waits(session, plan, derived).await?,
    };
    Ok(compared)
}

async fn over_mirrors(
    session: &Session,
    ready: Compared,
    derived: &apply::Derived,
    mask: bool,
) -> Result<Compared, VerifyError> {
    let (None, Some(oracle)) = (&ready.why, &derived.oracle) else { return Ok(ready) };
    let (want, have) = (&oracle.over_mirrors, &oracle.target);
    rows(ready, derived, Asked { session, query: want }, Asked { session, query: have }, mask).await
}

/// Compares what the query gives with what the table holds.
async fn rows(
    mut compared: Compared,
    derived: &apply::Derived,
    want: Asked<'_>,
    have: Asked<'_>,
    mask: bool,
) -> Result<Compared, VerifyError> {
    let begun = tokio::time::Instant::now();
    let columns = columns(have.session, have.query).await?;
    let key: Vec<usize> =
        derived.key.iter().filter_map(|key| columns.iter().position(|column| column == key)).collect();
    // Rows that the target may have on top of those that the query gives.
    let more = derived.oracle.as_ref().is_some_and(|oracle| oracle.more_in_target);
    compared.found = Queries { want, have, columns: &columns, key: &key, more }.compare(SAMPLES).await?;
    compared.samples =
        compared.found.samples.iter().flat_map(|only| differences(&columns, &key, only)).take(SAMPLES).collect();
    if mask {
        compared.samples = compared.samples.into_iter().map(Difference::masked).collect();
    }
    info!("derived table {} is compared, in {} ms", derived.into, begun.elapsed().as_millis());
    Ok(compared)
}

/// What was found of one.
#[derive(Default)]
struct Compared {
    /// When it was filled: filled anew it is another one.
    filled: String,
    lsn: String,
    seq: i64,
    why: Option<String>,
    /// Where it was asked.
    query: Option<String>,
    found: Found,
    samples: Vec<Difference>,
}

impl Compared {
    /// Nothing yet, as of the instant that this session sees.
    async fn at(session: &Session, derived: &apply::Derived) -> Result<Compared, VerifyError> {
        let query = "SELECT d.filled_at::text, c.lsn::text, c.seq
                       FROM (SELECT min(lsn) AS lsn, min(seq) AS seq FROM crossfade.checkpoint) c
                       LEFT JOIN crossfade.derived d ON d.into_schema = $1::text AND d.into_name = $2::text";
        let row = session.query_one(query, &[&derived.into.schema, &derived.into.name]).await?;
        Ok(Compared {
            filled: row.get::<_, Option<String>>(0).unwrap_or_default(),
            lsn: row.get::<_, Option<String>>(1).unwrap_or_default(),
            seq: row.get::<_, Option<i64>>(2).unwrap_or_default(),
            ..Compared::default()
        })
    }

    fn is_equal(&self) -> bool {
        self.why.is_none() && self.found.missing + self.found.extra + self.found.different == 0
    }

    fn report(self, derived: &apply::Derived) -> TableReport {
        let Found { missing, extra, different, rows, .. } = self.found;
        let verdict = match (missing + extra + different, &self.why) {
            (0, Some(_)) => Verdict::Inconclusive,
            (0, None) => Verdict::Equal,
            _ => Verdict::Different,
        };
        let left_out = derived.oracle.as_ref().map(|oracle| oracle.left_out.clone()).unwrap_or_default();
        TableReport {
            source: SOURCE.to_owned(),
            table: derived.into.to_string(),
            verdict,
            lsn: if self.lsn.is_empty() { "0/0".to_owned() } else { self.lsn },
            rows,
            parts: u64::from(self.why.is_none()),
            parts_of: 1,
            why: self.why,
            missing,
            extra,
            different,
            more: false,
            rechecked: 0,
            samples: self.samples,
            left_out,
            query: self.query,
        }
    }
}

/// The names of a query's columns.
async fn columns(session: &Session, query: &str) -> Result<Vec<String>, VerifyError> {
    Ok(session.prepare(query).await?.columns().iter().map(|column| column.name().to_owned()).collect())
}

/// What only one side has of a key's rows, put together where the key tells them apart.
fn differences(columns: &[String], key: &[usize], only: &Only) -> Vec<Difference> {
    let pairs = if key.is_empty() { 0 } else { only.want.len().min(only.have.len()) };
    let both = only.want.iter().zip(&only.have).take(pairs);
    let mut all: Vec<Difference> = both.map(|(want, have)| difference(columns, key, Some(want), Some(have))).collect();
    all.extend(only.want.iter().skip(pairs).map(|want| difference(columns, key, Some(want), None)));
    all.extend(only.have.iter().skip(pairs).map(|have| difference(columns, key, None, Some(have))));
    all
}

fn difference(columns: &[String], key: &[usize], want: Option<&Row>, have: Option<&Row>) -> Difference {
    let kind = match (want, have) {
        (Some(_), Some(_)) => Kind::Different,
        (Some(_), None) => Kind::Missing,
        _ => Kind::Extra,
    };
    let row = want.or(have);
    let named = |at: &usize| {
        let value = row.and_then(|row| row[*at].clone()).unwrap_or_default();
        (columns[*at].clone(), value)
    };
    let shows = |at: &usize| match (want, have) {
        (Some(want), Some(have)) => want[*at] != have[*at],
        _ => key.is_empty(),
    };
    let values = |at: usize| {
        // Cut where they come from.
        let of = |row: Option<&Row>| row.map(|row| row[at].clone());
        (columns[at].clone(), Values { source: of(want), target: of(have) })
    };
    Difference {
        kind,
        key: key.iter().map(named).collect(),
        columns: (0..columns.len()).filter(shows).map(values).collect(),
    }
}
