//! A workspace of its own, a job that takes 40 short steps, and what it has to come to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tunesmith_jobs::dir::{WorkerIdentity, is_disk_full};
use tunesmith_jobs::store::{Filter, Job};
use tunesmith_jobs::{State, Store};

/// Longest time that jobs may take to end.
pub(crate) const PATIENCE: Duration = Duration::from_mins(5);

/// Accumulation, dropout and evaluation, all of them on; a checkpoint after each step.
const JOB: &str = r#"
device = "cpu"
[data]
train = "rows.jsonl"
validation_split = 0.2
max_seq_length = 64
[lora]
r = 2
lora_dropout = 0.1
target_modules = ["q_proj", "v_proj"]
[train]
epochs = 4
batch_size = 8
micro_batch_size = 2
evals_per_epoch = 2
save_steps = 1
save_total_limit = 2
"#;

/// Marsaglia's xorshift: the same seed gives the same faults again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// What a run leaves: the adapter's bytes, and the loss of each step and evaluation as the text it was written as.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) adapter: Vec<u8>,
    pub(crate) losses: Vec<(String, u64, String)>,
}

impl Outcome {
    /// Reads a job directory.
    pub(crate) fn of(job: &Path) -> Self {
        let mut losses = BTreeMap::new();
        for line in fs::read_to_string(job.join("events.jsonl")).unwrap().lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            let kind = event["type"].as_str().unwrap();
            if kind == "step" || kind == "evaluation" {
                let key = (kind.to_owned(), event["data"]["step"].as_u64().unwrap());
                let loss = event["data"]["loss"].to_string();
                // A step that was done twice was done the same.
                if let Some(before) = losses.insert(key.clone(), loss.clone()) {
                    assert_eq!(before, loss, "{key:?}");
                }
            }
        }
        let adapter = fs::read(job.join("adapter/adapter_model.safetensors")).unwrap();
        Self { adapter, losses: losses.into_iter().map(|((kind, step), loss)| (kind, step, loss)).collect() }
    }
}

/// A scratch directory with rows, a job file and a home; what runs in it is killed at the end.
pub(crate) struct Workspace {
    dir: tempfile::TempDir,
    supervisor: Option<Child>,
    /// Set for every process that is started.
    pub(crate) environment: Vec<(String, String)>,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows = (0..100).fold(String::new(), |text, i| {
            let row =
                format!("{{\"prompt\": \"Where is order {i}?\", \"completion\": \"Order {i} is here.\"}}\n");
            text + &row
        });
        fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/support-base-4m");
        fs::write(dir.path().join("job.toml"), format!("base = '{}'\n{JOB}", base.display())).unwrap();
        Self { dir, supervisor: None, environment: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    pub(crate) fn job_dir(&self, id: &str) -> PathBuf {
        self.home().join("jobs").join(id)
    }

    fn command_in(&self, home: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        command.args(args).current_dir(self.dir.path()).env("TUNESMITH_HOME", home).stdin(Stdio::null());
        command
    }

    /// The program, in this workspace.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.command_in(&self.home(), args);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the program to its end; its standard output.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let ran = self.command(args).output().unwrap();
        assert!(ran.status.success(), "{args:?}: {ran:?}");
        String::from_utf8(ran.stdout).unwrap()
    }

    /// The run that nobody touches, in a home of its own.
    pub(crate) fn reference(&self) -> Outcome {
        let home = self.path("reference");
        let ran = self.command_in(&home, &["train", "job.toml", "--quiet"]).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let job = fs::read_dir(home.join("jobs")).unwrap().next().unwrap().unwrap().path();
        let outcome = Outcome::of(&job);
        assert_eq!(outcome.losses.iter().filter(|(kind, ..)| kind == "step").count(), 40);
        outcome
    }

    /// Starts a supervisor, after the end of the one before.
    pub(crate) fn supervise(&mut self) {
        self.stop_supervising();
        let log = fs::File::options().create(true).append(true).open(self.path("serve.log")).unwrap();
        let mut command = self.command(&["serve", "--device", "cpu"]);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.supervisor = Some(child);
    }

    /// The supervisor's process id.
    pub(crate) fn supervisor(&self) -> Option<u32> {
        self.supervisor.as_ref().map(Child::id)
    }

    /// Whether it is there still.
    pub(crate) fn supervisor_lives(&mut self) -> bool {
        self.supervisor.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Kills the supervisor, if there is one, and waits for its end.
    pub(crate) fn stop_supervising(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Makes a job; its id.
    pub(crate) fn create(&self, name: &str, more: &[&str]) -> String {
        let args = ["create", name, "--config", "job.toml", "-y", "--json"];
        let object: Value = serde_json::from_str(&self.run(&[&args, more].concat())).unwrap();
        let id = object["id"].as_str().unwrap();
        assert!(id.starts_with("ftjob-"), "{object}");
        id.to_owned()
    }

    /// Every job as the store has it, with what its events tell by now.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let mut store = Store::open(&self.home()).unwrap();
        store.ingest_live().unwrap();
        store.list(Filter::default()).unwrap()
    }

    /// One job of them.
    pub(crate) fn job(&self, id: &str) -> Job {
        let mut store = Store::open(&self.home()).unwrap();
        if let Err(error) = store.ingest(id) {
            assert!(error.io().is_some_and(is_disk_full), "{error}");
        }
        store.job(id).unwrap()
    }

    /// Waits until a job is as told.
    #[track_caller]
    pub(crate) fn wait(&self, id: &str, what: &str, is: impl Fn(&Job) -> bool) -> Job {
        let started = Instant::now();
        loop {
            let job = self.job(id);
            if is(&job) {
                return job;
            }
            let log = || fs::read_to_string(self.job_dir(id).join("log")).unwrap_or_default();
            let served = || fs::read_to_string(self.path("serve.log")).unwrap_or_default();
            assert!(started.elapsed() < PATIENCE, "never {what}: {job:?}\n{}\n{}", log(), served());
            assert!(!job.state.is_terminal(), "never {what}: {job:?}\n{}\n{}", log(), served());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a job is over.
    #[track_caller]
    pub(crate) fn wait_for_end(&self, id: &str) -> Job {
        self.wait(id, "over", |job| job.state.is_terminal())
    }

    /// Holds a job to what every job must be at its end, and to the reference.
    #[track_caller]
    pub(crate) fn judge(&self, job: &Job, reference: &Outcome) {
        let store = Store::open(&self.home()).unwrap();
        let dir = self.job_dir(&job.id);
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        let history = store.history(&job.id).unwrap();
        assert_eq!(job.state, State::Succeeded, "{}: {:?} {history:?}\n{log}", job.id, job.reason);
        assert_eq!(history.iter().filter(|t| t.new.is_terminal()).count(), 1, "{history:?}");
        assert_eq!(&Outcome::of(&dir), reference, "{} after {} attempts", job.id, job.attempt);
        // Every line of the log was taken in once.
        let lines = fs::read_to_string(dir.join("events.jsonl")).unwrap().lines().count();
        let events = store.events(&job.id, 0, usize::MAX >> 1).unwrap();
        assert_eq!(events.len(), lines);
        assert!(events.iter().enumerate().all(|(i, e)| e.seq == i as u64 + 1));
        let names = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let rest: Vec<String> = names.filter(|name| name.contains(".tmp")).collect();
        assert!(rest.is_empty(), "{}: {rest:?}", job.id);
    }

    /// The worker of a job, while it lives.
    pub(crate) fn worker(&self, id: &str) -> Option<u32> {
        let worker = WorkerIdentity::read(&self.job_dir(id)).ok()??;
        worker.is_alive().then_some(worker.pid)
    }

    /// Kills every worker that lives.
    pub(crate) fn kill_workers(&self) {
        for entry in fs::read_dir(self.home().join("jobs")).into_iter().flatten().flatten() {
            if let Some(pid) = self.worker(&entry.file_name().to_string_lossy()) {
                kill(pid, "KILL");
            }
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.stop_supervising();
        // Workers outlive their supervisor.
        self.kill_workers();
    }
}

/// Sends a signal.
pub(crate) fn kill(pid: u32, signal: &str) {
    let mut command = Command::new("kill");
    let status = command.args([&format!("-{signal}"), &pid.to_string()]).stderr(Stdio::null()).status();
    assert!(status.is_ok(), "there is no `kill`");
}
