//! What users ask for, and who runs where and when.

use std::fs;
use std::time::Duration;

use serde_json::json;
use tunesmith_jobs::dir::{Control, Submission};
use tunesmith_jobs::supervisor::Settings;
use tunesmith_jobs::{Desired, State};

use crate::bench::Bench;
use crate::fake::{checkpoints, settings};

#[test]
fn a_job_pauses_at_a_checkpoint_goes_on_from_it_and_ends_when_cancelled() {
    let mut bench = Bench::new();
    let id = bench.job(&["slow"]);
    bench.supervise();
    bench.until_at_work(&id);
    bench.ask(&id, Desired::Pause);
    let job = bench.until_state(&id, State::Paused);
    let step = checkpoints(&bench.dir(&id)).max().unwrap();
    assert_eq!((job.checkpoint_step, job.device, job.reason), (Some(step), None, None));
    bench.ask(&id, Desired::Run);
    bench.until_at_work(&id);
    bench.ask(&id, Desired::Cancel);
    bench.until_state(&id, State::Cancelled);
    bench.check(&id, State::Cancelled);
    let resumed = bench.store.events(&id, 0, usize::MAX).unwrap();
    assert!(resumed.iter().any(|event| event.kind == "resumed" && event.data["step"] == json!(step)));
    assert_eq!(bench.starts(&id, "train"), 2);
}

#[test]
fn a_wish_that_was_never_written_to_control_is_written_by_the_supervisor() {
    let mut bench = Bench::new();
    let id = bench.job(&["slow"]);
    bench.supervise();
    bench.until_at_work(&id);
    // The command died between the store and the file.
    bench.store.request(&id, Desired::Pause).unwrap();
    bench.until_state(&id, State::Paused);
    let control = Control::read(&bench.dir(&id)).unwrap();
    assert_eq!((control.want, control.generation), (Desired::Pause, 1));
}

#[test]
fn a_job_is_cancelled_and_paused_before_and_while_its_rows_are_read() {
    let mut bench = Bench::new();
    let slow = json!({ "prepare": ["slow"] });
    let early = bench.job_with("cpu", &slow, &Submission::default());
    bench.ask(&early, Desired::Cancel);
    let waits = bench.job(&["ok"]);
    bench.ask(&waits, Desired::Pause);
    let reading = bench.job_with("cpu", &slow, &Submission::default());
    let paused = bench.job_with("cpu", &slow, &Submission::default());
    bench.supervise();
    bench.until_state(&early, State::Cancelled);
    bench.check(&early, State::Cancelled);
    assert_eq!(bench.starts(&early, "prepare"), 0, "nothing was started for it");

    bench.until(|bench| bench.starts(&reading, "prepare") == 1 && bench.starts(&paused, "prepare") == 1);
    bench.ask(&reading, Desired::Cancel);
    bench.until_state(&reading, State::Cancelled);
    bench.check(&reading, State::Cancelled);
    bench.ask(&paused, Desired::Pause);
    bench.until_reason(&paused, "is to pause");
    bench.until_reason(&waits, "is to pause");
    assert_eq!((bench.get(&paused).stalls, bench.starts(&waits, "prepare")), (0, 0));
    for id in [&paused, &waits] {
        bench.go(id);
        bench.ask(id, Desired::Run);
        bench.until_state(id, State::Succeeded);
        bench.check(id, State::Succeeded);
    }
}

#[test]
fn a_worker_that_does_not_follow_is_ended() {
    let mut bench = Bench::new();
    let (cancelled, paused) = (
        bench.job(&["deaf"]),
        bench.job_with("cuda:0", &json!({ "train": ["deaf", "ok"] }), &Submission::default()),
    );
    let soon = Duration::from_millis(100);
    bench.supervise_with(Settings {
        stop_grace: soon,
        term_grace: soon,
        hang: Duration::from_secs(1),
        ..settings()
    });
    for (id, wish) in [(&cancelled, Desired::Cancel), (&paused, Desired::Pause)] {
        bench.until_at_work(id);
        bench.ask(id, wish);
    }
    bench.until_state(&cancelled, State::Cancelled);
    bench.check(&cancelled, State::Cancelled);
    let reason = bench.until_state(&paused, State::Paused).reason.unwrap();
    assert!(reason.contains("did not stop in time"), "{reason}");
    assert!(!bench.worker(&cancelled).unwrap().is_alive() && !bench.worker(&paused).unwrap().is_alive());
    bench.ask(&paused, Desired::Run);
    bench.until_state(&paused, State::Succeeded);
    assert!(bench.said().contains("did not stop as it was told"), "{}", bench.said());
}

#[test]
fn jobs_run_by_priority_and_age_and_say_what_they_wait_for() {
    let mut bench = Bench::new();
    let with = |priority| Submission { priority, ..Submission::default() };
    let slow = json!({ "train": ["slow"] });
    let holder = bench.job_with("cuda:0", &slow, &with(9));
    bench.supervise();
    bench.until_at_work(&holder);
    let low = bench.job_with("cuda:0", &json!({}), &with(-1));
    let first = bench.job_with("cuda:0", &json!({}), &with(0));
    let second = bench.job_with("cuda:0", &json!({}), &with(0));
    let high = bench.job_with("cuda:0", &json!({}), &with(5));
    let (elsewhere, nowhere) = (bench.job(&["ok"]), bench.job_with("cuda:9", &json!({}), &with(0)));
    // `auto` is any GPU; the two others are free.
    let (left, right) = (bench.job_with("auto", &slow, &with(0)), bench.job_with("auto", &slow, &with(0)));
    bench.until_at_work(&left);
    bench.until_at_work(&right);
    let devices = [&left, &right].map(|id| bench.get(id).device.unwrap());
    assert!(
        devices.iter().all(|device| device == "cuda:1" || device == "cuda:2") && devices[0] != devices[1]
    );
    bench.until_state(&elsewhere, State::Succeeded);
    bench.until_reason(&high, &format!("waiting for cuda:0, which job {holder} has"));
    bench.until_reason(&low, "waits behind 3 jobs for cuda:0");
    bench.until_reason(&nowhere, "there is no device `cuda:9` here");
    bench.go(&holder);
    for id in [&high, &first, &second, &low] {
        bench.until_state(id, State::Succeeded);
        bench.check(id, State::Succeeded);
    }
    let order = fs::read_to_string(bench.home().join("order")).unwrap();
    let ours: Vec<&str> =
        order.lines().filter(|id| [&low, &first, &second, &high].iter().any(|job| job == id)).collect();
    assert_eq!(ours, [&high, &first, &second, &low]);
    assert_eq!(bench.get(&nowhere).state, State::Queued);
}

#[test]
fn the_rows_of_two_jobs_are_read_at_a_time() {
    let mut bench = Bench::new();
    let slow = json!({ "prepare": ["slow"] });
    let ids: Vec<_> = (0..4).map(|_| bench.job_with("cpu", &slow, &Submission::default())).collect();
    bench.supervise();
    bench.until_reason(&ids[3], "its rows are read after those of 3 other jobs");
    bench.until(|bench| bench.starts(&ids[0], "prepare") + bench.starts(&ids[1], "prepare") == 2);
    assert_eq!(bench.starts(&ids[2], "prepare") + bench.starts(&ids[3], "prepare"), 0);
    for id in &ids {
        bench.go(id);
    }
    for id in &ids {
        bench.until_state(id, State::Succeeded);
    }
}

#[test]
fn the_command_of_a_finished_job_runs_once_and_knows_the_job() {
    let mut bench = Bench::new();
    let told = bench.home().join("told");
    let command = format!(
        "echo \"$TUNESMITH_JOB_ID $TUNESMITH_JOB_NAME $TUNESMITH_JOB_STATUS $TUNESMITH_JOB_DIR [$TUNESMITH_ADAPTER]\" \
         >> '{}'; echo said; exit 3",
        told.display()
    );
    let submission = Submission { on_finish: Some(command), ..Submission::default() };
    let good = bench.job_with("cpu", &json!({}), &submission);
    let bad = bench.job_with("cpu", &json!({ "train": ["bad"] }), &submission);
    bench.supervise();
    bench.until_state(&good, State::Succeeded);
    bench.until_state(&bad, State::Failed);
    bench.until(|bench| bench.said().matches("its command ended with code 3").count() == 2);
    bench.leave();
    bench.supervise_with(Settings { idle_exit: Some(Duration::from_millis(50)), ..settings() });
    bench.gone();
    let mut lines: Vec<_> = fs::read_to_string(told).unwrap().lines().map(str::to_owned).collect();
    let dir = |id: &str| bench.dir(id).display().to_string();
    let mut expected = [
        format!("{good} n success {} [{}/adapter]", dir(&good), dir(&good)),
        format!("{bad} n error {} []", dir(&bad)),
    ];
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected);
    assert!(fs::read_to_string(bench.dir(&good).join("log")).unwrap().ends_with("said\n"));
}
