//! Which jobs start now, and how.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::close::{StartedAttempt, newest_checkpoint};
use super::schedule::{Choice, plan};
use super::watch::tell;
use super::worker::Worker;
use super::{Launcher, Stage, Supervisor, log};
use crate::dir::{self, Attempt, write_atomic};
use crate::store::{AttemptEnd, Job};
use crate::{Desired, Error, State, failpoint};

/// Most jobs whose rows are read at one time.
const READERS: usize = 2;

/// Length at which a job's log makes way for a new one, at the start of an attempt.
const LONGEST_LOG: u64 = 16 << 20;

/// How long a device is kept for a command in a terminal whose turn it is.
const TURN: Duration = Duration::from_secs(2);

const PAUSED: &str = "is to pause before its rows are read; `tunesmith resume` lets it go on";

impl<L: Launcher> Supervisor<L> {
    /// Ends what is to be cancelled and has no worker that could do it.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        let cancelled: Vec<Job> =
            self.idle_jobs().filter(|job| job.desired == Desired::Cancel).cloned().collect();
        for job in cancelled {
            let dir = self.store.dir(&job.id);
            // Who holds it follows the wish himself.
            if dir.is_dir() && !dir::is_free(&dir)? {
                continue;
            }
            self.dirty = true;
            let ended = if job.state == State::Validating {
                let Some(fence) = self.store.begin_validation(&job.id)? else { continue };
                let job = Job { fence, ..job.clone() };
                let result = Some(self.write_end(&job, State::Cancelled, None)?);
                let end = AttemptEnd { result, ..AttemptEnd::default() };
                self.store.end_validation(&job.id, fence, State::Cancelled, &end)?
            } else {
                let result = self.write_end(&job, State::Cancelled, None)?;
                self.store.cancel_waiting(&job.id, &result)?
            };
            if ended {
                self.voice.say(&format!("job {} ({}): cancelled", job.id, job.name));
            }
        }
        self.refresh()
    }

    /// Starts what may start, and says of the others why they wait.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        let mut reasons = HashMap::new();
        self.start_readers(&mut reasons);
        self.start_training(&mut reasons)?;
        let changed: Vec<(&str, Option<&str>)> = self
            .jobs
            .iter()
            .filter_map(|job| {
                let reason = reasons.get(&job.id).filter(|reason| job.reason.as_ref() != Some(reason))?;
                Some((job.id.as_str(), Some(reason.as_str())))
            })
            .collect();
        if !changed.is_empty() {
            self.dirty = true;
            self.store.set_reasons(changed)?;
        }
        Ok(())
    }

    fn start_readers(&mut self, reasons: &mut HashMap<String, String>) {
        let reading = |worker: &&Worker| worker.stage == Stage::Prepare;
        let mut readers = self.workers.iter().filter(reading).count();
        let mut behind = 0;
        let ready: Vec<Job> =
            self.idle_jobs().filter(|job| job.state == State::Validating).cloned().collect();
        for job in ready {
            match job.desired {
                Desired::Run => {}
                Desired::Cancel => continue,
                Desired::Pause => {
                    reasons.insert(job.id, PAUSED.to_owned());
                    continue;
                }
            }
            if self.waits_for_a_while(&job) || !self.is_startable(&job) {
                continue;
            }
            if readers < READERS {
                readers += 1;
                self.attempt(&job, Stage::Prepare, "cpu");
            } else {
                let reason = format!("its rows are read after those of {} other jobs", readers + behind);
                behind += 1;
                reasons.insert(job.id, reason);
            }
        }
    }

    fn start_training(&mut self, reasons: &mut HashMap<String, String>) -> Result<(), Error> {
        let queued = |job: &&Job| job.state == State::Queued && job.desired == Desired::Run;
        let waiting: Vec<Job> =
            self.idle_jobs().filter(queued).filter(|job| !self.waits_for_a_while(job)).cloned().collect();
        self.stuck = 0;
        if waiting.is_empty() {
            return Ok(());
        }
        let leases = self.store.leases()?;
        let mut waiting: Vec<&Job> = waiting.iter().collect();
        // A command in a terminal that has its turn takes the device itself; if it does not, it is passed over.
        let choices = loop {
            let choices = plan(&waiting, &self.settings.devices, &leases);
            let passed = waiting.iter().zip(&choices).position(|(job, choice)| {
                matches!(choice, Choice::Start(_)) && !self.is_startable(job) && self.has_missed_its_turn(job)
            });
            match passed {
                Some(place) => waiting.remove(place),
                None => break choices,
            };
        };
        for (job, choice) in waiting.into_iter().zip(choices) {
            match choice {
                Choice::Start(device) => {
                    if self.is_startable(job) {
                        self.attempt(job, Stage::Train, &device);
                    }
                }
                Choice::Wait(reason) => {
                    reasons.insert(job.id.clone(), reason);
                }
                Choice::NoDevice(reason) => {
                    self.stuck += 1;
                    reasons.insert(job.id.clone(), reason);
                }
            }
        }
        Ok(())
    }

    /// Jobs that nobody is known to work on, in their order.
    fn idle_jobs(&self) -> impl Iterator<Item = &Job> {
        let known: HashSet<&str> = self.workers.iter().map(|worker| worker.id.as_str()).collect();
        self.jobs.iter().filter(move |job| job.state != State::Running && !known.contains(job.id.as_str()))
    }

    /// Whether a job waits after trouble. A request of its user ends that.
    fn waits_for_a_while(&self, job: &Job) -> bool {
        let now = self.clock.now();
        self.waits.get(&job.id).is_some_and(|wait| now < wait.until && wait.generation == job.generation)
    }

    /// Whether nobody has the job: a command in a terminal may.
    fn is_startable(&mut self, job: &Job) -> bool {
        let dir = self.store.dir(&job.id);
        // One whose directory is gone is started too, and found out then.
        if !dir.is_dir() {
            return true;
        }
        dir::is_free(&dir).unwrap_or_else(|error| {
            self.voice.trouble(&format!("job {}", job.id), &error.to_string());
            false
        })
    }

    /// Whether a job that somebody holds has had its turn for long enough.
    fn has_missed_its_turn(&mut self, job: &Job) -> bool {
        let now = self.clock.now();
        let since = *self.turns.entry(job.id.clone()).or_insert(now);
        now.saturating_sub(since) >= TURN
    }

    /// Starts an attempt; what goes wrong is the job's, and does not keep others from starting.
    fn attempt(&mut self, job: &Job, stage: Stage, device: &str) {
        if let Err(error) = self.try_attempt(job, stage, device) {
            self.voice.trouble(&format!("job {}", job.id), &error.to_string());
        }
    }

    fn try_attempt(&mut self, job: &Job, stage: Stage, device: &str) -> Result<(), Error> {
        self.dirty = true;
        let (fence, attempt, divisor) = match stage {
            Stage::Prepare => match self.store.begin_validation(&job.id)? {
                Some(fence) => (fence, job.attempt, job.micro_batch_divisor),
                None => return Ok(()),
            },
            Stage::Train => match self.store.start(&job.id, device)? {
                Some(started) => (started.fence, started.attempt, started.micro_batch_divisor),
                None => return Ok(()),
            },
        };
        let dir = self.store.dir(&job.id);
        let job = Job { fence, state: stage.state(), ..job.clone() };
        let checkpoint_before = newest_checkpoint(&dir).max(job.checkpoint_step);
        let attempt = Attempt { attempt, fence, device: device.to_owned(), micro_batch_divisor: divisor };
        let started = StartedAttempt { attempt, checkpoint_before };
        match self.launch(&dir, &job, stage, &started) {
            Ok(child) => {
                let number = started.attempt.attempt;
                let what = match stage {
                    Stage::Prepare => "its rows are read".to_owned(),
                    Stage::Train => format!("attempt {number} runs on {device}"),
                };
                self.voice.say(&format!("job {} ({}): {what} by process {}", job.id, job.name, child.id()));
                let now = self.clock.now();
                self.workers.push(Worker::started((&job.id, stage, fence), checkpoint_before, child, now));
                Ok(())
            }
            Err(_) if !dir.is_dir() => {
                let mut worker = Worker::found((&job.id, stage, fence), None, self.clock.now());
                self.gone(&mut worker, &job).map(drop)
            }
            Err(error) => self.not_started(&job, stage, &error),
        }
    }

    fn launch(&self, dir: &Path, job: &Job, stage: Stage, started: &StartedAttempt) -> Result<Child, Error> {
        tell(dir, job)?;
        let path = dir.join("attempt.json");
        let text = serde_json::to_vec(started)
            .map_err(|e| Error::Json { path: path.clone(), message: e.to_string() })?;
        write_atomic(&path, &text)?;
        let path = dir.join("log");
        log::rotate(&path, LONGEST_LOG);
        let open = || File::options().create(true).append(true).open(&path);
        let (out, err) =
            open().and_then(|file| Ok((file.try_clone()?, file))).map_err(Error::at("create", &path))?;
        let mut command = self.launcher.command(dir, stage);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        failpoint::hit("supervisor:before_spawn");
        let program = Path::new(command.get_program()).to_owned();
        let child = command.spawn().map_err(Error::at("start", &program))?;
        failpoint::hit("supervisor:after_spawn");
        Ok(child)
    }
}
