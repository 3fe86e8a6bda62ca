//! A job that runs in this terminal, as the store sees it: its row, its device, its end.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tunesmith_jobs::dir::{Attempt, JobDir, JobResult, Status, Submission, is_disk_full};
use tunesmith_jobs::store::{AttemptEnd, Job, Started};
use tunesmith_jobs::{Answer, Desired, Error, State, Store, register, supervisor};

use super::{grid, supervise};
use crate::engine::{self, Stop, StopFlag};
use crate::error::CliError;
use crate::out;

/// How often it is looked whether the device is free.
const LOOK: Duration = Duration::from_millis(200);

/// Files by which a supervisor knows a job that runs; what is over needs them no more.
const WHILE_IT_RUNS: [&str; 3] = ["attempt.json", "heartbeat", "control"];

/// What the store knows of the job of this process.
pub(crate) struct Booking {
    home: PathBuf,
    /// None where the disk has no room for it: the job's directory is its truth, and a job goes on without.
    store: Option<Store>,
    id: String,
    /// Of what is being done.
    fence: u64,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// There is no row yet.
    Outside,
    Validating,
    Queued,
    Running,
}

impl Booking {
    /// Opens the store of a workspace.
    ///
    /// # Errors
    /// A store that cannot be used, unless it is for want of room.
    pub(crate) fn open(home: &Path) -> Result<Self, CliError> {
        let store = roomy(Store::open(home))?;
        Ok(Self { home: home.to_owned(), store, id: String::new(), fence: 0, stage: Stage::Outside })
    }

    /// Writes the job of a directory down, whose rows are read from now on.
    ///
    /// # Errors
    /// [`CliError::Cancelled`] when somebody was quick to cancel it.
    pub(crate) fn enter(&mut self, job: &JobDir, spec: &Value, stop: &Arc<StopFlag>) -> Result<(), CliError> {
        job.id().clone_into(&mut self.id);
        let Some(store) = &mut self.store else { return Ok(()) };
        if roomy(register(store, job.id(), spec, &Submission::default()))?.is_none() {
            self.store = None;
            return Ok(());
        }
        self.stage = Stage::Validating;
        tell_of_signals(&self.home, &self.id, stop);
        self.fence = store.begin_validation(&self.id)?.ok_or(CliError::Cancelled)?;
        Ok(())
    }

    /// Waits for a device, once the rows are read, and takes it.
    ///
    /// # Errors
    /// [`CliError::Cancelled`] by Ctrl-C or from elsewhere.
    pub(crate) fn take(
        &mut self,
        job: &JobDir,
        device: &str,
        stop: &StopFlag,
        quiet: bool,
    ) -> Result<Option<Started>, CliError> {
        let Some(store) = &mut self.store else { return Ok(None) };
        if !store.end_validation(&self.id, self.fence, State::Queued, &AttemptEnd::default())? {
            return Err(lost(store, &self.id));
        }
        self.stage = Stage::Queued;
        let mut said = None;
        loop {
            if stop.now() == Stop::Cancel {
                return Err(CliError::Cancelled);
            }
            let row = store.job(&self.id)?;
            if row.state == State::Cancelled {
                return Err(CliError::Cancelled);
            }
            let why = obstacle(store, &self.home, &row, device)?;
            if why.is_none()
                && let Some(started) = store.start(&self.id, device)?
            {
                self.stage = Stage::Running;
                self.fence = started.fence;
                let attempt = Attempt {
                    attempt: started.attempt,
                    fence: started.fence,
                    device: device.to_owned(),
                    micro_batch_divisor: started.micro_batch_divisor,
                };
                attempt.write(job.path())?;
                return Ok(Some(started));
            }
            if said != why && why.is_some() {
                // Whoever has the device may have died with it.
                supervise(&self.home)?;
                if let Some(why) = why.as_ref().filter(|_| !quiet) {
                    out::note(&format!("{why}; Ctrl-C cancels this job"));
                }
                said = why;
            }
            thread::sleep(LOOK);
        }
    }

    /// Fence of what is being done.
    pub(crate) fn fence(&self) -> u64 {
        self.fence
    }

    /// Leaves a job that stopped at a checkpoint to whoever resumes it.
    pub(crate) fn pause(&mut self) -> Result<(), CliError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        if self.stage != Stage::Running {
            // A job whose rows are not read stays as it is.
            return Ok(());
        }
        loop {
            let job = store.job(&self.id)?;
            if job.state != State::Running {
                return Ok(());
            }
            let to = match job.desired {
                Desired::Pause => State::Paused,
                // Somebody has thought better of it since.
                Desired::Run => State::Queued,
                Desired::Cancel => State::Cancelled,
            };
            let end = AttemptEnd { desired: Some(job.desired), ..AttemptEnd::default() };
            if store.end_attempt(&self.id, self.fence, to, &end)? {
                return Ok(());
            }
        }
    }

    /// Writes the end down. What the directory says counts, so trouble here is said and is no failure of the job.
    pub(crate) fn end(&mut self, job: &JobDir, result: &JobResult) {
        let written = match &mut self.store {
            Some(store) => close(store, &self.id, self.fence, self.stage, result),
            None => Ok(true),
        };
        match written {
            Ok(true) => {}
            Ok(false) => {
                out::note("note: the job store knows another end of this job; its directory has this one");
            }
            Err(error) => out::note(&format!(
                "note: the end of the job is in its directory, but the job store could not be written: {error}"
            )),
        }
        for name in WHILE_IT_RUNS {
            // One that stays does no harm.
            let _ = std::fs::remove_file(job.path().join(name));
        }
    }
}

/// Has the store know that the job is to be cancelled as soon as a signal says so: a process that is not left the time to
/// end it must not leave it to be gone on with.
fn tell_of_signals(home: &Path, id: &str, stop: &Arc<StopFlag>) {
    let (home, id, stop) = (home.to_owned(), id.to_owned(), Arc::clone(stop));
    thread::spawn(move || {
        while stop.now() != Stop::Cancel {
            thread::sleep(LOOK / 4);
        }
        // The end is written down by who does the work, or judged by this wish.
        let _ = Store::open(&home).and_then(|mut store| store.request(&id, Desired::Cancel));
    });
}

/// A store whose disk does not take it is none; that is said once.
fn roomy<T>(tried: Result<T, Error>) -> Result<Option<T>, CliError> {
    match tried {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.io().is_some_and(|e| is_disk_full(e) || e.kind() == ErrorKind::Other) => {
            out::note(&format!(
                "note: the job is not in the job store: {error}; `tunesmith doctor --rebuild` takes it in when there is room"
            ));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Somebody else has moved the job on.
fn lost(store: &Store, id: &str) -> CliError {
    match store.job(id) {
        Ok(job) if job.state == State::Cancelled => CliError::Cancelled,
        Ok(job) => CliError::Internal(format!("job {id} became {} under its process", job.state.as_str())),
        Err(error) => error.into(),
    }
}

/// What a job waits for; none when it may start.
fn obstacle(store: &Store, home: &Path, own: &Job, device: &str) -> Result<Option<String>, CliError> {
    if own.state == State::Paused {
        return Ok(Some(format!("job {} is paused; `tunesmith resume {}` lets it go on", own.id, own.id)));
    }
    if let Some(holder) = store.leases()?.get(device) {
        let name = store.job(holder).map(|job| format!(" ({})", grid::plain(&job.name))).unwrap_or_default();
        return Ok(Some(format!("waiting for {device}, which job {holder}{name} has")));
    }
    if supervisor::running(home)?.is_none() {
        // Nobody would start those that came before.
        return Ok(None);
    }
    // Jobs of earlier versions, to which the supervisor gives GPUs where there are any.
    let auto_takes = || (device != "cpu") == (engine::devices().len() > 1);
    let ahead = |job: &&Job| {
        job.state == State::Queued
            && job.desired == Desired::Run
            && (job.device_wanted == device || (job.device_wanted == "auto" && auto_takes()))
    };
    let live = store.live()?;
    let before = live.iter().take_while(|job| job.id != own.id).filter(ahead).count();
    Ok(match before {
        0 => None,
        1 => Some(format!("waiting behind 1 job for {device}")),
        many => Some(format!("waiting behind {many} jobs for {device}")),
    })
}

/// Ends the row; false if it has another end already.
fn close(store: &mut Store, id: &str, fence: u64, stage: Stage, result: &JobResult) -> Result<bool, Error> {
    let to = result.status.state();
    let end = AttemptEnd { result: Some(result.clone()), ..AttemptEnd::default() };
    let is_so = |store: &Store| Ok::<_, Error>(store.job(id)?.state == to);
    match stage {
        Stage::Outside => Ok(true),
        Stage::Validating => Ok(store.end_validation(id, fence, to, &end)? || is_so(store)?),
        Stage::Running => Ok(store.end_attempt(id, fence, to, &end)? || is_so(store)?),
        Stage::Queued if result.status == Status::Cancelled => {
            let (answer, _) = store.request(id, Desired::Cancel)?;
            Ok(matches!(answer, Answer::Moved(State::Cancelled, _) | Answer::Already))
        }
        // Waiting fails with the store alone, which is then not the place to write that down.
        Stage::Queued => Ok(false),
    }
}
