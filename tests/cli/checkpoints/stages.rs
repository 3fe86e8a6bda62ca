//! What the stages of a job make, from which rows, and where they leave it.

use std::fs;

use serde_json::{Value, json};
use tunesmith_jobs::dir::{Attempt, Heartbeat, JobDir, WorkerIdentity};

use super::{EXTRA, bench, checkpoints, events, job, outcome, weights, work, work_failing};
use crate::support::{Bench, read_json, rows};

#[test]
fn the_stages_of_a_job_end_as_a_foreground_run_does() {
    let bench = bench(EXTRA);
    let job = job(&bench, &[]);
    let ran = work(&bench, &job, "prepare");
    ran.ok();
    assert!(!job.join("result.json").exists() && job.join("data/manifest.json").exists());
    let manifest = fs::read(job.join("data/manifest.json")).unwrap();
    work(&bench, &job, "prepare").ok();
    assert_eq!(manifest, fs::read(job.join("data/manifest.json")).unwrap(), "done already");

    // The source is not needed any more.
    fs::remove_file(bench.path("rows.jsonl")).unwrap();
    let attempt = Attempt { attempt: 3, fence: 7, device: "cpu".into(), micro_batch_divisor: 1 };
    attempt.write(&job).unwrap();
    work(&bench, &job, "train").ok();
    let result = read_json(&job.join("result.json"));
    assert_eq!(
        (&result["status"], &result["fence"], &result["attempt"]),
        (&json!("success"), &json!(7), &json!(3))
    );
    assert_eq!(WorkerIdentity::read(&job).unwrap().unwrap().fence, 7);
    assert!(Heartbeat::read(&job).unwrap() > 20, "rows, tensors, micro-batches and tokens were counted");
    assert_eq!(
        checkpoints(&job),
        (1..=8).map(|step| format!("ckpt-{step:08}")).collect::<Vec<_>>(),
        "a checkpoint a step"
    );
    let phases: Vec<Value> = events(&job, "phase").into_iter().map(|data| data["phase"].clone()).collect();
    assert_eq!(phases, ["validating", "loading", "evaluating", "training", "saving"]);
    let told = events(&job, "checkpoint");
    let ends: Vec<u64> =
        told.iter().filter(|c| c["epoch_end"] == true).map(|c| c["step"].as_u64().unwrap()).collect();
    assert_eq!((told.len(), ends), (8, vec![4, 8]));
    assert!(told.iter().any(|c| c["best"] == true));
    assert!(told.iter().all(|c| c["bytes"].as_u64() > Some(1000) && c["seconds"].as_f64() > Some(0.0)));
    assert!(events(&job, "memory")[0]["peak_bytes"].as_u64() > Some(1 << 20));

    // What is over is not touched.
    let before = fs::metadata(job.join("worker.json")).unwrap().modified().unwrap();
    work(&bench, &job, "train").ok();
    work(&bench, &job, "prepare").ok();
    assert_eq!(before, fs::metadata(job.join("worker.json")).unwrap().modified().unwrap());

    let mut whole = outcome(&job);
    bench.write("rows.jsonl", rows(20));
    bench.run(&["train", "job.toml", "--quiet"]).ok();
    let foreground = bench.jobs().into_iter().find(|path| *path != job).unwrap();
    let other = outcome(&foreground);
    whole.result["previews"] = other.result["previews"].clone();
    assert_eq!(whole, other);
}

/// Frozen rows are the rows: whatever shape they came in, whatever was cut off them.
#[test]
fn training_on_frozen_rows_is_training_on_the_source() {
    let turn = |role: &str, text: &str, more: &str| {
        format!("{{\"role\": \"{role}\", \"content\": \"{text}\"{more}}}")
    };
    let chats = (0..16).fold(String::new(), |text, i| {
        let weight = if i % 3 == 0 { ", \"weight\": 0" } else { "" };
        let turns = [
            turn("user", &format!("Is order {i} late?"), ", \"n\": 0.1"),
            turn("assistant", "I look.", weight),
            turn("user", "And?", ""),
            turn("assistant", &format!("Order {i} is here \\u00e9."), ""),
        ];
        text + &format!("{{\"messages\": [{}]}}\n", turns.join(", "))
    });
    let alpaca = (0..16).fold(String::new(), |text, i| {
        let system = if i % 2 == 0 { "\"system\": \"Be kind.\", " } else { "" };
        text + &format!(
            "{{{system}\"instruction\": \"Say {i}\", \"input\": \"now\", \"output\": \"{i}!\"}}\n"
        )
    });
    let long = (0..16).fold(String::new(), |text, i| {
        let words = "where is it ".repeat(30);
        text + &format!("{{\"prompt\": \"{words} order {i}?\", \"completion\": \"Order {i} is lost.\"}}\n")
    });
    let one_by_one = (0..3).map(|i| rows(20).lines().skip(i * 6).take(6).collect::<Vec<_>>().join("\n"));
    for (name, content) in [("chats.jsonl", &chats), ("alpaca.jsonl", &alpaca), ("long.jsonl", &long)]
        .into_iter()
        .map(|(n, c)| (n, c.clone()))
    {
        let bench = bench(EXTRA);
        bench.write(name, &content);
        compare(&bench, &[&format!("data.train={name}"), "data.over_long=truncate-prompt"]);
    }
    let bench = bench(EXTRA);
    for (i, part) in one_by_one.enumerate() {
        bench.write(&format!("parts/{i}.jsonl"), part);
    }
    compare(&bench, &["data.train=parts", "data.template=none"]);
    compare(&bench, &["data.validation=parts/1.jsonl"]);
    compare(&bench, &["data.validation_split=0", "train.evals_per_epoch=0", "preview.prompts=0"]);
}

#[track_caller]
fn compare(bench: &Bench, sets: &[&str]) {
    let job = job(bench, sets);
    work(bench, &job, "prepare").ok();
    work(bench, &job, "train").ok();
    let known = bench.jobs();
    let args = ["train", "job.toml", "--quiet"].into_iter().chain(sets.iter().flat_map(|s| ["--set", s]));
    bench.run(&args.collect::<Vec<_>>()).ok();
    let source = bench.jobs().into_iter().find(|path| !known.contains(path)).unwrap();
    assert_eq!(outcome(&job), outcome(&source), "{sets:?}");
}

#[test]
fn frozen_rows_that_changed_are_refused_by_name() {
    let bench = bench("");
    for (name, at) in [("train.jsonl", 14), ("train.places", 3), ("validation.jsonl", 14)] {
        let job = job(&bench, &[]);
        work(&bench, &job, "prepare").ok();
        let path = job.join("data").join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        work(&bench, &job, "train").failed(65, name).failed(65, "start a new job");
        assert_eq!(read_json(&job.join("result.json"))["error"]["class"], "data");
    }
}

/// Rows that are half read are read again from the start.
#[test]
fn a_stage_that_died_while_it_read_starts_over() {
    let bench = bench("");
    let job = job(&bench, &[]);
    fs::create_dir(job.join("data")).unwrap();
    fs::write(job.join("data/train.jsonl"), "{\"prompt\": \"half").unwrap();
    fs::write(job.join("data/validation.places"), "left").unwrap();
    work(&bench, &job, "prepare").ok();
    // Without a manifest the train stage reads the rows itself.
    fs::remove_file(job.join("data/manifest.json")).unwrap();
    work(&bench, &job, "train").ok();
    assert!(job.join("data/manifest.json").exists());
}

#[test]
fn only_one_worker_has_a_job() {
    let bench = bench("");
    let job = job(&bench, &[]);
    let held = JobDir::open(&job).unwrap();
    work(&bench, &job, "prepare").failed(74, "already running in another process");
    assert!(!job.join("worker.json").exists());
    drop(held);
    work(&bench, &job, "prepare").ok();
}

#[test]
fn the_output_is_delivered_once_and_never_over_something_else() {
    let bench = bench("");
    let sets = ["output=out"];
    let job = job(&bench, &sets);
    work(&bench, &job, "prepare").ok();
    assert_eq!(work_failing(&bench, &job, "train", "worker:before_result").code, -1);
    let delivered = weights(&bench.path("out"));
    work(&bench, &job, "train").ok();
    assert_eq!(read_json(&job.join("result.json"))["adapter"], bench.path("out").to_str().unwrap());
    assert!(delivered == weights(&bench.path("out")) && delivered == weights(&job.join("adapter")));

    let job = super::job(&bench, &sets);
    fs::write(bench.path("out/README.md"), "mine").unwrap();
    work(&bench, &job, "prepare").ok();
    work(&bench, &job, "train").failed(65, "out` already exists");
    assert_eq!(fs::read_to_string(bench.path("out/README.md")).unwrap(), "mine");
    let result = read_json(&job.join("result.json"));
    assert_eq!((&result["status"], &result["error"]["code"]), (&json!("error"), &json!("output_exists")));
    assert_eq!(result["adapter"], job.join("adapter").to_str().unwrap(), "it is whole there");
}

#[test]
fn the_keys_of_checkpoints_decide_which_there_are() {
    let bench = bench("evals_per_epoch = 0\nsave_minutes = 0\n");
    let kept = |sets: &[&str]| {
        let job = job(&bench, sets);
        work(&bench, &job, "train").ok();
        let steps = checkpoints(&job).iter().map(|n| n[5..].parse().unwrap()).collect::<Vec<u64>>();
        (steps, events(&job, "checkpoint").len())
    };
    // Ends of epochs only; then every third step too; then as many others as allowed; then by the clock, always due.
    assert_eq!(kept(&[]), (vec![4, 8], 2));
    assert_eq!(kept(&["train.save_steps=3"]), (vec![3, 4, 6, 8], 4));
    assert_eq!(kept(&["train.save_steps=1", "train.save_total_limit=1"]).0, [4, 7, 8]);
    assert_eq!(kept(&["train.save_steps=1", "train.save_total_limit=0"]).0, [4, 8]);
    let (steps, told) = kept(&["train.save_minutes=1e-9", "train.save_total_limit=99"]);
    assert!(steps.len() > 4 && told == steps.len(), "{steps:?}");
    // A budget that not even two fit into leaves the last.
    assert_eq!(kept(&["train.save_steps=1", "train.save_disk_gib=1e-9"]).0, [8]);
}
