use std::time::Duration;

/// Pauses between attempts: doubling, and back to the first after a while without trouble.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The first pause: a restart of Postgres takes about a second, four tries or so.
    const FIRST: Duration = Duration::from_millis(250);
    /// The longest: a server that is away for long is asked four times a minute.
    const LAST: Duration = Duration::from_secs(15);

    /// The pause after an attempt that held for `lasted`.
    pub fn after(&mut self, lasted: Duration) -> Duration {
        if lasted > Self::LAST {
            self.next = Self::FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(Self::LAST);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: Self::FIRST }
    }
}
