//! Both sides at one instant, while everybody writes.
//!
//! The tail is held at a marker; the source's snapshot S is taken; the tail goes on through the last transaction that S sees; the target's snapshot is taken; the tail is
//! released. What the target has then and S does not see is known from the log ([`between`](crate::between)). That the target stands where it should is looked up in its snapshot itself:
//! rows and checkpoint change together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Lsn, Marker, MarkerKind, Seq, Snapshot, TableName, Xid};
use pg::{Endpoint, Session};
use tokio::time::Instant;

use crate::LogAccess;
use crate::between::{self, Between, Tail};
use crate::error::VerifyError;
use crate::pair::{At, Pair};
use crate::side::Side;
use crate::state;

/// How long transactions that were open before are waited for: those that are committing are through by then.
const COMMITTING: Duration = Duration::from_secs(1);

/// Between two looks at what is over in milliseconds.
const LOOK: Duration = Duration::from_millis(5);

/// How long the target may take to reach a marker, if it goes on at all.
const SILENT: Duration = Duration::from_secs(30);

/// What a fence needs.
pub(crate) struct Ends<'a> {
    pub plan: &'a str,
    pub source: &'a str,
    pub nonce: &'a str,
    pub endpoints: [&'a Endpoint; 2],
    pub log: &'a LogAccess,
    /// Readers on each side.
    pub readers: usize,
    pub hold: Duration,
    /// What the sessions call themselves.
    pub purpose: &'a str,
}

/// Both sides, at the same instant but for what lies [`between`](crate::between).
pub(crate) struct Fence {
    pub source: Side,
    pub target: Side,
    /// End of the last commit that the target has.
    pub lsn: Lsn,
    /// The tail's message that holds it.
    pub seq: Seq,
    /// Which copies the target's tables have, as [`copies`](state::copies) tells them.
    pub copies: BTreeMap<TableName, String>,
    pub between: Between,
    /// How long the tail was held.
    pub held: Duration,
}

/// Brings both sides together; the tables of `pairs` are locked in both.
pub(crate) async fn take(ends: &Ends<'_>, pairs: &[&Pair]) -> Result<Fence, VerifyError> {
    Ok(take_with(ends, pairs, async |_: Held<'_>| Ok(())).await?.0)
}

/// The tail stands still.
pub(crate) struct Held<'a> {
    /// Sees what the source showed.
    pub source: &'a Session,
    pub between: &'a Between,
    /// The transaction of the marker at which the tail stood first.
    pub xid: Xid,
}

/// The same; `work` is done while the tail stands where both sides are together.
pub(crate) async fn take_with<T>(
    ends: &Ends<'_>,
    pairs: &[&Pair],
    work: impl AsyncFnOnce(Held<'_>) -> Result<T, VerifyError>,
) -> Result<(Fence, T), VerifyError> {
    let relations = |at: At| -> Vec<String> { pairs.iter().flat_map(|pair| pair.relations(at)).collect() };
    let [source_end, target_end] = ends.endpoints;
    let source = Side::open(source_end, ends.purpose, ends.readers, &relations(At::Source)).await?;
    let at_source = pg::connect(source_end, "verify").await?;
    let mut at_target = Control::open(target_end, ends.source).await?;

    // Every transaction that is not visible later on, but is in the log before this marker, was open when the marker was written.
    let (_, from) = at_target.checkpoint().await?;
    let marker = marker_id();
    capture::emit_marker(&at_source, &Marker::new(ends.nonce, MarkerKind::Fence, &marker)).await?;
    let (seen, late) = settle(&at_source).await?;
    let stream = log::StreamName::new(ends.plan, ends.source, log::StreamKind::Tail);
    let from = match late {
        None => from,
        Some(since) => between::message_at(&*ends.log.open().await?, &stream, from, since).await?,
    };
    let tables: BTreeSet<TableName> = pairs.iter().flat_map(|pair| pair.sources.iter().cloned()).collect();
    let mut tail = Tail::new(ends.log, stream, from, seen, &tables);
    tail.until(&marker).await?;
    at_target.reached(&marker).await?;
    // Only now: behind the marker no TRUNCATE of these tables can come, for which the tail would have to wait.
    let target = Side::open(target_end, ends.purpose, ends.readers, &relations(At::Target)).await?;

    // All that this one sees ends before the marker at which the tail will stand.
    tail.forget(parse(at_source.query_one(SNAPSHOT, &[]).await?.get(0))?);
    let hold = Hold::ask(&mut at_target, ends.hold).await?;
    let xid = capture::emit_marker(&at_source, &Marker::new(ends.nonce, MarkerKind::Hold, &hold.id)).await?;
    let stands = at_target.reached(&hold.id).await?;
    let begun = Instant::now();
    let under_hold = async {
        let row = source.leader.query_one("SELECT pg_current_snapshot()::text, pg_export_snapshot()", &[]).await?;
        let snapshot = parse(row.get(0))?;
        // All that S sees stands in the log before this.
        capture::emit_marker(&at_source, &Marker::new(ends.nonce, MarkerKind::Fence, &hold.end)).await?;
        tail.until(&hold.end).await?;
        let between = tail.between(&snapshot, stands);
        hold.through(&at_target, between.through).await?;
        at_target.at(between.through).await?;
        let query =
            "SELECT (lsn - '0/0')::int8, seq, pg_export_snapshot() FROM crossfade.checkpoint WHERE source = $1::text";
        let there = target.leader.query_one(query, &[&ends.source]).await?;
        let done = work(Held { source: &source.leader, between: &between, xid }).await?;
        Ok::<_, VerifyError>((row.get::<_, String>(1), between, there, done))
    };
    let held = tokio::time::timeout(ends.hold, under_hold).await;
    hold.release(&at_target).await?;
    let held_for = begun.elapsed();
    let (snapshot, between, there, done) = held.map_err(|_| {
        VerifyError::Again(format!(
            "the tail could not be held for longer than {} ms; the plan's verify.hold may be longer",
            ends.hold.as_millis()
        ))
    })??;
    let (lsn, seq) = (Lsn(there.get::<_, i64>(0) as u64), Seq(there.get::<_, i64>(1) as u64));
    if lsn != between.through {
        return Err(VerifyError::Again(format!("the target stood at {lsn}, and not at {}", between.through)));
    }
    let copies = state::copies(&target.leader, ends.source).await?;
    source.share(&snapshot).await?;
    target.share(there.get(2)).await?;
    Ok((Fence { source, target, lsn, seq, copies, between, held: held_for }, done))
}

const SNAPSHOT: &str = "SELECT pg_current_snapshot()::text";

fn parse(text: &str) -> Result<Snapshot, VerifyError> {
    text.parse().map_err(|error: model::ParseSnapshotError| VerifyError::Again(error.to_string()))
}

/// Waits a little for the transactions that are open to end. What the snapshot sees that this returns is seen by any later one; with it comes since when those that are still open may
/// have been committed without being visible, in microseconds since 1970: such as wait for a synchronous standby. One whose client has the word is not committing.
async fn settle(session: &Session) -> Result<(Snapshot, Option<i64>), VerifyError> {
    let snapshot = async || -> Result<Snapshot, VerifyError> { parse(session.query_one(SNAPSHOT, &[]).await?.get(0)) };
    let first = snapshot().await?;
    let begun = Instant::now();
    loop {
        let now = snapshot().await?;
        if now.xmin >= first.xmax {
            return Ok((now, None));
        }
        if begun.elapsed() > COMMITTING {
            let open: BTreeSet<Xid> = now.xip.iter().copied().filter(|xid| *xid < first.xmax).collect();
            return Ok((now, since(session, &open).await?));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// When the oldest of these transactions began that may be committing. Those of other databases change nothing here. Of one that this role may not look at nothing is known, and it may be as
/// old as the log: such a role reads more of it.
async fn since(session: &Session, open: &BTreeSet<Xid>) -> Result<Option<i64>, VerifyError> {
    let query = "SELECT x, (CASE WHEN a.datname <> current_database() OR p.database <> current_database() THEN NULL
                             WHEN a.state LIKE 'idle in transaction%' THEN NULL
                             WHEN p.gid IS NOT NULL AND NOT EXISTS (
                                  SELECT FROM pg_stat_activity w WHERE w.datname = current_database() AND (w.wait_event = 'SyncRep' OR w.state IS NULL)) THEN NULL
                             ELSE coalesce(extract(epoch FROM coalesce(p.prepared, a.xact_start)) * 1000000, 0) END)::int8
                   FROM unnest($1::text[]) x LEFT JOIN pg_stat_activity a ON a.backend_xid::text = x LEFT JOIN pg_prepared_xacts p ON p.transaction::text = x";
    let short = |xid: &Xid| (xid.0 & 0xFFFF_FFFF).to_string();
    let xids: Vec<String> = open.iter().map(short).collect();
    let rows = session.query(query, &[&xids]).await?;
    // One that has ended meanwhile is seen from now on.
    let now = parse(session.query_one(SNAPSHOT, &[]).await?.get(0))?;
    let still: BTreeSet<String> = open.iter().filter(|xid| !now.sees(**xid)).map(short).collect();
    let begun =
        rows.iter().filter(|row| still.contains(row.get::<_, &str>(0))).filter_map(|row| row.get::<_, Option<i64>>(1));
    Ok(begun.min())
}

/// Told apart from the markers of copies, so that they can be cleared away.
fn marker_id() -> String {
    format!("verify-{}", uuid::Uuid::new_v4())
}

/// What comparisons have left behind that were cut off, and markers that nobody has waited for.
const LEFT: &str = "DELETE FROM crossfade.marker WHERE id LIKE 'verify-%' AND reached_at < clock_timestamp() - interval '10 min';
    DELETE FROM crossfade.hold h WHERE NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = h.pid AND a.backend_start = h.backend_start)";

/// A session in which the target is asked where it stands.
struct Control<'a> {
    session: Session,
    source: &'a str,
}

impl Control<'_> {
    async fn open<'a>(endpoint: &Endpoint, source: &'a str) -> Result<Control<'a>, VerifyError> {
        let session = pg::connect(endpoint, "verify").await?;
        session.batch_execute(&format!("{LEFT}; LISTEN {}", apply::CHANNEL)).await?;
        Ok(Control { session, source })
    }

    async fn checkpoint(&self) -> Result<(Lsn, Seq), VerifyError> {
        let query = "SELECT (lsn - '0/0')::int8, seq FROM crossfade.checkpoint WHERE source = $1::text";
        let row = self.session.query_one(query, &[&self.source]).await?;
        Ok((Lsn(row.get::<_, i64>(0) as u64), Seq(row.get::<_, i64>(1) as u64)))
    }

    /// Waits until the target has reached a marker, and says where that is.
    async fn reached(&mut self, marker: &str) -> Result<Lsn, VerifyError> {
        let query =
            "DELETE FROM crossfade.marker WHERE source = $1::text AND id = $2::text RETURNING (lsn - '0/0')::int8";
        let (mut last, mut moved) = (self.checkpoint().await?, Instant::now());
        loop {
            if let Some(row) = self.session.query_opt(query, &[&self.source, &marker]).await? {
                return Ok(Lsn(row.get::<_, i64>(0) as u64));
            }
            let now = self.checkpoint().await?;
            if now != last {
                (last, moved) = (now, Instant::now());
            }
            if moved.elapsed() > SILENT {
                let why = format!("the target has applied nothing for {} s", SILENT.as_secs());
                return Err(match self.apply_lives().await? {
                    // It writes a large transaction, or waits for a copy.
                    true => VerifyError::Again(why),
                    false => VerifyError::Still(format!(
                        "{why}: no apply process is running; `crossfade status` says what has stopped it"
                    )),
                });
            }
            let _ = tokio::time::timeout(LOOK * 10, self.session.notification()).await;
        }
    }

    async fn apply_lives(&self) -> Result<bool, VerifyError> {
        let query = "SELECT EXISTS (SELECT FROM crossfade.worker WHERE seen_at > clock_timestamp() - interval '6 s')";
        Ok(self.session.query_one(query, &[]).await?.get(0))
    }

    /// Waits until the target stands there.
    async fn at(&self, lsn: Lsn) -> Result<(), VerifyError> {
        while self.checkpoint().await?.0 < lsn {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// The tail is to stand still at the marker `id`. It ends with our session, if nobody releases it before.
struct Hold<'a> {
    source: &'a str,
    id: String,
    /// The marker behind S.
    end: String,
}

impl<'a> Hold<'a> {
    async fn ask(control: &mut Control<'a>, limit: Duration) -> Result<Hold<'a>, VerifyError> {
        let hold = Hold { source: control.source, id: marker_id(), end: marker_id() };
        control
            .session
            .execute(
                "INSERT INTO crossfade.hold (source, id, pid, backend_start, seconds)
                 SELECT $1::text, $2::text, pid, backend_start, $3 FROM pg_stat_activity WHERE pid = pg_backend_pid()",
                &[&hold.source, &hold.id, &limit.as_secs_f64()],
            )
            .await?;
        Ok(hold)
    }

    async fn through(&self, control: &Control<'_>, lsn: Lsn) -> Result<(), VerifyError> {
        let query = "UPDATE crossfade.hold SET through = '0/0'::pg_lsn + $3::int8::numeric WHERE source = $1::text AND id = $2::text";
        control.session.execute(query, &[&self.source, &self.id, &(lsn.0 as i64)]).await?;
        self.tell(control).await
    }

    async fn release(&self, control: &Control<'_>) -> Result<(), VerifyError> {
        let query = "DELETE FROM crossfade.hold WHERE source = $1::text AND id = $2::text";
        control.session.execute(query, &[&self.source, &self.id]).await?;
        self.tell(control).await
    }

    async fn tell(&self, control: &Control<'_>) -> Result<(), VerifyError> {
        Ok(control.session.batch_execute(&format!("NOTIFY {}", apply::CHANNEL)).await?)
    }
}
