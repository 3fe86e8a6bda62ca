//! `selftest` on the CPU of this machine, and what it says where there is no device to test.

use serde_json::json;

use crate::support::{Bench, base};

#[test]
fn the_cpu_passes_and_the_table_says_so() {
    let bench = Bench::new();
    let ran = bench.run(&["selftest", "--device", "cpu"]);
    ran.ok();
    for text in [
        "tunesmith           ",
        "device              cpu\n",
        "\ninstructions        ",
        "\nthreads             ",
    ] {
        assert!(ran.stdout.contains(text), "{text:?}: {ran:?}");
    }
    for op in
        ["gemm_full", "attention_backward", "linear_cross_entropy", "adamw", "losses", "adapter", "reply"]
    {
        assert!(ran.stdout.contains(&format!("\n{op} ")), "{op}: {ran:?}");
    }
    let last = ran.stdout.lines().last().unwrap();
    assert!(last.starts_with("all ") && last.contains(" checks passed on cpu in "), "{last}");
    assert!(!ran.stdout.contains("NO\n") && !ran.stdout.contains('\u{1b}'), "{ran:?}");
    // On a machine without a GPU there is nothing to remember.
    assert!(!bench.home().exists());
}

#[test]
fn json_has_the_facts_and_every_check() {
    let ran = Bench::new().run(&["selftest", "--device", "cpu", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let report = ran.json();
    assert_eq!(
        (&report["status"], &report["device"], &report["version"]),
        (&json!("ok"), &json!("cpu"), &json!(env!("CARGO_PKG_VERSION")))
    );
    assert!(report["facts"]["threads"].as_u64().unwrap() > 0 && report["facts"]["instructions"].is_string());
    assert!(report["seconds"].as_f64().unwrap() > 0.0);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 80, "{}", checks.len());
    for check in checks {
        let number = |key: &str| check[key].as_f64().unwrap();
        assert!(number("error") <= number("allowed") && check["passed"] == json!(true), "{check}");
        assert!(check["name"].is_string() && check["shape"].is_string() && check["detail"].is_null());
    }
}

/// The kernels of every instruction set that this machine can run.
#[test]
fn lower_instruction_sets_pass_too() {
    let bench = Bench::new();
    let mut command = bench.command(&["selftest", "--device", "cpu", "--quiet"]);
    let ran = crate::support::finish(command.env("TUNESMITH_SIMD", "baseline"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    assert!(!ran.stdout.contains("AVX"), "{ran:?}");
}

#[test]
fn a_device_that_is_not_there_gets_a_sentence() {
    let bench = Bench::new();
    let ran = bench.run(&["selftest", "--device", "cuda:99"]);
    ran.failed(69, "device `cuda:99`");
    assert!(ran.stderr.contains("hint: "), "{ran:?}");
    let report = bench.run(&["selftest", "--device", "cuda:99", "--json"]);
    assert_eq!((report.code, &report.json()["error"]["code"]), (69, &json!("device_missing")), "{report:?}");
    bench.run(&["selftest", "--device", "gpu"]).failed(2, "expected \"cpu\", \"auto\" or \"cuda:N\"");
}

/// A job's spec and row name the device that it runs on.
#[test]
fn what_auto_is_is_written_down() {
    let bench = Bench::new();
    bench.write("rows.jsonl", crate::support::rows(8));
    bench.write("job.toml", crate::support::small_job(""));
    let mut command = bench.command(&["create", "one", "--config", "job.toml", "--json"]);
    let made = crate::support::finish(command.env("TUNESMITH_SUPERVISOR", "off"));
    let device = made.ok().json()["device_wanted"].clone();
    assert!(device == json!("cpu") || device.as_str().unwrap().starts_with("cuda:"), "{device}");
    let ran = bench.run(&["train", "job.toml", "--set", "data.validation_split=0", "--json"]);
    let spec = crate::support::read_json(
        &std::path::Path::new(ran.ok().json()["job_dir"].as_str().unwrap()).join("spec.json"),
    );
    assert_eq!(spec["spec"]["device"], device, "{spec}");
    let generated = bench.run(&["generate", "--base", &base(), "--prompt", "a", "--max-new-tokens", "1"]);
    generated.ok();
}
