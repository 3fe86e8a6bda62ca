//! Killed, paused, cancelled, damaged: what is gone on from, and what is not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tunesmith_jobs::Desired;
use tunesmith_jobs::dir::Control;

use super::{
    EXTRA, TMP, bench, checkpoints, events, job, outcome, reference, start, until, work, work_failing,
};
use crate::support::{finish, read_json};

#[test]
fn killed_anywhere_a_run_ends_as_the_one_that_was_not() {
    let bench = bench(EXTRA);
    let whole = reference(&bench);
    let places = ["ckpt:after_tmp", "ckpt:before_rename", "ckpt:after_rename"];
    let around = ["worker:after_lock", "worker:before_adapter", "worker:before_result"];
    let points = places.iter().flat_map(|p| [1, 3, 8].map(|n| format!("{p}@{n}")));
    for point in points.chain(around.map(str::to_owned)) {
        let job = job(&bench, &[]);
        work(&bench, &job, "prepare").ok();
        let ran = work_failing(&bench, &job, "train", &point);
        assert_eq!(ran.code, -1, "{point} was not reached: {ran:?}");
        assert!(!job.join("result.json").exists(), "{point}");
        work(&bench, &job, "train").ok();
        assert_eq!(outcome(&job), whole, "{point}");
        let left = fs::read_dir(&job).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = left.filter(|n| n.ends_with(TMP)).collect();
        assert_eq!(left, [""; 0], "{point}");
        // Each checkpoint has been told, also one that was written in the moment of the kill.
        let told: std::collections::BTreeSet<u64> =
            events(&job, "checkpoint").iter().map(|c| c["step"].as_u64().unwrap()).collect();
        assert_eq!(told.len(), 8, "{point}");
    }
    // After the end is written there is nothing left to do.
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    assert_eq!(work_failing(&bench, &job, "train", "worker:after_result").code, -1);
    let result = fs::read(job.join("result.json")).unwrap();
    work(&bench, &job, "train").ok();
    assert_eq!(fs::read(job.join("result.json")).unwrap(), result);
    assert_eq!(outcome(&job), whole);
}

/// The kill of an impatient administrator, at moments that no failpoint names, several times over.
#[test]
fn killed_at_any_moment_a_run_ends_as_the_one_that_was_not() {
    let bench = bench(EXTRA);
    let whole = reference(&bench);
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    for steps in [1, 3, 4, 6, 7] {
        let mut child = start(&bench, &job);
        until("that far", || {
            let last = events(&job, "step").iter().filter_map(|data| data["step"].as_u64()).max();
            last >= Some(steps) || child_is_gone(&job)
        });
        std::thread::sleep(Duration::from_millis(7 * steps));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    work(&bench, &job, "train").ok();
    assert_eq!(outcome(&job), whole);
    assert!(!events(&job, "resumed").is_empty());
}

fn child_is_gone(job: &Path) -> bool {
    job.join("result.json").exists()
}

#[test]
fn paused_a_run_goes_on_and_cancelled_it_leaves_an_adapter() {
    let bench = bench(EXTRA);
    let whole = reference(&bench);
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();

    // By its control file, by a signal, and before it has begun.
    let want = |want, generation| Control { want, generation }.write(&job).unwrap();
    let mut child = start(&bench, &job);
    until("a step", || !events(&job, "step").is_empty());
    want(Desired::Pause, 1);
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let paused_at = checkpoints(&job).len();
    assert!((1..8).contains(&paused_at) && !job.join("result.json").exists(), "{paused_at}");
    assert_eq!(work(&bench, &job, "train").code, 75, "still paused");
    want(Desired::Run, 2);
    #[cfg(unix)]
    {
        let mut child = start(&bench, &job);
        until("on", || events(&job, "step").len() > paused_at || child_is_gone(&job));
        finish(std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]));
        let code = child.wait().unwrap().code();
        assert!(matches!(code, Some(75 | 0)), "{code:?}");
    }
    work(&bench, &job, "train").ok();
    assert_eq!(outcome(&job), whole);

    let job = super::job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    let mut child = start(&bench, &job);
    until("two steps", || events(&job, "step").len() > 1);
    Control { want: Desired::Cancel, generation: 1 }.write(&job).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let result = read_json(&job.join("result.json"));
    assert_eq!((&result["status"], &result["error"]), (&json!("cancelled"), &Value::Null));
    assert!(!job.join("adapter").exists());
    let last = checkpoints(&job).pop().unwrap();
    assert_eq!(format!("ckpt-{:08}", result["steps"].as_u64().unwrap()), last);
    assert_eq!(work(&bench, &job, "train").code, 130, "it stays cancelled");
    let adapter = job.join(last);
    let base = crate::support::base();
    let args = ["generate", "--base", &base, "--adapter", adapter.to_str().unwrap(), "--prompt", "Hello"];
    bench.run(&[&args[..], &["--max-new-tokens", "2"]].concat()).ok();
}

#[test]
fn a_job_cancelled_before_it_begins_computes_nothing() {
    let bench = bench("");
    let job = job(&bench, &[]);
    Control { want: Desired::Cancel, generation: 1 }.write(&job).unwrap();
    assert_eq!(work(&bench, &job, "prepare").code, 130);
    assert_eq!(read_json(&job.join("result.json"))["status"], "cancelled");
    assert!(!job.join("data").exists());
}

type Harm = fn(&Path);

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_warning() {
    let bench = bench(EXTRA);
    let whole = reference(&bench);
    let damage: [(&str, Harm); 3] = [
        ("a flipped bit", |dir| {
            let path = dir.join("optimizer.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            fs::write(path, bytes).unwrap();
        }),
        ("a short file", |dir| {
            fs::File::options()
                .write(true)
                .open(dir.join("adapter_model.safetensors"))
                .unwrap()
                .set_len(99)
                .unwrap();
        }),
        ("no manifest", |dir| fs::remove_file(dir.join("manifest.json")).unwrap()),
    ];
    for (what, harm) in damage {
        let job = job(&bench, &[]);
        work(&bench, &job, "prepare").ok();
        assert_eq!(work_failing(&bench, &job, "train", "ckpt:before_rename@6").code, -1);
        assert_eq!(checkpoints(&job).iter().filter(|n| !n.ends_with(TMP)).count(), 5);
        harm(&job.join("ckpt-00000005"));
        work(&bench, &job, "train").ok();
        let warnings = events(&job, "warning");
        let said = warnings.iter().filter_map(|w| w["message"].as_str()).find(|m| m.contains("damaged"));
        let said = said.unwrap_or_else(|| panic!("{what}: {warnings:?}"));
        assert!(said.starts_with("checkpoint ckpt-00000005 is damaged ("), "{said}");
        assert!(said.ends_with("; going on from ckpt-00000004"), "{said}");
        assert_eq!(events(&job, "resumed"), [json!({ "step": 4 })]);
        assert_eq!(outcome(&job), whole, "{what}");
    }
}
