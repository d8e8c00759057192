//! A comparison of the tables of all sources: what there is to compare, [`rounds`](crate::rounds) until it is done, and the verdicts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{LogError, StreamKind, StreamName};
use model::{Code, Lsn, Marker, MarkerKind, Problem, Record, Seq, TableName};
use pg::{Endpoint, Session};
use tokio::sync::Mutex;

use crate::error::VerifyError;
use crate::idle::{self, Idle};
use crate::pair::{self, Pair};
use crate::parts::{self, Part};
use crate::recorded;
use crate::report::{TableReport, Verdict};
use crate::run::nonce;
use crate::state::{self, Done};
use crate::sums::Hash;
use crate::touched::Touched;
use crate::{Difference, Job, Options, Watch};

/// How long it is waited for a lock that the application holds while tables are divided, in milliseconds; then that is told, and tried again.
pub(crate) const LOCK: u64 = 5_000;

/// What a report adds up over the fences.
#[derive(Default)]
pub(crate) struct Totals {
    pub held_ms: AtomicU64,
    pub fences: AtomicU64,
    pub no_prefix: AtomicU64,
    /// Tables of a source were not looked at, because nobody moves its tail.
    pub idle: AtomicBool,
}

/// Where a comparison's state is written: a session at the target, another one where that is gone.
pub(crate) struct Notes {
    endpoint: Endpoint,
    id: String,
    session: Mutex<Arc<Session>>,
}

impl Notes {
    /// Takes the comparison of this id for `session`.
    pub async fn new(endpoint: &Endpoint, session: Session, id: &str) -> Result<Notes, VerifyError> {
        take(&session, id).await?;
        Ok(Notes { endpoint: endpoint.clone(), id: id.to_owned(), session: Mutex::new(Arc::new(session)) })
    }

    /// One that is open.
    pub async fn session(&self) -> Result<Arc<Session>, VerifyError> {
        let mut session = self.session.lock().await;
        if session.is_closed() {
            let anew = pg::connect(&self.endpoint, "verify").await?;
            take(&anew, &self.id).await?;
            *session = Arc::new(anew);
        }
        Ok(Arc::clone(&session))
    }
}

/// Two at one comparison would note parts over each other.
async fn take(session: &Session, id: &str) -> Result<(), VerifyError> {
    if state::take(session, id).await? {
        return Ok(());
    }
    let next = "wait for it, or stop it; then `crossfade verify --resume`";
    Err(Problem::new(Code::NothingToResume, "the last comparison", "another process is at it", next).into())
}

/// A source.
pub(crate) struct Origin<'a> {
    pub name: &'a str,
    pub endpoint: &'a Endpoint,
    /// What the plan's markers carry.
    pub nonce: String,
    /// How its rows and the target's are hashed.
    pub hash: Hash,
}

pub(crate) struct Comparison<'a> {
    pub job: &'a Job,
    pub notes: Notes,
    pub id: &'a str,
    pub totals: Totals,
    sample: Option<f64>,
    pub options: &'a Options,
    pub watch: &'a dyn Watch,
}

impl<'a> Comparison<'a> {
    pub fn new(
        job: &'a Job,
        notes: Notes,
        id: &'a str,
        sample: Option<f64>,
        options: &'a Options,
        watch: &'a dyn Watch,
    ) -> Self {
        Comparison { job, notes, id, totals: Totals::default(), sample, options, watch }
    }

    /// Compares the tables of a source.
    pub async fn source(
        &self,
        source: &plan::Source,
        endpoint: &Endpoint,
        only: &[TableName],
    ) -> Result<Vec<TableReport>, VerifyError> {
        let (name, notes) = (source.name.as_str(), self.notes.session().await?);
        let session = pg::connect_read_only(endpoint, "verify").await?;
        session.batch_execute(&format!("SET lock_timeout = {LOCK}")).await?;
        let loaded = pair::load(&session, &notes, source, only).await?;
        // Of some tables nothing is stored: what is streamed from them is compared by itself.
        let stored = |table: &TableName| !apply::is_shape(table);
        let mut why: BTreeMap<TableName, String> =
            loaded.inconclusive.into_iter().filter(|(table, _)| stored(table)).collect();
        let pairs: Vec<Arc<Pair>> = loaded.pairs.into_iter().filter(|pair| stored(&pair.table)).map(Arc::new).collect();
        let idle = match pairs.is_empty() {
            true => None,
            false => idle::idle(&session, &notes, &self.job.plan.name, name).await?,
        };
        if let Some(Idle { why: reason, next }) = idle {
            self.totals.idle.store(true, Ordering::Relaxed);
            why.extend(pairs.iter().map(|pair| (pair.table.clone(), format!("{reason}; {next}"))));
        } else if !pairs.is_empty() {
            let copies = state::copies(&notes, name).await?;
            let touched = self.touched(name, &pairs, &copies).await?;
            let mut open = VecDeque::new();
            for pair in &pairs {
                let few = touched.as_ref().is_some_and(|touched| touched.keys(&pair.table).is_some());
                open.extend(self.parts(&session, name, pair, few, copies.get(&pair.table)).await?);
            }
            let touched = touched.map(Mutex::new);
            let hash = Hash::of(&session, &notes).await?;
            let origin = Origin { name, endpoint, nonce: nonce(self.job, name).await?, hash };
            drop(session);
            self.rounds(&origin, open, touched.as_ref(), &mut why).await?;
            self.say(&origin, &pairs).await?;
        }
        // As they are now: what was copied anew meanwhile was not compared.
        let copies = state::copies(&*self.notes.session().await?, name).await.unwrap_or_default();
        let mut tables = Vec::new();
        for table in pairs.iter().map(|pair| &pair.table).chain(why.keys()).collect::<BTreeSet<_>>() {
            tables.push(self.judge(name, table, why.get(table), copies.get(table)).await?);
        }
        Ok(tables)
    }

    /// The parts of a table that are still to be compared; with `few` touched rows only these.
    async fn parts(
        &self,
        source: &Session,
        name: &str,
        pair: &Arc<Pair>,
        few: bool,
        copies: Option<&String>,
    ) -> Result<Vec<Part>, VerifyError> {
        let notes = self.notes.session().await?;
        let known = state::parts(&notes, self.id, name, pair, copies).await?;
        if !known.is_empty() {
            return Ok(known.into_iter().filter(|(_, done)| !done).map(|(part, _)| part).collect());
        }
        let all = match few {
            true => vec![parts::touched(pair)],
            false => parts::divide(source, pair).await?,
        };
        let divided = all.len();
        let parts = match self.sample {
            Some(percent) => parts::sample(all, percent),
            None => all,
        };
        state::add(&notes, self.id, name, &parts, divided).await?;
        Ok(parts)
    }

    /// What was touched of tables that were equal, if only that is to be compared.
    async fn touched(
        &self,
        name: &str,
        pairs: &[Arc<Pair>],
        copies: &BTreeMap<TableName, String>,
    ) -> Result<Option<Touched<'_>>, VerifyError> {
        if !self.options.recheck {
            return Ok(None);
        }
        let notes = self.notes.session().await?;
        let stream = StreamName::new(&*self.job.plan.name, name, StreamKind::Tail);
        let (mut equal, mut from) = (Vec::new(), Seq(u64::MAX));
        for pair in pairs {
            let last = state::last_equal(&notes, name, &pair.table, copies.get(&pair.table)).await?;
            let Some((lsn, seq)) = last else { continue };
            if self.holds(&stream, lsn, seq).await? {
                equal.push((Arc::clone(pair), lsn));
                from = from.min(seq);
            }
        }
        if equal.is_empty() {
            return Ok(None);
        }
        let query = "SELECT seq FROM crossfade.checkpoint WHERE source = $1::text";
        let now = Seq(notes.query_one(query, &[&name]).await?.get::<_, i64>(0) as u64);
        let mut touched = Touched::new(&self.job.log, stream, from, equal);
        match touched.until(now).await {
            Ok(()) => Ok(Some(touched)),
            // The log does not go back so far: everything is compared.
            Err(VerifyError::Log(LogError::Missing { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether message `seq` still is the one with the commit that ends at `lsn`: a log that lost its end and was filled again may have others under the old numbers.
    async fn holds(&self, stream: &StreamName, lsn: Lsn, seq: Seq) -> Result<bool, VerifyError> {
        match log::get_record(&*self.job.log.open().await?, stream, seq).await {
            Ok(Record::Batch(batch)) => Ok(batch.parts.iter().any(|part| part.end_lsn == Some(lsn))),
            Ok(_) | Err(LogError::Missing { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts what the target held into the log, by way of the source: whoever replays it can compare. What was written at the target after a cutover is in another log, and
    /// no replay of this one is equal from there on: it is not said then.
    async fn say(&self, origin: &Origin<'_>, pairs: &[Arc<Pair>]) -> Result<(), VerifyError> {
        let notes = self.notes.session().await?;
        if state::was_cut_over(&notes).await? {
            return Ok(());
        }
        let session = pg::connect(origin.endpoint, "verify").await?;
        let held = state::held(&notes, self.id, origin.name).await?;
        for data in recorded::messages(&held, pairs, origin.hash, &origin.hash.probe(&notes).await?) {
            let marker = Marker { data, ..Marker::new(&origin.nonce, MarkerKind::Verified, self.id) };
            capture::emit_marker(&session, &marker).await?;
        }
        Ok(())
    }

    /// Notes a part that is done, and tells of the rows.
    pub async fn noted(&self, source: &str, part: &Part, mut done: Done) -> Result<(), VerifyError> {
        if self.options.mask {
            done.found = done.found.into_iter().map(Difference::masked).collect();
        }
        for difference in &done.found {
            self.watch.found(source, &part.pair.table, difference);
        }
        state::done(&*self.notes.session().await?, self.id, source, part, &done).await
    }

    /// The verdict on a table, from its parts.
    async fn judge(
        &self,
        source: &str,
        table: &TableName,
        why: Option<&String>,
        copies: Option<&String>,
    ) -> Result<TableReport, VerifyError> {
        let notes = self.notes.session().await?;
        let found = state::found(&notes, self.id, source, table, copies).await?;
        let mut why = why.cloned();
        if why.is_none() && (found.parts == 0 || found.open > 0) {
            why = Some("it was copied anew meanwhile, or not all of it was compared; compare it again".to_owned());
        }
        let verdict = match found.missing + found.extra + found.different {
            0 if why.is_some() => Verdict::Inconclusive,
            0 => Verdict::Equal,
            _ => Verdict::Different,
        };
        let report = TableReport {
            source: source.to_owned(),
            table: table.to_string(),
            verdict,
            why,
            lsn: found.lsn,
            rows: found.rows,
            parts: (found.parts - found.open).unsigned_abs(),
            parts_of: found.divided.unsigned_abs(),
            missing: found.missing.unsigned_abs(),
            extra: found.extra.unsigned_abs(),
            different: found.different.unsigned_abs(),
            more: found.more,
            rechecked: found.rechecked.unsigned_abs(),
            // Found by a run that was cut off, they may have their values.
            samples: match self.options.mask {
                true => found.samples.into_iter().map(Difference::masked).collect(),
                false => found.samples,
            },
            left_out: Vec::new(),
            query: None,
        };
        self.totals.held_ms.fetch_max(found.held_ms.unsigned_abs(), Ordering::Relaxed);
        state::judge(&notes, self.id, self.sample, table, found.seq, copies, &report).await?;
        Ok(report)
    }
}
