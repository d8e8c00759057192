//! The journal of the side that becomes writable: a row an epoch. The target's has the cutovers, the source's the rollbacks, and the highest epoch of both counts. Every step is a compare-and-set on its state and on who leads.

use apply::BackFrom;
use model::{Code, Lsn, Problem, Seq};
use pg::Session;
use plan::Direction;

use crate::error::CutoverError;

const DDL: &str = "
-- Cutovers, in the target, and rollbacks, in the source: each an epoch, counted over both. The row's state is the outcome, and nothing else is.
CREATE TABLE IF NOT EXISTS crossfade.journal (
    epoch bigint PRIMARY KEY,
    direction text NOT NULL,
    state text NOT NULL,                        -- begun, fencing, fenced, drained, prepared, committed, routed, reversing; or cancelled
    token bigint NOT NULL,                      -- of who leads, at the (first) side that is closed
    lsn pg_lsn,                                 -- of the marker behind the first source's last write
    why text,                                   -- it was cancelled
    write_gap_ms bigint,                        -- from one side's closing to the other's opening
    back_lsn pg_lsn, back_seq bigint,           -- of a cutover with a way back: where in its tail that begins
    at timestamptz NOT NULL DEFAULT clock_timestamp());

-- How they went: a line for each step, and for each hook.
CREATE TABLE IF NOT EXISTS crossfade.journal_step (
    epoch bigint REFERENCES crossfade.journal ON DELETE CASCADE, hook bool NOT NULL DEFAULT false, step text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(), ms bigint NOT NULL, output text);

-- They came later.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'crossfade.journal'::regclass AND attname = 'back_seq' AND NOT attisdropped) THEN
        ALTER TABLE crossfade.journal ADD COLUMN IF NOT EXISTS back_lsn pg_lsn, ADD COLUMN IF NOT EXISTS back_seq bigint;
    END IF;
END $$;
";

/// Any number, the same in every version: taken while the tables are created.
const CREATE_LOCK: i64 = 0x63_66_6a_6e;

/// How far an epoch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    Begun,
    Fencing,
    Fenced,
    Drained,
    Prepared,
    Cancelled,
    Committed,
    Routed,
    Reversing,
}

impl State {
    const ALL: [State; 9] = [
        State::Begun,
        State::Fencing,
        State::Fenced,
        State::Drained,
        State::Prepared,
        State::Cancelled,
        State::Committed,
        State::Routed,
        State::Reversing,
    ];

    /// As the journal and the status have it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Begun => "begun",
            State::Fencing => "fencing",
            State::Fenced => "fenced",
            State::Drained => "drained",
            State::Prepared => "prepared",
            State::Cancelled => "cancelled",
            State::Committed => "committed",
            State::Routed => "routed",
            State::Reversing => "reversing",
        }
    }

    /// Nothing is decided.
    pub fn undecided(self) -> bool {
        self < State::Cancelled
    }
}

/// An epoch.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub epoch: i64,
    pub state: State,
    pub token: i64,
    pub lsn: Option<String>,
    pub why: Option<String>,
    pub write_gap_ms: Option<i64>,
    /// Of a rollback.
    pub back: bool,
    /// Where the way back begins, of a cutover that has one.
    pub from: Option<BackFrom>,
}

impl Entry {
    /// Nothing is left to be done.
    pub fn done(&self) -> bool {
        match self.state {
            State::Routed => self.from.is_none(),
            state => state == State::Reversing || state == State::Cancelled,
        }
    }

    /// As people call it.
    pub fn name(&self) -> &'static str {
        if self.back { "rollback" } else { "cutover" }
    }
}

/// Makes room for it.
pub(crate) async fn open(session: &Session) -> Result<(), CutoverError> {
    session
        .batch_execute(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock({CREATE_LOCK}); SET LOCAL client_min_messages = warning; {DDL} COMMIT"
        ))
        .await?;
    Ok(())
}

/// Whether there is one.
async fn exists(session: &Session) -> Result<bool, CutoverError> {
    Ok(session.query_one("SELECT to_regclass('crossfade.journal') IS NOT NULL", &[]).await?.get(0))
}

/// The last epoch.
pub(crate) async fn last(session: &Session) -> Result<Option<Entry>, CutoverError> {
    latest(session, "true").await
}

/// The last one that is decided, here where it is.
pub(crate) async fn last_decided(session: &Session) -> Result<Option<Entry>, CutoverError> {
    latest(session, "state IN ('committed', 'routed', 'reversing')").await
}

async fn latest(session: &Session, condition: &str) -> Result<Option<Entry>, CutoverError> {
    if !exists(session).await? {
        return Ok(None);
    }
    let query = format!(
        "SELECT epoch, state, token, lsn::text, why, write_gap_ms, direction = 'back',
                ((to_jsonb(j) ->> 'back_lsn')::pg_lsn - '0/0')::int8, (to_jsonb(j) ->> 'back_seq')::int8
           FROM crossfade.journal j WHERE {condition} ORDER BY epoch DESC LIMIT 1"
    );
    let Some(row) = session.query_opt(&query, &[]).await? else { return Ok(None) };
    let state: String = row.get(1);
    let from = |lsn: i64, seq: i64| BackFrom { lsn: Lsn(lsn as u64), seq: Seq(seq as u64) };
    let Some(state) = State::ALL.into_iter().find(|known| known.as_str() == state) else {
        let why = format!("its state is {state:?}, which this version does not know");
        return Err(
            Problem::new(Code::OutcomeUnknown, "the journal", why, "use the version that has written it").into()
        );
    };
    Ok(Some(Entry {
        epoch: row.get(0),
        state,
        token: row.get(2),
        lsn: row.get(3),
        why: row.get(4),
        write_gap_ms: row.get(5),
        back: row.get(6),
        from: row.get::<_, Option<i64>>(7).zip(row.get(8)).map(|(lsn, seq)| from(lsn, seq)),
    }))
}

/// Begins the next epoch, unless one is undecided or another process has just begun one.
pub(crate) async fn begin(
    session: &Session,
    direction: &Direction,
    epoch: i64,
    token: i64,
) -> Result<(), CutoverError> {
    let begun = session
        .execute(
            "INSERT INTO crossfade.journal (epoch, direction, state, token)
             SELECT $1, $3::text, 'begun', $2 WHERE NOT EXISTS (
                SELECT FROM crossfade.journal WHERE epoch >= $1 OR state NOT IN ('cancelled', 'committed', 'routed', 'reversing'))
             ON CONFLICT DO NOTHING",
            &[&epoch, &token, &direction.as_str()],
        )
        .await?;
    expect(begun, "another epoch has begun")
}

/// From one state to the next.
pub(crate) async fn step(
    session: &Session,
    epoch: i64,
    token: i64,
    from: State,
    to: State,
    ms: i64,
) -> Result<(), CutoverError> {
    let moved = session
        .execute(
            "WITH moved AS (UPDATE crossfade.journal SET state = $4::text, at = clock_timestamp() WHERE epoch = $1 AND token = $2 AND state = $3::text RETURNING epoch)
             INSERT INTO crossfade.journal_step (epoch, step, ms) SELECT epoch, $4::text, $5 FROM moved",
            &[&epoch, &token, &from.as_str(), &to.as_str(), &ms],
        )
        .await?;
    expect(moved, "another process leads, or has cancelled it")
}

/// Notes where the source's last write is.
pub(crate) async fn note_lsn(session: &Session, epoch: i64, token: i64, lsn: &str) -> Result<(), CutoverError> {
    let noted = session
        .execute(
            "UPDATE crossfade.journal SET lsn = $3::text::pg_lsn WHERE epoch = $1 AND token = $2",
            &[&epoch, &token, &lsn],
        )
        .await?;
    expect(noted, "another process leads")
}

/// Notes where the way back begins.
pub(crate) async fn note_back(session: &Session, epoch: i64, token: i64, from: BackFrom) -> Result<(), CutoverError> {
    let noted = session
        .execute(
            "UPDATE crossfade.journal SET back_lsn = '0/0'::pg_lsn + $3::int8::numeric, back_seq = $4 WHERE epoch = $1 AND token = $2",
            &[&epoch, &token, &(from.lsn.0 as i64), &(from.seq.0 as i64)],
        )
        .await?;
    expect(noted, "another process leads")
}

/// Notes what a hook printed.
pub(crate) async fn note(session: &Session, epoch: i64, step: &str, ms: i64, output: &str) -> Result<(), CutoverError> {
    session
        .execute(
            "INSERT INTO crossfade.journal_step (epoch, hook, step, ms, output) VALUES ($1, true, $2::text, $3, $4::text)",
            &[&epoch, &step, &ms, &output],
        )
        .await?;
    Ok(())
}

/// Leads an epoch from now on, in order to cancel it or, with `decided`, to bring it to its end; `token` is the highest at the source.
pub(crate) async fn lead(session: &Session, epoch: i64, token: i64, decided: bool) -> Result<(), CutoverError> {
    let query = "UPDATE crossfade.journal SET token = $2 WHERE epoch = $1 AND token < $2 AND (state IN ('committed', 'routed', 'reversing')) = $3";
    session.execute(query, &[&epoch, &token, &decided]).await?;
    Ok(())
}

/// Cancels an epoch that is not decided. Says what it is then.
pub(crate) async fn cancel(session: &Session, epoch: i64, token: i64, why: &str) -> Result<State, CutoverError> {
    let cancelled = session
        .execute(
            "WITH moved AS (UPDATE crossfade.journal SET state = 'cancelled', why = $3::text, at = clock_timestamp()
                             WHERE epoch = $1 AND token = $2 AND state NOT IN ('cancelled', 'committed', 'routed', 'reversing') RETURNING epoch)
             INSERT INTO crossfade.journal_step (epoch, step, ms, output) SELECT epoch, 'cancelled', 0, $3::text FROM moved",
            &[&epoch, &token, &why],
        )
        .await?;
    if cancelled == 1 {
        return Ok(State::Cancelled);
    }
    let now = last(session).await?.filter(|entry| entry.epoch == epoch);
    match now {
        Some(entry) if !entry.state.undecided() => Ok(entry.state),
        _ => Err(CutoverError::Overtaken("another process leads".to_owned())),
    }
}

fn expect(rows: u64, why: &str) -> Result<(), CutoverError> {
    match rows {
        1 => Ok(()),
        _ => Err(CutoverError::Overtaken(why.to_owned())),
    }
}
