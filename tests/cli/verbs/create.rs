//! `create`, up to the job that waits.

use std::fs;

use serde_json::{Value, json};
use tunesmith_jobs::{State, Store};

use super::kit::command;
use crate::support::{Bench, Ran, base, finish, read_json, rows, small_job};

fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.write("rows.jsonl", rows(20));
    bench
}

fn run(bench: &Bench, args: &[&str]) -> Ran {
    finish(&mut command(bench, args))
}

fn spec(bench: &Bench, id: &str) -> Value {
    read_json(&bench.home().join("jobs").join(id).join("spec.json"))
}

#[test]
fn a_job_is_made_of_defaults_file_sets_and_flags() {
    let bench = bench();
    let base = base();
    let ran = run(&bench, &["create", "plain", "--base", &base, "--training-data", "rows.jsonl", "--detach"]);
    let id = ran.ok().stdout.trim().to_owned();
    assert_eq!((id.len(), ran.stderr.as_str()), (32, ""), "the id alone: {ran:?}");
    let plain = spec(&bench, &id);
    assert_eq!((&plain["spec"]["name"], &plain["spec"]["base"]), (&json!("plain"), &json!(base)));
    assert_eq!(plain["spec"]["data"]["train"], json!(bench.path("rows.jsonl")));
    assert_eq!(plain["spec"]["lora"]["r"], 16);
    assert_eq!(Store::open(&bench.home()).unwrap().job(&id).unwrap().state, State::Validating);

    bench.write("held.jsonl", rows(3));
    let job = run(
        &bench,
        &[
            "create",
            "named ☃",
            "--config",
            "job.toml",
            "--set",
            "lora.r=8",
            "--set",
            "train.epochs=5",
            "--epochs",
            "2",
            "--validation-data",
            "held.jsonl",
            "--device",
            "cpu",
            "--output",
            "out",
            "--priority",
            "-3",
            "--on-finish",
            "echo done",
            "--idempotency-key",
            "k",
            "--json",
        ],
    );
    let job = job.ok().json();
    assert_eq!(job.as_object().unwrap().keys().next().unwrap(), "id");
    let made = spec(&bench, job["id"].as_str().unwrap());
    assert_eq!((&made["spec"]["name"], &made["spec"]["lora"]["r"]), (&json!("named ☃"), &json!(8)));
    assert_eq!((&made["spec"]["train"]["epochs"], &made["spec"]["device"]), (&json!(2), &json!("cpu")));
    assert_eq!(made["spec"]["data"]["validation"], json!(bench.path("held.jsonl")));
    assert_eq!(made["submission"]["priority"], -3);
    assert_eq!((&job["status"], &job["phase"]), (&json!("pending"), &json!("validating")));
    assert_eq!((&job["priority"], &job["on_finish"]), (&json!(-3), &json!("echo done")));
    assert_eq!(job["validation_data"], json!(bench.path("held.jsonl")));
}

#[test]
fn what_can_be_known_to_fail_makes_no_job() {
    let bench = bench();
    let base = base();
    for (args, code, text) in [
        (&["create"][..], 2, "<NAME>"),
        (&["create", "a", "--base", &base], 2, "--training-data"),
        (&["create", "a", "--training-data", "rows.jsonl"], 2, "--base"),
        (&["create", "", "--config", "job.toml"], 2, "must not be empty"),
        (&["create", "a\nb", "--config", "job.toml"], 2, "control characters"),
        (&["create", &"n".repeat(65), "--config", "job.toml"], 2, "at most 64 characters, and this has 65"),
        (&["create", "a", "--base", &base, "--training-data", "no.jsonl"], 65, "no.jsonl` does not exist"),
        (&["create", "a", "--base", "./nowhere", "--training-data", "rows.jsonl"], 65, "`--base`: `base`: `"),
        (&["create", "a", "--config", "job.toml", "--set", "lora.rr=1"], 65, "did you mean `lora.r`?"),
        (&["create", "a", "--config", "job.toml", "--device", "cuda:99"], 69, "device `cuda:99`"),
        (
            &["create", "a", "--config", "job.toml", "--training-data", "-", "--validation-data", "-"],
            2,
            "standard input cannot be both",
        ),
        (&["create", "a", "--base", &base, "--training-data", "-"], 65, "standard input has no rows"),
    ] {
        run(&bench, args).failed(code, text);
    }
    assert!(bench.jobs().is_empty(), "{:?}", bench.jobs());
    assert!(Store::open(&bench.home()).unwrap().live().unwrap().is_empty());
}

#[test]
fn rows_from_standard_input_come_along() {
    let bench = bench();
    let base = base();
    let piped = |args: &[&str]| {
        let mut command = command(&bench, args);
        command.stdin(fs::File::open(bench.path("rows.jsonl")).unwrap());
        finish(&mut command)
    };
    let args = ["create", "a", "--base", &base, "--training-data", "-", "--detach", "--idempotency-key", "k"];
    let ran = piped(&args);
    let id = ran.ok().stdout.trim().to_owned();
    let copy = bench.home().join("jobs").join(&id).join("stdin.jsonl");
    assert_eq!(fs::read_to_string(&copy).unwrap(), rows(20));
    assert_eq!(spec(&bench, &id)["spec"]["data"]["train"], json!(copy));
    assert!(ran.stderr.contains("standard input was copied into the job"), "{ran:?}");
    // The same again is the same job, though its copy would lie elsewhere.
    let ran = piped(&args);
    assert_eq!(ran.ok().stdout.trim(), id);
    assert_eq!(bench.jobs().len(), 1);

    let csv = "prompt,completion\na,b\n";
    bench.write("rows.jsonl", csv);
    let ran = piped(&[
        "create",
        "b",
        "--config",
        "job.toml",
        "--training-data",
        "-",
        "--set",
        "data.format=csv",
        "--json",
    ]);
    let path = ran.ok().json()["training_data"].as_str().unwrap().to_owned();
    assert!(path.ends_with("/stdin.csv") && fs::read_to_string(path).unwrap() == csv);
}

#[test]
fn a_key_makes_one_job_of_many_requests() {
    let bench = bench();
    let args = ["create", "a", "--config", "job.toml", "--idempotency-key", "k", "--detach"];
    let children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = command(&bench, &args);
            command.stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ids: std::collections::HashSet<_> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    assert_eq!((ids.len(), bench.jobs().len()), (1, 1));
    run(&bench, &args).failed(0, "the job of this key is there already");
    let other = [&args[..], &["--set", "lora.r=3"]].concat();
    let ran = run(&bench, &other);
    ran.failed(65, "the key `k` belongs to job ");
    assert_eq!(bench.jobs().len(), 1);
}
