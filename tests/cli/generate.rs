//! `generate` on the shipped model: greedy and sampled, text and chat, with and without an adapter.

use std::fs;

use serde_json::json;

use crate::support::{Bench, Ran, base, root, rows, small_job};

const QUESTION: &str = "I need to find a restaurant in San Jose.";

fn generate(bench: &Bench, args: &[&str]) -> Ran {
    let base = base();
    let ran = bench.run(&[&["generate", "--base", &base], args].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    ran
}

#[test]
fn the_greedy_reply_is_the_one_on_the_model_card() {
    let bench = Bench::new();
    let ran = generate(&bench, &["--prompt", QUESTION]);
    assert_eq!(ran.stdout, "What kind of food do you want?\n");
    let reply = generate(&bench, &["--prompt", QUESTION, "--json"]).json();
    assert_eq!(
        (&reply["text"], &reply["finish_reason"]),
        (&json!("What kind of food do you want?"), &json!("stop"))
    );
    assert!(reply["prompt_tokens"].as_u64() > reply["completion_tokens"].as_u64(), "{reply}");

    let cut = generate(&bench, &["--prompt", QUESTION, "--max-new-tokens", "2", "--json"]).json();
    assert_eq!((&cut["finish_reason"], &cut["completion_tokens"]), (&json!("length"), &json!(2)));
    assert!("What kind of food do you want?".starts_with(cut["text"].as_str().unwrap()));
}

#[test]
fn a_prompt_may_come_from_stdin_or_as_messages() {
    let bench = Bench::new();
    let expected = generate(&bench, &["--prompt", QUESTION]).stdout;
    let base = base();
    let piped = bench
        .run_with_stdin(&["generate", "--base", &base, "--prompt", "-"], format!("{QUESTION}\n").as_bytes());
    assert_eq!((piped.code, &piped.stdout), (0, &expected));
    let messages = json!([{ "role": "user", "content": QUESTION }]);
    bench.write("list.json", messages.to_string());
    bench.write("object.json", json!({ "messages": messages }).to_string());
    for file in ["list.json", "object.json"] {
        assert_eq!(generate(&bench, &["--messages", file]).stdout, expected);
    }
    let raw = generate(&bench, &["--raw", "--prompt", "Once upon a time", "--max-new-tokens", "12"]).stdout;
    assert!(raw.starts_with(", there was a little girl"), "{raw:?}");
}

#[test]
fn a_device_is_named_as_in_a_job_file() {
    let (bench, base) = (Bench::new(), base());
    let run =
        |device: &str| bench.run(&["generate", "--base", &base, "--prompt", QUESTION, "--device", device]);
    assert_eq!(run("cpu").stdout, run("auto").stdout);
    run("gpu").failed(2, "expected \"cpu\", \"auto\" or \"cuda:N\"");
    run("cuda:99").failed(69, "device `cuda:99`");
}

#[test]
fn sampling_follows_its_seed() {
    let bench = Bench::new();
    let sample = |seed: &str, temperature: &str, top_p: &str| {
        let flags =
            ["--temperature", temperature, "--top-p", top_p, "--seed", seed, "--max-new-tokens", "24"];
        generate(&bench, &[&["--prompt", QUESTION], &flags[..]].concat()).stdout
    };
    assert_eq!(sample("1", "1.5", "1"), sample("1", "1.5", "1"));
    assert!((2..6).any(|seed| sample(&seed.to_string(), "1.5", "1") != sample("1", "1.5", "1")));
    let greedy = generate(&bench, &["--prompt", QUESTION, "--max-new-tokens", "24"]).stdout;
    assert_eq!(sample("7", "1.5", "0.000001"), greedy, "the smallest nucleus is the likeliest token");
}

#[test]
fn an_adapter_changes_the_reply_and_must_fit() {
    let bench = Bench::new();
    bench.write(
        "rows.jsonl",
        "{\"prompt\": \"Say it.\", \"completion\": \"The word is heron.\"}\n".repeat(12) + &rows(3),
    );
    let job = small_job("learning_rate = 2e-2\nwarmup_steps = 0\n").replace("epochs = 1", "epochs = 10");
    bench.write("job.toml", job.replace("r = 2\n", "r = 8\n"));
    let ran =
        bench.run(&["train", "job.toml", "--output", "out", "--quiet", "--set", "data.validation_split=0"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let before = generate(&bench, &["--prompt", "Say it."]).stdout;
    let with = generate(&bench, &["--prompt", "Say it.", "--adapter", "out"]);
    assert!(!before.contains("heron"), "{before:?}");
    assert_eq!(with.stdout, "The word is heron.\n");
    assert!(with.stderr.contains("applied 16 tensors of `out`"), "{with:?}");

    let base = base();
    let refused =
        |adapter: &str| bench.run(&["generate", "--base", &base, "--prompt", "a", "--adapter", adapter]);
    let foreign = root().join("tests/fixtures/golden/tiny-llama-tied/adapter_init");
    refused(foreign.to_str().unwrap()).failed(65, "adapter");
    refused("nowhere").failed(65, "nowhere");
    let weights = bench.path("out/adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 4]).unwrap();
    refused("out").failed(65, "adapter_model.safetensors");
}

#[test]
fn a_prompt_beyond_the_context_is_refused() {
    let bench = Bench::new();
    let base = base();
    let long = "word ".repeat(1100);
    let ran = bench.run_with_stdin(&["generate", "--base", &base, "--prompt", "-"], long.as_bytes());
    ran.failed(65, "the model's context ends at 1024");
}
