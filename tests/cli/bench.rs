//! `bench`: every figure is there and fits the others. How fast it is, is nobody's business here.

use serde_json::Value;

use crate::support::{Bench, base};

const SMALL: [&str; 14] = [
    "bench", "--model", "tiny", "--device", "cpu", "--tokens", "40", "--seq", "16", "--steps", "3",
    "--warmup", "1", "--quiet",
];

fn number(report: &Value, path: &str) -> f64 {
    let found = report.pointer(path).unwrap_or_else(|| panic!("{path} is missing in {report}"));
    found.as_f64().unwrap_or_else(|| panic!("{path} is {found}"))
}

fn near(a: f64, b: f64) -> bool {
    (a / b - 1.0).abs() < 1e-9
}

#[test]
fn a_report_has_every_figure_and_they_fit() {
    let bench = Bench::new();
    let ran = bench.run(&[&SMALL[..], &["--json"]].concat());
    ran.ok();
    assert_eq!(ran.stderr, "");
    let report = ran.json();
    let of = |path: &str| number(&report, path);
    assert_eq!((report["model"]["name"].as_str(), of("/model/rank")), (Some("tiny"), 16.0));
    // Embedding, four blocks, and the norms.
    let block = (256 * 256 + 2 * 128 * 256 + 256 * 256 + 3 * 256 * 688 + 2 * 256) as f64;
    assert_eq!(of("/model/parameters"), 4096.0 * 256.0 + 4.0 * block + 256.0);
    let lora = 16 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 688));
    assert_eq!(of("/model/trainable_parameters"), (4 * lora) as f64);
    assert_eq!(report["device"]["device"], "cpu");
    assert!(of("/device/threads") >= 1.0 && report["device"]["name"].is_string());
    assert_eq!((of("/batch/tokens"), of("/batch/documents"), of("/batch/longest")), (40.0, 3.0, 16.0));
    assert_eq!(
        (report["batch"]["lengths"].as_str(), report["recompute"].as_str()),
        (Some("equal"), Some("none"))
    );

    assert_eq!(of("/steps/count"), 3.0);
    let median = of("/steps/median_seconds");
    assert!(of("/steps/least_seconds") <= median && median <= of("/steps/most_seconds"));
    assert!(
        of("/steps/least_seconds") > 0.0 && 3.0 * of("/steps/least_seconds") <= of("/steps/wall_seconds")
    );
    assert!(near(of("/tokens_per_second"), 40.0 / median));

    let needed = of("/flops/needed");
    let parts = ["linears", "head", "lora", "attention"].map(|part| of(&format!("/flops/{part}")));
    assert!(near(parts.iter().sum(), needed) && near(of("/flops/per_token"), needed / 40.0));
    assert_eq!(parts[1], 4.0 * 40.0 * 4096.0 * 256.0);
    assert_eq!(of("/flops/computed"), needed);
    let peak = 1e12 * of("/peak/tflop_s");
    assert!(peak > 0.0 && near(of("/mfu"), needed / median / peak) && near(of("/hfu"), of("/mfu")));
    assert!(report["datasheet"].is_null(), "a CPU has no datasheet here");

    assert!(of("/weights/bytes") >= 4.0 * of("/model/parameters") && of("/weights/seconds") > 0.0);
    assert!(of("/memory/reckoned_bytes") > of("/weights/bytes"));
    assert!(report["memory"]["device_peak_bytes"].is_null());
    if cfg!(target_os = "linux") {
        assert!(of("/memory/host_peak_bytes") > of("/weights/bytes"));
    }
    let energy = &report["energy"];
    assert!(!energy["watts"].is_null() || energy["unknown"].is_string(), "{energy}");
    // A random model knows nothing: the logarithm of its vocabulary, at first.
    assert!((of("/loss/0") - 4096_f64.ln()).abs() < 0.1, "{report}");

    let shares = report["shares"].as_array().unwrap();
    let sum: f64 = shares.iter().map(|s| s["share"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    assert_eq!(shares.last().unwrap()["phase"], "rest");
    for (phase, op) in [
        ("forward", "gemm"),
        ("forward", "attention"),
        ("forward", "embed"),
        ("head", "linear_cross_entropy"),
        ("backward", "attention_backward"),
        ("backward", "gemm_full"),
        ("backward", "rms_norm_backward"),
        ("update", "clip_and_update"),
    ] {
        let found = shares.iter().filter(|s| s["phase"] == phase && s["op"] == op).count();
        assert_eq!(found, 1, "{phase} {op} in {shares:?}");
    }
    assert!(!bench.home().exists(), "something is left");
}

#[test]
fn recomputation_and_lengths_are_as_asked() {
    let bench = Bench::new();
    let args =
        ["bench", "--model", "tiny", "--device", "cpu", "--tokens", "300", "--lengths", "mix", "--rank", "4"];
    let more = ["--recompute", "min", "--steps", "1", "--warmup", "1", "--json", "--seed", "3"];
    let ran = bench.run(&[&args[..], &more[..]].concat());
    ran.ok();
    assert!(ran.stderr.contains("random weights"), "{ran:?}");
    let report = ran.json();
    assert_eq!(
        (report["batch"]["lengths"].as_str(), report["recompute"].as_str()),
        (Some("mix"), Some("min"))
    );
    assert!(number(&report, "/batch/documents") >= 1.0 && number(&report, "/batch/longest") > 16.0);
    assert!(number(&report, "/flops/computed") > 1.2 * number(&report, "/flops/needed"));
    assert!(number(&report, "/hfu") > 1.2 * number(&report, "/mfu"));
    assert_eq!(number(&report, "/model/rank"), 4.0);
}

#[test]
fn it_says_it_in_words() {
    let bench = Bench::new();
    // Under another name, with another model's file beside it.
    std::fs::create_dir_all(bench.path("models")).unwrap();
    std::fs::copy(format!("{}/config.json", base()), bench.path("models/small.json")).unwrap();
    bench.write("models/config.json", "{}");
    let config = bench.path("models/small.json").to_str().unwrap().to_owned();
    let args = ["--device", "cpu", "--tokens", "24", "--steps", "1", "--warmup", "1", "--quiet"];
    let ran = bench.run(&[&["bench", "--config", &config], &args[..]].concat());
    ran.ok();
    for line in
        ["model", "device", "step", "time", "speed", "arithmetic", "peak", "share of it", "memory", "power"]
    {
        assert!(ran.stdout.lines().any(|l| l.starts_with(line)), "{line}: {}", ran.stdout);
    }
    for text in [
        "small.json, 3,950,848 random weights",
        "24 tokens in 1 document of up to 24",
        "datasheet       unknown for ",
        "between operations",
    ] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let bench = Bench::new();
    let run = |args: &[&str]| bench.run(&[&["bench"], args].concat());
    let ran = run(&["--model", "gpt-2"]);
    ran.failed(
        2,
        "mistral-7b, llama-3-8b, llama-2-7b, llama-3.2-3b, llama-3.2-1b, tinyllama-1.1b, llama-100m, tiny",
    );
    run(&["--model", "tiny", "--config", "config.json"]).failed(2, "cannot be used with");
    run(&["--seq", "8", "--lengths", "mix"]).failed(2, "cannot be used with");
    run(&["--tokens", "0"]).failed(2, "at least 1");
    run(&["--tokens", "16777217"]).failed(2, "at most 16777216");
    run(&["--rank", "65537", "--device", "cpu"]).failed(65, "65536 is the most");
    run(&["--config", "/dev/zero", "--device", "cpu"]).failed(65, "is not a regular file");
    for way in ["all", "auto"] {
        run(&["--recompute", way]).failed(2, "expected none, mlp, min2 or min");
    }
    run(&["--device", "tpu"]).failed(2, "expected");
    run(&["--config", "none/config.json"]).failed(65, "`none/config.json` does not exist");
    run(&["--model", "tiny", "--device", "cpu", "--seq", "4000", "--tokens", "4000"])
        .failed(65, "documents of 4000 tokens are longer than tiny's context of 2048");
    let big = ["--model", "llama-3-8b", "--device", "cpu", "--tokens", "1000000", "--seq", "8192", "--json"];
    let ran = run(&big);
    ran.failed(69, "llama-3-8b with steps of 1000123 tokens needs ").failed(69, "fewer --tokens");
    assert_eq!(ran.json()["error"]["code"], "insufficient_memory");
}
