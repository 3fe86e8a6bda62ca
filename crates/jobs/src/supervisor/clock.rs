//! The supervisor's own time.

use std::time::{Duration, Instant};

/// Time as the supervisor has lived it: the sum of its ticks, each counted up to a limit. What happened while it stood
/// still itself (stopped, swapped out, its machine asleep) is held against no worker. Nothing here is a time of day:
/// a clock that is set hurts nobody.
#[derive(Debug)]
pub(super) struct Clock {
    last: Instant,
    longest: Duration,
    now: Duration,
}

impl Clock {
    /// Starts at zero; a tick counts for at most `longest`.
    pub(super) fn new(longest: Duration) -> Self {
        Self { last: Instant::now(), longest, now: Duration::ZERO }
    }

    /// Goes on to the present.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        self.now += now.duration_since(self.last).min(self.longest);
        self.last = now;
    }

    /// Time since the start.
    pub(super) fn now(&self) -> Duration {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_that_stood_still_counts_little_of_it() {
        let mut clock = Clock::new(Duration::from_millis(10));
        clock.last -= Duration::from_hours(1);
        clock.tick();
        assert_eq!(clock.now(), Duration::from_millis(10));
    }
}
