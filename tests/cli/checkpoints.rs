//! The stages of a job in worker processes: killed, paused, cancelled, damaged, and gone on from; what comes out is
//! held to the run that nobody touched, bit for bit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunesmith_jobs::Desired;
use tunesmith_jobs::dir::{Attempt, AttemptFailure, Control, Heartbeat, JobDir, WorkerIdentity};

use crate::support::{Bench, Ran, finish, read_json, rows, small_job};

/// Accumulation, dropout, two epochs of four steps, an evaluation after every second.
const EXTRA: &str = "micro_batch_size = 2\nevals_per_epoch = 2\nlearning_rate = 1e-3\nsave_steps = 1\n\
                     save_total_limit = 99\n[preview]\nprompts = 1\nmax_new_tokens = 3\n";

/// A bench with a job file and rows for it.
fn bench(extra: &str) -> Bench {
    let bench = Bench::new();
    let job = small_job(extra).replace("epochs = 1", "epochs = 2");
    bench.write("job.toml", job.replace("[lora]", "[lora]\nlora_dropout = 0.1"));
    bench.write("rows.jsonl", rows(20));
    bench
}

/// A job directory as `create` makes it, from the job file with these settings.
fn job(bench: &Bench, sets: &[&str]) -> PathBuf {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    let spec = tunesmith_cli::spec::load(&bench.path("job.toml"), &sets, &[], &bench.path("")).unwrap().spec;
    let dir = JobDir::create(&bench.home()).unwrap();
    dir.write_spec(&spec).unwrap();
    dir.path().to_owned()
}

fn worker(bench: &Bench, job: &Path, stage: &str) -> std::process::Command {
    bench.command(&["worker", job.to_str().unwrap(), "--stage", stage])
}

fn work(bench: &Bench, job: &Path, stage: &str) -> Ran {
    finish(&mut worker(bench, job, stage))
}

/// Runs with failpoints.
fn work_failing(bench: &Bench, job: &Path, stage: &str, points: &str) -> Ran {
    finish(worker(bench, job, stage).env("TUNESMITH_FAIL", points))
}

fn start(bench: &Bench, job: &Path) -> Child {
    let mut command = worker(bench, job, "train");
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn events(job: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(job.join("events.jsonl")).unwrap_or_default();
    let whole = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    whole.filter(|event| event["type"] == kind).map(|event| event["data"].clone()).collect()
}

fn checkpoints(job: &Path) -> Vec<String> {
    let names = fs::read_dir(job).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|n| n.starts_with("ckpt-")).collect();
    names.sort();
    names
}

fn weights(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("adapter_model.safetensors")).unwrap()
}

/// What must not depend on how often a run was stopped.
#[derive(Debug, PartialEq)]
struct Outcome {
    weights: Vec<u8>,
    card: String,
    result: Value,
    losses: std::collections::BTreeMap<(String, u64), String>,
}

fn outcome(job: &Path) -> Outcome {
    let mut losses = std::collections::BTreeMap::new();
    for kind in ["step", "evaluation"] {
        for data in events(job, kind) {
            let (key, loss) = ((kind.to_owned(), data["step"].as_u64().unwrap()), data["loss"].to_string());
            // A step that was done again was done the same.
            let before = losses.insert(key, loss.clone()).unwrap_or(loss.clone());
            assert_eq!(before, loss);
        }
    }
    let mut result = read_json(&job.join("result.json"));
    for key in ["id", "job_dir", "adapter", "started_at", "finished_at", "seconds", "fence", "attempt"] {
        result.as_object_mut().unwrap().shift_remove(key).unwrap();
    }
    // Measured, as wall time is.
    for key in ["joules", "joules_unknown"] {
        result.as_object_mut().unwrap().shift_remove(key);
    }
    let card = fs::read_to_string(job.join("adapter/README.md")).unwrap();
    Outcome { weights: weights(&job.join("adapter")), card, result, losses }
}

/// The run that nobody touches.
fn reference(bench: &Bench) -> Outcome {
    let job = job(bench, &[]);
    work(bench, &job, "prepare").ok();
    work(bench, &job, "train").ok();
    outcome(&job)
}

/// Waits until a job is as told, or its worker has gone.
fn until(what: &str, is: impl Fn() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < Duration::from_mins(2), "never {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

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
        let left: Vec<_> = left.filter(|n| n.ends_with(".tmp")).collect();
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

    let job = self::job(&bench, &[]);
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

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_warning() {
    let bench = bench(EXTRA);
    let whole = reference(&bench);
    let damage: [(&str, fn(&Path)); 3] = [
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
        assert_eq!(checkpoints(&job).iter().filter(|n| !n.ends_with(".tmp")).count(), 5);
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

#[test]
fn a_checkpoint_of_another_run_is_an_error_and_no_guess() {
    let bench = bench(EXTRA);
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    assert_eq!(work_failing(&bench, &job, "train", "ckpt:before_rename@3").code, -1);
    let path = job.join("spec.json");
    let spec = fs::read_to_string(&path).unwrap();
    let other = spec.replace("\"learning_rate\": 0.001", "\"learning_rate\": 0.002");
    assert_ne!(other, spec);
    fs::write(path, other).unwrap();
    work(&bench, &job, "train").failed(65, "belongs to another run").failed(65, "ckpt-00000002");
}

#[test]
fn a_spec_that_this_version_does_not_understand_is_refused() {
    let bench = bench("");
    let spoil: [(fn(&str) -> String, &str); 3] = [
        (
            |spec| spec.replace("\"format_version\": 1", "\"format_version\": 9"),
            "of format 9, which a later version",
        ),
        (|spec| spec.replace("\"lora_alpha\"", "\"lora_alpine\""), "unknown field `lora_alpine`"),
        (|spec| spec[..spec.len() / 2].to_owned(), "is damaged"),
    ];
    for (spoil, sentence) in spoil {
        let job = job(&bench, &[]);
        let path = job.join("spec.json");
        let spec = fs::read_to_string(&path).unwrap();
        fs::write(&path, spoil(&spec)).unwrap();
        work(&bench, &job, "prepare").failed(65, sentence);
        let error = &read_json(&job.join("result.json"))["error"];
        assert!(error["class"] == "data" && error["message"].as_str().unwrap().contains(sentence), "{error}");
    }
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
#[cfg(debug_assertions)]
fn memory_that_runs_out_is_for_the_supervisor_to_decide_and_smaller_micro_batches_fit() {
    let bench = bench("micro_batch_size = 2\n");
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    let attempt = |fence, micro_batch_divisor| {
        Attempt { attempt: fence as u32, fence, device: "cpu".into(), micro_batch_divisor }
            .write(&job)
            .unwrap();
        finish(worker(&bench, &job, "train").env("TUNESMITH_FAKE_OOM_ABOVE", "50"))
    };
    attempt(1, 1).failed(69, "Not enough device memory");
    let failure = AttemptFailure::read(&job).unwrap().unwrap();
    assert_eq!((failure.fence, failure.error.class.as_str()), (1, "memory"));
    assert_eq!(failure.error.code, "insufficient_memory");
    assert!(!job.join("result.json").exists());
    attempt(2, 2).ok();
    assert!(AttemptFailure::read(&job).unwrap().is_none(), "it is of another attempt");
    assert_eq!(events(&job, "step").len(), 8, "the batch is what it was");
}

#[test]
fn a_device_that_is_not_there_is_for_the_supervisor_to_decide() {
    let bench = bench("");
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    let attempt = Attempt { attempt: 1, fence: 1, device: "cuda:99".into(), micro_batch_divisor: 1 };
    attempt.write(&job).unwrap();
    work(&bench, &job, "train").failed(69, "device `cuda:99`");
    assert_eq!(AttemptFailure::read(&job).unwrap().unwrap().error.class, "device");
    assert!(!job.join("result.json").exists());
}

#[test]
#[cfg(unix)]
fn a_disk_that_fills_up_leaves_the_checkpoints_before_and_no_half_one() {
    let bench = bench(EXTRA);
    let whole = reference(&bench);
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    // Enough for events and rows, too little for weights.
    let args = format!("worker {} --stage train", job.display());
    let ran = crate::jobs::with_file_limit(&bench, 16, &args);
    ran.failed(74, "the file size limit is reached").failed(74, "ckpt-");
    let failure = AttemptFailure::read(&job).unwrap().unwrap();
    assert_eq!((failure.error.class.as_str(), failure.error.code.as_str()), ("io", "disk_full"));
    assert_eq!(checkpoints(&job), [""; 0]);
    work(&bench, &job, "train").ok();
    assert_eq!(outcome(&job), whole);
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

    let job = self::job(&bench, &sets);
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
