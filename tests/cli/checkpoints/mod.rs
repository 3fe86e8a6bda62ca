//! The stages of a job in worker processes: killed, paused, cancelled, damaged, and gone on from; what comes out is
//! held to the run that nobody touched, bit for bit.

mod kills;
mod refusals;
mod stages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tunesmith_jobs::dir::JobDir;

use crate::support::{Bench, Ran, finish, read_json, rows, small_job};

/// Accumulation, dropout, two epochs of four steps, an evaluation after every second.
const EXTRA: &str = "micro_batch_size = 2\nevals_per_epoch = 2\nlearning_rate = 1e-3\nsave_steps = 1\n\
                     save_total_limit = 99\n[preview]\nprompts = 1\nmax_new_tokens = 3\n";

/// Ends the names of what is not whole.
const TMP: &str = ".tmp";

/// A bench with a job file and rows for it.
fn bench(extra: &str) -> Bench {
    let bench = Bench::new();
    let job = small_job(extra).replace("epochs = 1", "epochs = 2");
    bench.write("job.toml", job.replace("[lora]", "[lora]\nlora_dropout = 0.1"));
    bench.write("rows.jsonl", rows(20));
    bench
}

/// A job directory as `create` makes it, from the job file with these settings.
fn job(bench: &Bench, sets: &[&str]) -> PathBuf {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    let spec = tunesmith_cli::spec::load(&bench.path("job.toml"), &sets, &[], &bench.path("")).unwrap().spec;
    let dir = JobDir::create(&bench.home()).unwrap();
    dir.write_spec(&spec).unwrap();
    dir.path().to_owned()
}

fn worker(bench: &Bench, job: &Path, stage: &str) -> std::process::Command {
    bench.command(&["worker", job.to_str().unwrap(), "--stage", stage])
}

fn work(bench: &Bench, job: &Path, stage: &str) -> Ran {
    finish(&mut worker(bench, job, stage))
}

/// Runs with failpoints.
fn work_failing(bench: &Bench, job: &Path, stage: &str, points: &str) -> Ran {
    finish(worker(bench, job, stage).env("TUNESMITH_FAIL", points))
}

fn start(bench: &Bench, job: &Path) -> Child {
    let mut command = worker(bench, job, "train");
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn events(job: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(job.join("events.jsonl")).unwrap_or_default();
    let whole = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    whole.filter(|event| event["type"] == kind).map(|event| event["data"].clone()).collect()
}

fn checkpoints(job: &Path) -> Vec<String> {
    let names = fs::read_dir(job).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|n| n.starts_with("ckpt-")).collect();
    names.sort();
    names
}

fn weights(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("adapter_model.safetensors")).unwrap()
}

/// What must not depend on how often a run was stopped.
#[derive(Debug, PartialEq)]
struct Outcome {
    weights: Vec<u8>,
    card: String,
    result: Value,
    losses: std::collections::BTreeMap<(String, u64), String>,
}

fn outcome(job: &Path) -> Outcome {
    let mut losses = std::collections::BTreeMap::new();
    for kind in ["step", "evaluation"] {
        for data in events(job, kind) {
            let (key, loss) = ((kind.to_owned(), data["step"].as_u64().unwrap()), data["loss"].to_string());
            // A step that was done again was done the same.
            let before = losses.insert(key, loss.clone()).unwrap_or(loss.clone());
            assert_eq!(before, loss);
        }
    }
    let mut result = read_json(&job.join("result.json"));
    for key in ["id", "job_dir", "adapter", "started_at", "finished_at", "seconds", "fence", "attempt"] {
        result.as_object_mut().unwrap().shift_remove(key).unwrap();
    }
    // Measured, as wall time is.
    for key in ["joules", "joules_of", "joules_unknown", "peak_bytes", "device_peak_bytes"] {
        result.as_object_mut().unwrap().shift_remove(key);
    }
    let card = fs::read_to_string(job.join("adapter/README.md")).unwrap();
    Outcome { weights: weights(&job.join("adapter")), card, result, losses }
}

/// The run that nobody touches.
fn reference(bench: &Bench) -> Outcome {
    let job = job(bench, &[]);
    work(bench, &job, "prepare").ok();
    work(bench, &job, "train").ok();
    outcome(&job)
}

/// Waits until a job is as told, or its worker has gone.
fn until(what: &str, is: impl Fn() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < Duration::from_mins(2), "never {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
