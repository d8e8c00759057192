//! The way back's state in the source, schema `crossfade`: the same tables as in the target. Apply of the way back finds there what a copy leaves behind otherwise: the tables, the
//! checkpoint, and that both are joined.

use model::{Code, Header, Lsn, Problem, Record, Seq, Snapshot, TableBegin, TableName, quote};
use pg::Session;
use pg::catalog::Table;

use crate::{ApplyError, state};

/// What a process that is stopped in the middle of it holds is free again soon.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// Where the way back begins: all that was committed at the target before is the source's already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackFrom {
    /// End of a commit at the target.
    pub lsn: Lsn,
    /// The message of the way back's tail that holds it.
    pub seq: Seq,
}

/// The target's tables that apply has filled from `source`: those that the way back carries.
///
/// # Errors
/// The target.
pub async fn back_tables(target: &Session, source: &str) -> Result<Vec<TableName>, ApplyError> {
    let query = "SELECT DISTINCT into_schema, into_name FROM crossfade.tables WHERE source = $1::text AND into_schema <> 'crossfade' ORDER BY 1, 2";
    let rows = target.query(query, &[&source]).await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Makes the way back's state in the source, with the target's tables as they are now, each with the condition that a partition's rows meet; nothing is applied before [`back_begins`]. `header` is the way back's.
///
/// # Errors
/// The source; or its schema `crossfade` belongs to another plan, or it lacks a table.
pub async fn back_prepare(source: &Session, header: &Header, tables: &[(Table, String)]) -> Result<(), ApplyError> {
    state::open(source, std::slice::from_ref(header), true).await?;
    source.batch_execute(BEGIN).await?;
    let noted = note_tables(source, &header.source, tables).await;
    source.batch_execute(if noted.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    noted
}

async fn note_tables(source: &Session, name: &str, tables: &[(Table, String)]) -> Result<(), ApplyError> {
    source.execute("DELETE FROM crossfade.tables WHERE source = $1::text", &[&name]).await?;
    for (table, bound) in tables {
        let into = counterpart(source, table).await?;
        let begin = TableBegin {
            table: table.name.clone(),
            epoch: 1,
            // There is no copy that could have seen anything.
            snapshot: Snapshot::default(),
            columns: table.columns.clone(),
            key: table.key.clone(),
            root: table.root.clone(),
            partition_bound: bound.clone(),
            rows_estimated: table.rows_estimated,
            bytes_estimated: table.bytes,
            marker: String::new(),
            writer: String::new(),
            full: table.identity == model::ReplicaIdentity::Full,
            heirs: table.heirs,
        };
        let encoded = Record::TableBegin(begin).encode();
        source
            .execute(
                "INSERT INTO crossfade.tables (source, schema, name, into_schema, into_name, epoch, begin, rows_estimated, bytes_estimated, chunks, rows)
                 VALUES ($1::text, $2::text, $3::text, $4::text, $5::text, 1, $6, $7, $8, 0, 0)",
                &[
                    &name,
                    &table.name.schema,
                    &table.name.name,
                    &into.schema,
                    &into.name,
                    &&encoded[..],
                    &table.rows_estimated,
                    &table.bytes,
                ],
            )
            .await?;
    }
    Ok(())
}

/// The source's table of that name or, for a partition, of its root's.
async fn counterpart(source: &Session, table: &Table) -> Result<TableName, ApplyError> {
    for candidate in std::iter::once(&table.name).chain(&table.root) {
        let there = "SELECT to_regclass($1::text) IS NOT NULL";
        if source.query_one(there, &[&candidate.quoted()]).await?.get(0) {
            return Ok(candidate.clone());
        }
    }
    Err(Problem::new(
        Code::TargetMissing,
        format!("table {}", table.name),
        "the source has no table of that name, nor of its root's, so there is no way back for it",
        "create it there, or cut over with `--no-way-back`",
    )
    .into())
}

/// Triggers that are not to fire while apply writes: statements, each with the one that undoes it.
pub type Quiet = Vec<(String, String)>;

/// From a decision on: what is committed at the target behind `from` goes into the source. Once for each epoch, however often it is called.
///
/// # Errors
/// The source.
pub async fn back_begins(source: &Session, epoch: i64, from: BackFrom, quiet: &Quiet) -> Result<(), ApplyError> {
    source.batch_execute(BEGIN).await?;
    let begun = async {
        if unbar(source, epoch, quiet).await? {
            source
                .execute(
                    "UPDATE crossfade.checkpoint SET lsn = '0/0'::pg_lsn + $1::int8::numeric, seq = $2, schema = true, join_marker = '', started = true,
                            joined = true, commit_time = NULL, control_seq = 0, control_sum = NULL",
                    &[&(from.lsn.0 as i64), &(from.seq.0 as i64)],
                )
                .await?;
        }
        Ok::<_, ApplyError>(())
    };
    let begun = begun.await;
    source.batch_execute(if begun.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    model::failpoint!("way_back_begun");
    begun
}

/// From the decision of a rollback on apply may write to the target again; what the application has written there up to `from` is none of a stranger's. Once for each epoch.
///
/// # Errors
/// The target.
pub async fn forward_again(
    target: &Session,
    epoch: i64,
    source: &str,
    from: BackFrom,
    quiet: &Quiet,
) -> Result<(), ApplyError> {
    target.batch_execute(BEGIN).await?;
    let begun = async {
        if unbar(target, epoch, quiet).await? {
            target
                .execute(
                    "INSERT INTO crossfade.watched (source, lsn, seq) VALUES ($1::text, '0/0'::pg_lsn + $2::int8::numeric, $3)
                     ON CONFLICT (source) DO UPDATE SET lsn = excluded.lsn, seq = excluded.seq",
                    &[&source, &(from.lsn.0 as i64), &(from.seq.0 as i64)],
                )
                .await?;
        }
        Ok::<_, ApplyError>(())
    };
    let begun = begun.await;
    target.batch_execute(if begun.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    model::failpoint!("forward_again");
    begun
}

/// Lets apply write here, unless a later epoch has had its say. Says whether it is new.
async fn unbar(session: &Session, epoch: i64, quiet: &Quiet) -> Result<bool, ApplyError> {
    let query = "UPDATE crossfade.lease SET barred = false, since = $1 WHERE barred AND since < $1";
    if session.execute(query, &[&epoch]).await? != 1 {
        return Ok(false);
    }
    for (statement, undo) in quiet {
        session.batch_execute(statement).await?;
        let noted = "INSERT INTO crossfade.quieted VALUES ($1::text) ON CONFLICT DO NOTHING";
        session.execute(noted, &[&undo]).await?;
    }
    Ok(true)
}

/// Lets the triggers fire again that did not while apply wrote. In the transaction that `session` is in, if it is in one.
///
/// # Errors
/// The database.
pub async fn loud(session: &Session) -> Result<(), ApplyError> {
    if !session.query_one("SELECT to_regclass('crossfade.quieted') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(());
    }
    for row in &session.query("SELECT statement FROM crossfade.quieted ORDER BY 1", &[]).await? {
        // Somebody may have dropped it since.
        let again = format!(
            "BEGIN EXECUTE {}; EXCEPTION WHEN undefined_object OR undefined_table THEN NULL; END",
            quote::literal(row.get(0))
        );
        session.batch_execute(&format!("DO {}", quote::literal(&again))).await?;
    }
    session.batch_execute("DELETE FROM crossfade.quieted").await?;
    Ok(())
}

/// In the transaction of a decision: apply may not write here any more, and nothing that it has under way lands behind this.
///
/// # Errors
/// The database.
pub async fn bar(session: &Session, epoch: i64) -> Result<(), ApplyError> {
    let query = "UPDATE crossfade.lease SET token = token + 1, worker = NULL, pid = NULL, backend_start = NULL, taken_from = NULL, barred = true, since = $1";
    session.execute(query, &[&epoch]).await?;
    loud(session).await
}

/// Whether apply may not write to this database, for the application does. There is state of a plan in it.
///
/// # Errors
/// The database.
pub async fn is_barred(session: &Session) -> Result<bool, ApplyError> {
    let query = "SELECT coalesce(to_jsonb(l) ->> 'barred', 'false') = 'true' FROM crossfade.lease l";
    Ok(session.query_one(query, &[]).await?.get(0))
}

/// How far the tail of `source` is applied.
///
/// # Errors
/// The database.
pub async fn applied(session: &Session, source: &str) -> Result<Option<BackFrom>, ApplyError> {
    let query = "SELECT (lsn - '0/0')::int8, seq FROM crossfade.checkpoint WHERE source = $1::text";
    let row = session.query_opt(query, &[&source]).await?;
    Ok(row.map(|row| BackFrom { lsn: Lsn(row.get::<_, i64>(0) as u64), seq: Seq(row.get::<_, i64>(1) as u64) }))
}
