//! Jobs that are killed at random, over and over: workers, the supervisor, both. Every job ends exactly once, with the
//! adapter and the losses of a run that nobody touched, bit for bit.
//!
//! `cargo test --test soak` kills a hundred times. `TUNESMITH_SOAK_MINUTES=30 cargo test --test soak -- --nocapture` goes
//! on for as long as it is told; `TUNESMITH_SOAK_SEED` gives the same order of kills again.

#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tunesmith_jobs::dir::{WorkerIdentity, is_free};
use tunesmith_jobs::store::{Filter, Job};
use tunesmith_jobs::{State, Store};

/// Jobs that are there at a time.
const JOBS: usize = 4;
/// Kills of the short form.
const KILLS: usize = 100;
/// Longest time that jobs may take to end once the killing stops.
const PATIENCE: Duration = Duration::from_mins(5);

const JOB: &str = r#"
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

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

struct Soak {
    dir: tempfile::TempDir,
    random: Random,
    supervisor: Option<Child>,
    /// What a job had when one of its workers was killed last: a second kill without progress would be the job's fault.
    killed_at: HashMap<String, (State, Option<u64>)>,
    kills_of_workers: usize,
    kills_of_supervisors: usize,
    made: usize,
}

/// What a run leaves: the adapter's bytes, and the loss of each step and evaluation as the text it was written as.
#[derive(Debug, PartialEq)]
struct Outcome {
    adapter: Vec<u8>,
    losses: Vec<(String, u64, String)>,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows = (0..100).fold(String::new(), |text, i| {
            text + &format!("{{\"prompt\": \"Where is order {i}?\", \"completion\": \"Order {i} is on its way.\"}}\n")
        });
        fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/support-base-4m");
        fs::write(dir.path().join("job.toml"), format!("base = '{}'\ndevice = 'cpu'\n{JOB}", base.display())).unwrap();
        Self {
            dir,
            random: Random(seed | 1),
            supervisor: None,
            killed_at: HashMap::new(),
            kills_of_workers: 0,
            kills_of_supervisors: 0,
            made: 0,
        }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn command(&self, home: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        command.args(args).current_dir(self.dir.path()).env("TUNESMITH_HOME", home).stdin(Stdio::null());
        command
    }

    /// The run that nobody touches, in a workspace of its own.
    fn reference(&self) -> Outcome {
        let home = self.dir.path().join("reference");
        let ran = self.command(&home, &["train", "job.toml", "--quiet"]).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let job = fs::read_dir(home.join("jobs")).unwrap().next().unwrap().unwrap().path();
        outcome(&job)
    }

    fn supervise(&mut self) {
        if let Some(mut old) = self.supervisor.take() {
            let _ = old.kill();
            old.wait().unwrap();
        }
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("serve.log")).unwrap();
        let mut command = self.command(&self.home(), &["serve", "--device", "cpu"]);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.supervisor = Some(child);
    }

    fn create(&mut self) {
        for _ in 0..JOBS {
            self.made += 1;
            let name = format!("job-{}", self.made);
            let args = ["create", &name, "--config", "job.toml", "-y", "--json"];
            let ran = self.command(&self.home(), &args).output().unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            let object: Value = serde_json::from_slice(&ran.stdout).unwrap();
            assert!(object["id"].as_str().unwrap().starts_with("ftjob-"), "{object}");
        }
    }

    fn jobs(&self) -> Vec<Job> {
        let mut store = Store::open(&self.home()).unwrap();
        store.ingest_live().unwrap();
        store.list(Filter::default()).unwrap()
    }

    /// Kills a worker that lives, unless its last kill came before it got anywhere.
    fn kill_worker(&mut self, job: &Job) -> bool {
        let dir = self.home().join("jobs").join(&job.id);
        let Ok(Some(worker)) = WorkerIdentity::read(&dir) else { return false };
        if is_free(&dir).unwrap_or(true) || !worker.is_alive() {
            return false;
        }
        let at = (job.state, job.checkpoint_step);
        if self.killed_at.get(&job.id) == Some(&at) {
            return false;
        }
        self.killed_at.insert(job.id.clone(), at);
        kill(worker.pid);
        self.kills_of_workers += 1;
        true
    }

    fn kill_supervisor(&mut self) {
        if let Some(child) = &self.supervisor {
            kill(child.id());
            self.kills_of_supervisors += 1;
        }
    }

    fn strike(&mut self) {
        let what = self.random.below(10);
        if what < 8 || what == 9 {
            let jobs = self.jobs();
            let start = self.random.below(jobs.len().max(1) as u64) as usize;
            for job in jobs[start..].iter().chain(&jobs[..start]) {
                if !job.state.is_terminal() && self.kill_worker(job) {
                    break;
                }
            }
        }
        if what >= 8 {
            self.kill_supervisor();
            self.supervise();
        }
    }

    fn kills(&self) -> usize {
        self.kills_of_workers + self.kills_of_supervisors
    }

    fn all_over(&self) -> bool {
        self.jobs().iter().all(|job| job.state.is_terminal())
    }

    /// Every job has ended once, as the reference did.
    fn judge(&self, reference: &Outcome) {
        let store = Store::open(&self.home()).unwrap();
        let jobs = self.jobs();
        assert_eq!(jobs.len(), self.made);
        for job in &jobs {
            let dir = store.dir(&job.id);
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            let history = store.history(&job.id).unwrap();
            assert_eq!(job.state, State::Succeeded, "{}: {:?} {history:?}\n{log}", job.id, job.reason);
            assert_eq!(history.iter().filter(|t| t.new.is_terminal()).count(), 1, "{history:?}");
            assert_eq!(&outcome(&dir), reference, "{} after {} attempts", job.id, job.attempt);
            // Every line of the log was taken in once.
            let lines = fs::read_to_string(dir.join("events.jsonl")).unwrap().lines().count();
            let events = store.events(&job.id, 0, usize::MAX >> 1).unwrap();
            assert_eq!(events.len(), lines);
            assert!(events.iter().enumerate().all(|(i, e)| e.seq == i as u64 + 1));
            let names = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let rest: Vec<String> = names.filter(|name| name.ends_with(".tmp")).collect();
            assert!(rest.is_empty(), "{}: {rest:?}", job.id);
        }
        assert!(store.problems().unwrap().is_empty());
        assert!(store.leases().unwrap().is_empty());
        let attempts: u32 = jobs.iter().map(|job| job.attempt).sum();
        println!(
            "{} jobs, {attempts} attempts, {} workers and {} supervisors killed",
            jobs.len(),
            self.kills_of_workers,
            self.kills_of_supervisors
        );
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Workers outlive their supervisor.
        for entry in fs::read_dir(self.home().join("jobs")).into_iter().flatten().flatten() {
            if let Ok(Some(worker)) = WorkerIdentity::read(&entry.path())
                && worker.is_alive()
            {
                kill(worker.pid);
            }
        }
    }
}

fn kill(pid: u32) {
    let status = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
    assert!(status.is_ok(), "there is no `kill`");
}

fn outcome(job: &Path) -> Outcome {
    let mut losses = std::collections::BTreeMap::new();
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
    Outcome { adapter, losses: losses.into_iter().map(|((kind, step), loss)| (kind, step, loss)).collect() }
}

#[test]
fn jobs_that_are_killed_at_random_end_once_and_as_if_nothing_had_been() {
    let minutes = std::env::var("TUNESMITH_SOAK_MINUTES").ok().map(|text| text.parse::<f64>().unwrap());
    let seed = std::env::var("TUNESMITH_SOAK_SEED").map_or(0x5EED, |text| text.parse().unwrap());
    let until = minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(60.0 * minutes));
    let mut soak = Soak::new(seed);
    let reference = soak.reference();
    assert_eq!(reference.losses.iter().filter(|(kind, ..)| kind == "step").count(), 40);
    soak.supervise();
    soak.create();
    let mut last_kill = Instant::now();
    loop {
        let done = until.map_or(soak.kills() >= KILLS, |until| Instant::now() >= until);
        if done {
            break;
        }
        std::thread::sleep(Duration::from_millis(20 + soak.random.below(250)));
        let before = soak.kills();
        soak.strike();
        if soak.kills() > before {
            last_kill = Instant::now();
        } else if soak.all_over() {
            soak.create();
        }
        assert!(last_kill.elapsed() < PATIENCE, "nothing to kill any more: {:?}", soak.jobs());
    }
    let stopped = Instant::now();
    while !soak.all_over() {
        assert!(stopped.elapsed() < PATIENCE, "jobs do not end: {:?}", soak.jobs());
        std::thread::sleep(Duration::from_millis(100));
    }
    soak.judge(&reference);
}
