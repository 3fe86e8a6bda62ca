//! The states of a job, and which may follow which: pure, without clock, disk or process.
//!
//! ```text
//! validating -> queued -> running -> succeeded
//!      |          |        |  ^----> failed
//!      |          |        |-------> cancelled
//!      |          |        |-------> paused -> queued
//!      |          |        '-------> queued   (an attempt that ended without an end of the job)
//!      '----------'----------------> failed, cancelled
//! ```
//!
//! What a user wants is a thing of its own, [`Desired`]: a request changes it at once, and the state follows when the
//! worker has. Whichever of an end and a request is written first wins; the other finds a job that is over.

use serde::{Deserialize, Serialize};

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its rows are being read and checked, or wait to be.
    Validating,
    /// Ready to run; waits for its turn and a device.
    Queued,
    /// A worker runs it.
    Running,
    /// Stopped at a checkpoint until somebody resumes it.
    Paused,
    /// Its adapter is there.
    Succeeded,
    /// It ended without one; the job says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// What the user wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// To run to its end.
    Run,
    /// To stop at a checkpoint.
    Pause,
    /// To end now.
    Cancel,
}

/// A job's status in the words of Snowflake's fine-tuning, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits, or its rows are checked.
    Pending,
    /// Runs, or is paused.
    InProgress,
    /// The adapter is there.
    Success,
    /// It failed.
    Error,
    /// Somebody stopped it.
    Cancelled,
}

impl Status {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InProgress => "in_progress",
            Self::Success => "success",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Validating,
        Self::Queued,
        Self::Running,
        Self::Paused,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The word for it in the store and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Whether nothing follows it.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether `next` may follow.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Validating => matches!(next, Self::Queued | Self::Failed | Self::Cancelled),
            Self::Queued => {
                matches!(next, Self::Running | Self::Paused | Self::Cancelled | Self::Failed)
            }
            Self::Running => {
                matches!(next, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Paused | Self::Queued)
            }
            Self::Paused => matches!(next, Self::Queued | Self::Cancelled | Self::Failed),
            Self::Succeeded | Self::Failed | Self::Cancelled => false,
        }
    }

    /// What a user is shown.
    pub fn status(self) -> Status {
        match self {
            Self::Validating | Self::Queued => Status::Pending,
            Self::Running | Self::Paused => Status::InProgress,
            Self::Succeeded => Status::Success,
            Self::Failed => Status::Error,
            Self::Cancelled => Status::Cancelled,
        }
    }
}

impl Desired {
    /// The word for it in the store, in `control` and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Pause => "pause",
            Self::Cancel => "cancel",
        }
    }

    /// The wish of this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Run, Self::Pause, Self::Cancel].into_iter().find(|wish| wish.as_str() == word)
    }
}

/// What a request does to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The wish is written down; the worker follows it.
    Wished(Desired),
    /// No worker has the job: its state changes at once.
    Moved(State, Desired),
    /// It is so already.
    Already,
    /// The job has ended, or the request makes no sense for it.
    Refused,
}

/// What a user's request does to a job in `state` of which `desired` was wanted before. Cancelling wins over all: what
/// was cancelled is neither paused nor resumed.
pub fn request(state: State, desired: Desired, wish: Desired) -> Answer {
    use Desired::{Cancel, Pause, Run};
    if state.is_terminal() {
        return if state == State::Cancelled && wish == Cancel { Answer::Already } else { Answer::Refused };
    }
    match (state, desired, wish) {
        (_, Cancel, Cancel) | (State::Paused, _, Pause) => Answer::Already,
        (_, Cancel, _) => Answer::Refused,
        (State::Queued | State::Paused, _, Cancel) => Answer::Moved(State::Cancelled, Cancel),
        (State::Queued, _, Pause) => Answer::Moved(State::Paused, Pause),
        (State::Paused, _, Run) => Answer::Moved(State::Queued, Run),
        (_, was, wish) if was == wish => Answer::Already,
        (_, _, wish) => Answer::Wished(wish),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_transitions_is_the_documented_one() {
        use State::{Cancelled, Failed, Paused, Queued, Running, Succeeded, Validating};
        let allowed = [
            (Validating, Queued),
            (Validating, Failed),
            (Validating, Cancelled),
            (Queued, Running),
            (Queued, Paused),
            (Queued, Cancelled),
            (Queued, Failed),
            (Running, Succeeded),
            (Running, Failed),
            (Running, Cancelled),
            (Running, Paused),
            (Running, Queued),
            (Paused, Queued),
            (Paused, Cancelled),
            (Paused, Failed),
        ];
        for from in State::ALL {
            for to in State::ALL {
                assert_eq!(from.may_become(to), allowed.contains(&(from, to)), "{from:?} -> {to:?}");
            }
            assert_eq!(State::from_word(from.as_str()), Some(from));
            assert_eq!(from.is_terminal(), State::ALL.iter().all(|to| !from.may_become(*to)));
        }
    }

    #[test]
    fn a_request_moves_only_along_the_table_and_never_undoes_a_cancel() {
        let wishes = [Desired::Run, Desired::Pause, Desired::Cancel];
        for state in State::ALL {
            for desired in wishes {
                for wish in wishes {
                    match request(state, desired, wish) {
                        Answer::Moved(to, wanted) => {
                            assert!(state.may_become(to) && wanted == wish);
                            assert_ne!(desired, Desired::Cancel);
                        }
                        Answer::Wished(wanted) => {
                            assert!(wanted == wish && desired != Desired::Cancel);
                            assert!(!state.is_terminal());
                        }
                        Answer::Already => assert!(!state.is_terminal() || wish == Desired::Cancel),
                        Answer::Refused => assert!(state.is_terminal() || desired == Desired::Cancel),
                    }
                }
            }
        }
    }
}
