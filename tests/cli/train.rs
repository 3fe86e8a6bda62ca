//! Whole runs: what they leave behind, and how they fail.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Bench, Ran, root, rows, small_job};
use crate::support::{finish, read_json};

/// The lines of `events.jsonl`.
fn events(job: &Path) -> Vec<Value> {
    let text = fs::read_to_string(job.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sha256(path: &Path) -> String {
    tunesmith_jobs::dir::sha256_file(path).unwrap()
}

fn trained(bench: &Bench, args: &[&str]) -> Ran {
    let ran = bench.run(&[&["train", "job.toml"], args].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    ran
}

fn bench(extra: &str) -> Bench {
    let bench = Bench::new();
    bench.write("job.toml", small_job(extra));
    bench.write("rows.jsonl", rows(20));
    bench
}

#[test]
fn a_run_leaves_the_whole_job_directory() {
    let bench = bench("evals_per_epoch = 2\n[preview]\nprompts = 2\nmax_new_tokens = 4\n");
    let ran = trained(&bench, &[]);
    let job = bench.only_job();
    let last = ran.stdout.lines().last().unwrap();
    assert_eq!(last, format!("adapter: {}", job.join("adapter").display()));
    assert_eq!(ran.stdout.matches("before:").count(), 2, "{}", ran.stdout);

    let mut names: Vec<_> =
        fs::read_dir(&job).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "adapter",
            "ckpt-00000002",
            "ckpt-00000004",
            "data",
            "events.jsonl",
            "lock",
            "previews.json",
            "result.json",
            "spec.json"
        ]
    );
    for file in ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"] {
        assert!(job.join("adapter").join(file).is_file(), "{file}");
    }

    // Events: numbered from 1, in the order of what happened, with what DESIGN calls seq, time, type, data.
    let events = events(&job);
    let numbers: Vec<u64> = events.iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    assert!(events.iter().all(|e| e["time"].as_str().unwrap().ends_with('Z') && e["data"].is_object()));
    let (phases, events): (Vec<Value>, Vec<Value>) = events.into_iter().partition(|e| e["type"] == "phase");
    let phases: Vec<&str> = phases.iter().map(|e| e["data"]["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["validating", "loading", "evaluating", "training", "saving"]);
    // Told when it has reached the disk: the one of the better evaluation in the middle, and the last.
    let (saved, events): (Vec<Value>, Vec<Value>) =
        events.into_iter().partition(|e| e["type"] == "checkpoint");
    let saved: Vec<&Value> = saved.iter().map(|e| &e["data"]["step"]).collect();
    assert_eq!(saved, [2, 4]);
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "data",
            "data",
            "memory_plan",
            "plan",
            "evaluation",
            "step",
            "step",
            "evaluation",
            "step",
            "step",
            "evaluation",
            "stopped",
            "memory"
        ],
        "16 rows in batches of 4, evaluated twice"
    );

    // The frozen rows are the source's rows, each exactly once, and the manifest knows them.
    let manifest = read_json(&job.join("data/manifest.json"));
    let mut frozen = Vec::new();
    for part in ["train", "validation"] {
        let file = job.join("data").join(manifest[part]["file"].as_str().unwrap());
        assert_eq!(manifest[part]["sha256"], sha256(&file));
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(manifest[part]["rows"], text.lines().count());
        frozen.extend(text.lines().map(str::to_owned).collect::<Vec<_>>());
    }
    assert_eq!(manifest["validation"]["rows"], 4);
    assert_eq!(manifest["sources"][0]["files"][0]["sha256"], sha256(&bench.path("rows.jsonl")));
    frozen.sort();
    // Written anew, with the standard columns and no white space between them.
    let compact = |line: &str| serde_json::from_str::<Value>(line).unwrap().to_string();
    let mut all: Vec<_> = rows(20).lines().map(compact).collect();
    all.sort();
    assert_eq!(frozen, all);

    let result = read_json(&job.join("result.json"));
    assert_eq!((&result["status"], &result["error"]), (&json!("success"), &Value::Null));
    assert_eq!((&result["steps"], &result["total_steps"]), (&json!(4), &json!(4)));
    assert_eq!(result["initial_validation_loss"], events[3]["data"]["loss"]);
    assert_eq!(result["validation_loss"], events[9]["data"]["loss"]);
    assert!(result["validation_loss"].as_f64() < result["initial_validation_loss"].as_f64());
    assert!(result["started_at"].as_str() < result["finished_at"].as_str());
    let preview = &result["previews"][0];
    let line = preview["line"].as_u64().unwrap() as usize;
    let source: Value = serde_json::from_str(rows(20).lines().nth(line - 1).unwrap()).unwrap();
    assert_eq!((&preview["prompt"], &preview["expected"]), (&source["prompt"], &source["completion"]));
    assert!(!preview["before"].as_str().unwrap().is_empty() && preview["after"].is_string());
}

#[test]
fn json_is_the_result_and_quiet_is_quiet() {
    let bench = bench("");
    let ran = trained(&bench, &["--json", "--quiet"]);
    assert_eq!(ran.stderr, "");
    assert_eq!(ran.json(), read_json(&bench.only_job().join("result.json")));
    // Without a terminal progress is plain lines: no carriage return, no escape.
    let ran = trained(&bench, &["--json"]);
    assert!(ran.stderr.contains("step 4/4") && !ran.stderr.contains(['\r', '\u{1b}']), "{ran:?}");
    ran.json();
}

#[test]
fn output_gets_the_whole_adapter() {
    let bench = bench("");
    let ran = trained(&bench, &["--output", "deep/out"]);
    let out = bench.path("deep/out");
    assert!(ran.stdout.ends_with(&format!("adapter: {}\n", out.display())), "{ran:?}");
    let own = bench.only_job().join("adapter");
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&out), names(&own));
    for name in names(&own) {
        assert_eq!(sha256(&out.join(&name)), sha256(&own.join(&name)), "{name:?}");
    }
    assert_eq!(names(&bench.path("deep")), ["out"], "no partial copy is left");
    let ran = bench.run(&["train", "job.toml", "--output", "deep/out"]);
    ran.failed(65, "deep/out` already exists").failed(65, "hint: ");
    assert_eq!(bench.jobs().len(), 1);
}

#[test]
fn the_same_seed_gives_the_same_adapter_and_another_another() {
    let bench = bench("");
    let weights = |seed: &str, out: &str| {
        trained(&bench, &["--seed", seed, "--set", "lora.lora_dropout=0.1", "--output", out, "--quiet"]);
        fs::read(bench.path(out).join("adapter_model.safetensors")).unwrap()
    };
    let first = weights("5", "a");
    assert!(first == weights("5", "b"));
    assert!(first != weights("6", "c"));
}

/// A run that must fail with this code and sentence, and say the same in its result.
#[track_caller]
fn fails(job: &str, data: &[u8], code: i32, sentence: &str, class: &str) {
    let bench = Bench::new();
    bench.write("job.toml", small_job(job));
    bench.write("rows.jsonl", data);
    let ran = bench.run(&["train", "job.toml"]);
    ran.failed(code, sentence);
    assert_eq!(ran.stdout, "");
    let job = bench.only_job();
    let result = read_json(&job.join("result.json"));
    assert_eq!((&result["status"], &result["error"]["class"]), (&json!("error"), &json!(class)));
    assert!(result["error"]["message"].as_str().unwrap().contains(sentence), "{result}");
    assert!(!job.join("adapter").exists());
}

#[test]
fn bad_rows_are_named_by_line() {
    let good = rows(20);
    let with = |bad: &[u8]| [good.as_bytes(), b"\n", bad, b"\n"].concat();
    fails("", b"", 65, "has no rows", "data");
    fails("", b"\n \n", 65, "has no rows", "data");
    fails(
        "",
        &with(b"{\"prompt\": \"a\"}"),
        65,
        "rows.jsonl`:22: the row has no `completion` column (its columns: prompt)",
        "data",
    );
    fails("", &with(b"{\"completion\": \"a\"}"), 65, "rows.jsonl`:22: ", "data");
    fails("", &with(b"{\"prompt\": \"a\", "), 65, "rows.jsonl`:22: invalid JSON", "data");
    fails(
        "",
        &with(b"{\"prompt\": \"\xff\", \"completion\": \"b\"}"),
        65,
        "rows.jsonl`:22: the byte at column 13",
        "data",
    );
    fails("", &with(b"[1]"), 65, "rows.jsonl`:22: the record is a JSON", "data");
    fails("", &with(b"{\"prompt\": \"a\", \"completion\": \"  \"}"), 65, "rows.jsonl`:22: ", "data");
    fails(
        "",
        b"{\"prompt\": \"one\", \"completion\": \"row\"}\n",
        65,
        "too few different rows to hold any out",
        "data",
    );
}

#[test]
fn lengths_that_cannot_work_are_refused() {
    let job = small_job("").replace("max_seq_length = 128", "max_seq_length = 4");
    let bench = bench("");
    bench.write("job.toml", &job);
    bench.run(&["train", "job.toml"]).failed(65, "all 20 rows are longer than max_seq_length 4");
    bench.write("job.toml", job.replace("= 4\n[lora]", "= 2000\n[lora]"));
    bench
        .run(&["train", "job.toml"])
        .failed(65, "`data.max_seq_length` is 2000, but the base model's context ends at 1024");
}

#[test]
fn rows_left_out_are_told_and_counted() {
    let bench = bench("");
    let long = "word ".repeat(200);
    bench.write(
        "rows.jsonl",
        rows(20) + &format!("{{\"prompt\": \"{long}\", \"completion\": \"a\", \"x\": 1}}\n"),
    );
    let ran = trained(&bench, &[]);
    assert!(
        ran.stderr.contains("1 row longer than 128 tokens, left out") && ran.stderr.contains("(line 21)"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("nothing reads `x`"), "{ran:?}");
    let manifest = read_json(&bench.only_job().join("data/manifest.json"));
    assert_eq!(
        manifest["sources"][0]["dropped_over_long"],
        json!({ "count": 1, "places": [{ "file": 0, "number": 21 }] })
    );
    let rows = manifest["train"]["rows"].as_u64().unwrap() + manifest["validation"]["rows"].as_u64().unwrap();
    assert_eq!(rows, 20, "what was left out is not in the frozen copy either");
}

#[test]
fn a_file_of_held_out_rows_is_used_as_it_is() {
    let bench = bench("");
    bench.write("held.jsonl", "\u{feff}{\"prompt\": \"é\", \"completion\": \"b\"}\r\n\r\n{\"prompt\": \"c\", \"completion\": \"d\"}");
    trained(&bench, &["--set", "data.validation=held.jsonl", "--quiet"]);
    let data = bench.only_job().join("data");
    let frozen = fs::read_to_string(data.join("validation.jsonl")).unwrap();
    assert_eq!(frozen, "{\"prompt\":\"é\",\"completion\":\"b\"}\n{\"prompt\":\"c\",\"completion\":\"d\"}\n");
    assert_eq!(read_json(&data.join("manifest.json"))["train"]["rows"], 20);
}

#[test]
fn models_that_cannot_be_used_are_named() {
    let bench = bench("");
    let source = root().join("tests/fixtures/support-base-4m");
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        bench.write(&format!("model/{file}"), fs::read(source.join(file)).unwrap());
    }
    let train = || bench.run(&["train", "job.toml", "--set", "base=model", "--quiet"]);
    let whole = fs::read(bench.path("model/model.safetensors")).unwrap();
    fs::write(bench.path("model/model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    train().failed(65, "model.safetensors");
    fs::remove_file(bench.path("model/model.safetensors")).unwrap();
    train().failed(65, "model");
    bench.write("model/model.safetensors", whole);
    fs::remove_file(bench.path("model/tokenizer.json")).unwrap();
    train().failed(65, "tokenizer.json");
    fs::remove_file(bench.path("model/config.json")).unwrap();
    train().failed(65, "there is no config.json");
    assert!(bench.jobs().iter().all(|job| read_json(&job.join("result.json"))["status"] == "error"));
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let bench = bench("");
    let source = root().join("tests/fixtures/support-base-4m");
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        bench.write(&format!("model/{file}"), fs::read(source.join(file)).unwrap());
    }
    let whole = fs::read(source.join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&whole[8..header]).unwrap();
    for (name, element, bits) in [
        ("model.layers.0.mlp.down_proj.weight", 1234, 0x7fc0_u16),
        ("model.embed_tokens.weight", 4096 * 256 - 1, 0xff80),
        ("model.norm.weight", 7, 0x7f80),
    ] {
        let at = header + tensors[name]["data_offsets"][0].as_u64().unwrap() as usize + 2 * element;
        let mut damaged = whole.clone();
        damaged[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        bench.write("model/model.safetensors", damaged);
        let sentence = format!(
            "tensor `{name}` holds a value that is not finite at element {element}; the weights are damaged"
        );
        bench.run(&["train", "job.toml", "--set", "base=model", "--quiet"]).failed(65, &sentence);
        bench.run(&["generate", "--base", "model", "--prompt", "a"]).failed(65, &sentence);
    }
    let failed = bench.jobs().iter().map(|job| read_json(&job.join("result.json"))).collect::<Vec<_>>();
    assert!(failed.iter().all(|result| result["error"]["class"] == "data"), "{failed:?}");
}

#[test]
fn lora_settings_that_match_nothing_are_refused() {
    let bench = bench("");
    for (set, sentence) in [
        ("lora.layers_to_transform=[9]", "names layer 9"),
        ("lora.rank_pattern.up_proj=4", "matches no module that is trained"),
        ("lora.exclude_modules=[\"q_proj\", \"v_proj\"]", "leaves no module to train"),
    ] {
        bench.run(&["train", "job.toml", "--quiet", "--set", set]).failed(65, sentence);
    }
}

#[test]
fn a_learning_rate_that_explodes_is_a_numeric_failure() {
    let bench = bench("");
    // Two such steps leave the range of f32.
    let sets = ["train.learning_rate=3e38", "train.lr_scheduler_type=constant", "train.warmup_steps=0"];
    let sets = sets.iter().flat_map(|s| ["--set", s]);
    let args: Vec<&str> = ["train", "job.toml", "--json", "--epochs", "4"].into_iter().chain(sets).collect();
    let ran = bench.run(&args);
    ran.failed(65, "not finite");
    let result = ran.json();
    let error = &result["error"];
    assert_eq!((&error["class"], &error["code"]), (&json!("numeric"), &json!("non_finite_loss")));
    assert!(!bench.only_job().join("adapter").exists());
}

#[test]
fn an_adapter_that_makes_things_worse_is_not_passed_over() {
    let bench = bench("");
    let ran = trained(&bench, &["--set", "train.learning_rate=1", "--epochs", "2"]);
    assert!(ran.stderr.contains("warning: the held-out loss went up"), "{ran:?}");
}

#[test]
#[cfg(unix)]
fn a_disk_that_fills_up_before_the_adapter_is_whole() {
    let bench = bench("");
    // Blocks of 512 bytes, or of 1,024 where the shell counts so: enough for spec, rows and events, too few for weights.
    let ran = crate::jobs::with_file_limit(&bench, 16, "train job.toml --json --quiet");
    ran.failed(74, "the file size limit is reached").failed(74, "hint: free some space");
    let job = bench.only_job();
    let result = read_json(&job.join("result.json"));
    assert_eq!((&result["status"], &result["error"]["code"]), (&json!("error"), &json!("disk_full")));
    assert_eq!(result, ran.json());
    assert_eq!(result["steps"], 4, "the run got to its end");
    let names: Vec<_> = fs::read_dir(&job).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().contains("adapter")), "{names:?}");
}

#[test]
#[cfg(unix)]
fn ctrl_c_stops_after_the_step_and_says_so() {
    let bench = bench("");
    bench.write("rows.jsonl", rows(400));
    let mut command = bench.command(&["train", "job.toml", "--epochs", "10", "--json"]);
    let child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let started = std::time::Instant::now();
    let stepping = || {
        let job = bench.jobs().into_iter().next()?;
        let text = fs::read_to_string(job.join("events.jsonl")).ok()?;
        text.contains("\"type\":\"step\"").then_some(job)
    };
    let job = loop {
        if let Some(job) = stepping() {
            break job;
        }
        assert!(started.elapsed().as_secs() < 120, "no step after two minutes");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(finish(std::process::Command::new("kill").args(["-INT", &child.id().to_string()])).code == 0);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let result = read_json(&job.join("result.json"));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), result);
    assert_eq!(
        (&result["status"], &result["error"], &result["adapter"]),
        (&json!("cancelled"), &Value::Null, &Value::Null)
    );
    let steps = events(&job).iter().filter(|e| e["type"] == "step").count();
    assert_eq!(result["steps"], steps);
    assert!(steps < result["total_steps"].as_u64().unwrap() as usize);
    assert!(!job.join("adapter").exists());
}
