//! The end of an attempt: what is known of it is gathered, judged and written down.

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::verdict::{Ended, Exit, Verdict, judge};
use super::worker::Worker;
use super::{Launcher, Stage, Supervisor, Wait};
use crate::dir::control::read_json;
use crate::dir::{self, Attempt, AttemptFailure, Failure, JobDir, JobResult, Status, rfc3339, rfc3339_now};
use crate::store::{AttemptEnd, Job};
use crate::{Error, State, failpoint};

/// `attempt.json` as we write it: with what we need to judge the attempt when another supervisor does.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StartedAttempt {
    #[serde(flatten)]
    pub(super) attempt: Attempt,
    /// Step of the newest checkpoint when it began.
    #[serde(default)]
    pub(super) checkpoint_before: Option<u64>,
}

impl<L: Launcher> Supervisor<L> {
    /// Judges an attempt that has ended and writes the verdict down; false if it must be judged again.
    pub(super) fn close(&mut self, worker: &Worker, exit: Exit) -> Result<bool, Error> {
        failpoint::hit("supervisor:before_verdict");
        self.store.ingest(&worker.id)?;
        // As it is now, not as it was at the last look: the wish decides.
        let job = self.store.job(&worker.id)?;
        self.dirty = true;
        if job.state != worker.stage.state() || job.fence != worker.fence {
            return Ok(true);
        }
        let dir = self.store.dir(&job.id);
        let result: Option<JobResult> = self.believed(&job, read_json(&dir.join("result.json")))?;
        let result = result.filter(|result| result.fence == job.fence);
        let failure = self.believed(&job, AttemptFailure::read(&dir))?;
        let failure = failure.filter(|failure| failure.fence == job.fence).map(|failure| failure.error);
        let ended = Ended {
            stage: worker.stage,
            exit,
            killed: worker.killed(),
            result: result.as_ref(),
            failure: failure.as_ref(),
            prepared: dir.join("data/manifest.json").exists(),
            desired: job.desired,
            checkpoint_before: worker.checkpoint_before,
            checkpoint: newest_checkpoint(&dir).max(job.checkpoint_step),
            stalls: job.stalls,
            divisor: job.micro_batch_divisor,
            troubles: self.waits.get(&job.id).map_or(0, |wait| wait.troubles),
        };
        let verdict = judge(&ended);
        let result = result.filter(|result| result.status.state() == verdict.state);
        self.settle_attempt(&job, worker.stage, verdict, result)
    }

    /// Ends an attempt that could not even be started.
    pub(super) fn not_started(&mut self, job: &Job, stage: Stage, error: &Error) -> Result<(), Error> {
        let full = error.io().is_some_and(crate::dir::is_disk_full);
        let dir = self.store.dir(&job.id);
        let failure = Failure {
            // What hinders a process from starting is the machine's trouble, and waited for like a device.
            class: if full { "io" } else { "device" }.to_owned(),
            code: if full { "disk_full" } else { "worker_not_started" }.to_owned(),
            message: error.to_string(),
            hint: None,
        };
        let ended = Ended {
            stage,
            exit: Exit::NotStarted,
            killed: None,
            result: None,
            failure: Some(&failure),
            prepared: false,
            desired: job.desired,
            checkpoint_before: None,
            checkpoint: newest_checkpoint(&dir),
            stalls: job.stalls,
            divisor: job.micro_batch_divisor,
            troubles: self.waits.get(&job.id).map_or(0, |wait| wait.troubles),
        };
        let verdict = judge(&ended);
        self.settle_attempt(job, stage, verdict, None).map(drop)
    }

    /// Ends the attempt of a job whose directory is not there any more.
    pub(super) fn gone(&mut self, worker: &mut Worker, job: &Job) -> Result<bool, Error> {
        if let Some(child) = worker.child() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let dir = self.store.dir(&job.id);
        let failure = Failure {
            class: "io".to_owned(),
            code: "io_error".to_owned(),
            message: format!("the job's directory `{}` is gone", dir.display()),
            hint: Some("`tunesmith create` makes the job again from its file".to_owned()),
        };
        let verdict = Verdict {
            state: State::Failed,
            reason: None,
            stalls: job.stalls,
            divisor: job.micro_batch_divisor,
            wait: None,
            failure: Some(failure),
        };
        self.dirty = true;
        self.settle_attempt(job, worker.stage, verdict, None)
    }

    /// Writes a verdict down: first in the job's directory, which is the truth, then in the store.
    fn settle_attempt(
        &mut self,
        job: &Job,
        stage: Stage,
        verdict: Verdict,
        result: Option<JobResult>,
    ) -> Result<bool, Error> {
        let Verdict { state, reason, stalls, divisor, wait, failure } = verdict;
        let result = match state {
            State::Failed | State::Cancelled if result.is_none() => {
                Some(self.write_end(job, state, failure)?)
            }
            _ => result,
        };
        let end = AttemptEnd {
            reason: reason.clone(),
            // An end is one whatever is wanted; all else was judged by the wish.
            desired: (!state.is_terminal()).then_some(job.desired),
            result,
            micro_batch_divisor: Some(divisor),
            stalls: Some(stalls),
        };
        self.dirty = true;
        let closed = match stage {
            Stage::Prepare => self.store.end_validation(&job.id, job.fence, state, &end)?,
            Stage::Train => self.store.end_attempt(&job.id, job.fence, state, &end)?,
        };
        failpoint::hit("supervisor:after_verdict");
        if !closed {
            return Ok(false);
        }
        if state == State::Validating {
            self.judged.insert((job.id.clone(), job.fence));
        }
        if let Some(wait) = wait {
            let troubles = self.waits.get(&job.id).map_or(0, |wait| wait.troubles) + 1;
            let until = self.clock.now() + wait;
            self.waits.insert(job.id.clone(), Wait { until, troubles, generation: job.generation });
        } else {
            self.waits.remove(&job.id);
        }
        let error = end.result.as_ref().and_then(|result| result.error.as_ref());
        let why = reason.or_else(|| error.map(|error| error.message.clone()));
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        self.voice.say(&format!("job {} ({}): {}{why}", job.id, job.name, state.as_str()));
        Ok(true)
    }

    /// Makes the result of a job that the worker did not end itself, and writes it into the job's directory. Where that
    /// cannot be done the store alone has it, so that the end is not held up by a full disk.
    pub(super) fn write_end(
        &mut self,
        job: &Job,
        state: State,
        error: Option<Failure>,
    ) -> Result<JobResult, Error> {
        let status = if state == State::Cancelled { Status::Cancelled } else { Status::Error };
        let path = self.store.dir(&job.id);
        let mut result = JobResult::new(&job.id, &job.name, status, path.clone());
        let started = job.started_ms.unwrap_or(job.created_ms);
        let started = UNIX_EPOCH + Duration::from_millis(u64::try_from(started).unwrap_or_default());
        (result.fence, result.attempt) = (job.fence, job.attempt);
        result.started_at = rfc3339(started);
        result.finished_at = rfc3339_now();
        result.seconds = dir::now().duration_since(started).unwrap_or_default().as_secs_f64();
        result.steps = job.progress.step as usize;
        result.total_steps = job.progress.total_steps as usize;
        result.train_loss = job.progress.train_loss;
        result.initial_validation_loss = job.progress.initial_validation_loss;
        result.validation_loss = job.progress.validation_loss;
        result.error = error;
        match JobDir::open(&path).and_then(|held| held.write_result(&result)) {
            // Somebody has the job: it is not over.
            Err(error @ Error::Busy { .. }) => Err(error),
            Err(error) => {
                self.voice.say(&format!("job {}: its result cannot be written: {error}", job.id));
                Ok(result)
            }
            Ok(()) => Ok(result),
        }
    }

    /// What a file says; one that is damaged says nothing.
    fn believed<T>(&mut self, job: &Job, read: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
        match read {
            Err(error @ Error::Corrupt { .. }) => {
                self.voice.say(&format!("job {}: {error}", job.id));
                Ok(None)
            }
            read => read,
        }
    }
}

/// Step of the newest checkpoint in a job's directory. A directory has its name only once it is whole.
pub(super) fn newest_checkpoint(dir: &Path) -> Option<u64> {
    let entries = fs::read_dir(dir).ok()?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("ckpt-")?.parse().ok()).max()
}

/// `attempt.json`, if it is this attempt's.
pub(super) fn started(dir: &Path, fence: u64) -> Option<StartedAttempt> {
    let started: StartedAttempt = read_json(&dir.join("attempt.json")).ok()??;
    (started.attempt.fence == fence).then_some(started)
}
