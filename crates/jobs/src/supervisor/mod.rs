//! The supervisor: starts workers, watches them, and says what follows when they end.
//!
//! One per workspace. It may die at any moment and be started again: what it knows is in the store and in the job
//! directories, and workers live on without it. It believes a worker dead only when the kernel says so: its lock is
//! free, and it is reaped or its process is gone. It kills only a process that holds the lock of its job and is by its
//! id, its start time and the machine's boot the very one that wrote `worker.json`, or its own child.
//!
//! No decision rests on the time of day: silence, graces and back-offs are counted on a clock of its own that stands
//! still with it, and back-offs are forgotten with it: after a restart everything is tried at once.

mod clock;
mod close;
mod lock;
mod log;
mod notice;
mod process;
mod schedule;
mod start;
pub mod verdict;
mod watch;
mod words;
mod worker;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clock::Clock;
use lock::Lock;
use log::Voice;
use notice::Notices;
use worker::Worker;

use crate::store::Job;
use crate::{Desired, Error, State, Store};

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

/// How the supervisor behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Time between two looks.
    pub poll: Duration,
    /// Silence after which a worker hangs.
    pub hang: Duration,
    /// Time between asking a worker to end and ending it.
    pub term_grace: Duration,
    /// Time that a worker has to follow a pause or a cancel before it is asked to end.
    pub stop_grace: Duration,
    /// Time that a worker has to take its job's lock, when another supervisor has started it.
    pub start_grace: Duration,
    /// Where jobs may compute: `cpu`, `cuda:N`. One job at a time on each.
    pub devices: Vec<String>,
    /// Time without anything to do after which it ends by itself; never, when absent.
    pub idle_exit: Option<Duration>,
    /// Whether it asks its workers for a checkpoint and waits for them when it is to end.
    pub drain: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(200),
            hang: Duration::from_mins(5),
            term_grace: Duration::from_secs(30),
            stop_grace: Duration::from_secs(5),
            start_grace: Duration::from_secs(5),
            devices: vec!["cpu".to_owned()],
            idle_exit: None,
            drain: false,
        }
    }
}

/// How a worker is started. Input, output and environment beyond what the command sets are the supervisor's.
pub trait Launcher {
    /// The command that runs a stage of the job in this directory.
    fn command(&self, dir: &Path, stage: Stage) -> Command;
}

/// The supervisor of a workspace.
pub struct Supervisor<L> {
    home: PathBuf,
    store: Store,
    settings: Settings,
    launcher: L,
    lock: Option<Lock>,
    clock: Clock,
    voice: Voice,
    notices: Notices,
    workers: Vec<Worker>,
    /// Children whose jobs are over or somebody else's; only to be reaped.
    orphans: Vec<Child>,
    /// Jobs that are not over, in their order, as of `version`.
    jobs: Vec<Job>,
    version: Option<i64>,
    /// Whether we have changed the store since `jobs` was read.
    dirty: bool,
    /// Whether jobs may be over whose commands are not run yet.
    news: bool,
    /// Jobs that wait for a while after trouble.
    waits: HashMap<String, Wait>,
    /// The attempts at reading rows that are judged: their jobs may be started again.
    judged: HashSet<(String, u64)>,
    /// Jobs that a command in a terminal holds, and since when it has been their turn.
    turns: HashMap<String, Duration>,
    /// Jobs that wait for a device that is not here.
    stuck: usize,
    stopping: bool,
}

/// A job's back-off.
#[derive(Debug, Clone, Copy)]
struct Wait {
    until: Duration,
    /// How often in a row.
    troubles: u32,
    /// A request since then ends it.
    generation: u64,
}

impl<L: Launcher> Supervisor<L> {
    /// Takes the workspace and opens its store.
    ///
    /// # Errors
    /// [`Error::Supervised`] when another process has the workspace, [`Error::Corrupt`] for a store that is damaged.
    pub fn new(home: &Path, settings: Settings, launcher: L) -> Result<Self, Error> {
        let lock = Lock::take(home)?;
        let store = open(home)?;
        // A look that comes late says nothing about the workers.
        let longest = (4 * settings.poll).max(Duration::from_millis(500));
        Ok(Self {
            home: home.to_owned(),
            store,
            settings,
            launcher,
            lock: Some(lock),
            clock: Clock::new(longest),
            voice: Voice::new(home),
            notices: Notices::default(),
            workers: Vec::new(),
            orphans: Vec::new(),
            jobs: Vec::new(),
            version: None,
            dirty: false,
            news: true,
            waits: HashMap::new(),
            judged: HashSet::new(),
            turns: HashMap::new(),
            stuck: 0,
            stopping: false,
        })
    }

    /// Has a line for each start and end of a job, and for trouble, given to `listener`. All of it is in
    /// `supervisor.log` too.
    pub fn listen(&mut self, listener: Box<dyn FnMut(&str) + Send>) {
        self.voice.listen(listener);
    }

    /// Supervises until `stop` is true or there was nothing to do for long enough. Trouble with the store or a disk is
    /// said and tried again. Workers live on, unless [`Settings::drain`] is set: then it waits for their checkpoints.
    pub fn run(&mut self, stop: &AtomicBool) {
        let mut idle_since = None;
        loop {
            if stop.load(Ordering::Relaxed) {
                if !self.settings.drain {
                    return;
                }
                self.stopping = true;
            }
            let ticked = self.tick();
            let now = self.clock.now();
            if let Err(error) = ticked {
                self.voice.trouble("the store", &error.to_string());
            } else {
                self.voice.well("the store");
                if self.stopping && !self.workers.iter().any(Worker::is_waited_for) {
                    return;
                }
            }
            if self.is_idle() {
                let since = *idle_since.get_or_insert(now);
                if self.settings.idle_exit.is_some_and(|limit| now.saturating_sub(since) >= limit) {
                    if self.leave() {
                        return;
                    }
                    idle_since = None;
                }
            } else {
                idle_since = None;
            }
            thread::sleep(self.settings.poll);
        }
    }

    /// One look at everything.
    fn tick(&mut self) -> Result<(), Error> {
        self.clock.tick();
        self.orphans.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.refresh()?;
        self.find();
        self.watch();
        self.refresh()?;
        if !self.stopping {
            self.settle()?;
            self.start()?;
        }
        let now = self.clock.now();
        for (id, said) in self.notices.watch(now) {
            self.voice.say(&format!("job {id}: {said}"));
        }
        self.notify()
    }

    /// Reads the jobs again if anybody has changed the store.
    fn refresh(&mut self) -> Result<(), Error> {
        let version = self.store.data_version()?;
        if self.version == Some(version) && !self.dirty {
            return Ok(());
        }
        self.jobs = self.store.live()?;
        (self.version, self.dirty, self.news) = (Some(version), false, true);
        let live: HashSet<&str> = self.jobs.iter().map(|job| job.id.as_str()).collect();
        self.waits.retain(|id, _| live.contains(id.as_str()));
        self.judged.retain(|(id, _)| live.contains(id.as_str()));
        self.turns.retain(|id, _| live.contains(id.as_str()));
        Ok(())
    }

    /// Runs the commands of jobs that are over.
    fn notify(&mut self) -> Result<(), Error> {
        if !self.news {
            return Ok(());
        }
        for (job, command) in self.store.notices()? {
            if !self.notices.has_room() {
                return Ok(());
            }
            if self.store.take_notice(&job.id)? {
                let (dir, now) = (self.store.dir(&job.id), self.clock.now());
                if let Err(error) = self.notices.start(&job, &dir, &command, now) {
                    self.voice.say(&format!("job {}: its command cannot be started: {error}", job.id));
                }
            }
        }
        self.news = false;
        Ok(())
    }

    /// Whether nothing happens, and nothing will unless somebody asks for it.
    fn is_idle(&self) -> bool {
        let waiting = self.jobs.iter().filter(|job| match job.state {
            State::Paused => true,
            State::Validating => job.desired == Desired::Pause,
            _ => false,
        });
        self.workers.is_empty()
            && self.orphans.is_empty()
            && self.notices.is_empty()
            && !(self.dirty || self.news)
            && waiting.count() + self.stuck == self.jobs.len()
    }

    /// Lets the workspace go, unless something came in that very moment: whoever made a job has seen that there is a
    /// supervisor, and has started none.
    fn leave(&mut self) -> bool {
        let version = self.version;
        self.lock = None;
        if self.store.data_version().is_ok_and(|now| Some(now) == version) {
            return true;
        }
        match Lock::take(&self.home) {
            Ok(lock) => self.lock = Some(lock),
            // Another one has come.
            Err(_) => return true,
        }
        false
    }
}

/// Opens the store; a damaged one is refused with what to do about it.
fn open(home: &Path) -> Result<Store, Error> {
    let advice = |error: Error| match error {
        Error::Corrupt { path, message } => Error::Corrupt {
            path,
            message: format!(
                "{message}; `tunesmith doctor --rebuild` makes it again from the job directories"
            ),
        },
        other => other,
    };
    let store = Store::open(home).map_err(advice)?;
    match store.problems().map_err(advice)?.into_iter().next() {
        None => Ok(store),
        Some(message) => Err(advice(Error::Corrupt { path: home.join("jobs.sqlite"), message })),
    }
}
