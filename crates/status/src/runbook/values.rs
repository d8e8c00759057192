use std::collections::HashMap;
use std::time::Duration;

use model::{Problem, TableName};
use pg::{Endpoint, Session};
use plan::{OnWalCritical, Plan};
use serde::Serialize;
use serde_json::Value;

use crate::epochs::{self, Measured};
use crate::model::{Lag, Status, Verified};

/// How long a server may take for what only the runbook asks: it is printed in any case.
const PATIENCE: Duration = Duration::from_secs(5);

/// What commands have left in the plan's `state.dir`/reports: the last report of each, with the time in its name.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// Of a `cutover --dry-run` that found nothing in the way.
    pub dry_run: Option<(String, Value)>,
    /// Of a `rollback --dry-run` that found nothing in the way.
    pub dry_run_back: Option<(String, Value)>,
}

/// What the documents are filled with. As JSON it is for scripts.
#[derive(Clone, Debug, Serialize)]
pub struct Values {
    /// The plan's name.
    pub plan: String,
    /// Its file.
    pub plan_file: String,
    /// In the plan's order.
    pub sources: Vec<SourceValues>,
    /// Hosts and database.
    pub target: String,
    /// Without secrets; absent while it cannot be reached.
    pub log: Option<String>,
    /// As `status` has it.
    pub phase: Option<crate::Phase>,
    /// As `status` has it.
    pub writable_side: &'static str,
    /// The slot of the way back; absent where a plan cannot have one.
    pub slot_back: Option<String>,
    /// WAL kept back at the target for the way back, in bytes.
    pub wal_kept_back_bytes: Option<i64>,
    /// How far the source is behind, after a cutover.
    pub lag_back: Option<Lag>,
    /// By source and name.
    pub tables: Vec<TableValues>,
    /// What verify has found, as `status` has it.
    pub verify: Option<Verified>,
    /// The last comparison of whole tables that came to its end.
    pub last_verify: Option<VerifyRun>,
    /// For how long nobody would write, by the last dry run.
    pub predicted: Option<Predicted>,
    /// The same of a rollback.
    pub predicted_back: Option<Predicted>,
    /// The last cutover that was decided.
    pub last_cutover: Option<Measured>,
    /// The last rollback that was decided.
    pub last_rollback: Option<Measured>,
    /// Which hooks the plan has.
    pub hooks: Vec<&'static str>,
    /// How long one may take, in milliseconds.
    pub hook_timeout_ms: u64,
    /// See docs/plan.md.
    pub sequence_margin: i64,
    /// See docs/plan.md, in bytes.
    pub wal_warn_bytes: u64,
    /// See docs/plan.md, in bytes.
    pub wal_critical_bytes: u64,
    /// `keep` or `drop_slot`.
    pub on_wal_critical: &'static str,
    /// Where reports are kept.
    pub reports: String,
    /// What `status` warns of, with its code.
    pub warnings: Vec<crate::Warning>,
}

/// A source.
#[derive(Clone, Debug, Serialize)]
pub struct SourceValues {
    /// Its name in the plan.
    pub name: String,
    /// Hosts and database.
    pub place: String,
    /// Its slot's name.
    pub slot: String,
    /// How far its WAL is written.
    pub lsn: Option<String>,
    /// How far the target has it.
    pub applied_lsn: Option<String>,
    /// How far the target is behind.
    pub lag: Lag,
    /// WAL kept back for the slot, in bytes.
    pub wal_kept_bytes: Option<i64>,
}

/// A table.
#[derive(Clone, Debug, Serialize)]
pub struct TableValues {
    /// The source's name in the plan.
    pub source: String,
    /// `schema.name` there.
    pub table: String,
    /// `schema.name` in the target.
    pub into: String,
    /// Rows, by the copy or by the source's statistics.
    pub rows: u64,
    /// On the source's disk, with indexes; absent while it cannot be asked.
    pub bytes: Option<i64>,
}

/// A comparison that came to its end.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyRun {
    /// When it ended, RFC 3339.
    pub at: String,
    /// How long it took.
    pub seconds: f64,
}

/// What a dry run said.
#[derive(Clone, Debug, Serialize)]
pub struct Predicted {
    /// When, as in the report's name.
    pub at: String,
    /// In milliseconds.
    pub write_gap_ms: i64,
}

/// Puts together what the plan, `status`, both databases and the reports say.
///
/// # Errors
/// The plan's URLs make no sense. A server that cannot be asked is no error.
pub async fn values(plan: &Plan, status: Status, reports: &Reports) -> Result<Values, Problem> {
    let target = Endpoint::parse(plan.target.url.expose())?;
    let mut there = Asked::default();
    if status.phase.is_some() {
        there = ask(&target, &[]).await;
    }
    let (mut sources, mut sizes) = (Vec::new(), HashMap::new());
    for (source, state) in plan.sources.iter().zip(&status.sources) {
        let endpoint = Endpoint::parse(source.url.expose())?;
        if state.source_lsn.is_some() {
            let of = status.tables.iter().filter(|table| table.source == source.name);
            let asked = ask(&endpoint, &of.map(|table| table.table.clone()).collect::<Vec<_>>()).await;
            sizes.extend(asked.sizes.into_iter().map(|(table, bytes)| ((source.name.clone(), table), bytes)));
            there.epochs.extend(asked.epochs);
            there.verify = later(there.verify, asked.verify);
        }
        sources.push(SourceValues {
            name: source.name.clone(),
            place: endpoint.describe(),
            slot: state.slot.clone(),
            lsn: state.source_lsn.clone(),
            applied_lsn: state.applied_lsn.clone(),
            lag: state.lag,
            wal_kept_bytes: state.wal_kept_bytes,
        });
    }
    let last = |back| there.epochs.iter().filter(|epoch| epoch.back == back).max_by_key(|epoch| epoch.epoch).cloned();
    let (last_cutover, last_rollback) = (last(false), last(true));
    let hooks = &plan.cutover.hooks;
    let hooks = [
        ("before_fence", &hooks.before_fence),
        ("drained", &hooks.drained),
        ("route", &hooks.route),
        ("after", &hooks.after),
    ];
    let back = plan.back();
    let tables = status.tables.iter().map(|table| TableValues {
        source: table.source.clone(),
        table: table.table.clone(),
        into: table.into.clone(),
        rows: table.rows_estimated.max(table.rows_copied),
        bytes: sizes.get(&(table.source.clone(), table.table.clone())).copied(),
    });
    Ok(Values {
        plan: plan.name.clone(),
        plan_file: plan.path.display().to_string(),
        sources,
        target: target.describe(),
        log: status.log.url,
        phase: status.phase,
        writable_side: status.writable_side,
        slot_back: back
            .and_then(|back| back.sources.first().map(|source| capture::slot_name(&plan.name, &source.name))),
        wal_kept_back_bytes: status.way_back.as_ref().and_then(|back| back.state.wal_kept_bytes),
        lag_back: status.way_back.filter(|_| status.writable_side == "target").map(|back| back.state.lag),
        tables: tables.collect(),
        verify: status.verify,
        last_verify: there.verify,
        predicted: predicted(reports.dry_run.as_ref()),
        predicted_back: predicted(reports.dry_run_back.as_ref()),
        last_cutover,
        last_rollback,
        hooks: hooks.into_iter().filter(|(_, command)| command.is_some()).map(|(name, _)| name).collect(),
        hook_timeout_ms: plan.cutover.hook_timeout.as_millis().try_into().unwrap_or(u64::MAX),
        sequence_margin: plan.cutover.sequence_margin,
        wal_warn_bytes: plan.limits.wal_warn,
        wal_critical_bytes: plan.limits.wal_critical,
        on_wal_critical: match plan.limits.on_wal_critical {
            OnWalCritical::Keep => "keep",
            OnWalCritical::DropSlot => "drop_slot",
        },
        reports: plan.state_dir.join("reports").display().to_string(),
        warnings: status.warnings,
    })
}

fn predicted(report: Option<&(String, Value)>) -> Option<Predicted> {
    let (at, report) = report?;
    Some(Predicted { at: at.clone(), write_gap_ms: report["write_gap_ms"].as_i64()? })
}

fn later(one: Option<VerifyRun>, other: Option<VerifyRun>) -> Option<VerifyRun> {
    one.into_iter().chain(other).max_by(|a, b| a.at.cmp(&b.at))
}

/// What one database says, as far as it answers.
#[derive(Default)]
struct Asked {
    epochs: Vec<Measured>,
    verify: Option<VerifyRun>,
    /// By `schema.name`.
    sizes: HashMap<String, i64>,
}

async fn ask(endpoint: &Endpoint, tables: &[String]) -> Asked {
    let mut asked = Asked::default();
    let all = async {
        let session = pg::connect_read_only(endpoint, "runbook").await?;
        asked.epochs = epochs::measured(&session).await?;
        asked.verify = compared(&session).await?;
        asked.sizes = sizes(&session, tables).await?;
        Ok::<_, pg::PgError>(())
    };
    match tokio::time::timeout(PATIENCE, all).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("{}: {error}", endpoint.describe()),
        Err(_) => tracing::warn!("{}: no answer within {} s", endpoint.describe(), PATIENCE.as_secs()),
    }
    asked
}

/// The last comparison of whole tables.
async fn compared(session: &Session) -> Result<Option<VerifyRun>, pg::PgError> {
    if !session.query_one("SELECT to_regclass('crossfade.verify') IS NOT NULL", &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let query = "SELECT to_char(ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), extract(epoch FROM ended_at - started_at)::float8
                   FROM crossfade.verify WHERE ended_at IS NOT NULL AND NOT recheck AND sample IS NULL AND tables = '{}' ORDER BY ended_at DESC LIMIT 1";
    let row = session.query_opt(query, &[]).await?;
    Ok(row.map(|row| VerifyRun { at: row.get(0), seconds: row.get(1) }))
}

/// With their indexes. A table that somebody has locked against readers is not waited for.
async fn sizes(session: &Session, tables: &[String]) -> Result<HashMap<String, i64>, pg::PgError> {
    let tables: Vec<TableName> = tables
        .iter()
        .filter_map(|table| table.split_once('.'))
        .map(|(schema, name)| TableName::new(schema, name))
        .collect();
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    session.batch_execute("SET lock_timeout = '1s'").await?;
    let query = "SELECT w.schema, w.name, pg_total_relation_size(c.oid) FROM unnest($1::text[], $2::text[]) w (schema, name)
                   JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name";
    let rows = session.query(query, &[&schemas, &names]).await?;
    let one = |row: &pg::tokio_postgres::Row| {
        Some((format!("{}.{}", row.get::<_, String>(0), row.get::<_, String>(1)), row.get::<_, Option<i64>>(2)?))
    };
    Ok(rows.iter().filter_map(one).collect())
}
