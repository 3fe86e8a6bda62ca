//! A thread that writes checkpoints while the steps go on.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::retention::{Kept, Limits, excess, remove};
use super::write::{Written, write};
use super::{Adapter, Found, name};
use crate::{Error, Snapshot};

/// Told the places that a test may want to die at.
pub type Hook = Arc<dyn Fn(&str) + Send + Sync>;

/// Writes checkpoints on a thread of its own, one at a time, and removes those that are too many.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
    requests: Option<SyncSender<Request>>,
    results: Receiver<Result<Written, Error>>,
    thread: Option<JoinHandle<()>>,
    /// Requests without a result.
    pending: usize,
    /// Written and not told yet.
    done: VecDeque<Written>,
    /// The newest checkpoint that is written or asked for.
    newest: Option<Newest>,
}

#[derive(Debug, Clone, Copy)]
struct Newest {
    step: usize,
    epoch_end: bool,
    evaluated: bool,
}

impl Newest {
    fn of(snapshot: &Snapshot, epoch_end: bool) -> Self {
        let state = &snapshot.state;
        Self { step: state.step, epoch_end, evaluated: state.evaluated_step == Some(state.step) }
    }
}

struct Request {
    snapshot: Snapshot,
    epoch_end: bool,
}

impl CheckpointWriter {
    /// A writer into the directory of a job, in which `found` are the checkpoints so far.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn new(
        dir: &Path,
        adapter: Adapter,
        limits: Limits,
        found: &Found,
        hook: Hook,
    ) -> Result<Self, Error> {
        let kept = found.kept.clone();
        let newest = found.newest.as_ref().map(|(_, snapshot)| {
            let marked = kept.iter().any(|k| k.step == snapshot.state.step && k.epoch_end);
            Newest::of(snapshot, marked)
        });
        let (requests, incoming) = sync_channel::<Request>(1);
        let (outgoing, results) = channel();
        let mut keeper = Keeper { dir: dir.to_owned(), adapter, limits, kept, hook };
        let work = move || {
            while let Ok(request) = incoming.recv() {
                if outgoing.send(keeper.save(&request)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoints".to_owned()).spawn(work);
        let thread = Some(thread.map_err(Error::file("start a thread for", dir))?);
        let requests = Some(requests);
        Ok(Self { dir: dir.to_owned(), requests, results, thread, pending: 0, done: VecDeque::new(), newest })
    }

    /// Whether a checkpoint is being written, so that [`CheckpointWriter::save`] would wait.
    ///
    /// # Errors
    /// What kept an earlier checkpoint from being written.
    pub fn is_busy(&mut self) -> Result<bool, Error> {
        while self.pending > 0 {
            match self.results.try_recv() {
                Ok(result) => self.take(result)?,
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => return Err(self.died()),
            }
        }
        Ok(false)
    }

    /// Whether the newest checkpoint is of this step and says as much: that an epoch ends there, that the evaluation
    /// after it is made.
    pub fn has(&self, step: usize, epoch_end: bool, evaluated: bool) -> bool {
        self.newest.is_some_and(|newest| {
            newest.step == step && newest.epoch_end >= epoch_end && newest.evaluated >= evaluated
        })
    }

    /// Hands a checkpoint over to be written, after waiting for the one before.
    ///
    /// # Errors
    /// What kept an earlier checkpoint from being written.
    pub fn save(&mut self, snapshot: Snapshot, epoch_end: bool) -> Result<(), Error> {
        self.wait(&mut || {})?;
        let newest = Newest::of(&snapshot, epoch_end);
        let request = Request { snapshot, epoch_end };
        if self.requests.as_ref().is_none_or(|to| to.send(request).is_err()) {
            return Err(self.died());
        }
        self.newest = Some(newest);
        self.pending += 1;
        Ok(())
    }

    /// Waits until everything that was handed over is on the disk; `waiting` is called now and then.
    ///
    /// # Errors
    /// What kept a checkpoint from being written: a full disk, say, with the path.
    pub fn wait(&mut self, waiting: &mut dyn FnMut()) -> Result<(), Error> {
        while self.pending > 0 {
            match self.results.recv_timeout(Duration::from_millis(100)) {
                Ok(result) => self.take(result)?,
                Err(RecvTimeoutError::Timeout) => waiting(),
                Err(RecvTimeoutError::Disconnected) => return Err(self.died()),
            }
        }
        Ok(())
    }

    /// The next checkpoint that was written and has not been told yet.
    ///
    /// # Errors
    /// What kept a checkpoint from being written.
    pub fn next_written(&mut self) -> Result<Option<Written>, Error> {
        self.is_busy()?;
        Ok(self.done.pop_front())
    }

    fn take(&mut self, result: Result<Written, Error>) -> Result<(), Error> {
        self.pending -= 1;
        self.done.push_back(result?);
        Ok(())
    }

    fn died(&mut self) -> Error {
        self.pending = 0;
        Error::checkpoint(&self.dir, "cannot get checkpoints any more: their writer died".to_owned())
    }
}

/// Nothing may be written into a job's directory by a process that has let go of its lock.
impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Keeper {
    dir: PathBuf,
    adapter: Adapter,
    limits: Limits,
    kept: Vec<Kept>,
    hook: Hook,
}

impl Keeper {
    fn save(&mut self, request: &Request) -> Result<Written, Error> {
        let Request { snapshot, epoch_end } = request;
        let written = write(&self.dir, snapshot, *epoch_end, &self.adapter, self.hook.as_ref())?;
        self.kept.retain(|k| k.step != written.step);
        self.kept.push(Kept {
            step: written.step,
            epoch_end: *epoch_end,
            bytes: written.bytes,
            damaged: false,
        });
        self.kept.sort_unstable_by_key(|k| k.step);
        let best = snapshot.state.best.as_ref().map(|best| best.step);
        for step in excess(&self.kept, best, self.limits) {
            remove(&self.dir.join(name(step)))?;
            self.kept.retain(|k| k.step != step);
        }
        Ok(written)
    }
}
