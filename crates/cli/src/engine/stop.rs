//! Stopping a run from another thread.

use std::sync::atomic::{AtomicU8, Ordering};

/// What is asked of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// To go on.
    None,
    /// To stop at a checkpoint, to be gone on with later.
    Pause,
    /// To end.
    Cancel,
}

impl Stop {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Pause,
            _ => Self::Cancel,
        }
    }
}

/// What is asked of a run by those who may ask: a signal, which cannot be taken back, and the job's `control` file,
/// which can.
#[derive(Debug, Default)]
pub struct StopFlag {
    signal: AtomicU8,
    control: AtomicU8,
}

impl StopFlag {
    /// What is asked now: the stronger of the two.
    pub fn now(&self) -> Stop {
        let number = self.signal.load(Ordering::Relaxed).max(self.control.load(Ordering::Relaxed));
        Stop::of(number)
    }

    /// A signal came; returns what the signals before it asked.
    pub fn signal(&self, stop: Stop) -> Stop {
        Stop::of(self.signal.fetch_max(stop as u8, Ordering::Relaxed))
    }

    /// What `control` says.
    pub fn control(&self, stop: Stop) {
        self.control.store(stop as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stronger_wish_counts_and_only_control_is_taken_back() {
        let flag = StopFlag::default();
        assert_eq!(flag.now(), Stop::None);
        flag.control(Stop::Cancel);
        flag.control(Stop::Pause);
        assert_eq!(flag.now(), Stop::Pause);
        flag.control(Stop::None);
        assert_eq!(flag.now(), Stop::None);
        assert_eq!((flag.signal(Stop::Pause), flag.signal(Stop::Pause)), (Stop::None, Stop::Pause));
        flag.control(Stop::None);
        assert_eq!(flag.now(), Stop::Pause);
        flag.control(Stop::Cancel);
        assert_eq!(flag.now(), Stop::Cancel);
    }
}
