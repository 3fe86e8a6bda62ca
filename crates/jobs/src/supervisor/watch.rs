//! The looks at the workers, and what is done to those that need it.

use std::collections::HashSet;
use std::path::Path;

use super::worker::{self, Act, Look, Worker};
use super::{Launcher, Stage, Supervisor, close, process};
use crate::dir::{self, Control, Heartbeat};
use crate::store::Job;
use crate::{Error, State};

impl<L: Launcher> Supervisor<L> {
    /// Looks at every worker.
    pub(super) fn watch(&mut self) {
        for mut worker in std::mem::take(&mut self.workers) {
            let job = self.jobs.iter().find(|job| job.id == worker.id);
            let job =
                job.filter(|job| job.state == worker.stage.state() && job.fence == worker.fence).cloned();
            let Some(job) = job else {
                self.orphans.extend(worker.into_child());
                continue;
            };
            let subject = format!("job {}", job.id);
            match self.look_at(&mut worker, &job) {
                Ok(over) => {
                    self.voice.well(&subject);
                    if !over {
                        self.workers.push(worker);
                    }
                }
                Err(error) => {
                    self.voice.trouble(&subject, &error.to_string());
                    self.workers.push(worker);
                }
            }
        }
    }

    /// Looks at one worker; whether its attempt is over and written down.
    fn look_at(&mut self, worker: &mut Worker, job: &Job) -> Result<bool, Error> {
        let (dir, now) = (self.store.dir(&job.id), self.clock.now());
        if !dir.is_dir() {
            return self.gone(worker, job);
        }
        match worker.look(&dir, now, self.settings.start_grace)? {
            Look::Ended(exit) => return self.close(worker, exit),
            Look::Unclear => {}
            Look::Held => {
                self.store.ingest(&job.id)?;
                tell(&dir, job)?;
            }
            Look::Lives(_) => {
                self.store.ingest(&job.id)?;
                tell(&dir, job)?;
                let beat = Heartbeat::read(&dir);
                let act = match worker.press(job.desired, beat, now, &self.settings) {
                    None if self.stopping && Self::may_drain(worker, &dir) => worker.drain(now),
                    act => act,
                };
                if let Some(act) = act {
                    self.act(worker, &dir, act)?;
                }
            }
        }
        Ok(false)
    }

    /// Whether a worker is ours to stop when we stop: not a command that runs in somebody's terminal.
    fn may_drain(worker: &mut Worker, dir: &Path) -> bool {
        let fence = worker.fence;
        worker.child().is_some()
            || worker::identity(dir, fence).is_some_and(|worker| process::leads_session(worker.pid))
    }

    /// Does something to a worker, if it is surely the worker.
    fn act(&mut self, worker: &mut Worker, dir: &Path, act: Act) -> Result<(), Error> {
        let fence = worker.fence;
        let pid = match worker.child() {
            // Not reaped: the process id is still its own.
            Some(child) => child.id(),
            None => match worker::identity(dir, fence) {
                Some(identity) if !dir::is_free(dir)? && identity.is_alive() => identity.pid,
                _ => return Ok(()),
            },
        };
        let id = &worker.id;
        match act {
            Act::Terminate(why) => {
                self.voice.say(&format!("job {id}: {}; asked to end", why.words()));
                process::terminate(pid);
            }
            Act::Kill(why) => {
                self.voice.say(&format!("job {id}: {}; ended", why.words()));
                process::kill(pid);
                if let Some(child) = worker.child() {
                    // Where there are no groups.
                    let _ = child.kill();
                }
            }
        }
        Ok(())
    }

    /// Finds attempts that began before we did, and jobs that run in somebody's terminal.
    pub(super) fn find(&mut self) {
        let now = self.clock.now();
        let known: HashSet<&str> = self.workers.iter().map(|worker| worker.id.as_str()).collect();
        let mut found = Vec::new();
        for job in self.jobs.iter().filter(|job| !known.contains(job.id.as_str())) {
            let stage = match job.state {
                State::Running => Stage::Train,
                State::Validating if job.fence > 0 && !self.judged.contains(&(job.id.clone(), job.fence)) => {
                    Stage::Prepare
                }
                _ => continue,
            };
            let dir = self.store.dir(&job.id);
            let before = close::started(&dir, job.fence).map_or_else(
                || close::newest_checkpoint(&dir).max(job.checkpoint_step),
                |started| started.checkpoint_before,
            );
            found.push(Worker::found((&job.id, stage, job.fence), before, now));
        }
        self.workers.extend(found);
    }
}

/// Writes `control` anew if it does not say what the store says: whoever answered the request may have died before.
pub(super) fn tell(dir: &Path, job: &Job) -> Result<(), Error> {
    let wanted = Control { want: job.desired, generation: job.generation };
    match Control::read(dir) {
        // One that is newer than what we have read is on its way to us.
        Ok(control) if control == wanted || control.generation > wanted.generation => Ok(()),
        Ok(_) | Err(Error::Corrupt { .. }) => wanted.write(dir),
        Err(other) => Err(other),
    }
}
