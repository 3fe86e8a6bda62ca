//! A workspace under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tunesmith_jobs::dir::{Control, JobResult, Submission, WorkerIdentity};
use tunesmith_jobs::store::Job;
use tunesmith_jobs::supervisor::{Settings, Supervisor};
use tunesmith_jobs::{Answer, Desired, State, Store, submit};

use crate::fake::{Fake, again, settings};

pub(crate) struct Bench {
    home: tempfile::TempDir,
    pub(crate) store: Store,
    /// The supervisor that runs in this process.
    here: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        Self { home, store, here: None }
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn dir(&self, id: &str) -> PathBuf {
        self.store.dir(id)
    }

    /// Makes a job whose workers do `train`, a word for each start.
    pub(crate) fn job(&mut self, train: &[&str]) -> String {
        self.job_with("cpu", &json!({ "train": train }), &Submission::default())
    }

    pub(crate) fn job_with(&mut self, device: &str, fake: &Value, submission: &Submission) -> String {
        let spec =
            json!({ "base": "b", "name": "n", "device": device, "data": { "train": "t" }, "fake": fake });
        submit(&mut self.store, &spec, submission).unwrap().job.id
    }

    /// A supervisor in a thread.
    pub(crate) fn supervise(&mut self) {
        self.supervise_with(settings());
    }

    pub(crate) fn supervise_with(&mut self, settings: Settings) {
        assert!(self.here.is_none());
        let stop = Arc::new(AtomicBool::new(false));
        let (home, seen) = (self.home().to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || Supervisor::new(&home, settings, Fake).unwrap().run(&seen));
        self.here = Some((stop, thread));
    }

    /// Ends the supervisor of [`Bench::supervise`]; its workers live on.
    pub(crate) fn leave(&mut self) {
        let (stop, thread) = self.here.take().unwrap();
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }

    /// Waits until the supervisor of [`Bench::supervise`] has gone by itself.
    pub(crate) fn gone(&mut self) {
        self.until(|bench| bench.here.as_ref().unwrap().1.is_finished());
        self.leave();
    }

    /// A supervisor in a process of its own.
    pub(crate) fn process(&self, prepare: impl FnOnce(&mut Command)) -> Killed {
        let mut command = again("supervisor");
        command.env("TUNESMITH_TEST_DIR", self.home());
        prepare(&mut command);
        let log = fs::File::options().create(true).append(true).open(self.home().join("stdio")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Killed(command.spawn().unwrap())
    }

    pub(crate) fn get(&self, id: &str) -> Job {
        self.store.job(id).unwrap()
    }

    /// Waits until something is so.
    pub(crate) fn until(&self, what: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !what(self) {
            if started.elapsed() > Duration::from_secs(30) {
                let read = |name: &str| fs::read_to_string(self.home().join(name)).unwrap_or_default();
                let jobs = self.store.list(tunesmith_jobs::store::Filter::default()).unwrap();
                panic!("waited in vain\n{}\n{}\n{jobs:#?}", read("supervisor.log"), read("stdio"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn until_state(&self, id: &str, state: State) -> Job {
        self.until(|bench| {
            let now = bench.get(id).state;
            assert!(now == state || !now.is_terminal(), "{now:?}: {:?}\n{:?}", bench.get(id), bench.said());
            now == state
        });
        self.get(id)
    }

    /// Waits until the job's reason holds these words.
    pub(crate) fn until_reason(&self, id: &str, words: &str) {
        self.until(|bench| bench.get(id).reason.is_some_and(|reason| reason.contains(words)));
    }

    /// Asks something of a job, as the commands do.
    pub(crate) fn ask(&mut self, id: &str, wish: Desired) {
        let (answer, job) = self.store.request(id, wish).unwrap();
        if let Answer::Wished(want) = answer {
            Control { want, generation: job.generation }.write(&self.dir(id)).unwrap();
        }
    }

    /// Lets slow workers of a job come to their end.
    pub(crate) fn go(&self, id: &str) {
        fs::write(self.dir(id).join("go"), "").unwrap();
    }

    /// How often a stage of a job was started.
    pub(crate) fn starts(&self, id: &str, stage: &str) -> usize {
        fs::read_to_string(self.dir(id).join(format!("starts-{stage}")))
            .map_or(0, |text| text.lines().count())
    }

    /// The process that says that it has the job.
    pub(crate) fn worker(&self, id: &str) -> Option<WorkerIdentity> {
        WorkerIdentity::read(&self.dir(id)).unwrap()
    }

    /// Waits for a worker of the newest attempt that trains and has done a step.
    pub(crate) fn until_at_work(&self, id: &str) -> WorkerIdentity {
        self.until(|bench| {
            let job = bench.get(id);
            job.state == State::Running
                && bench.worker(id).is_some_and(|worker| worker.fence == job.fence && worker.is_alive())
                && fs::read_to_string(bench.dir(id).join("events.jsonl"))
                    .is_ok_and(|text| text.contains("\"step\""))
        });
        self.worker(id).unwrap()
    }

    pub(crate) fn result(&self, id: &str) -> JobResult {
        serde_json::from_str(&fs::read_to_string(self.dir(id).join("result.json")).unwrap()).unwrap()
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.home().join("supervisor.log")).unwrap_or_default()
    }

    /// What holds for every job that is over, whatever happened to it.
    pub(crate) fn check(&self, id: &str, state: State) {
        let job = self.get(id);
        assert_eq!(job.state, state, "{:?}\n{}", job, self.said());
        let ends = self.store.history(id).unwrap().iter().filter(|t| t.new.is_terminal()).count();
        assert_eq!((ends, job.device), (1, None));
        // The directory and the store tell the same.
        let result = self.result(id);
        assert_eq!((result.status.state(), result.fence), (state, job.fence));
        assert_eq!(job.result.unwrap(), result);
        // Each event is there once.
        let events = fs::read_to_string(self.dir(id).join("events.jsonl")).unwrap_or_default();
        let stored = self.store.events(id, 0, usize::MAX).unwrap();
        let numbers: Vec<u64> = stored.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=events.lines().count() as u64).collect::<Vec<_>>());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.here.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
        // No worker outlives its test.
        for job in self.store.live().unwrap_or_default() {
            if let Some(worker) = self.worker(&job.id).filter(WorkerIdentity::is_alive) {
                signal(worker.pid, Signal::KILL);
            }
        }
    }
}

/// A process that does not outlive its test.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
