//! Copies that are void: tables are copied again, because somebody asked for it. Their rows stay until the next epoch begins, and the tail leaves them
//! alone until then. Everything that the tail would write to them before is in that copy.

use model::{Code, Problem, Record, TableName, TailBegin};
use pg::Session;

use crate::ApplyError;
use crate::derived::home;

/// Something is missing that the target needs next.
pub(crate) fn gap(what: impl Into<String>, why: impl Into<String>) -> ApplyError {
    Problem::lost(Code::Gap, what, why).into()
}

/// Makes the copies of these tables void; without names, those of all tables of the source. In the transaction that `session` is in.
pub(crate) async fn void(session: &Session, source: &str, tables: &[TableName]) -> Result<(), ApplyError> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let all = tables.is_empty();
    let chosen = "source = $1::text AND ($2 OR (schema, name) IN (SELECT * FROM unnest($3::text[], $4::text[])))";
    // What is made of them is no longer kept current with them.
    let begins = format!(
        "SELECT coalesce(begin, next_begin) FROM crossfade.tables WHERE {chosen} AND coalesce(begin, next_begin) IS NOT NULL"
    );
    let mut origins = Vec::new();
    for row in session.query(&begins, &[&source, &all, &schemas, &names]).await? {
        if let Record::TableBegin(begin) = crate::tables::decode(row.get(0))? {
            origins.push(home::origin(source, &begin).to_string());
        }
    }
    home::unfill(session, &origins, &format!("tables of source {source:?} are copied again")).await?;
    // The ledger first, as copy workers lock it: waits for chunks that are being written, whose rows go with the others.
    let ledger = format!("DELETE FROM crossfade.copied WHERE {chosen}");
    session.execute(&ledger, &[&source, &all, &schemas, &names]).await?;
    let epochs = format!(
        "UPDATE crossfade.tables SET epoch = -abs(epoch), next_epoch = NULL, next_begin = NULL, chunks = NULL, rows = NULL WHERE {chosen}"
    );
    session.execute(&epochs, &[&source, &all, &schemas, &names]).await?;
    Ok(())
}

/// Whether a copy is void, and the next one has not begun.
pub(crate) async fn is_due(session: &Session, source: &str) -> Result<bool, ApplyError> {
    let query = "SELECT EXISTS (SELECT FROM crossfade.tables WHERE source = $1::text AND epoch < 0)";
    Ok(session.query_one(query, &[&source]).await?.get(0))
}

/// Everything is to be copied again, for the recopy of this id: nothing more is applied from the tail until it starts anew.
pub(crate) async fn tail_waits(session: &Session, source: &str, id: &str) -> Result<(), ApplyError> {
    session
        .execute("UPDATE crossfade.checkpoint SET asked = $2::text WHERE source = $1::text", &[&source, &id])
        .await?;
    Ok(())
}

/// Whether the tail of any source has to start anew, and has not yet.
pub(crate) async fn waits(session: &Session) -> Result<bool, ApplyError> {
    let query = "SELECT EXISTS (SELECT FROM crossfade.checkpoint WHERE asked IS NOT NULL)";
    Ok(session.query_one(query, &[]).await?.get(0))
}

/// The tail has lost something and starts anew: the checkpoint goes to its beginning, and no copy counts any more.
pub(crate) async fn tail_begins(session: &Session, source: &str, begin: &TailBegin) -> Result<(), ApplyError> {
    void(session, source, &[]).await?;
    // What they say is in the copies to come.
    let mends = "UPDATE crossfade.mend SET done_at = clock_timestamp() WHERE source = $1::text AND done_at IS NULL";
    session.execute(mends, &[&source]).await?;
    session
        .execute(
            "UPDATE crossfade.checkpoint SET lsn = '0/0'::pg_lsn + $2::int8::numeric, seq = $3, tail_begin = $3, recopy = $4::text, asked = NULL,
                    joined = false, join_marker = NULL WHERE source = $1::text",
            &[&source, &(begin.lsn.0 as i64), &(begin.sequence.0 as i64), &begin.recopy],
        )
        .await?;
    Ok(())
}
