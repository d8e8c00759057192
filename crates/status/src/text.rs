use std::fmt::Write as _;

use ::model::count;

use crate::model::{Lag, Status, TableState, Unfinished, Verified};

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
    writeln!(out, "plan {}: {phase}; the application writes to: {}", status.plan, status.writable_side)?;
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
    if let Some(back) = &status.way_back {
        let lag = if status.writable_side == "target" {
            lag(&back.state.lag)
        } else {
            "not applied before a cutover".to_owned()
        };
        let kept = back.state.wal_kept_bytes.map_or("unknown".to_owned(), |bytes| size(bytes.unsigned_abs()));
        writeln!(
            out,
            "way back: {lag}; WAL kept back at the target {kept}; {} applied",
            count(back.transactions, "transaction")
        )?;
    }
    let apply = &status.apply;
    let (worker, time) = (apply.worker.as_deref().unwrap_or("nobody"), apply.commit_time.as_deref().unwrap_or("never"));
    writeln!(
        out,
        "apply: {worker}, {}, {}, last commit {time}",
        count(apply.transactions, "transaction"),
        count(apply.rows, "row")
    )?;
    let log = &status.log;
    if let (Some(url), Some(bytes), Some(messages)) = (&log.url, log.bytes, log.messages) {
        writeln!(out, "log {url}: {} in {}", size(bytes), count(messages, "message"))?;
    }
    if let Some(verify) = &status.verify {
        verified(out, verify)?;
    }
    for finding in &status.findings {
        let age = finding.age.map(|seconds| format!("{} ago: ", age(seconds))).unwrap_or_default();
        let text = finding.text();
        writeln!(out, "finding: {age}{}", text.trim_end())?;
    }
    for warning in &status.warnings {
        writeln!(out, "warning: {} ({})", one_line(&warning.text), warning.code)?;
    }
    Ok(())
}

/// Tables that are named of those that are not equal; the JSON has all of them.
const NAMED: usize = 10;

fn verified(out: &mut String, verify: &Verified) -> std::fmt::Result {
    let counts = [
        (verify.equal, "equal"),
        (verify.different, "different"),
        (verify.inconclusive, "inconclusive"),
        (verify.unverified, "not compared yet"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    if !counts.is_empty() {
        let oldest = verify.oldest.as_ref();
        let oldest = oldest.map(|oldest| format!("; the oldest verdict is of {}, {} ago", oldest.lsn, age(oldest.age)));
        let sampled = match verify.sampled {
            0 => String::new(),
            count => format!(" ({count} by a sample)"),
        };
        writeln!(out, "verify: {}{sampled}{}", counts.join(", "), oldest.unwrap_or_default())?;
    }
    for table in verify.not_equal.iter().take(NAMED) {
        let why = table.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        writeln!(out, "  {} is {}{}", table.table, table.verdict, one_line(&why))?;
    }
    if verify.not_equal.len() > NAMED {
        writeln!(out, "  and {} more", verify.not_equal.len() - NAMED)?;
    }
    let Some(Unfinished { running, recheck, parts, done, .. }) = &verify.unfinished else { return Ok(()) };
    match (running, recheck) {
        (true, _) => writeln!(out, "  a comparison is under way: {done} of {} done", are(*parts)),
        (false, false) => writeln!(
            out,
            "  the last comparison was cut off: {done} of {} done; `crossfade verify --resume` goes on with it",
            are(*parts)
        ),
        (false, true) => {
            writeln!(out, "  the last comparison was cut off: `crossfade verify --recheck` begins it again")
        }
    }
}

/// What an error tells of a row must not steer the terminal.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn are(parts: u64) -> String {
    format!("{} {}", count(parts, "part"), if parts == 1 { "is" } else { "are" })
}

/// In the largest unit that there are two of.
fn age(seconds: f64) -> String {
    let units = [(86_400.0, "d"), (3_600.0, "h"), (60.0, "min")];
    let unit = units.into_iter().find(|(length, _)| seconds >= 2.0 * length);
    let (length, name) = unit.unwrap_or((1.0, "s"));
    format!("{:.0} {name}", (seconds / length).floor())
}

pub(crate) fn lag(lag: &Lag) -> String {
    let known = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    if *lag == (Lag { bytes: Some(0), seconds: Some(0.0), transactions: Some(0) }) {
        return "none".to_owned();
    }
    format!(
        "{} s, {}, {}",
        known(lag.seconds.map(|seconds| format!("{seconds:.1}"))),
        lag.transactions.map_or("? transactions".to_owned(), |number| count(number, "transaction")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_in_the_unit_that_people_would_use() {
        for (seconds, text) in [(0.4, "0 s"), (119.9, "119 s"), (120.0, "2 min"), (7_200.0, "2 h"), (200_000.0, "2 d")]
        {
            assert_eq!(age(seconds), text);
        }
    }
}
