//! How attempts end, and what follows.

use std::fs;
use std::time::Duration;

use serde_json::json;
use tunesmith_jobs::dir::{Attempt, JobDir, Submission, WorkerIdentity};
use tunesmith_jobs::store::AttemptEnd;
use tunesmith_jobs::supervisor::Settings;
use tunesmith_jobs::{Desired, State};

use crate::bench::Bench;
use crate::fake::settings;

#[test]
fn a_job_is_read_trained_and_done() {
    let mut bench = Bench::new();
    let id = bench.job(&["ok"]);
    bench.supervise();
    let job = bench.until_state(&id, State::Succeeded);
    bench.check(&id, State::Succeeded);
    assert_eq!((job.attempt, job.fence, job.stalls, job.reason), (1, 2, 0, None));
    let way: Vec<_> = bench.store.history(&id).unwrap().iter().map(|t| t.new).collect();
    assert_eq!(way, [State::Queued, State::Running, State::Succeeded]);
    assert_eq!((bench.starts(&id, "prepare"), bench.starts(&id, "train")), (1, 1));
    assert!(fs::read_to_string(bench.dir(&id).join("log")).unwrap().contains("running 1 test"));
    // It is reaped: nothing is left of it, not even a zombie.
    let pid = bench.worker(&id).unwrap().pid;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(bench.said().contains("attempt 1 runs on cpu"), "{}", bench.said());
}

#[test]
fn a_worker_that_crashes_without_getting_on_is_started_three_times() {
    let mut bench = Bench::new();
    let id = bench.job(&["crash"]);
    let reading = bench.job_with("cpu", &json!({ "prepare": ["die"] }), &Submission::default());
    let words = ["progress", "progress", "progress", "progress", "crash", "crash", "ok"];
    let fake = json!({ "train": words, "steps": 9 });
    let getting_on = bench.job_with("cpu", &fake, &Submission::default());
    bench.supervise();
    let job = bench.until_state(&id, State::Failed);
    bench.check(&id, State::Failed);
    assert_eq!((bench.starts(&id, "train"), job.attempt, job.stalls), (3, 3, 3));
    let error = job.result.unwrap().error.unwrap();
    assert_eq!(error.class, "worker_lost");
    for words in ["3 times in a row", "before the first checkpoint", "SIGABRT"] {
        assert!(error.message.contains(words), "{}", error.message);
    }
    bench.until_state(&reading, State::Failed);
    bench.check(&reading, State::Failed);
    assert_eq!(bench.starts(&reading, "prepare"), 3);
    assert!(bench.result(&reading).error.unwrap().message.contains("while its rows were read"));

    bench.until_state(&getting_on, State::Succeeded);
    bench.check(&getting_on, State::Succeeded);
    assert_eq!(bench.starts(&getting_on, "train"), 7, "each newer checkpoint begins the count again");
}

#[test]
fn memory_that_ran_out_is_tried_once_more_with_smaller_micro_batches() {
    let mut bench = Bench::new();
    let (once, twice) = (bench.job(&["oom", "ok"]), bench.job(&["oom"]));
    bench.supervise();
    assert_eq!(bench.until_state(&once, State::Succeeded).micro_batch_divisor, 2);
    bench.check(&once, State::Succeeded);
    assert_eq!(Attempt::read(&bench.dir(&once)).unwrap().unwrap().micro_batch_divisor, 2);
    bench.until_state(&twice, State::Failed);
    bench.check(&twice, State::Failed);
    assert_eq!(bench.starts(&twice, "train"), 2);
    let error = bench.result(&twice).error.unwrap();
    assert_eq!((error.class.as_str(), error.code.as_str()), ("memory", "insufficient_memory"));
    assert!(error.message.contains("needs 9 GB, 8 GB are free"), "{}", error.message);
}

#[test]
fn a_full_disk_pauses_a_job_and_bad_rows_end_it() {
    let mut bench = Bench::new();
    let (full, bad) = (bench.job(&["disk_full", "ok"]), bench.job(&["bad"]));
    bench.supervise();
    let job = bench.until_state(&full, State::Paused);
    let reason = job.reason.unwrap();
    assert!(reason.contains("the disk is full") && reason.contains("tunesmith resume"), "{reason}");
    bench.until_state(&bad, State::Failed);
    bench.check(&bad, State::Failed);
    assert_eq!((bench.starts(&bad, "train"), bench.result(&bad).error.unwrap().class.as_str()), (1, "data"));
    bench.ask(&full, Desired::Run);
    bench.until_state(&full, State::Succeeded);
    bench.check(&full, State::Succeeded);
}

#[test]
fn a_device_that_is_gone_is_waited_for_and_a_new_supervisor_tries_at_once() {
    let mut bench = Bench::new();
    let id = bench.job(&["device", "ok"]);
    bench.supervise();
    bench.until_reason(&id, "tries again after 10 s: cuda:0 is gone");
    // Another job has the device meanwhile.
    let other = bench.job(&["ok"]);
    bench.until_state(&other, State::Succeeded);
    assert_eq!((bench.get(&id).state, bench.starts(&id, "train")), (State::Queued, 1));
    bench.leave();
    bench.supervise();
    assert_eq!(bench.until_state(&id, State::Succeeded).stalls, 0);
    bench.check(&id, State::Succeeded);
}

#[test]
fn a_result_of_an_older_attempt_is_not_believed() {
    let mut bench = Bench::new();
    let id = bench.job(&["old", "ok"]);
    bench.supervise();
    let job = bench.until_state(&id, State::Succeeded);
    bench.check(&id, State::Succeeded);
    assert_eq!((bench.starts(&id, "train"), job.attempt), (2, 2));
}

#[test]
fn a_worker_that_is_stopped_is_found_out_ended_and_started_again() {
    let mut bench = Bench::new();
    let id = bench.job(&["stopped", "ok"]);
    bench.supervise_with(Settings { hang: Duration::from_secs(2), ..settings() });
    bench.until_state(&id, State::Succeeded);
    assert!(bench.said().contains("the worker gave no sign of life for 2 s"), "{}", bench.said());
    bench.check(&id, State::Succeeded);
    assert_eq!(bench.starts(&id, "train"), 2);
}

/// Both ways in which a number in `worker.json` may be that of another process by now.
#[test]
fn a_stranger_with_the_number_of_a_worker_is_never_killed() {
    let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let mut bench = Bench::new();
    let (free, held) = (bench.job(&["ok"]), bench.job_with("cuda:0", &json!({}), &Submission::default()));
    let mut locks = Vec::new();
    for (id, device) in [(&free, "cpu"), (&held, "cuda:0")] {
        let fence = bench.store.begin_validation(id).unwrap().unwrap();
        bench.store.end_validation(id, fence, State::Queued, &AttemptEnd::default()).unwrap();
        let fence = bench.store.start(id, device).unwrap().unwrap().fence;
        let own = WorkerIdentity::own(fence);
        // The stranger has begun after us: a process that began before us is another one.
        let (pid, start_time) = (stranger.id(), own.start_time - 1);
        WorkerIdentity { pid, start_time, ..own }.write(&bench.dir(id)).unwrap();
        if *id == held {
            locks.push(JobDir::open(&bench.dir(id)).unwrap());
        }
    }
    bench.supervise_with(Settings { hang: Duration::from_secs(2), ..settings() });
    bench.until_state(&free, State::Succeeded);
    bench.check(&free, State::Succeeded);
    // The other one is told to stop, and does not move: its holder is nobody's business.
    bench.ask(&held, Desired::Cancel);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(bench.get(&held).state, State::Running);
    assert!(stranger.try_wait().unwrap().is_none());
    locks.clear();
    bench.until_state(&held, State::Cancelled);
    bench.check(&held, State::Cancelled);
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_job_whose_directory_vanishes_fails_and_nothing_else_does() {
    let mut bench = Bench::new();
    let (lost, other) = (bench.job(&["slow"]), bench.job_with("cuda:0", &json!({}), &Submission::default()));
    bench.supervise();
    bench.until_at_work(&lost);
    fs::rename(bench.dir(&lost), bench.home().join("elsewhere")).unwrap();
    let job = bench.until_state(&lost, State::Failed);
    assert!(job.result.unwrap().error.unwrap().message.contains("is gone"));
    bench.until_state(&other, State::Succeeded);
}
