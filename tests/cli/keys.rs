//! Every key of a job file reaches the engine: a run with it differs from a run without it, where it should and
//! nowhere else.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Bench, base, read_json, root, rows};

/// What can be seen of a run.
#[derive(Debug, PartialEq)]
struct Seen {
    /// The adapter's weights.
    weights: Vec<u8>,
    /// The adapter's PEFT configuration.
    config: Value,
    /// Rows trained on and held out, epochs, steps.
    plan: Value,
    /// Learning rate of each step.
    rates: Vec<Value>,
    /// Loss of each step.
    losses: Vec<f64>,
    /// Loss of each evaluation.
    evaluations: Vec<f64>,
    /// Which rows are held out.
    held_out: String,
    /// Heading of the card.
    name: String,
    /// Replies.
    previews: Value,
    /// The memory plan.
    memory: Value,
}

fn run(sets: &[&str]) -> Seen {
    let bench = Bench::new();
    let renamed = rows(10).replace("prompt", "question").replace("completion", "answer");
    bench.write("renamed.jsonl", renamed);
    bench.write("rows.jsonl", rows(10));
    bench.write("held.jsonl", rows(3));
    let turns = (0..10).fold(String::new(), |text, i| {
        let user = format!("{{\"role\": \"user\", \"content\": \"{i}?\"}}");
        text + &format!("{{\"turns\": [{user}, {{\"role\": \"assistant\", \"content\": \"{i}!\"}}]}}\n")
    });
    bench.write("turns.jsonl", turns);
    let base = base();
    bench.write(
        "job.toml",
        format!(
            "base = '{base}'\n[data]\ntrain = \"rows.jsonl\"\n[lora]\nr = 2\n\
             [train]\nepochs = 2\nbatch_size = 4\nlearning_rate = 1e-3\n"
        ),
    );
    let mut args = vec!["train", "job.toml", "--quiet"];
    args.extend(sets.iter().flat_map(|s| ["--set", s]));
    let ran = bench.run(&args);
    assert_eq!(ran.code, 0, "{sets:?}: {ran:?}");

    let job = bench.only_job();
    let text = fs::read_to_string(job.join("events.jsonl")).unwrap();
    let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|e| e["type"] == kind).map(|e| &e["data"]).collect::<Vec<_>>();
    let losses = |kind: &str| of(kind).iter().map(|d| d["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    let mut plan = of("plan")[0].clone();
    plan.as_object_mut().unwrap().retain(|key, _| !key.contains("tokens"));
    let card = fs::read_to_string(job.join("adapter/README.md")).unwrap();
    Seen {
        weights: fs::read(job.join("adapter/adapter_model.safetensors")).unwrap(),
        config: read_json(&job.join("adapter/adapter_config.json")),
        plan,
        rates: of("step").iter().map(|d| d["learning_rate"].clone()).collect(),
        losses: losses("step"),
        evaluations: losses("evaluation"),
        held_out: fs::read_to_string(job.join("data/validation.jsonl")).unwrap_or_default(),
        name: card.lines().find(|l| l.starts_with("# ")).unwrap().to_owned(),
        previews: read_json(&job.join("result.json"))["previews"].clone(),
        memory: of("memory_plan")[0].clone(),
    }
}

/// What of a run differs from the plain one.
fn differences(a: &Seen, b: &Seen) -> Vec<&'static str> {
    let all = [
        ("config", a.config != b.config),
        ("plan", a.plan != b.plan),
        ("rates", a.rates != b.rates),
        ("losses", a.losses != b.losses),
        ("evaluations", a.evaluations != b.evaluations),
        ("held_out", a.held_out != b.held_out),
        ("name", a.name != b.name),
        ("previews", a.previews != b.previews),
        ("weights", a.weights != b.weights),
    ];
    all.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect()
}

/// Runs with each setting and checks what differs from the plain run.
#[track_caller]
fn effects(table: &[(&[&str], &[&str])]) {
    let plain = run(&[]);
    for (sets, expected) in table {
        assert_eq!(differences(&run(sets), &plain), *expected, "{sets:?}");
    }
}

#[test]
fn keys_of_the_top_level_and_of_preview() {
    effects(&[
        (&["name=other"], &["name"]),
        (&["device=cpu"], &[]),
        (&["offline=true"], &[]),
        (&["preview.prompts=1", "preview.max_new_tokens=3"], &["previews"]),
    ]);
    let short = run(&["preview.prompts=2", "preview.max_new_tokens=1"]).previews;
    let long = run(&["preview.prompts=2", "preview.max_new_tokens=9"]).previews;
    assert_eq!((short.as_array().unwrap().len(), long.as_array().unwrap().len()), (2, 2));
    let before = |p: &Value| p[0]["before"].as_str().unwrap().to_owned();
    assert!(before(&long).starts_with(before(&short).as_str()) && before(&long).len() > before(&short).len());
}

#[test]
fn keys_of_data() {
    let rows = ["losses", "evaluations", "held_out", "weights"];
    let split = ["plan", "losses", "evaluations", "held_out", "weights"];
    effects(&[
        (&["data.validation=held.jsonl"], &["plan", "rates", "losses", "evaluations", "held_out", "weights"]),
        (&["data.validation_split=0.3"], &split),
        (&["data.seed=3"], &rows),
        (&["data.template=none"], &["losses", "evaluations", "weights"]),
        (&["data.template=chat"], &[]),
        (&["data.max_seq_length=1000"], &[]),
        // The columns' names enter neither the text nor the frozen copy.
        (&["data.train=renamed.jsonl", "data.prompt_column=question", "data.completion_column=answer"], &[]),
        (&["data.format=jsonl"], &[]),
        (&["data.split_by=prompt"], &rows),
        (&["data.train=turns.jsonl", "data.messages_column=turns"], &rows),
    ]);
    let bench = Bench::new();
    bench.write("rows.jsonl", crate::support::rows(10).replace("prompt", "question"));
    bench.write("job.toml", crate::support::small_job(""));
    bench.run(&["train", "job.toml"]).failed(65, "rows.jsonl`:1: the row has no `prompt` column");
    bench.write("rows.jsonl", crate::support::rows(10));
    bench
        .run(&["train", "job.toml", "--set", "data.max_seq_length=10"])
        .failed(65, "longer than max_seq_length 10");
    bench
        .run(&["train", "job.toml", "--set", "data.max_seq_length=24", "--set", "data.over_long=fail"])
        .failed(65, "the row has");
    let cut = ["--set", "data.max_seq_length=24", "--set", "data.over_long=truncate-prompt"];
    let ran = bench.run(&[&["train", "job.toml"][..], &cut].concat());
    assert!(
        ran.stderr.contains("cut at the beginning of the prompt, by 40 tokens in all, to fit 24"),
        "{ran:?}"
    );
}

#[test]
fn keys_of_lora() {
    let shape = ["config", "plan", "losses", "evaluations", "weights"];
    let scale = ["config", "losses", "evaluations", "weights"];
    effects(&[
        (&["lora.r=3"], &shape),
        (&["lora.lora_alpha=8"], &scale),
        (&["lora.use_rslora=true"], &scale),
        (&["lora.lora_dropout=0.5"], &scale),
        (&["lora.target_modules=[\"q_proj\", \"down_proj\"]"], &shape),
        (&["lora.exclude_modules=[\"up_proj\"]"], &shape),
        (&["lora.layers_to_transform=[0, 3]"], &shape),
        (&["lora.rank_pattern.up_proj=5"], &shape),
        (&["lora.alpha_pattern.up_proj=5"], &scale),
    ]);
}

#[test]
fn keys_of_train() {
    let path = ["losses", "evaluations", "weights"];
    let rate = ["rates", "losses", "evaluations", "weights"];
    let plain = run(&[]);
    // The first step after warm-up is the first that moves anything; 4 steps in all.
    assert_eq!((plain.losses.len(), plain.evaluations.len()), (4, 3));
    effects(&[
        (&["train.epochs=1"], &["plan", "rates", "losses", "evaluations", "weights"]),
        (
            &["train.epochs=auto", "train.max_epochs=4"],
            &["plan", "rates", "losses", "evaluations", "weights"],
        ),
        (&["train.batch_size=2"], &["plan", "rates", "losses", "evaluations", "weights"]),
        (&["train.learning_rate=2e-3"], &rate),
        (&["train.lr_scheduler_type=constant"], &rate),
        (&["train.lr_scheduler_type=linear"], &rate),
        (&["train.warmup_ratio=0.5"], &rate),
        (&["train.warmup_steps=0"], &rate),
        (&["train.weight_decay=0.5"], &path),
        (&["train.adam_beta1=0.5"], &path),
        (&["train.adam_beta2=0.5"], &path),
        (&["train.adam_epsilon=1e-2"], &path),
        (&["train.max_grad_norm=1e-6"], &path),
        (&["train.seed=1"], &path),
        (&["train.evals_per_epoch=2"], &["evaluations"]),
        (&["train.evals_per_epoch=0"], &["evaluations"]),
        // These only choose how the same numbers are come by.
        (&["train.recompute=auto"], &[]),
        (&["train.recompute=none"], &[]),
        (&["train.recompute=mlp"], &[]),
        (&["train.recompute=min2"], &[]),
        (&["train.recompute=min"], &[]),
        (&["train.memory_limit=4GiB"], &[]),
    ]);
    // What they do choose is in the memory plan: `recompute` what layers compute again, `memory_limit` how much fits.
    let modes = |sets: &[&str]| run(sets).memory["layers"].clone();
    let all = |word: &str| json!([{ "first": 0, "last": 3, "recompute": word }]);
    assert_eq!((modes(&[]), modes(&["train.recompute=none"])), (all("none"), all("none")));
    assert_eq!((modes(&["train.recompute=mlp"]), modes(&["train.recompute=min"])), (all("mlp"), all("min")));
    let needed = |part: &str| plain.memory.pointer(part).and_then(Value::as_u64).unwrap();
    let less = needed("/predicted_peak_bytes") - needed("/bytes/activations") / 4;
    let limited = run(&[&format!("train.memory_limit={less}")]);
    assert_ne!(limited.memory["layers"], plain.memory["layers"]);
    assert_eq!(limited.memory["limit_bytes"], less);
    // 8 rows in two steps an epoch need more epochs than there may be.
    for (sets, epochs) in
        [(&["train.epochs=auto"][..], 10), (&["train.epochs=auto", "train.max_epochs=3"], 3)]
    {
        let plan = run(sets).plan;
        assert_eq!((&plan["epochs"], &plan["total_steps"]), (&json!(epochs), &json!(2 * epochs)), "{plan}");
        let rule = plan["epochs_rule"].as_str().unwrap();
        assert!(rule.contains(&format!("(`train.max_epochs` is {epochs})")), "{rule}");
    }
    // A number given is not bounded.
    effects(&[(&["train.max_epochs=1"], &[])]);
    let split = run(&["train.micro_batch_size=1"]);
    for (a, b) in split.losses.iter().zip(&plain.losses) {
        assert!((a - b).abs() < 1e-4, "the micro-batch changed the loss: {a} and {b}");
    }
}

#[test]
fn no_key_is_left_out() {
    // The keys whose effect is shown elsewhere: on models from the hub, on files, or by an error.
    let elsewhere = ["base", "revision", "output", "data.train", "data.max_seq_length", "lora.use_dora"];
    // These decide when a checkpoint is written and how long it stays: tests/cli/checkpoints.rs.
    let of_checkpoints =
        ["train.save_steps", "train.save_minutes", "train.save_total_limit", "train.save_disk_gib"];
    let elsewhere = [&elsewhere[..], &of_checkpoints].concat();
    let here = fs::read_to_string(root().join("tests/cli/keys.rs")).unwrap();
    for key in tunesmith_cli::spec::keys::KEYS {
        let tried = here.contains(&format!("\"{}=", key.path)) || here.contains(&format!("\"{}.", key.path));
        assert!(tried || elsewhere.contains(&key.path), "no run tries `{}`", key.path);
    }
}
