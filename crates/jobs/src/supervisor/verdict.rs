//! What follows when an attempt has ended: pure, without clock, disk or process.
//!
//! | what is known of the end | what follows |
//! |---|---|
//! | `result.json` of this attempt | that end |
//! | the rows are frozen (stage `prepare`) | `queued` |
//! | cancelling is wanted | `cancelled` |
//! | it was never seen to start | again, nothing counted |
//! | memory ran out | once more with micro-batches half as large, then `failed` |
//! | the device is not there or not to be had | again after 10 s, 60 s, then every 300 s |
//! | the device failed in the work (`device_failed`) | the same; `failed` after three without a newer checkpoint |
//! | the disk is full | `paused` |
//! | checkpointed (75) | `paused` or again, by what is wanted |
//! | anything else: a signal, another I/O error, no sign of life | again; `failed` after three without a newer checkpoint |
//!
//! Where pausing is wanted, "again" and "failed" are `paused`, with the reason for whoever resumes the job. A job whose rows
//! are not read yet stays `validating` instead, and is not started.

use std::fmt;
use std::time::Duration;

use super::{Stage, words};
use crate::dir::{Failure, JobResult, Status};
use crate::{Desired, State};

/// Attempts in a row without a newer checkpoint after which a job has failed.
pub const MAX_STALLS: u32 = 3;

/// How long a job waits after trouble with its device or its files, the first, second and every later time.
const BACK_OFF: [Duration; 3] = [Duration::from_secs(10), Duration::from_mins(1), Duration::from_mins(5)];

/// How a worker's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Nobody has seen it: the worker was another supervisor's child.
    Unknown,
    /// No worker was seen to take the job.
    NotStarted,
}

/// Why the supervisor ended a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// It gave no sign of life for so long.
    Hung(Duration),
    /// It did not follow a pause or a cancel.
    Deaf,
    /// The supervisor itself was asked to end, and asked for a checkpoint.
    Drained,
}

/// What is known of an attempt that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// What it was to do.
    pub stage: Stage,
    /// How the process ended.
    pub exit: Exit,
    /// Why it was ended, if the supervisor did.
    pub killed: Option<Killed>,
    /// `result.json`, if it is this attempt's.
    pub result: Option<&'a JobResult>,
    /// `failure.json`, if it is this attempt's.
    pub failure: Option<&'a Failure>,
    /// Whether `data/manifest.json` is there.
    pub prepared: bool,
    /// What the user wants.
    pub desired: Desired,
    /// Step of the newest checkpoint when the attempt began.
    pub checkpoint_before: Option<u64>,
    /// Step of the newest checkpoint now.
    pub checkpoint: Option<u64>,
    /// Attempts before this one without a newer checkpoint.
    pub stalls: u32,
    /// How many times smaller than usual its micro-batches were; above 1, memory has run out before.
    pub divisor: u32,
    /// How often in a row before this one there was trouble that waiting may cure.
    pub troubles: u32,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// State of the job from now on.
    pub state: State,
    /// Why, for a job that goes on or waits.
    pub reason: Option<String>,
    /// New count of attempts without a newer checkpoint.
    pub stalls: u32,
    /// New divisor of micro-batches.
    pub divisor: u32,
    /// How long to wait before the next start.
    pub wait: Option<Duration>,
    /// Why the job failed, where the worker has not said so itself in `result.json`.
    pub failure: Option<Failure>,
}

/// Judges the end of an attempt.
pub fn judge(ended: &Ended<'_>) -> Verdict {
    if let Some(state) = ended.result.and_then(|result| ended.told(result)) {
        return ended.verdict(state, None);
    }
    if ended.desired == Desired::Cancel {
        return ended.verdict(State::Cancelled, None);
    }
    if ended.stage == Stage::Prepare && ended.prepared {
        return Verdict { stalls: 0, ..ended.verdict(State::Queued, None) };
    }
    if ended.exit == Exit::NotStarted && ended.failure.is_none() {
        return ended.verdict(ended.again(), None);
    }
    if let Some(Killed::Hung(silence)) = ended.killed {
        return ended.lost(&format!("gave no sign of life for {}", words::span(silence)));
    }
    let told = ended.failure;
    match (told.map(|failure| failure.class.as_str()), ended.exit) {
        (Some("memory"), _) => ended.memory(told),
        (Some("device"), _) if told.is_some_and(|failure| failure.code == "device_failed") => {
            // A card that falls off its bus is missing the next time, and a kernel that is wrong fails there again.
            ended.lost("failed")
        }
        (Some("device"), _) | (None, Exit::Code(69)) => ended.device(told),
        (Some("io"), _) if told.is_some_and(|failure| failure.code == "disk_full") => ended.disk_full(told),
        (Some(_), _) => ended.lost("failed"),
        (None, Exit::Code(75)) => ended.checkpointed(),
        (None, exit) => ended.lost(&exit.to_string()),
    }
}

impl Ended<'_> {
    /// The end that a result tells, if it may be an end of this stage.
    fn told(&self, result: &JobResult) -> Option<State> {
        let state = result.status.state();
        let possible = self.stage == Stage::Train || result.status != Status::Success;
        possible.then_some(state)
    }

    /// A verdict that counts nothing.
    fn verdict(&self, state: State, reason: Option<String>) -> Verdict {
        let (stalls, divisor) = (self.stalls, self.divisor);
        Verdict { state, reason, stalls, divisor, wait: None, failure: None }
    }

    /// State of a job that is to be run again. One whose rows are being read cannot pause yet.
    fn again(&self) -> State {
        match (self.stage, self.desired) {
            (Stage::Prepare, _) => State::Validating,
            (Stage::Train, Desired::Pause) => State::Paused,
            (Stage::Train, _) => State::Queued,
        }
    }

    fn pauses(&self) -> bool {
        self.again() == State::Paused
    }

    fn progressed(&self) -> bool {
        self.checkpoint > self.checkpoint_before
    }

    fn memory(&self, told: Option<&Failure>) -> Verdict {
        let message = told.map_or("memory ran out", |failure| failure.message.as_str());
        if self.divisor > 1 && !self.pauses() {
            let mut failure = told.cloned().unwrap_or_else(|| Failure {
                class: "memory".to_owned(),
                code: "insufficient_memory".to_owned(),
                message: String::new(),
                hint: None,
            });
            failure.message =
                format!("{}, with micro-batches {} times smaller too", trimmed(message), self.divisor);
            return Verdict { failure: Some(failure), ..self.verdict(State::Failed, None) };
        }
        let divisor = if self.divisor > 1 { self.divisor } else { 2 };
        let reason =
            format!("runs again with micro-batches {divisor} times smaller than usual: {}", trimmed(message));
        Verdict { divisor, ..self.verdict(self.again(), Some(reason)) }
    }

    fn device(&self, told: Option<&Failure>) -> Verdict {
        let message = told.map_or("its device cannot be used", |failure| failure.message.as_str());
        self.later(self.stalls, trimmed(message))
    }

    /// Again after a while.
    fn later(&self, stalls: u32, why: &str) -> Verdict {
        if self.pauses() {
            return Verdict { stalls, ..self.verdict(State::Paused, Some(why.to_owned())) };
        }
        let wait = BACK_OFF[(self.troubles as usize).min(BACK_OFF.len() - 1)];
        let reason = format!("tries again after {}: {why}", words::span(wait));
        Verdict { stalls, wait: Some(wait), ..self.verdict(self.again(), Some(reason)) }
    }

    fn disk_full(&self, told: Option<&Failure>) -> Verdict {
        let message = told.map_or("the disk is full", |failure| failure.message.as_str());
        if self.stage == Stage::Prepare {
            // A job whose rows are not read cannot pause; it looks from time to time whether there is room.
            return self.later(self.stalls, &format!("{}; free some space", trimmed(message)));
        }
        let reason = format!("{}; free some space, then `tunesmith resume` the job", trimmed(message));
        self.verdict(State::Paused, Some(reason))
    }

    fn checkpointed(&self) -> Verdict {
        if self.desired == Desired::Pause || self.progressed() {
            return Verdict { stalls: 0, ..self.verdict(self.again(), None) };
        }
        if self.killed.is_some() {
            return self.verdict(self.again(), None);
        }
        // Somebody stops it each time before it gets anywhere: that must not go on for ever.
        self.lost("stopped when asked to, before it got anywhere")
    }

    /// Again, unless that was often enough.
    fn lost(&self, how: &str) -> Verdict {
        match self.killed {
            Some(Killed::Drained) => return self.verdict(self.again(), None),
            Some(Killed::Deaf) => {
                let from = self.checkpoint.map_or("its beginning".to_owned(), |step| format!("step {step}"));
                let reason =
                    format!("the worker did not stop in time and was ended; the job goes on from {from}");
                return self.verdict(self.again(), Some(reason));
            }
            Some(Killed::Hung(_)) | None => {}
        }
        let stalls = if self.progressed() { 0 } else { self.stalls + 1 };
        let told = self.failure.map(|failure| trimmed(&failure.message));
        let why = told.map_or_else(|| format!("the worker {how}"), str::to_owned);
        if self.pauses() {
            return Verdict { stalls, ..self.verdict(State::Paused, Some(why)) };
        }
        if stalls >= MAX_STALLS {
            return Verdict {
                stalls,
                failure: Some(self.given_up(stalls, how)),
                ..self.verdict(State::Failed, None)
            };
        }
        if self.failure.is_some_and(|failure| matches!(failure.class.as_str(), "io" | "device")) {
            return self.later(stalls, &why);
        }
        let from = match (self.stage, self.checkpoint) {
            (Stage::Train, Some(step)) => format!(" from step {step}"),
            _ => String::new(),
        };
        let count =
            if stalls == 0 { String::new() } else { format!(" (attempt {} of {MAX_STALLS})", stalls + 1) };
        Verdict { stalls, ..self.verdict(self.again(), Some(format!("runs again{from}{count}: {why}"))) }
    }

    fn given_up(&self, stalls: u32, how: &str) -> Failure {
        let past = match (self.stage, self.checkpoint) {
            (Stage::Prepare, _) => " while its rows were read".to_owned(),
            (Stage::Train, Some(step)) => format!(" without getting past the checkpoint at step {step}"),
            (Stage::Train, None) => " before the first checkpoint".to_owned(),
        };
        if let Some(failure) = self.failure {
            let message = format!("{}; it was so {stalls} times in a row{past}", trimmed(&failure.message));
            return Failure { message, ..failure.clone() };
        }
        let hint = match self.exit {
            Exit::Signal(9) if self.killed.is_none() => {
                "the system kills a process so when memory runs out: its log (`dmesg`) would say so; \
                 `tunesmith logs` shows what the worker said last"
            }
            _ => {
                "`tunesmith logs` shows what the worker said last; `tunesmith retry` makes a new job of this one"
            }
        };
        Failure {
            class: "worker_lost".to_owned(),
            code: "worker_lost".to_owned(),
            message: format!("the worker ended {stalls} times in a row{past}; the last time it {how}"),
            hint: Some(hint.to_owned()),
        }
    }
}

impl Killed {
    pub(super) fn words(self) -> String {
        match self {
            Self::Hung(silence) => format!("no sign of life for {}", words::span(silence)),
            Self::Deaf => "did not stop as it was told".to_owned(),
            Self::Drained => "is to write a checkpoint".to_owned(),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(70) => f.write_str("ended with an internal error and without its result"),
            Self::Code(code) => write!(f, "ended with code {code} and without its result"),
            Self::Signal(signal) => write!(f, "was killed by {}", words::signal(*signal)),
            Self::Unknown => f.write_str("died unseen"),
            Self::NotStarted => f.write_str("did not start"),
        }
    }
}

/// A sentence without its full stop.
fn trimmed(sentence: &str) -> &str {
    sentence.trim().trim_end_matches('.')
}

#[cfg(test)]
mod tests;
