use std::fmt::Write as _;

use crate::model::{Lag, Status, TableState};

/// The status for a terminal.
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let _ = head(&mut out, status);
    if !status.tables.is_empty() {
        let width = status.tables.iter().map(|table| table.table.len()).max().unwrap_or(0).clamp(5, 48);
        let _ = writeln!(
            out,
            "\n{:<width$}  {:<8}  {:>12}  {:>12}  {:>10}",
            "table", "state", "rows copied", "of", "copied"
        );
        for table in &status.tables {
            let _ = writeln!(
                out,
                "{:<width$}  {:<8}  {:>12}  {:>12}  {:>10}",
                table.table,
                word(table.state),
                table.rows_copied,
                table.rows_estimated,
                size(table.bytes_copied)
            );
        }
    }
    out
}

/// Everything but the tables.
pub(crate) fn head(out: &mut String, status: &Status) -> std::fmt::Result {
    let phase = status.phase.map_or("unknown".to_owned(), |phase| format!("{phase:?}").to_lowercase());
    writeln!(out, "plan {}: {phase}", status.plan)?;
    for source in &status.sources {
        let kept =
            source.wal_kept_bytes.map_or("unknown".to_owned(), |bytes| size(u64::try_from(bytes).unwrap_or_default()));
        writeln!(out, "source {}: lag {}; WAL kept back {kept}", source.name, lag(&source.lag))?;
        let lsn = |lsn: &Option<String>| lsn.clone().unwrap_or_else(|| "unknown".to_owned());
        writeln!(
            out,
            "  at {}, logged {}, applied {}, confirmed {}",
            lsn(&source.source_lsn),
            lsn(&source.logged_lsn),
            lsn(&source.applied_lsn),
            lsn(&source.confirmed_lsn)
        )?;
    }
    let apply = &status.apply;
    let (worker, time) = (apply.worker.as_deref().unwrap_or("nobody"), apply.commit_time.as_deref().unwrap_or("never"));
    writeln!(out, "apply: {worker}, {} transactions, {} rows, last commit {time}", apply.transactions, apply.rows)?;
    let log = &status.log;
    if let (Some(url), Some(bytes), Some(messages)) = (&log.url, log.bytes, log.messages) {
        writeln!(out, "log {url}: {} in {messages} messages", size(bytes))?;
    }
    for warning in &status.warnings {
        writeln!(out, "warning: {} ({})", warning.text, warning.code)?;
    }
    Ok(())
}

fn lag(lag: &Lag) -> String {
    let known = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    if *lag == (Lag { bytes: Some(0), seconds: Some(0.0), transactions: Some(0) }) {
        return "none".to_owned();
    }
    format!(
        "{} s, {} transactions, {}",
        known(lag.seconds.map(|seconds| format!("{seconds:.1}"))),
        known(lag.transactions.map(|count| count.to_string())),
        known(lag.bytes.map(size))
    )
}

pub(crate) fn word(state: TableState) -> &'static str {
    match state {
        TableState::Waiting => "waiting",
        TableState::Copying => "copying",
        TableState::Copied => "copied",
        TableState::Indexing => "indexing",
        TableState::Joined => "joined",
    }
}

pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=10_238_976 => format!("{} KiB", bytes >> 10),
        10_238_977..=10_484_711_424 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}
