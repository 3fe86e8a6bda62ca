//! `cancel`, `pause`, `resume`, `rm`.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use tunesmith_jobs::dir::{Control, JobDir};
use tunesmith_jobs::store::AttemptEnd;
use tunesmith_jobs::{Desired, State};

use super::kit::Kit;
use crate::support::read_json;

#[test]
fn requests_say_what_they_did_and_can_be_said_twice() {
    let mut kit = Kit::new();
    let (running, fence) = kit.running("runs", "cpu");
    let waiting = kit.queued("waits");
    let new = kit.job("new");
    let control = |kit: &Kit, id: &str| Control::read(&kit.dir(id)).unwrap();
    for (args, said, control_is) in [
        (["pause", &running], "runs: pausing: takes effect with a checkpoint", Some((Desired::Pause, 1))),
        (["pause", &running], "runs: pausing already", Some((Desired::Pause, 1))),
        (["resume", &running], "runs: goes on", Some((Desired::Run, 2))),
        (["resume", &running], "runs: not paused: nothing to resume", Some((Desired::Run, 2))),
        (
            ["cancel", &running],
            "runs: cancelling: takes effect after the micro-batch",
            Some((Desired::Cancel, 3)),
        ),
        (["cancel", &running], "runs: cancelling already", Some((Desired::Cancel, 3))),
        (["pause", &waiting], "waits: paused", Some((Desired::Pause, 1))),
        (["pause", &waiting], "waits: paused already", Some((Desired::Pause, 1))),
        // A worker that starts now must not find the pause.
        (["resume", &waiting], "waits: resumed: waits for its turn", Some((Desired::Run, 2))),
        (["cancel", &waiting], "waits: cancelled", Some((Desired::Cancel, 3))),
        (["cancel", &waiting], "waits: cancelled already", Some((Desired::Cancel, 3))),
        (
            ["cancel", &new],
            "new: cancelling: takes effect after the row being read",
            Some((Desired::Cancel, 1)),
        ),
    ] {
        let ran = kit.run(&args);
        assert!(ran.ok().stdout.starts_with(said), "{args:?}: {ran:?}");
        let written = control(&kit, args[1]);
        assert_eq!(Some((written.want, written.generation)), control_is, "{args:?}");
        assert_eq!(kit.store.job(args[1]).unwrap().generation, written.generation);
    }
    // Its directory says so too: a store that is made again must not run it.
    assert_eq!(read_json(&kit.dir(&waiting).join("result.json"))["status"], "cancelled");

    for verb in ["pause", "resume"] {
        kit.run(&[verb, &running]).failed(65, "is cancelling: too late");
        let ran = kit.run(&[verb, &waiting, "--json"]);
        ran.failed(65, "is over (cancelled): too late");
        assert_eq!(ran.json()["error"]["code"], "already_finished");
    }
    kit.end(&running, fence, State::Succeeded, None);
    kit.run(&["cancel", &running]).failed(65, "is over (success): too late to cancel it");
    kit.run(&["resume", &running]).failed(65, "`tunesmith retry").failed(65, "hint: ");
}

#[test]
fn the_job_comes_back_as_json() {
    let mut kit = Kit::new();
    let id = kit.queued("a");
    let job = kit.run(&["pause", "a", "--json"]).ok().json();
    assert_eq!((&job["id"], &job["phase"], &job["desired"]), (&json!(id), &json!("paused"), &json!("pause")));
    let job = kit.run(&["resume", "a", "--json"]).ok().json();
    assert_eq!((&job["status"], &job["phase"]), (&json!("pending"), &json!("queued")));
}

#[test]
fn waiting_ends_with_what_came_of_it() {
    let mut kit = Kit::new();
    let (id, fence) = kit.running("a", "cpu");
    let wait = |kit: &Kit, verb: &str| {
        kit.command(&[verb, "a", "--wait"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let asked = |kit: &Kit, want: Desired| {
        while Control::read(&kit.dir(&id)).unwrap().want != want {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    let child = wait(&kit, "pause");
    asked(&kit, Desired::Pause);
    assert!(kit.store.end_attempt(&id, fence, State::Paused, &AttemptEnd::default()).unwrap());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(0), b"a: paused\n".to_vec()));

    let child = wait(&kit, "resume");
    asked(&kit, Desired::Run);
    let fence = kit.store.start(&id, "cpu").unwrap().unwrap().fence;
    assert_eq!(child.wait_with_output().unwrap().stdout, b"a: running\n");

    let child = wait(&kit, "cancel");
    asked(&kit, Desired::Cancel);
    // It got to its end before it saw the request.
    kit.end(&id, fence, State::Succeeded, None);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{stderr}");
    assert!(stderr.contains("is over (success): too late to cancel it"), "{stderr}");
}

#[test]
fn of_several_jobs_of_a_name_the_live_one_is_meant_and_ids_may_be_short() {
    let mut kit = Kit::new();
    let old = kit.over("a", State::Succeeded, None);
    let live = kit.queued("a");
    assert_eq!(kit.run(&["describe", "a", "--json"]).ok().json()["id"], live.as_str());
    assert_eq!(kit.run(&["describe", &old, "--json"]).ok().json()["id"], old.as_str());
    let other = kit.queued("a");
    let ran = kit.run(&["describe", "a", "--json"]);
    ran.failed(65, "give the whole id");
    assert!(ran.stderr.contains(&live) && ran.stderr.contains(&other) && !ran.stderr.contains(&old));
    assert_eq!(ran.json()["error"]["code"], "ambiguous_job");
}

#[test]
fn rm_refuses_what_lives_and_takes_directory_and_row() {
    let mut kit = Kit::new();
    let done = kit.over("done", State::Succeeded, None);
    let waiting = kit.queued("waits");
    kit.run(&["rm", &done]).failed(2, "no terminal to ask on").failed(2, "hint: add -y");
    let ran = kit.run(&["rm", &done, &waiting, "-y", "--json"]);
    ran.failed(65, "is not over (queued)").failed(65, "add --force");
    assert_eq!(ran.json()["error"]["code"], "not_finished");
    assert!(kit.dir(&done).exists(), "all or none");

    let ran = kit.run(&["rm", "done", &done, "-y"]);
    assert_eq!(ran.ok().stdout, format!("removed {done} (done)\n"));
    kit.run(&["describe", &done]).failed(65, "there is no job");
    let ran = kit.run(&["rm", "waits", "-y", "--force", "--json"]);
    assert_eq!(ran.ok().json(), json!([{ "id": waiting, "name": "waits" }]));
    assert_eq!(kit.run(&["show", "--json"]).ok().json(), json!([]));
    assert!(kit.bench.jobs().is_empty(), "nothing is left on the disk");
}

#[test]
fn rm_does_not_take_a_directory_from_under_a_process() {
    let mut kit = Kit::new();
    let id = kit.over("done", State::Succeeded, None);
    let held = JobDir::open(&kit.dir(&id)).unwrap();
    kit.run(&["rm", &id, "-y"]).failed(74, "is already running in another process");
    assert!(kit.dir(&id).exists());
    drop(held);
    kit.run(&["rm", &id, "-y"]).ok();
}

#[test]
#[cfg(all(unix, debug_assertions))]
fn a_crash_in_rm_leaves_nothing_half() {
    let mut kit = Kit::new();
    let id = kit.over("done", State::Succeeded, None);
    let mut command = kit.command(&["rm", &id, "-y"]);
    let ran = crate::support::finish(command.env("TUNESMITH_FAIL", "rm:renamed"));
    assert_eq!(ran.code, -1, "{ran:?}");
    assert!(!kit.dir(&id).exists());
    let found = kit.run(&["doctor", "--json"]);
    let codes: Vec<Value> =
        found.json()["findings"].as_array().unwrap().iter().map(|f| f["code"].clone()).collect();
    assert_eq!((found.code, codes), (65, vec![json!("left_over"), json!("no_directory")]));
    // Said again it comes to its end.
    kit.run(&["rm", &id, "-y"]).ok();
    assert!(fs::read_dir(kit.bench.home().join("jobs")).unwrap().next().is_none());
    kit.run(&["doctor"]).ok();
}
