use std::fmt;

/// A transaction id, 64 bits wide as in Postgres's `xid8`: the epoch in the upper half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub u64);

impl Xid {
    /// Widens the 32-bit id that the replication protocol sends, given a 64-bit id (`pg_current_xact_id()`,
    /// say) that is less than 2³¹ transactions away from it. Postgres keeps ids in use closer than that.
    pub fn widen(narrow: u32, near: Xid) -> Xid {
        let distance = narrow.wrapping_sub(near.0 as u32) as i32;
        Xid(near.0.wrapping_add_signed(i64::from(distance)))
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widens_on_both_sides_of_a_wraparound() {
        let epoch = 1u64 << 32;
        assert_eq!(Xid::widen(5, Xid(epoch - 3)), Xid(epoch + 5));
        assert_eq!(Xid::widen(0xFFFF_FFFD, Xid(epoch + 5)), Xid(epoch - 3));
        assert_eq!(Xid::widen(740, Xid(739)), Xid(740));
    }
}
