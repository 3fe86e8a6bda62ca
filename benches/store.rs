//! The job store: durable transitions a second, beside bare commits of the same database engine on the same disk, and
//! the time of `tunesmith show --json` over 10,000 jobs.
//!
//! `cargo bench --bench store`; the last line says whether the store keeps up with what is asked of it.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench has nobody to return an error to"
)]

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tunesmith_jobs::dir::{JobResult, Status, Submission};
use tunesmith_jobs::store::{AttemptEnd, NewJob};
use tunesmith_jobs::{State, Store, submit};

/// Jobs that go from their creation to their end.
const MOVED: usize = 500;
/// Jobs that `show` lists.
const LISTED: usize = 10_000;
/// Bare commits to compare with.
const COMMITS: usize = 2_000;
/// Transitions may cost this many bare commits each.
const LEAST_RATIO: f64 = 0.4;

fn main() -> ExitCode {
    let bare = bare_commits();
    let transitions = transitions();
    println!("bare commits:        {bare:8.0} a second");
    println!("durable transitions: {transitions:8.0} a second, {:.2} of that", transitions / bare);

    let home = tempfile::tempdir().expect("a directory");
    fill(home.path());
    let mut times: Vec<Duration> = (0..11).map(|_| show(home.path())).collect();
    times.sort();
    println!(
        "show --json, {LISTED} jobs: {:.1} ms (median of {})",
        times[5].as_secs_f64() * 1e3,
        times.len()
    );
    let help = (0..11).map(|_| run(Command::new(env!("CARGO_BIN_EXE_tunesmith")).arg("--version"))).min();
    println!("of which starting the program: {:.1} ms", help.unwrap_or_default().as_secs_f64() * 1e3);

    let fast = transitions / bare >= LEAST_RATIO;
    println!("{}", if fast { "ok" } else { "slower than asked" });
    if fast { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One row changed and committed durably, over and over.
fn bare_commits() -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let sql = rusqlite::Connection::open(dir.path().join("bare.sqlite")).expect("a database");
    sql.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (0)",
    )
    .expect("a table");
    let mut change = sql.prepare("UPDATE t SET a = a + 1").expect("a statement");
    let started = Instant::now();
    for _ in 0..COMMITS {
        change.execute([]).expect("a commit");
    }
    COMMITS as f64 / started.elapsed().as_secs_f64()
}

/// validating -> queued -> running -> succeeded, each change durable before the next.
fn transitions() -> f64 {
    let home = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(home.path()).expect("a store");
    let spec = json!({ "base": "b", "name": "n", "device": "cpu", "data": { "train": "t" } });
    let ids: Vec<String> = (0..MOVED)
        .map(|_| submit(&mut store, &spec, &Submission::default()).expect("a job").job.id)
        .collect();
    let none = AttemptEnd::default();
    let mut changes = 0;
    let started = Instant::now();
    for id in &ids {
        let fence = store.begin_validation(id).expect("a fence").expect("a new job");
        assert!(store.end_validation(id, fence, State::Queued, &none).expect("an end"));
        let run = store.start(id, "cpu").expect("a start").expect("a free device");
        let result = JobResult::new(id, "n", Status::Success, store.dir(id));
        let end = AttemptEnd { result: Some(result), ..AttemptEnd::default() };
        assert!(store.end_attempt(id, run.fence, State::Succeeded, &end).expect("an end"));
        changes += 4;
    }
    f64::from(changes) / started.elapsed().as_secs_f64()
}

/// Jobs that are over, without directories: `show` looks at none.
fn fill(home: &std::path::Path) {
    let mut store = Store::open(home).expect("a store");
    let none = AttemptEnd::default();
    for i in 0..LISTED {
        let id = format!("ftjob-{i:026}");
        let new = NewJob {
            id: id.clone(),
            name: format!("job {i}"),
            device_wanted: "cpu".into(),
            base_model: "mistralai/Mistral-7B-v0.3".into(),
            training_data: "tickets.jsonl".into(),
            ..NewJob::default()
        };
        store.create(&new).expect("a job");
        let fence = store.begin_validation(&id).expect("a fence").expect("a new job");
        let result = JobResult::new(&id, &new.name, Status::Error, store.dir(&id));
        let end = AttemptEnd { result: Some(result), ..none.clone() };
        store.end_validation(&id, fence, State::Failed, &end).expect("an end");
    }
}

fn show(home: &std::path::Path) -> Duration {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
    run(command.args(["show", "--all", "--json"]).env("TUNESMITH_HOME", home))
}

fn run(command: &mut Command) -> Duration {
    let started = Instant::now();
    let status = command.stdout(Stdio::null()).status().expect("the program runs");
    assert!(status.success());
    started.elapsed()
}
