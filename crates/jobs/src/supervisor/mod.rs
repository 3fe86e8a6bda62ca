//! The supervisor: starts workers, watches them, and says what follows when they end.

mod lock;
pub mod verdict;
mod words;

use crate::State;

pub use lock::running;

/// What a worker is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Reads the rows, checks and freezes them. Needs no device.
    Prepare,
    /// Trains.
    Train,
}

impl Stage {
    /// The word for it on a worker's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Train => "train",
        }
    }

    /// State of a job that is in it.
    pub fn state(self) -> State {
        match self {
            Self::Prepare => State::Validating,
            Self::Train => State::Running,
        }
    }
}
