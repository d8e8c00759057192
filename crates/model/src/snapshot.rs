use std::fmt;
use std::str::FromStr;

use crate::Xid;

/// What `pg_current_snapshot()` returns: which transactions a copy has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The oldest transaction still in progress; everything before it has ended.
    pub xmin: Xid,
    /// One past the newest transaction that had completed.
    pub xmax: Xid,
    /// In progress in between, ascending.
    pub xip: Vec<Xid>,
}

impl Snapshot {
    /// Whether the rows of top-level transaction `xid`, if it committed, were seen. Subtransaction ids are not
    /// listed in a snapshot and would test as visible: pass the top-level one.
    pub fn sees(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.xip.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The text is not `xmin:xmax:xip,…`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no snapshot (xmin:xmax:xip,…)")]
pub struct ParseSnapshotError(String);

impl FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut fields = text.splitn(3, ':');
            let mut number = || Some(Xid(fields.next()?.parse().ok()?));
            let (xmin, xmax) = (number()?, number()?);
            let mut xip = Vec::new();
            for id in fields.next()?.split(',').filter(|id| !id.is_empty()) {
                xip.push(Xid(id.parse().ok()?));
            }
            xip.sort_unstable();
            Some(Snapshot { xmin, xmax, xip })
        };
        parse().ok_or_else(|| ParseSnapshotError(text.to_owned()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_had_ended_and_nothing_else() {
        let snapshot: Snapshot = "10:20:12,15".parse().unwrap();
        assert_eq!(snapshot.to_string(), "10:20:12,15");
        for (xid, seen) in
            [(9, true), (10, true), (12, false), (13, true), (15, false), (19, true), (20, false), (25, false)]
        {
            assert_eq!(snapshot.sees(Xid(xid)), seen, "xid {xid}");
        }
        assert_eq!("7:7:".parse::<Snapshot>().unwrap().xip, vec![]);
        assert!("7:".parse::<Snapshot>().is_err());
    }
}
