//! What must hold before a stage is entered, looked for in what `status` knows. What is not known is in the way.

use std::time::{Duration, SystemTime};

use plan::{Gate, WritableSide};
use status::{Lag, Phase, Status, Verified};

use crate::report::Refusal;

/// Tables that are named of those that are not equal; `crossfade status` has all of them.
const NAMED: usize = 5;

/// Whether somebody has to be asked whether it is open.
pub(super) fn asks(gate: &Gate) -> bool {
    gate.lag.is_some() || gate.verify.is_some() || gate.writable.is_some()
}

/// Why it is closed; empty if it is open. `since` is when the stage before was set, RFC 3339.
pub(super) fn closed(gate: &Gate, since: &str, now: SystemTime, status: Option<&Status>) -> Vec<Refusal> {
    let mut found = Vec::new();
    if let Some(least) = gate.age {
        age(least, since, now, &mut found);
    }
    let Some(status) = status else { return found };
    if let Some(limit) = gate.lag {
        lag(limit, status, &mut found);
    }
    if let Some(oldest) = gate.verify {
        match &status.verify {
            Some(verify) => verdicts(oldest, verify, &mut found),
            None => refuse(&mut found, "target_unreachable", unreachable(status)),
        }
        for rogue in &status.rogue {
            let text = format!("somebody else has written to {} of the target since: `crossfade verify`", rogue.table);
            refuse(&mut found, "rogue_writes", text);
        }
    }
    if let Some(side) = gate.writable {
        writable(side, status, &mut found);
    }
    found
}

fn refuse(found: &mut Vec<Refusal>, code: &'static str, text: impl Into<String>) {
    found.push(Refusal { code, text: text.into() });
}

fn age(least: Duration, since: &str, now: SystemTime, found: &mut Vec<Refusal>) {
    let Ok(since) = humantime::parse_rfc3339(since) else {
        return refuse(
            found,
            "age",
            format!("it is not known since when the stage before is set: {since:?} is no time"),
        );
    };
    // A clock that is behind the one that wrote it says zero.
    let age = now.duration_since(since).unwrap_or_default();
    if age < least {
        let text = format!(
            "the stage before is set for {}, and the gate wants {}: wait {} more",
            seconds(age),
            humantime::format_duration(least),
            seconds((least - age).max(Duration::from_secs(1)))
        );
        refuse(found, "age", text);
    }
}

fn seconds(time: Duration) -> impl std::fmt::Display {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

fn lag(limit: Duration, status: &Status, found: &mut Vec<Refusal>) {
    // Before that there may be no lag because nothing is there to lag behind.
    if let None | Some(Phase::Starting | Phase::Copying | Phase::Joining) = status.phase {
        match status.phase {
            None => refuse(found, "target_unreachable", unreachable(status)),
            Some(phase) => {
                let phase = format!("{phase:?}").to_lowercase();
                refuse(
                    found,
                    "not_following",
                    format!("the phase is {phase}: wait for `following` in `crossfade status`"),
                );
            }
        }
        return;
    }
    // After a cutover it is the way back that there is to wait for.
    let back = status.way_back.as_ref().filter(|_| status.writable_side == "target").map(|back| &back.state);
    for source in status.sources.iter().chain(back) {
        let Lag { seconds, transactions, .. } = source.lag;
        let behind = match seconds {
            None => {
                let text = format!(
                    "it is not known how far the target is behind source {:?}: see `crossfade status`",
                    source.name
                );
                refuse(found, "lag", text);
                continue;
            }
            // A clock may say that no time has passed, and something is missing nevertheless.
            Some(seconds) => seconds > limit.as_secs_f64() || limit.is_zero() && transactions != Some(0),
        };
        if behind {
            let text = format!(
                "the target is {:.1} s and {} transactions behind source {:?}, and the gate lets through {}: wait until it has caught up",
                seconds.unwrap_or_default(),
                transactions.unwrap_or_default(),
                source.name,
                humantime::format_duration(limit)
            );
            refuse(found, "lag", text);
        }
    }
}

fn verdicts(oldest: Duration, verify: &Verified, found: &mut Vec<Refusal>) {
    if verify.unverified > 0 || verify.equal + verify.different + verify.inconclusive == 0 {
        let text = match verify.unverified {
            0 => "nothing was ever compared: `crossfade verify`".to_owned(),
            tables => format!("{} never compared: `crossfade verify`", were(tables)),
        };
        refuse(found, "verify_missing", text);
    }
    for (verdict, code, next) in [
        ("different", "verify_different", "`crossfade verify` shows the rows, `crossfade recopy` mends them"),
        ("inconclusive", "verify_inconclusive", "`crossfade verify` again"),
    ] {
        let tables: Vec<&str> = verify
            .not_equal
            .iter()
            .filter(|table| table.verdict == verdict)
            .map(|table| table.table.as_str())
            .collect();
        if !tables.is_empty() {
            let more = tables.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named = tables.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            refuse(found, code, format!("the last verdict on {named}{more} is {verdict}: {next}"));
        }
    }
    if verify.sampled > 0 {
        let text = format!("only a sample of {} compared: `crossfade verify` without --sample", were(verify.sampled));
        refuse(found, "verify_sample", text);
    }
    if let Some(verdict) = &verify.oldest
        && verdict.age > oldest.as_secs_f64()
    {
        let age = seconds(Duration::try_from_secs_f64(verdict.age).unwrap_or_default());
        let text = format!(
            "the oldest verdict is {age} old, and the gate lets through {}: `crossfade verify`",
            humantime::format_duration(oldest)
        );
        refuse(found, "verify_old", text);
    }
}

fn were(tables: u64) -> String {
    format!("{} {}", model::count(tables, "table"), if tables == 1 { "was" } else { "were" })
}

fn writable(side: WritableSide, status: &Status, found: &mut Vec<Refusal>) {
    if status.writable_side == side.as_str() {
        return;
    }
    let now = match status.writable_side {
        "none" => "nobody may write now".to_owned(),
        "unknown" => "it is not known now where the application may write".to_owned(),
        side => format!("the application may write to the {side} now"),
    };
    let next = match side {
        WritableSide::Target => "`crossfade cutover` makes the target the writable side",
        WritableSide::Source => "this stage is for the time before a cutover",
    };
    refuse(found, "writable", format!("{now}, and the gate wants the {}: {next}", side.as_str()));
}

fn unreachable(status: &Status) -> String {
    let warning = status.warnings.iter().find(|warning| warning.code == "target_unreachable");
    warning
        .map_or_else(|| "the target cannot be asked: see `crossfade status`".to_owned(), |warning| warning.text.clone())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use status::{Applied, LogState, NotEqual, Oldest, SourceState};

    use super::*;

    fn status() -> Status {
        let lag = Lag { bytes: Some(0), seconds: Some(0.0), transactions: Some(0) };
        let source = SourceState {
            name: "shop".to_owned(),
            slot: "crossfade_shop_shop".to_owned(),
            source_lsn: None,
            confirmed_lsn: None,
            logged_lsn: None,
            applied_lsn: None,
            wal_kept_bytes: None,
            lag,
        };
        let oldest = Oldest { lsn: "0/1".to_owned(), at: String::new(), age: 3_000.0 };
        Status {
            schema_version: 1,
            plan: "shop".to_owned(),
            epoch: 0,
            phase: Some(Phase::Following),
            follows: Some(Phase::Following),
            way_back: None,
            rogue: Vec::new(),
            writable_side: "source",
            sources: vec![source],
            tables: Vec::new(),
            apply: Applied::default(),
            log: LogState::default(),
            findings: Vec::new(),
            verify: Some(Verified { equal: 2, oldest: Some(oldest), ..Verified::default() }),
            warnings: Vec::new(),
        }
    }

    fn codes(gate: &Gate, change: impl Fn(&mut Status)) -> Vec<&'static str> {
        let mut status = status();
        change(&mut status);
        let now = humantime::parse_rfc3339("2026-01-01T00:10:00Z").unwrap();
        let found = closed(gate, "2026-01-01T00:00:00Z", now, Some(&status));
        found.iter().map(|refusal| refusal.code).collect()
    }

    fn verified(change: impl Fn(&mut Verified)) -> Vec<&'static str> {
        let gate = Gate { verify: Some(Duration::from_secs(3_600)), ..Gate::default() };
        codes(&gate, |status| change(status.verify.as_mut().unwrap()))
    }

    #[test]
    fn a_gate_is_open_where_everything_that_it_wants_holds() {
        let hour = Duration::from_secs(3_600);
        let writable = Some(WritableSide::Source);
        let gate = Gate { lag: Some(Duration::ZERO), verify: Some(hour), age: Some(hour / 6), writable };
        assert!(codes(&gate, |_| {}).is_empty());
    }

    #[test]
    fn the_lag_has_to_be_known_and_small_behind_a_whole_copy() {
        let zero = Gate { lag: Some(Duration::ZERO), ..Gate::default() };
        let some = Gate { lag: Some(Duration::from_secs(2)), ..Gate::default() };
        let seconds = |seconds, transactions| {
            move |status: &mut Status| {
                status.sources[0].lag = Lag { bytes: Some(1), seconds, transactions };
            }
        };
        assert_eq!(codes(&zero, seconds(Some(0.1), Some(1))), ["lag"]);
        assert_eq!(codes(&zero, seconds(Some(0.0), Some(1))), ["lag"], "a clock that lags hides it");
        assert_eq!(codes(&zero, seconds(None, None)), ["lag"]);
        assert!(codes(&some, seconds(Some(2.0), Some(9))).is_empty());
        assert_eq!(codes(&some, seconds(Some(2.1), Some(9))), ["lag"]);
        assert_eq!(codes(&zero, |status| status.phase = Some(Phase::Joining)), ["not_following"]);
        assert_eq!(codes(&zero, |status| status.phase = None), ["target_unreachable"]);
        assert!(codes(&zero, |status| status.phase = Some(Phase::Routed)).is_empty());
    }

    #[test]
    fn every_table_has_to_be_equal_as_a_whole_and_not_long_ago() {
        assert!(verified(|_| {}).is_empty());
        assert_eq!(verified(|verify| *verify = Verified::default()), ["verify_missing"]);
        assert_eq!(verified(|verify| verify.unverified = 1), ["verify_missing"]);
        assert_eq!(verified(|verify| verify.sampled = 1), ["verify_sample"]);
        assert_eq!(verified(|verify| verify.oldest.as_mut().unwrap().age = 3_601.0), ["verify_old"]);
        for (verdict, code) in [("different", "verify_different"), ("inconclusive", "verify_inconclusive")] {
            let table = NotEqual {
                source: "shop".to_owned(),
                table: "public.t".to_owned(),
                verdict: verdict.to_owned(),
                why: None,
            };
            assert_eq!(verified(|verify| verify.not_equal.push(table.clone())), [code]);
        }
        let gate = Gate { verify: Some(Duration::from_secs(3_600)), ..Gate::default() };
        assert_eq!(codes(&gate, |status| status.verify = None), ["target_unreachable"]);
    }

    #[test]
    fn the_stage_before_has_to_have_lasted() {
        let age = |seconds| Gate { age: Some(Duration::from_secs(seconds)), ..Gate::default() };
        assert!(codes(&age(600), |_| {}).is_empty());
        assert_eq!(codes(&age(601), |_| {}), ["age"]);
    }

    #[test]
    fn the_writable_side_has_to_be_the_one() {
        let gate = Gate { writable: Some(WritableSide::Target), ..Gate::default() };
        for (side, open) in [("target", true), ("source", false), ("none", false), ("unknown", false)] {
            assert_eq!(codes(&gate, |status| status.writable_side = side).is_empty(), open, "{side}");
        }
    }
}
