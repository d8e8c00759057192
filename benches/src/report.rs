use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// The most memory that a process may have resident, in MiB: the plan's default.
const MEMORY: u64 = 256;

/// One comparison, as `latest.json` has it.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    work: &'static str,
    against: &'static str,
    ours_s: f64,
    theirs_s: f64,
    ratio: f64,
    /// Of the ratio, for lag of our seconds; 0 where there is none.
    bound: f64,
    rss_mib: u64,
}

impl Entry {
    /// Work whose time is bounded by the other one's, run by run. The ratio is the median of the runs' ratios: what disturbs the
    /// machine for a while disturbs both of a run.
    pub fn ratio(
        work: &'static str,
        against: &'static str,
        ours: &[f64],
        theirs: &[f64],
        bound: f64,
        rss_mib: u64,
    ) -> Entry {
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        Entry {
            work,
            against,
            ours_s: round(median(ours.to_vec())),
            theirs_s: round(median(theirs.to_vec())),
            ratio: round(median(ratios)),
            bound,
            rss_mib,
        }
    }

    /// The 99th percentile of lag at 1,000 transactions/s, bounded by one second.
    pub fn lag(ours: f64, theirs: f64, rss_mib: u64) -> Entry {
        Entry::ratio("lag", "subscription", &[ours], &[theirs], 1.0, rss_mib)
    }

    fn measured(&self) -> f64 {
        if self.work == "lag" { self.ours_s } else { self.ratio }
    }

    fn within_bound(&self) -> bool {
        self.rss_mib <= MEMORY && (self.bound == 0.0 || self.measured() <= self.bound)
    }
}

/// To the millisecond; more would pretend to be exact.
fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// What a bench found.
pub struct Report {
    /// In the order of the work.
    pub entries: Vec<Entry>,
    /// Whether lag grew while the load went on.
    pub growing: bool,
}

impl Report {
    /// Whether all bounds are kept.
    pub fn within_bounds(&self) -> bool {
        !self.growing && self.entries.iter().all(Entry::within_bound)
    }

    /// Writes `benches/results/latest.json`.
    pub fn write(&self) -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("latest.json");
        let json = serde_json::to_string_pretty(&self.entries)? + "\n";
        std::fs::write(&file, json).with_context(|| format!("write {}", file.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<6} {:<14} {:>8} {:>8} {:>7} {:>6} {:>9}",
            "work", "against", "ours", "theirs", "ratio", "bound", "memory"
        )?;
        for entry in &self.entries {
            let bound = if entry.bound == 0.0 { "-".into() } else { entry.bound.to_string() };
            let verdict = if entry.within_bound() { "" } else { "  <- above its bound" };
            writeln!(
                f,
                "{:<6} {:<14} {:>6.2} s {:>6.2} s {:>7.2} {bound:>6} {:>5} MiB{verdict}",
                entry.work, entry.against, entry.ours_s, entry.theirs_s, entry.ratio, entry.rss_mib
            )?;
        }
        let growing = if self.growing { " and growing" } else { "" };
        let parts = self.entries.iter().filter(|entry| entry.bound > 0.0).map(|entry| match entry.work {
            "lag" => format!("lag p99 {:.2} s{growing} (bound {})", entry.ours_s, entry.bound),
            work => format!("{work} {:.2} × (bound {})", entry.ratio, entry.bound),
        });
        let memory = self.entries.iter().map(|entry| entry.rss_mib).max().unwrap_or_default();
        write!(f, "bench: {}, memory {memory} MiB (bound {MEMORY})", parts.collect::<Vec<_>>().join(", "))
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_ratio_is_the_median_of_the_runs_ratios() {
        // The medians' own ratio would be 1/8.
        let entry = Entry::ratio("drain", "subscription", &[1.0, 8.0, 1.0], &[8.0, 8.0, 1.0], 0.7, 0);
        assert_eq!((entry.ours_s, entry.theirs_s, entry.ratio), (1.0, 8.0, 1.0));
    }

    #[test]
    fn a_bound_is_of_the_ratio_and_for_lag_of_our_seconds() {
        assert!(Entry::ratio("copy", "subscription", &[1.5], &[1.0], 1.5, 200).within_bound());
        assert!(!Entry::ratio("copy", "subscription", &[1.6], &[1.0], 1.5, 200).within_bound());
        assert!(!Entry::ratio("copy", "subscription", &[1.0], &[1.0], 1.5, 300).within_bound());
        assert!(Entry::lag(0.9, 0.1, 200).within_bound());
        assert!(!Entry::lag(1.1, 9.0, 200).within_bound());
    }
}
