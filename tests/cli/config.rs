//! Job files on the command line: `config`, typos, precedence, the files in `configs/`.

use serde_json::json;

use crate::support::{Bench, finish, root, rows, small_job};

#[test]
fn the_checked_in_schema_is_what_the_program_prints() {
    let ran = Bench::new().run(&["config", "schema"]);
    assert_eq!(ran.code, 0);
    let path = root().join("configs/job.schema.json");
    let checked_in = std::fs::read_to_string(&path).unwrap();
    assert!(
        checked_in == ran.stdout,
        "configs/job.schema.json is out of date; write it again with `tunesmith config schema`"
    );
}

#[test]
fn the_quickstart_resolves_from_the_root_of_the_repository() {
    let bench = Bench::new();
    let ran =
        finish(bench.command(&["config", "show", "configs/quickstart.toml", "--json"]).current_dir(root()));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let spec = ran.json();
    assert_eq!(spec["name"], json!("quickstart"));
    assert_eq!(spec["base"], json!(root().join("tests/fixtures/support-base-4m")));
    assert_eq!(spec["data"]["train"], json!(root().join("tests/fixtures/tickets.jsonl")));
    assert_eq!(spec["preview"]["prompts"], json!(2));
}

#[test]
fn show_tells_where_each_value_comes_from() {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    let ran = bench.run(&["config", "show", "job.toml", "--set", "lora.r=3", "--epochs", "2"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for line in
        ["r = 3  # `--set lora.r=3`", "epochs = 2  # `--epochs`", "batch_size = 4  # `job.toml`, line 10"]
    {
        assert!(ran.stdout.contains(line), "{line:?} is not in\n{}", ran.stdout);
    }
    assert!(bench.jobs().is_empty(), "showing a job makes none");
}

#[test]
fn every_flag_overrides_its_key() {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    let flags = [
        "--epochs",
        "7",
        "--seed",
        "18446744073709551615",
        "--output",
        "o",
        "--offline",
        "--device",
        "cpu",
        "--json",
    ];
    let ran = bench.run(&[&["config", "show", "job.toml"], &flags[..]].concat());
    ran.failed(65, "`--seed`: `train.seed`: must be at most 9223372036854775807");
    let flags = ["--epochs", "7", "--seed", "8", "--output", "o", "--offline", "--device", "cpu", "--json"];
    let spec =
        bench.run(&[&["config", "show", "job.toml", "--set", "train.epochs=2"], &flags[..]].concat()).json();
    assert_eq!(
        (&spec["train"]["epochs"], &spec["train"]["seed"], &spec["offline"], &spec["device"]),
        (&json!(7), &json!(8), &json!(true), &json!("cpu"))
    );
    assert_eq!(spec["data"]["seed"], json!(0), "the split does not move with the seed of training");
    assert!(spec["output"].as_str().unwrap().ends_with("/o"));
    let spec = bench.run(&["config", "show", "job.toml", "--epochs", "auto", "--json"]).json();
    assert_eq!(spec["train"]["epochs"], json!("auto"));
}

#[test]
fn a_typo_stops_training_before_a_job_is_made() {
    let bench = Bench::new();
    bench.write("rows.jsonl", rows(20));
    bench.write("job.toml", small_job("epoch = 2\nlearning_rate = \"high\"\n"));
    let ran = bench.run(&["train", "job.toml"]);
    ran.failed(65, "error: `job.toml`, line 11: unknown key `train.epoch`; did you mean `train.epochs`?\n");
    ran.failed(
        65,
        "error: `job.toml`, line 12: `train.learning_rate`: expected a number, found the string \"high\"\n",
    );
    ran.failed(65, "hint: ");
    assert_eq!(ran.stdout, "");
    assert!(bench.jobs().is_empty());
}

#[test]
fn with_json_an_error_is_one_object_too() {
    let bench = Bench::new();
    bench.write("job.toml", small_job("epoch = 2\n"));
    for args in [["train", "job.toml", "--json"].as_slice(), &["config", "show", "job.toml", "--json"]] {
        let ran = bench.run(args);
        ran.failed(65, "unknown key `train.epoch`");
        let report = ran.json();
        assert_eq!(
            (&report["status"], &report["error"]["code"]),
            (&json!("error"), &json!("invalid_config"))
        );
        assert!(report["error"]["message"].as_str().unwrap().contains("line 11"), "{report}");
    }
}

#[test]
fn set_must_be_key_and_value() {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.run(&["train", "job.toml", "--set", "train.epochs"]).failed(2, "is not of the form `key=value`");
    bench.run(&["train", "job.toml", "--set"]).failed(2, "--set");
    bench.run(&["train", "job.toml", "--set", "train.epochs=0"]).failed(65, "must be from 1 to 10, found 0");
    bench
        .run(&["train", "job.toml", "--epochs", "0"])
        .failed(65, "`--epochs`: `train.epochs`: must be from 1 to 10");
    bench.run(&["train", "job.toml", "--set", "lora.use_dora=true"]).failed(65, "DoRA is not supported yet");
}

#[test]
fn job_files_that_cannot_be_read() {
    let bench = Bench::new();
    bench.run(&["train", "missing.toml"]).failed(65, "cannot read the job file `missing.toml`");
    bench.write("bad.toml", b"base = \"x\"\n\xff\xfe\n");
    bench.run(&["train", "bad.toml"]).failed(65, "`bad.toml`, line 2: not valid UTF-8");
    bench.write("broken.toml", "base = \"x\"\n[data\n");
    bench.run(&["train", "broken.toml"]).failed(65, "`broken.toml`, line 2: not valid TOML");
    std::fs::create_dir(bench.path("dir.toml")).unwrap();
    bench.run(&["train", "dir.toml"]).failed(74, "cannot read the job file `dir.toml`");
}
