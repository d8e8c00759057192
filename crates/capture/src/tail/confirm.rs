use std::collections::VecDeque;

use model::{Lsn, Seq};

/// Which LSN goes with which log sequence, so that the source is told of no more than what the log has.
pub(super) struct Confirm {
    /// Appended and not known to be durable, in order: with `Seq` the log is complete up to `Lsn`.
    pending: VecDeque<(Seq, Lsn)>,
    /// The last of them that was acknowledged.
    acknowledged: (Seq, Lsn),
    /// Durable.
    flushed: Lsn,
    /// Appended.
    appended: Lsn,
    /// The server has sent everything up to here.
    seen: Lsn,
}

impl Confirm {
    pub fn new(start: Lsn) -> Self {
        Confirm {
            pending: VecDeque::new(),
            acknowledged: (Seq::ZERO, start),
            flushed: start,
            appended: start,
            seen: start,
        }
    }

    /// The message `seq` makes the log complete up to `lsn`.
    pub fn pushed(&mut self, seq: Seq, lsn: Lsn) {
        self.appended = self.appended.max(lsn);
        self.seen = self.seen.max(lsn);
        self.pending.push_back((seq, self.appended));
    }

    /// The server says that up to `lsn` there is nothing but what was pushed; only between transactions.
    pub fn seen(&mut self, lsn: Lsn) {
        self.seen = self.seen.max(lsn);
    }

    /// An LSN that the log could be told, if it knows less.
    pub fn news(&self) -> Option<Lsn> {
        (self.seen > self.appended).then_some(self.seen)
    }

    /// Everything up to `seq` is stored. Returns the newest position that became so.
    pub fn acknowledged(&mut self, seq: Seq) -> Option<(Seq, Lsn)> {
        let newest = self.pending.iter().rev().find(|(pushed, _)| *pushed <= seq).copied()?;
        (newest.0 > self.acknowledged.0).then(|| self.acknowledged = newest).map(|()| newest)
    }

    /// Up to here everything is stored, though a power loss might take it: what the server has sent, if all that was of it is.
    pub fn written(&self) -> Lsn {
        if self.acknowledged.1 >= self.appended { self.seen } else { self.acknowledged.1 }
    }

    /// Everything up to `seq` survives a power loss. Returns what the source may forget.
    pub fn durable(&mut self, seq: Seq) -> Lsn {
        while let Some((_, lsn)) = self.pending.front().filter(|(pushed, _)| *pushed <= seq).copied() {
            self.flushed = self.flushed.max(lsn);
            self.pending.pop_front();
        }
        self.flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_may_forget_only_what_is_durable() {
        let mut confirm = Confirm::new(Lsn(10));
        confirm.pushed(Seq(1), Lsn(20));
        confirm.pushed(Seq(2), Lsn(30));
        assert_eq!(confirm.acknowledged(Seq(2)), Some((Seq(2), Lsn(30))));
        assert_eq!((confirm.written(), confirm.durable(Seq(0))), (Lsn(30), Lsn(10)));
        assert_eq!(confirm.durable(Seq(1)), Lsn(20));
        confirm.seen(Lsn(50));
        assert_eq!((confirm.news(), confirm.durable(Seq(2))), (Some(Lsn(50)), Lsn(30)));
        assert_eq!(confirm.written(), Lsn(50));
        confirm.pushed(Seq(3), Lsn(60));
        assert_eq!(confirm.written(), Lsn(30));
    }
}
