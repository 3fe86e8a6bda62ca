//! One fault after another, each with its own invariant. Kills at random are in `soak.rs`, power cuts in `power.rs`; what
//! needs no built program is tested beside the store and the supervisor.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tunesmith_jobs::dir::WorkerIdentity;
use tunesmith_jobs::{State, Store};

use crate::kit::{Outcome, Workspace, kill, reference};

fn set(workspace: &mut Workspace, name: &str, value: &str) {
    workspace.environment.push((name.to_owned(), value.to_owned()));
}

/// A worker that dies at the same place of every third checkpoint still gets there, two steps at a time.
#[test]
#[cfg(debug_assertions)]
fn dying_inside_every_third_checkpoint_only_costs_time() {
    for place in ["ckpt:after_tmp", "ckpt:before_rename", "ckpt:after_rename"] {
        let mut workspace = Workspace::new();
        set(&mut workspace, "TUNESMITH_FAIL", &format!("{place}@6"));
        workspace.supervise();
        let id = workspace.create("job", &[]);
        let job = workspace.wait_for_end(&id);
        workspace.judge(&job, reference());
        assert!(job.attempt > 4, "{place}: only {} attempts, was it ever reached?", job.attempt);
    }
}

/// Around the end of a job: the adapter is there, the result is not, or the supervisor has not seen it.
#[test]
#[cfg(debug_assertions)]
fn dying_around_the_end_makes_no_second_end() {
    for place in ["worker:before_adapter", "worker:before_result", "worker:after_result"] {
        let mut workspace = Workspace::new();
        set(&mut workspace, "TUNESMITH_FAIL", place);
        workspace.supervise();
        let id = workspace.create("job", &[]);
        // Each attempt dies there; after the first, the others must not.
        workspace.wait(&id, "there", |job| job.progress.step == 40);
        workspace.environment.clear();
        workspace.supervise();
        let job = workspace.wait_for_end(&id);
        workspace.judge(&job, reference());
    }
}

#[test]
#[cfg(debug_assertions)]
fn out_of_memory_is_tried_once_more_with_smaller_micro_batches_and_then_said_with_numbers() {
    let mut workspace = Workspace::new();
    // Two rows do not fit, one does.
    set(&mut workspace, "TUNESMITH_FAKE_OOM_ABOVE", "40");
    workspace.supervise();
    let id = workspace.create("fits in the end", &[]);
    let job = workspace.wait_for_end(&id);
    assert_eq!((job.state, job.micro_batch_divisor, job.attempt), (State::Succeeded, 2, 2), "{job:?}");
    workspace.environment.clear();
    set(&mut workspace, "TUNESMITH_FAKE_OOM_ABOVE", "2");
    workspace.supervise();
    let id = workspace.create("never fits", &[]);
    let job = workspace.wait_for_end(&id);
    let error = job.result.unwrap().error.unwrap();
    assert_eq!((job.state, job.attempt, error.class.as_str()), (State::Failed, 2, "memory"));
    assert!(error.message.chars().any(|c| c.is_ascii_digit()), "no numbers: {}", error.message);
}

/// What a GPU that falls off its bus looks like, on the CPU.
#[test]
#[cfg(debug_assertions)]
fn a_device_that_is_lost_is_waited_for_and_the_job_goes_on() {
    let mut workspace = Workspace::new();
    set(&mut workspace, "TUNESMITH_FAIL", "train:device_lost@12");
    workspace.supervise();
    let id = workspace.create("job", &[]);
    let job = workspace.wait(&id, "queued again", |job| job.attempt == 1 && job.state == State::Queued);
    let reason = job.reason.unwrap_or_default();
    assert!(reason.contains("tries again after 10") && reason.contains("device"), "{reason}");
    assert!(workspace.worker(&id).is_none() && job.device.is_none(), "the device is free meanwhile");
    // A new supervisor does not wait.
    workspace.environment.clear();
    workspace.supervise();
    let job = workspace.wait_for_end(&id);
    workspace.judge(&job, reference());
    assert_eq!(job.attempt, 2);
}

#[test]
fn a_worker_that_hangs_is_noticed_killed_and_followed_by_another() {
    let mut workspace = Workspace::new();
    set(&mut workspace, "TUNESMITH_HANG_SECONDS", "2");
    workspace.supervise();
    let id = workspace.create("job", &[]);
    workspace.wait(&id, "at step 5", |job| job.progress.step >= 5);
    let pid = workspace.worker(&id).unwrap();
    kill(pid, "STOP");
    let job = workspace.wait_for_end(&id);
    kill(pid, "CONT");
    workspace.judge(&job, reference());
    assert_eq!(job.attempt, 2);
}

/// The clock of every process jumps an hour on, then two back.
#[test]
#[cfg(debug_assertions)]
fn a_clock_that_jumps_kills_nobody() {
    let mut workspace = Workspace::new();
    let offset = workspace.path("offset");
    fs::write(&offset, "0").unwrap();
    set(&mut workspace, "TUNESMITH_FAKE_CLOCK", offset.to_str().unwrap());
    workspace.supervise();
    let id = workspace.create("job", &[]);
    workspace.wait(&id, "at step 3", |job| job.progress.step >= 3);
    fs::write(&offset, "3600").unwrap();
    workspace.wait(&id, "at step 10", |job| job.progress.step >= 10);
    fs::write(&offset, "-3600").unwrap();
    let job = workspace.wait_for_end(&id);
    workspace.judge(&job, reference());
    assert_eq!(job.attempt, 1);
}

/// After a reboot the process ids are other people's.
#[test]
fn a_stranger_with_the_workers_process_id_is_left_alone() {
    let mut workspace = Workspace::new();
    workspace.supervise();
    let id = workspace.create("job", &[]);
    workspace.wait(&id, "at step 3", |job| job.progress.step >= 3);
    workspace.stop_supervising();
    workspace.kill_workers();
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let dir = workspace.job_dir(&id);
    let old = WorkerIdentity::read(&dir).unwrap().unwrap();
    WorkerIdentity { pid: stranger.id(), boot_id: "another boot".into(), ..old }.write(&dir).unwrap();
    workspace.supervise();
    let job = workspace.wait_for_end(&id);
    workspace.judge(&job, reference());
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_job_directory_that_vanishes_is_an_error_and_the_next_job_runs() {
    let mut workspace = Workspace::new();
    workspace.supervise();
    let lost = workspace.create("lost", &[]);
    workspace.wait(&lost, "at step 2", |job| job.progress.step >= 2);
    let next = workspace.create("next", &[]);
    // A worker may be writing there.
    let started = Instant::now();
    while fs::remove_dir_all(workspace.job_dir(&lost)).is_err() && started.elapsed() < Duration::from_secs(5)
    {
    }
    let job = workspace.wait_for_end(&lost);
    assert_eq!(job.state, State::Failed);
    let error = job.result.unwrap().error.unwrap();
    assert!(error.message.contains(&lost), "{error:?}");
    let job = workspace.wait_for_end(&next);
    workspace.judge(&job, reference());
}

#[test]
fn the_source_may_go_once_the_rows_are_read() {
    let mut workspace = Workspace::new();
    workspace.supervise();
    let id = workspace.create("job", &[]);
    workspace.wait(&id, "validated", |job| job.state != State::Validating);
    fs::remove_file(workspace.path("rows.jsonl")).unwrap();
    workspace.wait(&id, "at step 2", |job| job.progress.step >= 2);
    kill(workspace.worker(&id).unwrap(), "KILL");
    let job = workspace.wait_for_end(&id);
    workspace.judge(&job, reference());
}

#[test]
fn a_second_supervisor_says_who_is_there_and_goes() {
    let mut workspace = Workspace::new();
    workspace.supervise();
    let first = workspace.supervisor().unwrap();
    // A job that moves shows that it is at work.
    let id = workspace.create("job", &[]);
    workspace.wait(&id, "running", |job| job.state == State::Running);
    let ran = workspace.command(&["serve", "--device", "cpu"]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.code() == Some(69) && said.contains(&first.to_string()), "{ran:?}");
    assert!(workspace.supervisor_lives());
}

#[test]
fn a_supervisor_that_is_told_to_go_leaves_its_workers_and_they_are_taken_over() {
    let mut workspace = Workspace::new();
    workspace.supervise();
    let ids = ["a", "b", "c"].map(|name| workspace.create(name, &[]));
    workspace.wait(&ids[0], "at step 2", |job| job.progress.step >= 2);
    let worker = workspace.worker(&ids[0]).unwrap();
    kill(workspace.supervisor().unwrap(), "TERM");
    let told = Instant::now();
    while workspace.supervisor_lives() {
        assert!(told.elapsed() < Duration::from_secs(5), "it does not go");
        std::thread::sleep(Duration::from_millis(20));
    }
    let job = workspace.job(&ids[0]);
    assert!(workspace.worker(&ids[0]) == Some(worker) || job.progress.step == 40, "its worker went too");
    workspace.supervise();
    for id in &ids {
        let job = workspace.wait_for_end(id);
        workspace.judge(&job, reference());
        assert_eq!(job.attempt, 1, "{}", job.name);
    }
}

#[test]
fn many_creates_with_one_key_make_one_job() {
    let mut workspace = Workspace::new();
    workspace.supervise();
    let args = ["create", "job", "--config", "job.toml", "-y", "--json", "--idempotency-key", "k"];
    let children: Vec<_> = (0..12)
        .map(|_| workspace.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    let ids: Vec<String> = children
        .into_iter()
        .map(|child| {
            let ran = child.wait_with_output().unwrap();
            assert!(ran.status.success(), "{ran:?}");
            let object: Value = serde_json::from_slice(&ran.stdout).unwrap();
            object["id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let job = workspace.wait_for_end(&ids[0]);
    workspace.judge(&job, reference());
    assert_eq!(workspace.jobs().len(), 1);
}

#[test]
fn a_broken_store_is_refused_in_a_sentence_and_made_again_by_the_doctor() {
    let mut workspace = Workspace::new();
    workspace.supervise();
    let done = workspace.create("done", &[]);
    workspace.wait_for_end(&done);
    let half = workspace.create("half", &[]);
    workspace.wait(&half, "at step 5", |job| job.progress.step >= 5);
    workspace.stop_supervising();
    workspace.kill_workers();
    let path = workspace.home().join("jobs.sqlite");
    let mut bytes = fs::read(&path).unwrap();
    bytes[..64].fill(0xFF);
    fs::write(&path, bytes).unwrap();
    // The log beside it has a good copy of what changed last.
    fs::write(workspace.home().join("jobs.sqlite-wal"), "").unwrap();
    for args in [&["show"][..], &["serve"], &["describe", &done]] {
        let ran = workspace.command(args).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(!ran.status.success() && said.contains("doctor --rebuild"), "{args:?}: {said}");
    }
    workspace.run(&["doctor", "--rebuild"]);
    // The end is there; the way to it is not.
    assert_eq!(workspace.job(&done).state, State::Succeeded);
    assert_eq!(&Outcome::of(&workspace.job_dir(&done)), reference());
    assert!(Store::open(&workspace.home()).unwrap().history(&done).unwrap().is_empty());
    workspace.supervise();
    let job = workspace.wait_for_end(&half);
    workspace.judge(&job, reference());
}

/// Runs in a namespace of its own, where it may mount a small file system; without the right to do so it is skipped.
#[test]
fn a_full_disk_pauses_the_job_and_room_lets_it_go_on() {
    if std::env::var_os("TUNESMITH_TEST_NAMESPACE").is_some() {
        full_disk();
        return;
    }
    let probe = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        println!("skipped: no namespace to mount a small file system in");
        return;
    }
    let mut again = Command::new("unshare");
    again.arg("-rm").arg(std::env::current_exe().unwrap());
    again.args(["--exact", "faults::a_full_disk_pauses_the_job_and_room_lets_it_go_on", "--nocapture"]);
    let ran = again.env("TUNESMITH_TEST_NAMESPACE", "1").process_group(0).output().unwrap();
    assert!(
        ran.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
}

fn full_disk() {
    let mut workspace = Workspace::new();
    fs::create_dir(workspace.home()).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=20m", "tmpfs"])
        .arg(workspace.home())
        .status()
        .unwrap();
    assert!(mount.success());
    workspace.supervise();
    let id = workspace.create("job", &[]);
    workspace.wait(&id, "at step 5", |job| job.progress.step >= 5);
    let ballast = workspace.home().join("ballast");
    let mut fill = Command::new("dd");
    fill.arg("if=/dev/zero").arg(format!("of={}", ballast.display())).arg("bs=4096").stderr(Stdio::null());
    assert!(!fill.status().unwrap().success(), "the disk is not full");
    // The store is on that disk too: the job's own directory says what happened, and whoever asks is answered.
    let started = Instant::now();
    while !workspace.job_dir(&id).join("failure.json").exists() {
        assert!(started.elapsed() < Duration::from_mins(1), "the worker does not notice");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(workspace.supervisor_lives());
    assert!(workspace.run(&["show"]).contains(&id));
    let ran =
        workspace.command(&["create", "more", "--config", "job.toml", "-y", "--json"]).output().unwrap();
    assert!(
        !ran.status.success() && String::from_utf8_lossy(&ran.stderr).contains("the disk is full"),
        "{ran:?}"
    );
    fs::remove_file(ballast).unwrap();
    // A job that had no room waits until somebody says that there is room again.
    let job = workspace.wait(&id, "paused", |job| job.state == State::Paused);
    assert!(job.reason.as_deref().unwrap_or_default().contains("disk is full"), "{:?}", job.reason);
    assert!(workspace.supervisor_lives());
    workspace.run(&["resume", &id]);
    let job = workspace.wait_for_end(&id);
    workspace.judge(&job, reference());
    let only = workspace.jobs().len();
    assert_eq!(only, 1, "what was refused is no job");
    Command::new("umount").arg("-l").arg(workspace.home()).status().unwrap();
}
