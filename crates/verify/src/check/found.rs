use super::rows::Row;
use super::tenant::Tenant;

/// How much of a value is kept, in characters: enough to know it by.
const SHOWN: usize = 500;

/// One finding of a check. Values are as the server prints them, cut to their first 500 characters; none is null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The row of `tenants` that the check ran for; empty where the check has none.
    pub tenant: Vec<(String, Option<String>)>,
    /// The columns of the row that was found.
    pub row: Vec<(String, Option<String>)>,
    /// Of a check of both sides: which one alone has the row.
    pub only_in: Option<OnlyIn>,
    /// Of an HTTP probe: what the server answered.
    pub got: Option<String>,
}

/// The side that alone has a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnlyIn {
    /// The one that data leaves.
    Source,
    /// The one that it enters.
    Target,
}

/// What one run of a check found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// All findings.
    pub(super) count: u64,
    /// The first of them.
    pub(super) samples: Vec<Sample>,
    /// Of an HTTP probe: the pages that were fetched, and of how many.
    pub(super) probed: (u64, u64),
}

impl Found {
    /// Counts a finding, and keeps it while there are fewer than `room`.
    pub(super) fn add(&mut self, room: usize, sample: impl FnOnce() -> Sample) {
        self.count += 1;
        if self.samples.len() < room {
            self.samples.push(sample());
        }
    }
}

impl Sample {
    /// A finding for a tenant.
    pub(super) fn new(tenant: &Tenant, columns: &[String], row: &Row) -> Sample {
        let row = columns.iter().cloned().zip(row.iter().map(|value| value.as_deref().map(cut))).collect();
        Sample { tenant: tenant.columns.clone(), row, ..Sample::default() }
    }
}

fn cut(value: &str) -> String {
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_few_are_kept() {
        let mut found = Found::default();
        for n in 0..5 {
            found.add(2, || Sample { got: Some(n.to_string()), ..Sample::default() });
        }
        let kept: Vec<_> = found.samples.iter().filter_map(|sample| sample.got.as_deref()).collect();
        assert_eq!((found.count, kept), (5, vec!["0", "1"]));
    }

    #[test]
    fn of_a_long_value_the_beginning_is_kept() {
        assert_eq!(cut("é"), "é");
        assert_eq!(cut(&"é".repeat(SHOWN + 1)).chars().count(), SHOWN + 1);
        assert!(cut(&"é".repeat(SHOWN + 1)).ends_with("é…"));
    }
}
