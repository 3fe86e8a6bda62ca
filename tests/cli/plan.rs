//! `plan`, and what the memory plan does in a job: figures without a GPU, refusals in numbers, events.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Bench, base, read_json, rows, small_job};

fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.write("rows.jsonl", rows(21));
    bench
}

fn u64_of(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

fn events(bench: &Bench, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(bench.only_job().join("events.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["type"] == kind).map(|event| event["data"].clone()).collect()
}

#[test]
fn a_card_that_is_not_here_is_planned_for() {
    let bench = bench();
    let ran = bench.run(&["plan", "job.toml", "--card", "rtx 4090"]);
    ran.ok();
    for line in [
        "device          RTX 4090, bf16, 24.0 GiB in all\n",
        "recompute       layers 0-3: none\n",
        "extra compute   0.0 %\n",
        "why             the largest step is one micro-batch; nothing has to be computed again\n",
    ] {
        assert!(ran.stdout.contains(line), "{line:?} is not in\n{}", ran.stdout);
    }
    for item in [
        "  weights ",
        "  training states ",
        "  activations ",
        "  shared buffers ",
        "  logits ",
        "  left free ",
    ] {
        assert!(ran.stdout.contains(item), "{item:?} is not in\n{}", ran.stdout);
    }
    assert!(!bench.home().exists(), "planning leaves nothing behind");

    let plan = bench.run(&["plan", "job.toml", "--card", "H200", "--json"]).json();
    assert_eq!((&plan["fits"], &plan["device"], &plan["attempt"]), (&json!(true), &json!("H200"), &json!(1)));
    assert_eq!(plan["total_bytes"], json!(143_771_u64 << 20));
    assert_eq!(plan["layers"], json!([{ "first": 0, "last": 3, "recompute": "none" }]));
    let items = plan["bytes"].as_object().unwrap();
    let sum: u64 =
        items.iter().filter(|(name, _)| *name != "reserve").map(|(_, n)| n.as_u64().unwrap()).sum();
    assert_eq!(plan["predicted_peak_bytes"], json!(sum));

    let ran = bench.run(&["plan", "job.toml", "--card", "RTX 4099"]);
    ran.failed(2, "known are RTX 3060 12GB, RTX 3090, ");
}

#[test]
fn a_limit_needs_no_gpu_and_more_memory_is_used() {
    let bench = bench();
    // A limit on the command line is that of a GPU, unless the CPU is meant.
    let gpu = bench.run(&["plan", "job.toml", "--memory-limit", "2GiB", "--json"]).json();
    assert_eq!((&gpu["device"], &gpu["limit_bytes"]), (&json!("a GPU"), &json!(2_u64 << 30)));
    let there =
        bench.run(&["plan", "job.toml", "--memory-limit", "2GiB", "--device", "cuda:7", "--json"]).json();
    assert_eq!(there["bytes"], gpu["bytes"]);
    let cpu = bench.run(&["plan", "job.toml", "--device", "cpu", "--json"]).json();
    assert_eq!((&cpu["device"], &cpu["available_bytes"]), (&json!("cpu"), &Value::Null));
    assert!(u64_of(&cpu, "/bytes/weights") > u64_of(&gpu, "/bytes/weights"), "f32 and bf16");
    assert_eq!(u64_of(&cpu, "/bytes/reserve"), 0);

    // A little less than it takes: a part is computed again, or micro-batches get smaller.
    let peak = u64_of(&cpu, "/predicted_peak_bytes");
    let less = (peak - u64_of(&cpu, "/bytes/activations") / 3).to_string();
    let tight = bench.run(&["plan", "job.toml", "--device", "cpu", "--memory-limit", &less, "--json"]).json();
    assert!(u64_of(&tight, "/predicted_peak_bytes") <= less.parse().unwrap());
    assert!(
        tight["extra_compute"].as_f64() > Some(0.0)
            || u64_of(&tight, "/micro_batch_tokens") < u64_of(&cpu, "/micro_batch_tokens"),
        "{tight:#}"
    );
    bench.run(&["plan", "job.toml", "--device", "cuda:7"]).failed(69, "device `cuda:7`");
}

#[test]
fn what_does_not_fit_is_said_in_numbers_with_what_to_do() {
    let bench = bench();
    let args = ["plan", "job.toml", "--device", "cpu", "--memory-limit", "10MB"];
    let ran = bench.run(&args);
    ran.failed(69, "(10000000 bytes) can be had");
    ran.failed(69, "Not enough memory: ").failed(69, "hint: take a smaller base model, ");
    assert!(ran.stdout.contains("does not fit    ") && ran.stdout.contains("  weights "), "{ran:?}");
    let ran = bench.run(&[&args[..], &["--json"]].concat());
    let said = ran.failed(69, "").json();
    assert_eq!((&said["fits"], &said["available_bytes"]), (&json!(false), &json!(10_000_000)));
    let needed = u64_of(&said, "/needed_bytes");
    assert!(needed > 10_000_000);
    // What is said to be needed is enough, and a byte less is not.
    let with = |bytes: u64| {
        bench.run(&["plan", "job.toml", "--device", "cpu", "--memory-limit", &bytes.to_string()]).code
    };
    assert_eq!((with(needed), with(needed - 1)), (0, 69));
    bench.run(&["plan", "none.toml", "--card", "L4"]).failed(65, "none.toml");
    bench.run(&["plan", "job.toml", "--set", "lora.rank=3"]).failed(65, "lora.rank");
    bench.run(&["plan", "job.toml", "--memory-limit", "24 Gigs"]).failed(2, "such as \"24GiB\"");
    bench
        .run(&["plan", "job.toml", "--memory-limit", "1GiB", "--card", "L4"])
        .failed(2, "cannot be used with");
}

#[test]
fn a_plan_needs_no_weights() {
    let bench = bench();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let from = std::path::Path::new(&base()).join(name);
        if from.exists() {
            bench.write(&format!("model/{name}"), fs::read(from).unwrap());
        }
    }
    let args = ["plan", "job.toml", "--set", "base=model", "--card", "L4", "--json"];
    let plan = bench.run(&args).json();
    let with_weights = bench.run(&["plan", "job.toml", "--card", "L4", "--json"]).json();
    assert_eq!(plan["bytes"], with_weights["bytes"]);
}

#[test]
fn a_job_that_cannot_fit_is_refused_before_its_weights_are_read() {
    let bench = bench();
    // Weights that nobody could read.
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let from = std::path::Path::new(&base()).join(name);
        if from.exists() {
            bench.write(&format!("model/{name}"), fs::read(from).unwrap());
        }
    }
    bench.write("model/model.safetensors", "no weights");
    let args = ["train", "job.toml", "--quiet", "--set", "base=model", "--memory-limit", "10MB", "--json"];
    let ran = bench.run(&args);
    ran.failed(69, "(10000000 bytes) can be had");
    let result = ran.json();
    assert_eq!(
        (&result["error"]["class"], &result["error"]["code"]),
        (&json!("memory"), &json!("insufficient_memory"))
    );
    assert!(result["error"]["hint"].as_str().unwrap().contains("take a device with "), "{result:#}");
}

#[test]
fn a_job_trains_within_its_limit_and_says_how() {
    let bench = bench();
    bench.run(&["train", "job.toml", "--quiet"]).ok();
    let plans = events(&bench, "memory_plan");
    assert_eq!(plans.len(), 1, "{plans:#?}");
    let (plain, losses) = (plans[0].clone(), events(&bench, "step"));
    assert_eq!((&plain["device"], &plain["measured_peak_bytes"]), (&json!("cpu"), &Value::Null));
    assert_eq!(plain["layers"], json!([{ "first": 0, "last": 3, "recompute": "none" }]));
    let memory = &events(&bench, "memory")[0];
    let result = read_json(&bench.only_job().join("result.json"));
    assert_eq!((&result["peak_bytes"], &memory["device_peak_bytes"]), (&memory["peak_bytes"], &Value::Null));

    // Half of the activations have no room: the same losses all the same.
    let needed = u64_of(&plain, "/predicted_peak_bytes") - u64_of(&plain, "/bytes/activations") / 2;
    let again = self::bench();
    again.run(&["train", "job.toml", "--quiet", "--memory-limit", &needed.to_string()]).ok();
    let tight = &events(&again, "memory_plan")[0];
    assert!(
        u64_of(tight, "/predicted_peak_bytes") <= needed && tight["layers"] != plain["layers"],
        "{tight:#}"
    );
    assert_eq!(tight["limit_bytes"], json!(needed));
    let loss = |events: &[Value]| events.iter().map(|e| e["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    for (a, b) in loss(&losses).iter().zip(loss(&events(&again, "step"))) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
    let id = again.only_job().file_name().unwrap().to_str().unwrap().to_owned();
    let ran = again.run(&["describe", &id]);
    assert!(ran.ok().stdout.contains("memory plan      micro-batches of up to "), "{}", ran.stdout);
    let said = again.run(&["describe", &id, "--json"]).json();
    assert_eq!(said["memory_plan"]["predicted_peak_bytes"], tight["predicted_peak_bytes"]);
    let log = again.run(&["logs", &id, "--events"]);
    assert!(log.ok().stdout.contains("memory: micro-batches of up to "), "{}", log.stdout);
}
