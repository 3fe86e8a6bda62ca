//! `quote`: figures that the job then has, and nothing left behind.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Bench, rows, small_job};

fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("job.toml", small_job("evals_per_epoch = 1\n"));
    bench.write("rows.jsonl", rows(21));
    bench
}

#[test]
fn the_job_then_does_what_was_quoted() {
    let bench = bench();
    let temporary = bench.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut command = bench.command(&[
        "quote",
        "job.toml",
        "--epochs",
        "2",
        "--json",
        "--price-per-million",
        "2.5",
        "--measure-seconds",
        "1",
    ]);
    let ran = crate::support::finish(command.env("TMPDIR", &temporary));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let quote = ran.json();
    assert!(
        !bench.home().exists() && fs::read_dir(&temporary).unwrap().next().is_none(),
        "something is left"
    );

    let ran = bench.run(&["train", "job.toml", "--epochs", "2", "--quiet", "--price-per-million", "2.5"]);
    ran.ok();
    let said = format!("price: {:.4} for ", quote["costs"]["price"].as_f64().unwrap());
    assert!(ran.stdout.contains(&said), "{said} not in {}", ran.stdout);
    let job = bench.only_job();
    let events: Vec<Value> = fs::read_to_string(job.join("events.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &str| events.iter().filter(|e| e["type"] == kind).map(|e| &e["data"]).collect::<Vec<_>>();
    let sum = |key: &str| of("step").iter().map(|step| step[key].as_u64().unwrap()).sum::<u64>();
    let (plan, costs) = (&quote["plan"], &quote["costs"]);
    assert_eq!(costs["tokens"], sum("tokens"));
    assert_eq!(costs["trained_tokens"], sum("trained_tokens"));
    let result = crate::support::read_json(&job.join("result.json"));
    assert_eq!((&costs["tokens"], &costs["trained_tokens"]), (&result["tokens"], &result["trained_tokens"]));
    assert!(costs["price"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (&costs["price"], &costs["price_per_million"]),
        (&result["price"], &result["price_per_million"])
    );
    assert_ne!(result["joules"].is_null(), result["joules_unknown"].is_null(), "{result}");
    assert_eq!(costs["steps"], of("step").len());
    assert_eq!(costs["steps"], of("plan")[0]["total_steps"]);
    assert_eq!((&plan["rows"], &costs["epochs"]), (&of("plan")[0]["train_examples"], &json!(2)));
    assert_eq!(quote["parameters"], of("plan")[0]["trainable_parameters"]);
    assert_eq!(quote["epochs_rule"], of("plan")[0]["epochs_rule"]);
    let price = costs["tokens"].as_f64().unwrap() * 2.5 / 1e6;
    assert!((costs["price"].as_f64().unwrap() - price).abs() < 1e-12);

    let measured = &quote["measured"];
    assert!(measured["steps"].as_u64().unwrap() >= 1 && measured["seconds"].as_f64().unwrap() > 0.0);
    assert!(quote["estimate"]["seconds"].as_f64().unwrap() > 0.0);
    assert_ne!(measured["joules"].is_null(), measured["joules_unknown"].is_null());
    assert_eq!((&measured["device_peak_bytes"], measured["peak_bytes"].is_u64()), (&Value::Null, true));
    // The header of the file is all that it has beside the parameters.
    let adapter = fs::metadata(job.join("adapter/adapter_model.safetensors")).unwrap().len();
    let quoted = quote["disk"]["adapter_bytes"].as_u64().unwrap();
    assert!(quoted < adapter && adapter < quoted + 10_000, "{quoted} {adapter}");
    let data: u64 =
        fs::read_dir(job.join("data")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    let quoted = quote["disk"]["data_bytes"].as_u64().unwrap();
    assert!(data.abs_diff(quoted) < 1000, "{quoted} {data}");
}

#[test]
fn what_was_not_measured_is_unknown() {
    let ran = bench().run(&["quote", "job.toml", "--no-measure"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for said in [
        "rows            17 to train on, 4 held out\n",
        "steps           5 of up to 4 rows\n",
        "time            unknown: not measured\n",
        "energy          unknown: not measured\n",
        "memory          unknown: not measured\n",
    ] {
        assert!(ran.stdout.contains(said), "{said} not in {}", ran.stdout);
    }
    assert!(!ran.stdout.contains("price"));
}

#[test]
fn what_the_job_would_refuse_is_refused() {
    let bench = bench();
    bench.write("rows.jsonl", rows(20) + "{\"prompt\": \"a\"}\n");
    let quote = |args: &[&str]| bench.run(&[&["quote", "job.toml"], args].concat());
    quote(&[]).failed(65, "rows.jsonl`:21: ");
    quote(&["--set", "lora.rank=3"]).failed(65, "lora.rank");
    quote(&["--set", "data.train=none.jsonl"]).failed(65, "none.jsonl` does not exist");
    quote(&["--price-per-million", "-1"]).failed(2, "at least 0");
    bench.run(&["train", "job.toml", "--price-per-million", "nan"]).failed(2, "at least 0");
    assert_eq!(quote(&["--json"]).json()["status"], "error");
    assert!(!bench.home().exists());
}
