//! The processes of the tests: a worker that does as its job's spec says, and a supervisor that can be killed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, abort};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use tunesmith_jobs::dir::{
    Attempt, AttemptFailure, Control, Failure, Heartbeat, JobDir, JobResult, SpecFile, Status, WorkerIdentity,
};
use tunesmith_jobs::supervisor::{Launcher, Settings, Stage, Supervisor};
use tunesmith_jobs::{Desired, Error};

/// Starts this program as a worker.
pub(crate) struct Fake;

impl Launcher for Fake {
    fn command(&self, dir: &Path, stage: Stage) -> Command {
        let mut command = again("worker");
        command.env("TUNESMITH_TEST_DIR", dir).env("TUNESMITH_TEST_STAGE", stage.as_str());
        command.env_remove("TUNESMITH_FAIL");
        command
    }
}

/// This program again, in a role.
pub(crate) fn again(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["entry", "--exact", "--nocapture"]).env("TUNESMITH_TEST_ROLE", role);
    command
}

/// What tests change of the settings.
pub(crate) fn settings() -> Settings {
    Settings {
        poll: Duration::from_millis(10),
        hang: Duration::from_secs(20),
        term_grace: Duration::from_millis(200),
        stop_grace: Duration::from_secs(10),
        start_grace: Duration::from_millis(500),
        devices: ["cpu", "cuda:0", "cuda:1", "cuda:2"].map(str::to_owned).into(),
        ..Settings::default()
    }
}

/// A supervisor in a process of its own, until SIGTERM.
pub(crate) fn supervisor() {
    let stop = on_termination();
    let home = PathBuf::from(std::env::var_os("TUNESMITH_TEST_DIR").unwrap());
    let drain = std::env::var_os("TUNESMITH_TEST_DRAIN").is_some();
    let mut supervisor = Supervisor::new(&home, Settings { drain, ..settings() }, Fake).unwrap();
    supervisor.run(&stop);
    exit(0);
}

/// A worker: what it does is in its spec, a word for each start.
pub(crate) fn worker() {
    let _ = rustix::process::setsid();
    let dir = PathBuf::from(std::env::var_os("TUNESMITH_TEST_DIR").unwrap());
    let stage = std::env::var("TUNESMITH_TEST_STAGE").unwrap();
    let Ok(job) = JobDir::open(&dir) else { exit(70) };
    let attempt = Attempt::read(&dir).unwrap().unwrap();
    WorkerIdentity::own(attempt.fence).write(&dir).unwrap();
    let starts = append(&dir.join(format!("starts-{stage}")), &format!("{}\n", attempt.fence));
    if stage == "train" {
        append(&dir.join("../../order"), &format!("{}\n", job.id()));
    }
    let spec: SpecFile<Value> = SpecFile::read(&dir).unwrap();
    let fake = &spec.spec["fake"];
    let words = fake[&stage].as_array().cloned().unwrap_or_default();
    let word = words.get(starts - 1).or(words.last()).and_then(Value::as_str).unwrap_or("ok").to_owned();
    let stop = on_termination();
    let mut run = Run { job, dir, attempt, stop, beats: 0, steps: fake["steps"].as_u64().unwrap_or(4) };
    if stage == "prepare" { run.prepare(&word) } else { run.train(&word) }
}

struct Run {
    job: JobDir,
    dir: PathBuf,
    attempt: Attempt,
    stop: Arc<AtomicBool>,
    beats: u64,
    steps: u64,
}

impl Run {
    fn prepare(&mut self, word: &str) {
        self.common(word);
        if word == "slow" {
            while !self.dir.join("go").exists() {
                self.beat();
                match self.wanted(word) {
                    Desired::Run => {}
                    Desired::Pause => exit(75),
                    Desired::Cancel => self.end(Status::Cancelled, None, 130),
                }
            }
        }
        fs::create_dir_all(self.dir.join("data")).unwrap();
        tunesmith_jobs::dir::write_atomic(&self.dir.join("data/manifest.json"), b"{}").unwrap();
        exit(0);
    }

    fn train(&mut self, word: &str) {
        self.common(word);
        let mut log = self.job.events().unwrap();
        let from = checkpoints(&self.dir).max().unwrap_or(0);
        if from > 0 {
            log.append(&json!({ "type": "resumed", "data": { "step": from } })).unwrap();
        }
        let endless = matches!(word, "slow" | "deaf");
        for step in from + 1.. {
            let over = if endless { self.dir.join("go").exists() } else { step > self.steps };
            if over {
                break;
            }
            let data = json!({ "step": step, "total_steps": self.steps, "loss": 1.0 });
            log.append(&json!({ "type": "step", "data": data })).unwrap();
            self.beat();
            if word == "crash" {
                abort();
            }
            let wanted = self.wanted(word);
            if wanted == Desired::Cancel {
                self.end(Status::Cancelled, None, 130);
            }
            if wanted == Desired::Pause || step % 2 == 0 || word == "progress" {
                fs::create_dir(self.dir.join(format!("ckpt-{step:08}.tmp"))).unwrap();
                fs::rename(
                    self.dir.join(format!("ckpt-{step:08}.tmp")),
                    self.dir.join(format!("ckpt-{step:08}")),
                )
                .unwrap();
                log.append(&json!({ "type": "checkpoint", "data": { "step": step } })).unwrap();
            }
            match (wanted, word) {
                (Desired::Pause, _) => exit(75),
                (_, "progress") => abort(),
                _ => {}
            }
        }
        self.end(Status::Success, None, 0);
    }

    /// What either stage may do.
    fn common(&mut self, word: &str) {
        match word {
            "die" => abort(),
            "oom" => self.fail("memory", "insufficient_memory", "needs 9 GB, 8 GB are free", 69),
            "device" => self.fail("device", "device_missing", "cuda:0 is gone", 69),
            "disk_full" => self.fail("io", "disk_full", "cannot write `x`: the disk is full", 74),
            "bad" => {
                let failure = failure("data", "invalid_file_format", "line 3 is no row");
                self.end(Status::Error, Some(failure), 65);
            }
            "stopped" => {
                self.beat();
                let own = rustix::process::getpid();
                rustix::process::kill_process(own, rustix::process::Signal::STOP).unwrap();
                sleep(Duration::from_mins(1));
            }
            "old" => {
                self.attempt.fence -= 1;
                self.write_result(Status::Success, None);
                abort();
            }
            _ => {}
        }
    }

    fn beat(&mut self) {
        self.beats += 1;
        Heartbeat::open(&self.dir).unwrap().beat(self.beats).unwrap();
        sleep(Duration::from_millis(5));
    }

    fn wanted(&self, word: &str) -> Desired {
        if word == "deaf" {
            return Desired::Run;
        }
        match Control::read(&self.dir).unwrap().want {
            Desired::Run if self.stop.load(Ordering::Relaxed) => Desired::Pause,
            want => want,
        }
    }

    fn fail(&self, class: &str, code: &str, message: &str, exit_code: i32) {
        let error = failure(class, code, message);
        AttemptFailure { fence: self.attempt.fence, error }.write(&self.dir).unwrap();
        exit(exit_code);
    }

    fn end(&self, status: Status, error: Option<Failure>, code: i32) {
        self.write_result(status, error);
        exit(code);
    }

    fn write_result(&self, status: Status, error: Option<Failure>) {
        let mut result = JobResult::new(self.job.id(), "fake", status, self.dir.clone());
        (result.fence, result.error) = (self.attempt.fence, error);
        result.adapter = (status == Status::Success).then(|| self.dir.join("adapter"));
        self.job.write_result(&result).unwrap();
    }
}

fn failure(class: &str, code: &str, message: &str) -> Failure {
    Failure { class: class.into(), code: code.into(), message: message.into(), hint: None }
}

/// Steps of the checkpoints in a job's directory.
pub(crate) fn checkpoints(dir: &Path) -> impl Iterator<Item = u64> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_prefix("ckpt-")?.parse().ok())
}

/// Adds a line to a file; how many there are now.
fn append(path: &Path, line: &str) -> usize {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
    fs::read_to_string(path).unwrap().lines().count()
}

fn on_termination() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    ctrlc::set_handler(move || seen.store(true, Ordering::Relaxed)).unwrap();
    flag
}

#[expect(clippy::exit, reason = "the exit code is what a worker has to say")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

/// The error of a supervisor that finds another.
pub(crate) fn is_supervised(error: &Error, by: u32) -> bool {
    matches!(error, Error::Supervised { pid, .. } if *pid == by)
}
