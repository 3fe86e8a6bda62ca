//! Supervisors that die, come back, meet, and go.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::json;
use tunesmith_jobs::dir::{JobDir, Submission};
use tunesmith_jobs::store::AttemptEnd;
use tunesmith_jobs::supervisor::{Settings, Supervisor, running};
use tunesmith_jobs::{Desired, State, Store};

use crate::bench::{Bench, signal};
use crate::fake::{Fake, is_supervised, settings};

/// The supervisor dies at every place where it or the store has just decided something, in the reading of rows and in
/// training; the next one brings the job to its one end.
#[cfg(debug_assertions)]
#[test]
fn a_supervisor_that_dies_anywhere_leaves_nothing_undone_and_nothing_twice() {
    let both = ["supervisor:before_spawn", "supervisor:after_spawn", "supervisor:before_verdict"]
        .into_iter()
        .chain(["supervisor:after_verdict", "store:before_end", "store:after_end"])
        .flat_map(|place| [format!("{place}@1"), format!("{place}@2")]);
    let places: Vec<String> = both.chain(["store:started".to_owned()]).collect();
    std::thread::scope(|scope| {
        for place in &places {
            scope.spawn(move || dies_at(place));
        }
    });
}

#[cfg(debug_assertions)]
fn dies_at(place: &str) {
    let mut bench = Bench::new();
    let id = bench.job(&["ok"]);
    let mut first = bench.process(|command| {
        command.env("TUNESMITH_FAIL", place);
    });
    let died = first.0.wait().unwrap();
    assert!(!died.success(), "{place}");
    bench.supervise();
    let job = bench.until_state(&id, State::Succeeded);
    bench.check(&id, State::Succeeded);
    assert_eq!(job.stalls, 0, "{place}: a supervisor's death is not the worker's");
    // Before the worker was started, it was not; after that, there was no need for another.
    let starts = [bench.starts(&id, "prepare"), bench.starts(&id, "train")];
    assert_eq!(starts, [1, 1], "{place}");
}

#[test]
fn workers_outlive_their_supervisor_and_the_next_one_finds_them() {
    let mut bench = Bench::new();
    let id = bench.job(&["slow"]);
    let mut first = bench.process(|_| {});
    let worker = bench.until_at_work(&id);
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    // Times that make no sense, before and after: nobody looks at them.
    let future = SystemTime::now() + Duration::from_hours(24 * 400);
    for name in ["heartbeat", "lock", "events.jsonl", "worker.json", "attempt.json", "control"] {
        if let Ok(file) = fs::File::options().append(true).open(bench.dir(&id).join(name)) {
            file.set_modified(future).unwrap();
        }
    }
    let sql = rusqlite::Connection::open(bench.home().join("jobs.sqlite")).unwrap();
    sql.execute("UPDATE job SET created_ms = created_ms + 40000000000, started_ms = 5", ()).unwrap();
    bench.supervise();
    // It is watched: events come in, wishes are followed.
    let before = bench.get(&id).progress.step;
    bench.until(|bench| bench.get(&id).progress.step > before + 10);
    bench.go(&id);
    bench.until_state(&id, State::Succeeded);
    bench.check(&id, State::Succeeded);
    assert_eq!((bench.starts(&id, "train"), bench.worker(&id).unwrap()), (1, worker));
}

#[test]
fn an_adopted_worker_is_stopped_and_judged_like_any_other() {
    let mut bench = Bench::new();
    let (stops, dies) = (
        bench.job(&["slow"]),
        bench.job_with("cuda:0", &json!({ "train": ["slow", "ok"] }), &Submission::default()),
    );
    let mut first = bench.process(|_| {});
    bench.until_at_work(&stops);
    let worker = bench.until_at_work(&dies);
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    bench.supervise_with(Settings { hang: Duration::from_secs(2), ..settings() });
    bench.ask(&stops, Desired::Cancel);
    bench.until_state(&stops, State::Cancelled);
    bench.check(&stops, State::Cancelled);
    // It hangs: another process than its parent ends it, with certainty about which it is.
    signal(worker.pid, Signal::STOP);
    bench.until_state(&dies, State::Succeeded);
    assert!(bench.said().contains("no sign of life"), "{}", bench.said());
    bench.check(&dies, State::Succeeded);
    assert!(!worker.is_alive());
}

#[test]
fn a_workspace_has_one_supervisor() {
    let bench = Bench::new();
    let mut first = bench.process(|_| {});
    bench.until(|bench| running(bench.home()).unwrap().is_some_and(|pid| pid != 0));
    let pid = first.0.id();
    assert_eq!(running(bench.home()).unwrap(), Some(pid));
    let error = Supervisor::new(bench.home(), settings(), Fake).err().unwrap();
    assert!(is_supervised(&error, pid) && error.to_string().contains(&pid.to_string()), "{error}");
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(Supervisor::new(bench.home(), settings(), Fake).is_ok());
}

#[test]
fn a_supervisor_that_is_told_to_end_leaves_four_workers_at_work() {
    let mut bench = Bench::new();
    let slow = json!({ "train": ["slow"] });
    let ids = ["cpu", "cuda:0", "cuda:1", "cuda:2"]
        .map(|device| bench.job_with(device, &slow, &Submission::default()));
    let mut first = bench.process(|_| {});
    let workers: Vec<_> = ids.iter().map(|id| bench.until_at_work(id)).collect();
    let ended = |process: &mut crate::bench::Killed| {
        let asked = Instant::now();
        signal(process.0.id(), Signal::TERM);
        loop {
            if let Some(status) = process.0.try_wait().unwrap() {
                return status;
            }
            assert!(asked.elapsed() < Duration::from_secs(5), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    assert!(ended(&mut first).success());
    assert!(workers.iter().all(tunesmith_jobs::dir::WorkerIdentity::is_alive));
    assert!(ids.iter().all(|id| bench.get(id).state == State::Running));

    // The next one is to drain: each writes a checkpoint and ends; the jobs wait for the one after it.
    let mut second = bench.process(|command| {
        command.env("TUNESMITH_TEST_DRAIN", "1");
    });
    bench.until(|bench| running(bench.home()).unwrap() == Some(second.0.id()));
    assert!(ended(&mut second).success());
    assert!(!workers.iter().any(tunesmith_jobs::dir::WorkerIdentity::is_alive));
    for id in &ids {
        let job = bench.get(id);
        assert_eq!((job.state, job.desired, job.stalls), (State::Queued, Desired::Run, 0));
        bench.go(id);
    }
    bench.supervise();
    for id in &ids {
        bench.until_state(id, State::Succeeded);
        bench.check(id, State::Succeeded);
        assert_eq!(bench.starts(id, "train"), 2);
    }
}

#[test]
fn a_job_that_runs_in_a_terminal_is_left_alone_until_its_process_dies() {
    let mut bench = Bench::new();
    let id = bench.job(&["ok"]);
    let dir = JobDir::open(&bench.dir(&id)).unwrap();
    bench.supervise_with(Settings { hang: Duration::from_secs(2), ..settings() });
    let fence = bench.store.begin_validation(&id).unwrap().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("data/manifest.json"), "{}").unwrap();
    bench.store.end_validation(&id, fence, State::Queued, &AttemptEnd::default()).unwrap();
    let fence = bench.store.start(&id, "cpu").unwrap().unwrap().fence;
    let mut log = dir.events().unwrap();
    log.append(&json!({ "type": "step", "data": { "step": 3, "total_steps": 4 } })).unwrap();
    bench.until(|bench| bench.get(&id).progress.step == 3);
    std::thread::sleep(Duration::from_millis(2500));
    let job = bench.get(&id);
    assert_eq!((job.state, job.fence, bench.starts(&id, "train")), (State::Running, fence, 0));
    drop((log, dir));
    let job = bench.until_state(&id, State::Succeeded);
    bench.check(&id, State::Succeeded);
    assert_eq!((job.attempt, bench.starts(&id, "prepare"), bench.starts(&id, "train")), (2, 0, 1));
}

#[test]
fn a_supervisor_with_nothing_to_do_goes_when_that_is_wanted() {
    let mut bench = Bench::new();
    let (paused, nowhere) =
        (bench.job(&["slow"]), bench.job_with("cuda:9", &json!({}), &Submission::default()));
    bench.supervise_with(Settings { idle_exit: Some(Duration::from_millis(100)), ..settings() });
    bench.until_at_work(&paused);
    bench.until_reason(&nowhere, "there is no device");
    assert!(running(bench.home()).unwrap().is_some(), "a job runs");
    bench.ask(&paused, Desired::Pause);
    bench.gone();
    // Another test's process that is being started may hold on to what we had open for a moment.
    bench.until(|bench| running(bench.home()).unwrap().is_none());
    assert_eq!((bench.get(&paused).state, bench.get(&nowhere).state), (State::Paused, State::Queued));
}

#[test]
fn a_damaged_store_is_refused_with_what_to_do_about_it() {
    let mut bench = Bench::new();
    for _ in 0..50 {
        bench.job(&["ok"]);
    }
    let home = bench.home().to_owned();
    drop(std::mem::replace(&mut bench.store, Store::open(&home.join("other")).unwrap()));
    let path = home.join("jobs.sqlite");
    let mut bytes = fs::read(&path).unwrap();
    for at in [0, bytes.len() / 2] {
        let mut damaged = bytes.clone();
        damaged[at..at + 4000].fill(0x55);
        overwrite(&path, &damaged);
        let error = Supervisor::new(&home, settings(), Fake).err().unwrap().to_string();
        assert!(error.contains("jobs.sqlite") && error.contains("tunesmith doctor --rebuild"), "{error}");
    }
    bytes.truncate(100);
    overwrite(&path, &bytes);
    assert!(Supervisor::new(&home, settings(), Fake).is_err());
}

fn overwrite(path: &Path, bytes: &[u8]) {
    for end in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", path.display()));
    }
    fs::write(path, bytes).unwrap();
}
