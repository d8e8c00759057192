use model::count;
use serde::Serialize;

use crate::rehearse::Phase;
use crate::report::Refusal;

/// How a drill went. Its JSON is what scripts rely on.
#[derive(Clone, Debug, Serialize)]
pub struct DrillReport {
    /// What came of it.
    pub outcome: Played,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Which database played the source: host, port and name.
    pub source: String,
    /// How long it took, without the replay.
    pub seconds: f64,
    /// What took how long, in the order in which it begins, as far as it came.
    pub phases: Vec<Phase>,
    /// From the copy of the source to that of the target; null if it did not come to that.
    pub cutover: Option<Switch>,
    /// And back; null if it did not come to that.
    pub rollback: Option<Switch>,
    /// What was written meanwhile; null if it did not come to that.
    pub load: Option<LoadReport>,
    /// What it made and could not remove, with the next step.
    pub left: Vec<String>,
}

/// What came of a drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Played {
    /// Both ways were gone, both sides were equal after each, and nothing was lost.
    Passed,
    /// Something was not so.
    Failed,
}

/// A cutover, or a rollback.
#[derive(Clone, Debug, Serialize)]
pub struct Switch {
    /// `committed`, `cancelled`, `refused` or `unknown`, as the command has it.
    pub outcome: &'static str,
    /// Why it did not come to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What was in the way.
    pub refused: Vec<Refusal>,
    /// From one side's closing to the other's opening, in milliseconds.
    pub write_gap_ms: Option<i64>,
    /// What that was the last time; null if that is not known.
    pub last_write_gap_ms: Option<i64>,
    /// The longest that a writer had to wait between its last write here and its first one there, in milliseconds; null if not all of them got there.
    pub waited_ms: Option<i64>,
    /// Writes that had been acknowledged, by either side, when it was looked which of them the new side has; null if it did not come to that.
    pub acknowledged: Option<u64>,
    /// Those of them that it does not have.
    pub lost: Option<u64>,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// Sessions that wrote.
    pub writers: u64,
    /// Transactions that were acknowledged.
    pub transactions: u64,
    /// So many in a second, the time in which nobody could write included.
    pub per_second: f64,
    /// Tables of the plan that were written to.
    pub tables: u64,
    /// Those that were not.
    pub left_out: Vec<LeftOut>,
}

/// A table that was not written to.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// `schema.name`.
    pub table: String,
    /// Why.
    pub why: String,
}

impl DrillReport {
    pub(crate) fn new(source: String) -> DrillReport {
        DrillReport {
            outcome: Played::Failed,
            why: None,
            source,
            seconds: 0.0,
            phases: Vec::new(),
            cutover: None,
            rollback: None,
            load: None,
            left: Vec::new(),
        }
    }

    /// Puts the times of an earlier drill beside its own; `seconds` tells how long one of its phases took, `gap` for how long nobody could write in its `cutover` or `rollback`.
    pub fn compare_with(&mut self, seconds: impl Fn(&str) -> Option<f64>, gap: impl Fn(&str) -> Option<i64>) {
        for phase in &mut self.phases {
            phase.last_seconds = seconds(phase.phase);
        }
        for (name, switch) in [("cutover", &mut self.cutover), ("rollback", &mut self.rollback)] {
            if let Some(switch) = switch {
                switch.last_write_gap_ms = gap(name);
            }
        }
    }
}

/// For people; the phases stand with those of the rehearsal.
pub(crate) fn text(drill: &DrillReport) -> String {
    let mut text = String::new();
    if let Some(load) = &drill.load {
        text += &format!(
            "drill: {} wrote to {}, {}, {:.0} in a second\n",
            count(load.writers, "writer"),
            count(load.tables, "table"),
            count(load.transactions, "transaction"),
            load.per_second
        );
        for LeftOut { table, why } in &load.left_out {
            text += &format!("       not to {table}: {why}\n");
        }
    }
    for (name, switch) in [("cutover", &drill.cutover), ("rollback", &drill.rollback)] {
        let Some(switch) = switch else { continue };
        text += &format!("drill: {name} {}", switch.outcome);
        if let Some(ms) = switch.write_gap_ms {
            text += &format!("; nobody could write for {ms} ms");
        }
        if let Some(ms) = switch.last_write_gap_ms {
            text += &format!(" ({ms} ms last time)");
        }
        if let Some(ms) = switch.waited_ms {
            text += &format!(", and a writer waited for {ms} ms at most");
        }
        if let (Some(acknowledged), Some(lost)) = (switch.acknowledged, switch.lost) {
            text += &format!("; {lost} of {} lost", count(acknowledged, "write"));
        }
        text.push('\n');
        for refusal in &switch.refused {
            text += &format!("       refused: {} ({})\n", refusal.text, refusal.code);
        }
    }
    for left in &drill.left {
        text += &format!("drill: left behind: {left}\n");
    }
    let seconds = drill.seconds;
    text + &match (drill.outcome, &drill.why) {
        (Played::Passed, _) => format!("drill passed in {seconds:.1} s\n"),
        (Played::Failed, Some(why)) => format!("drill failed after {seconds:.1} s: {why}\n"),
        (Played::Failed, None) => format!("drill failed after {seconds:.1} s\n"),
    }
}
