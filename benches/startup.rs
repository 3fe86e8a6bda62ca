//! Process start to the end of the first optimizer step of the quickstart, with everything in between: reading the
//! model and the tickets, the preview replies, the first evaluation. Asked for: under one second.

#![allow(missing_docs, clippy::expect_used, reason = "a bench has nobody to return an error to")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};

/// Starts the quickstart and stops it once its log holds a step; the time until then.
fn first_step() -> Duration {
    let home = tempfile::tempdir().expect("a temporary directory");
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tunesmith"))
        .args(["train", "configs/quickstart.toml", "--quiet"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("TUNESMITH_HOME", home.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("the built program");
    let elapsed = loop {
        if has_step(home.path()) {
            break started.elapsed();
        }
        let ended = child.try_wait().expect("the child's state");
        assert!(ended.is_none() && started.elapsed() < Duration::from_mins(1), "no step was taken");
        std::thread::sleep(Duration::from_millis(2));
    };
    child.kill().expect("to stop the child");
    child.wait().expect("the child's end");
    elapsed
}

fn has_step(home: &Path) -> bool {
    let jobs = std::fs::read_dir(home.join("jobs")).into_iter().flatten().flatten();
    let mut logs = jobs.filter_map(|job| std::fs::read_to_string(job.path().join("events.jsonl")).ok());
    logs.any(|log| log.contains("\"type\":\"step\""))
}

fn startup(c: &mut Criterion) {
    let mut group = c.benchmark_group("startup");
    group.sample_size(10);
    group.bench_function("quickstart, start to first step", |b| {
        b.iter_custom(|n| (0..n).map(|_| first_step()).sum());
    });
    group.finish();
}

criterion_group!(benches, startup);
criterion_main!(benches);
