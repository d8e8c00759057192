//! Rows that were found to be wrong, and what they should be at one commit. Where the tail stands at that commit they are put right. The log has it, so whoever applies it from its
//! beginning comes by the same commit, and finds them right already.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{Code, Lsn, Mend, Record};
use pg::Session;
use tracing::{info, warn};

use super::target;
use super::touched::Touched;
use super::write::Writer;
use crate::derived::Derivations;
use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, tables};

/// Notes one that the log tells of.
pub(crate) async fn announce(session: &Session, source: &str, mend: Mend) -> Result<(), ApplyError> {
    let (id, lsn) = (mend.id.clone(), mend.lsn.0 as i64);
    session
        .execute(
            "INSERT INTO crossfade.mend (source, id, lsn, record) VALUES ($1::text, $2::text, '0/0'::pg_lsn + $3::int8::numeric, $4)
             ON CONFLICT DO NOTHING",
            &[&source, &id, &lsn, &&Record::Mend(mend).encode()[..]],
        )
        .await?;
    Ok(())
}

/// The next commit of each source at which the tail has to stand for one.
pub(super) async fn next(session: &Session) -> Result<BTreeMap<Arc<str>, Lsn>, ApplyError> {
    let query =
        "SELECT m.source, (min(m.lsn) - '0/0')::int8 FROM crossfade.mend m JOIN crossfade.checkpoint c USING (source)
                  WHERE m.done_at IS NULL AND m.lsn > c.lsn GROUP BY 1";
    let rows = session.query(query, &[]).await?;
    Ok(rows.iter().map(|row| (row.get::<_, &str>(0).into(), Lsn(row.get::<_, i64>(1) as u64))).collect())
}

/// Puts right what the tail, which stands at the checkpoint, has got to.
pub(super) async fn apply(
    writer: &mut Writer<'_>,
    derived: &mut Derivations<'_>,
    session: &Session,
    lease: Lease,
) -> Result<(), ApplyError> {
    let query = "SELECT m.source, m.id, m.lsn < c.lsn FROM crossfade.mend m JOIN crossfade.checkpoint c USING (source)
                  WHERE m.done_at IS NULL AND m.lsn <= c.lsn ORDER BY m.lsn, m.id";
    for row in session.query(query, &[]).await? {
        let (source, id, late): (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
        let query = "SELECT record FROM crossfade.mend WHERE source = $1::text AND id = $2::text";
        let record = session.query_one(query, &[&source, &id]).await?;
        lease.begin(session).await?;
        derived.begins();
        let outcome = match tables::decode(record.get(0))? {
            // What it says was so once; what came since then is not in it.
            _ if late => Some("the tail was past it before it came".to_owned()),
            Record::Mend(mend) => put_right(writer, derived, session, source, &mend).await?,
            _ => Some("it is of no use".to_owned()),
        };
        match &outcome {
            None => info!(source, id, "rows are put right"),
            Some(why) => warn!(source, id, "rows are not put right: {why}"),
        }
        let done = "UPDATE crossfade.mend SET done_at = clock_timestamp(), outcome = $3::text WHERE source = $1::text AND id = $2::text";
        session.execute(done, &[&source, &id, &outcome]).await?;
        session.batch_execute(&format!("NOTIFY {CHANNEL}; COMMIT")).await?;
    }
    Ok(())
}

/// Says why it could not be done.
async fn put_right(
    writer: &mut Writer<'_>,
    derived: &mut Derivations<'_>,
    session: &Session,
    source: &str,
    mend: &Mend,
) -> Result<Option<String>, ApplyError> {
    let target = match target::find(session, source, &mend.relation).await {
        Ok(Some(target)) => target,
        Ok(None) => return Ok(Some("its table is not copied yet".to_owned())),
        Err(ApplyError::Stop(problem)) => return Ok(Some(problem.to_string())),
        Err(error) => return Err(error),
    };
    match copies_that_see(session, source, &target, mend).await? {
        (0, _) => {}
        (seen, all) if seen == all => return Ok(None),
        _ => return Ok(Some("some of the partitions that lead into its table were copied later".to_owned())),
    }
    session.batch_execute("SAVEPOINT mend").await?;
    let replaced = async {
        let reads = derived.read().contains(&target.origin);
        let touched = if reads { Touched::replaced(&target, &mend.keys, &mend.rows) } else { Touched::default() };
        derived.before(&touched).await?;
        writer.replace(&target, &mend.keys, &mend.rows).await?;
        derived.after(&touched).await?;
        derived.finish().await?;
        // Not at the commit, where it could not be undone alone.
        Ok::<_, ApplyError>(session.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await?)
    };
    match replaced.await {
        Ok(()) => Ok(None),
        Err(error) if error.is_row() || is_refused(&error) => {
            session.batch_execute("ROLLBACK TO mend").await?;
            derived.undone();
            Ok(Some(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// A derived table's rows, which come of the mended ones, are refused.
fn is_refused(error: &ApplyError) -> bool {
    matches!(error, ApplyError::Stop(problem) if matches!(problem.code, Code::Divergence | Code::RowRefused))
}

/// How many of the copies that lead into a table see the transaction, and are younger than what is said, and how many there are.
async fn copies_that_see(
    session: &Session,
    source: &str,
    target: &target::Target,
    mend: &Mend,
) -> Result<(usize, usize), ApplyError> {
    let query = "SELECT begin FROM crossfade.tables WHERE source = $1::text AND into_schema = $2::text AND into_name = $3::text AND epoch > 0";
    let rows = session.query(query, &[&source, &target.into.schema, &target.into.name]).await?;
    let mut seen = 0;
    for row in &rows {
        if let Record::TableBegin(begin) = tables::decode(row.get(0))? {
            seen += usize::from(begin.snapshot.sees(mend.xid));
        }
    }
    Ok((seen, rows.len()))
}
