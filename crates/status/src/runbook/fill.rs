use std::fmt::Write as _;

use ::model::count;

use super::Values;
use super::values::{Predicted, VerifyRun};
use crate::epochs::Measured;
use crate::model::{Lag, Verified};
use crate::text::{lag, size};

/// Tables that are named: the largest. The JSON has all of them.
const NAMED: usize = 20;

/// A document with every `{{name}}` in it replaced. What is not known yet says so, and what makes it known.
pub fn fill(text: &str, values: &Values) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("{{") {
        filled += before;
        match behind.split_once("}}").and_then(|(name, behind)| Some((value(name, values)?, behind))) {
            Some((value, behind)) => {
                filled += &value;
                rest = behind;
            }
            None => {
                filled += "{{";
                rest = behind;
            }
        }
    }
    filled + rest
}

/// What stands for a name; none if there is no such name.
fn value(name: &str, values: &Values) -> Option<String> {
    let by_source = |one: &dyn Fn(&super::SourceValues) -> String| match &values.sources[..] {
        [source] => one(source),
        sources => {
            sources.iter().map(|source| format!("{}: {}", source.name, one(source))).collect::<Vec<_>>().join("; ")
        }
    };
    let reach = "it is known once the server can be reached";
    // Who cannot be asked may know it already.
    let (target, sources) = (values.phase.is_some(), values.sources.iter().all(|source| source.lsn.is_some()));
    let run = if target && sources { "`crossfade run` makes it known" } else { reach };
    let compare = |how: &'static str| if target { how } else { reach };
    Some(match name {
        "plan" => values.plan.clone(),
        "plan_file" => values.plan_file.clone(),
        "source" => by_source(&|source| source.place.clone()),
        "target" => values.target.clone(),
        "log" => known(values.log.clone(), "it is known once the log can be reached"),
        "phase" => known(values.phase.map(|phase| format!("{phase:?}").to_lowercase()), reach),
        "writable_side" => values.writable_side.to_owned(),
        "slot" => by_source(&|source| source.slot.clone()),
        "slot_back" => {
            values.slot_back.clone().unwrap_or_else(|| "none: a plan with several sources has no way back".to_owned())
        }
        "lsn" => by_source(&|source| known(source.lsn.clone(), reach)),
        "applied_lsn" => by_source(&|source| known(source.applied_lsn.clone(), run)),
        "lag" => by_source(&|source| behind(Some(&source.lag), run)),
        "lag_back" => behind(values.lag_back.as_ref(), "there is one from a cutover with a way back on"),
        "wal_kept" => by_source(&|source| kept(source.wal_kept_bytes, run)),
        "wal_kept_back" => kept(values.wal_kept_back_bytes, run),
        "wal_warn" => size(values.wal_warn_bytes),
        "wal_critical" => size(values.wal_critical_bytes),
        "on_wal_critical" => values.on_wal_critical.to_owned(),
        "table_count" => {
            let tables = Some(values.tables.len()).filter(|tables| *tables > 0);
            known(tables.map(|tables| count(tables as u64, "table")), reach)
        }
        "rows" => {
            let rows = values.tables.iter().map(|table| table.rows).reduce(|all, rows| all + rows);
            known(rows.map(|rows| count(rows, "row")), reach)
        }
        "size" => {
            let bytes: Option<i64> = values.tables.iter().map(|table| table.bytes).sum();
            known(bytes.filter(|_| !values.tables.is_empty()).map(|bytes| size(bytes.unsigned_abs())), reach)
        }
        "tables" => tables(values),
        "verify" => known(values.verify.as_ref().and_then(verdicts), compare("`crossfade verify` makes it known")),
        "verify_took" => {
            known(values.last_verify.as_ref().map(took), compare("a `crossfade verify` of all tables makes it known"))
        }
        "predicted" => gap(values.predicted.as_ref(), "cutover"),
        "predicted_back" => gap(values.predicted_back.as_ref(), "rollback"),
        "last_cutover" => epoch(values.last_cutover.as_ref(), target),
        "last_rollback" => epoch(values.last_rollback.as_ref(), sources),
        "hooks" if values.hooks.is_empty() => "none".to_owned(),
        "hooks" => values.hooks.iter().map(|hook| format!("`{hook}`")).collect::<Vec<_>>().join(", "),
        "hook_timeout" => format!("{} ms", values.hook_timeout_ms),
        "sequence_margin" => values.sequence_margin.to_string(),
        "reports" => values.reports.clone(),
        "warnings" if values.warnings.is_empty() => "none".to_owned(),
        "warnings" => {
            let codes: Vec<String> = values.warnings.iter().map(|warning| format!("`{}`", warning.code)).collect();
            codes.join(", ")
        }
        _ => return None,
    })
}

fn known(value: Option<String>, otherwise: &str) -> String {
    value.unwrap_or_else(|| format!("not known yet ({otherwise})"))
}

fn behind(value: Option<&Lag>, otherwise: &str) -> String {
    known(value.filter(|value| **value != Lag::default()).map(lag), otherwise)
}

fn kept(bytes: Option<i64>, otherwise: &str) -> String {
    known(bytes.map(|bytes| size(bytes.max(0).unsigned_abs())), otherwise)
}

fn gap(predicted: Option<&Predicted>, command: &str) -> String {
    let text =
        predicted.map(|Predicted { at, write_gap_ms }| format!("some {write_gap_ms} ms, by the dry run of {at}"));
    known(text, &format!("`crossfade {command} --dry-run` makes it known"))
}

fn took(VerifyRun { at, seconds }: &VerifyRun) -> String {
    format!("{seconds:.1} s, until {at}")
}

fn verdicts(verify: &Verified) -> Option<String> {
    let counts = [
        (verify.equal, "equal"),
        (verify.different, "different"),
        (verify.inconclusive, "inconclusive"),
        (verify.unverified, "not compared yet"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    let oldest = verify.oldest.as_ref()?;
    Some(format!("{}; the oldest verdict is of {} at {}", counts.join(", "), oldest.at, oldest.lsn))
}

/// `asked`: the journal that has it was.
fn epoch(epoch: Option<&Measured>, asked: bool) -> String {
    match epoch {
        None if asked => "there was none".to_owned(),
        epoch => known(epoch.map(measured), "it is known once the server can be reached"),
    }
}

fn measured(epoch: &Measured) -> String {
    let gap = epoch.write_gap_ms.map_or("a time that was not noted".to_owned(), |ms| format!("{ms} ms"));
    let at = epoch.at.as_deref().unwrap_or("a time that was not noted");
    let steps: Vec<String> = epoch.steps.iter().map(|(step, ms)| format!("{step} {ms} ms")).collect();
    format!("epoch {}, decided at {at}; nobody could write for {gap} ({})", epoch.epoch, steps.join(", "))
}

/// A line a table, the largest first.
fn tables(values: &Values) -> String {
    if values.tables.is_empty() {
        return "Tables: not known yet (they are known once the source can be reached).".to_owned();
    }
    let mut sorted: Vec<_> = values.tables.iter().collect();
    sorted.sort_by_key(|table| std::cmp::Reverse((table.bytes.unwrap_or_default(), table.rows)));
    let mut text = "| table | rows | size at the source |\n|---|---|---|\n".to_owned();
    for table in sorted.iter().take(NAMED) {
        let bytes = table.bytes.map_or("not known yet".to_owned(), |bytes| size(bytes.unsigned_abs()));
        let _ = writeln!(text, "| {} | {} | {bytes} |", table.table.replace('|', "\\|"), table.rows);
    }
    if sorted.len() > NAMED {
        let _ = writeln!(text, "\nand {} more: `crossfade runbook --json` has all.", sorted.len() - NAMED);
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::runbook::{DOCUMENTS, SourceValues};

    fn values() -> Values {
        let source = SourceValues {
            name: "shop".to_owned(),
            place: "a:5432/app".to_owned(),
            slot: "crossfade_shop_shop".to_owned(),
            lsn: None,
            applied_lsn: None,
            lag: Lag::default(),
            wal_kept_bytes: None,
        };
        Values {
            plan: "shop".to_owned(),
            plan_file: "crossfade.toml".to_owned(),
            sources: vec![source],
            target: "b:5432/app".to_owned(),
            log: None,
            phase: None,
            writable_side: "unknown",
            slot_back: None,
            wal_kept_back_bytes: None,
            lag_back: None,
            tables: Vec::new(),
            verify: None,
            last_verify: None,
            predicted: None,
            predicted_back: None,
            last_cutover: None,
            last_rollback: None,
            hooks: Vec::new(),
            hook_timeout_ms: 10_000,
            sequence_margin: 1_000,
            wal_warn_bytes: 10 << 30,
            wal_critical_bytes: 50 << 30,
            on_wal_critical: "keep",
            reports: ".crossfade/reports".to_owned(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn what_is_known_is_filled_in_and_what_is_not_says_so() {
        let filled = fill("{{plan}} at {{lsn}}, {{nothing}}, {{ and {{predicted}}", &values());
        assert!(filled.starts_with("shop at not known yet ("), "{filled}");
        assert!(filled.contains("{{nothing}}, {{ and not known yet (`crossfade cutover --dry-run`"), "{filled}");
    }

    #[test]
    fn every_placeholder_of_the_documents_has_a_value() {
        let mut used = BTreeSet::new();
        for document in DOCUMENTS {
            for part in document.text.split("{{").skip(1) {
                let name = part.split("}}").next().unwrap_or_default();
                assert!(value(name, &values()).is_some(), "{}: {name:?} has no value", document.name);
                used.insert(name);
            }
        }
        assert!(used.len() > 20, "only {} placeholders were found", used.len());
    }
}
