//! `retry`, up to the job that waits.

use std::fs;

use serde_json::{Value, json};
use tunesmith_jobs::State;

use super::kit::Kit;
use crate::support::{base, read_json, rows};

/// A job that is over, of a spec that `retry` can use, with a checkpoint.
fn kit(state: State, error: Option<(&str, &str)>) -> (Kit, String) {
    let mut kit = Kit::new();
    kit.bench.write("rows.jsonl", rows(20));
    let id = kit.over("support", state, error);
    let dir = kit.dir(&id);
    let mut spec = read_json(&dir.join("spec.json"));
    spec["spec"]["base"] = json!(base());
    spec["spec"]["data"]["train"] = json!(kit.bench.path("rows.jsonl"));
    fs::write(dir.join("spec.json"), spec.to_string()).unwrap();
    fs::create_dir(dir.join("ckpt-00000010")).unwrap();
    fs::write(dir.join("ckpt-00000010/state.json"), "{\"step\":10}").unwrap();
    fs::create_dir(dir.join("ckpt-00000020.tmp")).unwrap();
    (kit, id)
}

#[test]
fn a_lost_job_goes_on_from_its_newest_checkpoint() {
    let (kit, old) = kit(State::Failed, Some(("worker_lost", "it was killed")));
    let ran = kit.run(&["retry", "support"]);
    let id = ran.ok().stdout.trim().to_owned();
    assert_ne!(id, old);
    assert!(ran.stderr.contains("goes on from step 10"), "{ran:?}");
    let (from, to) = (kit.dir(&old), kit.dir(&id));
    for file in ["data/manifest.json", "data/train.jsonl", "ckpt-00000010/state.json"] {
        assert_eq!(fs::read(from.join(file)).unwrap(), fs::read(to.join(file)).unwrap(), "{file}");
    }
    for file in ["ckpt-00000020.tmp", "result.json", "events.jsonl", "adapter"] {
        assert!(!to.join(file).exists(), "{file}");
    }
    let job = kit.run(&["describe", &id, "--json"]).ok().json();
    assert_eq!((&job["retried_from"], &job["phase"]), (&json!(old), &json!("validating")));
    // The device that an old job left open is decided now.
    let mut spec = read_json(&from.join("spec.json"))["spec"].take();
    assert_eq!(spec["device"], "auto");
    spec["device"] = json!("cpu");
    assert_eq!(read_json(&to.join("spec.json"))["spec"], spec);
    // The old one may go: what it had in common is still there.
    kit.run(&["rm", &old, "-y"]).ok();
    assert!(fs::read_to_string(to.join("ckpt-00000010/state.json")).unwrap().contains("10"));
}

#[test]
fn bad_rows_and_numbers_begin_again_from_the_start() {
    for (state, error, args, why) in [
        (State::Failed, Some(("data", "bad row")), &[][..], "from the start, as its rows were at fault"),
        (State::Failed, Some(("numeric", "nan")), &[], "from the start, as its numbers were at fault"),
        (State::Cancelled, None, &["--from-start"], "from the start, as was asked"),
        (State::Succeeded, None, &[], "from the start, as it got to its end"),
    ] {
        let (kit, old) = kit(state, error);
        let ran = kit.run(&[&["retry", &old], args].concat());
        assert!(ran.ok().stderr.contains(why), "{ran:?}");
        let to = kit.dir(ran.stdout.trim());
        assert!(!to.join("data").exists() && !to.join("ckpt-00000010").exists());
    }
}

#[test]
fn rows_of_standard_input_follow_the_job() {
    let (kit, old) = kit(State::Failed, Some(("data", "bad row")));
    let from = kit.dir(&old);
    fs::write(from.join("stdin.jsonl"), rows(20)).unwrap();
    let mut spec = read_json(&from.join("spec.json"));
    spec["spec"]["data"]["train"] = json!(from.join("stdin.jsonl"));
    fs::write(from.join("spec.json"), spec.to_string()).unwrap();
    let job: Value = kit.run(&["retry", &old, "--json"]).ok().json();
    let to = kit.dir(job["id"].as_str().unwrap());
    assert_eq!(job["training_data"], json!(to.join("stdin.jsonl")));
    assert_eq!(fs::read_to_string(to.join("stdin.jsonl")).unwrap(), rows(20));
}

#[test]
fn what_cannot_be_retried_says_why() {
    let mut live = Kit::new();
    live.queued("a");
    let ran = live.run(&["retry", "a", "--json"]);
    ran.failed(65, "is not over (queued)").failed(65, "tunesmith resume");
    assert_eq!(ran.json()["error"]["code"], "not_finished");

    let (kit, old) = kit(State::Failed, Some(("data", "bad row")));
    fs::remove_file(kit.bench.path("rows.jsonl")).unwrap();
    kit.run(&["retry", &old]).failed(65, "rows.jsonl` does not exist");
    fs::write(kit.dir(&old).join("spec.json"), "{\"format_version\":9}").unwrap();
    kit.run(&["retry", &old]).failed(74, "a later version of tunesmith wrote");
    assert_eq!(kit.bench.jobs().len(), 1);
}
