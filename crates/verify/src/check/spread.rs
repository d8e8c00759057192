/// A few of many, chosen at random as they come by (reservoir sampling, Vitter's algorithm R). The same rows in the same
/// order give the same choice: a page that failed is looked at again by the next run.
pub(super) struct Spread<T> {
    room: usize,
    seen: u64,
    kept: Vec<T>,
    dice: u64,
}

impl<T> Spread<T> {
    /// Keeps `room` of them, at least 1.
    pub(super) fn new(room: usize) -> Spread<T> {
        Spread { room, seen: 0, kept: Vec::new(), dice: 0 }
    }

    /// Another one comes by.
    pub(super) fn add(&mut self, item: T) {
        self.seen += 1;
        if self.kept.len() < self.room {
            self.kept.push(item);
            return;
        }
        let place = self.roll() % self.seen;
        if let Some(kept) = usize::try_from(place).ok().and_then(|place| self.kept.get_mut(place)) {
            *kept = item;
        }
    }

    /// How many came by, and those that were chosen.
    pub(super) fn finish(self) -> (u64, Vec<T>) {
        (self.seen, self.kept)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): good enough to spread, and no dependency.
    fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(many: u64, room: usize) -> (u64, Vec<u64>) {
        let mut spread = Spread::new(room);
        (0..many).for_each(|n| spread.add(n));
        spread.finish()
    }

    #[test]
    fn few_are_all_kept() {
        assert_eq!(of(3, 5), (3, vec![0, 1, 2]));
    }

    #[test]
    fn of_many_each_part_is_looked_at_and_always_the_same() {
        let (seen, chosen) = of(10_000, 100);
        assert_eq!((seen, chosen.len()), (10_000, 100));
        for quarter in 0..4 {
            let in_it = chosen.iter().filter(|&&n| n / 2500 == quarter).count();
            assert!((10..=40).contains(&in_it), "{in_it} of 100 in quarter {quarter}");
        }
        assert_eq!(of(10_000, 100).1, chosen);
    }
}
