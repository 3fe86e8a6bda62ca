use std::path::Path;

use serde_json::{Value, json};

use tunesmith_train::Epochs;

use super::keys::{KEYS, get};
use super::*;

/// A job file in a directory of its own, with a base directory and a data file beside it.
struct Bench {
    dir: tempfile::TempDir,
}

const MINIMAL: &str = "base = \"model\"\n[data]\ntrain = \"rows.jsonl\"\n";

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        Self { dir }
    }

    fn load(&self, text: impl AsRef<[u8]>, sets: &[&str], flags: &[Assignment]) -> Result<Loaded, SpecError> {
        let path = self.dir.path().join("job.toml");
        std::fs::write(&path, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
        load(&path, &sets, flags, self.dir.path())
    }

    fn spec(&self, sets: &[&str]) -> Value {
        serde_json::to_value(self.load(MINIMAL, sets, &[]).unwrap().spec).unwrap()
    }

    /// The error of a job file, with the directory's own path taken out.
    fn error(&self, text: impl AsRef<[u8]>, sets: &[&str]) -> String {
        let error = self.load(text, sets, &[]).unwrap_err().to_string();
        error.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

#[test]
fn a_minimal_job_gets_the_defaults() {
    let bench = Bench::new();
    let spec = bench.load(MINIMAL, &[], &[]).unwrap().spec;
    assert_eq!(Path::new(&spec.data.train), bench.dir.path().join("rows.jsonl"));
    assert_eq!(Path::new(&spec.base), bench.dir.path().join("model"));
    assert_eq!(spec.name.as_deref(), Some("job"), "named after its file");
    let expected = JobSpec::default();
    assert_eq!((spec.lora, spec.train, spec.preview), (expected.lora, expected.train, expected.preview));
}

/// Each key, a value other than its default, and what the spec must then hold.
fn samples() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("base", "owner/other-model", json!("owner/other-model")),
        ("revision", "v2", json!("v2")),
        ("offline", "true", json!(true)),
        ("name", "my name", json!("my name")),
        ("device", "cuda:1", json!("cuda:1")),
        ("output", "/out", json!("/out")),
        ("data.train", "/x.jsonl", json!("/x.jsonl")),
        ("data.validation", "/v.jsonl", json!("/v.jsonl")),
        ("data.validation_split", "0.35", json!(0.35)),
        ("data.prompt_column", "question", json!("question")),
        ("data.completion_column", "answer", json!("answer")),
        ("data.messages_column", "turns", json!("turns")),
        ("data.template", "none", json!("none")),
        ("data.max_seq_length", "64", json!(64)),
        ("data.format", "csv", json!("csv")),
        ("data.over_long", "truncate-prompt", json!("truncate-prompt")),
        ("data.split_by", "ticket_id", json!("ticket_id")),
        ("data.seed", "7", json!(7)),
        ("lora.r", "4", json!(4)),
        ("lora.lora_alpha", "8", json!(8.0)),
        ("lora.lora_dropout", "0.1", json!(0.1)),
        ("lora.target_modules", r#"["q_proj", "v_proj"]"#, json!(["q_proj", "v_proj"])),
        ("lora.exclude_modules", r#"["down_proj"]"#, json!(["down_proj"])),
        ("lora.layers_to_transform", "[0, 2]", json!([0, 2])),
        (
            "lora.rank_pattern",
            r#"{"layers.0.mlp.up_proj" = 2, q_proj = 3}"#,
            json!({"layers.0.mlp.up_proj": 2, "q_proj": 3}),
        ),
        ("lora.alpha_pattern", "{v_proj = 5}", json!({"v_proj": 5.0})),
        ("lora.use_rslora", "true", json!(true)),
        ("train.epochs", "5", json!(5)),
        ("train.max_epochs", "4", json!(4)),
        ("train.batch_size", "3", json!(3)),
        ("train.micro_batch_size", "1", json!(1)),
        ("train.learning_rate", "1e-5", json!(1e-5)),
        ("train.lr_scheduler_type", "linear", json!("linear")),
        ("train.warmup_ratio", "0.5", json!(0.5)),
        ("train.warmup_steps", "9", json!(9)),
        ("train.weight_decay", "0.01", json!(0.01)),
        ("train.adam_beta1", "0.8", json!(0.8)),
        ("train.adam_beta2", "0.95", json!(0.95)),
        ("train.adam_epsilon", "1e-6", json!(1e-6)),
        ("train.max_grad_norm", "0", json!(0.0)),
        ("train.seed", "11", json!(11)),
        ("train.evals_per_epoch", "2", json!(2)),
        ("train.recompute", "min2", json!("min2")),
        ("train.memory_limit", "2048MiB", json!("2GiB")),
        ("train.save_steps", "50", json!(50)),
        ("train.save_minutes", "0.5", json!(0.5)),
        ("train.save_total_limit", "0", json!(0)),
        ("train.save_disk_gib", "1.5", json!(1.5)),
        ("preview.prompts", "2", json!(2)),
        ("preview.max_new_tokens", "5", json!(5)),
    ]
}

#[test]
fn every_key_changes_what_it_names_and_nothing_else() {
    let bench = Bench::new();
    let plain = bench.spec(&["base=owner/model"]);
    let samples = samples();
    for key in KEYS.iter().filter(|k| k.path != "lora.use_dora") {
        assert!(samples.iter().any(|s| s.0 == key.path), "no sample for {}", key.path);
    }
    for (path, text, expected) in samples {
        let changed = bench.spec(&["base=owner/model", &format!("{path}={text}")]);
        let now = get(&changed, path);
        assert_eq!(now, Some(&expected), "{path}");
        assert_ne!(now, get(&plain, path), "{path}: the sample is the default");
        for other in KEYS.iter().filter(|k| k.path != path) {
            // Naming a file of held-out rows is what turns the split off.
            if !(path == "data.validation" && other.path == "data.validation_split") {
                assert_eq!(
                    get(&changed, other.path),
                    get(&plain, other.path),
                    "{path} changed {}",
                    other.path
                );
            }
        }
    }
    assert!(bench.error(MINIMAL, &["lora.use_dora=true"]).contains("DoRA is not supported yet"));
}

#[test]
fn later_sources_win_and_are_remembered() {
    let bench = Bench::new();
    let text = format!("{MINIMAL}[train]\nepochs = 2\nbatch_size = 4\nseed = 1\n");
    let flags = [Assignment { key: "train.epochs", value: json!(9), flag: "--epochs" }];
    let loaded =
        bench.load(&text, &["train.epochs=5", "train.batch_size=5", "train.batch_size=6"], &flags).unwrap();
    let train = &loaded.spec.train;
    assert_eq!((train.epochs, train.batch_size, train.seed), (Epochs::Fixed(9), 6, 1));
    assert_eq!(loaded.origins["train.epochs"], Origin::Flag("--epochs"));
    assert_eq!(loaded.origins["train.batch_size"], Origin::Set("train.batch_size=6".into()));
    assert_eq!(loaded.origins["train.seed"], Origin::File(bench.dir.path().join("job.toml"), 7));
    assert_eq!(loaded.origins["train.learning_rate"], Origin::Default);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
    let bench = Bench::new();
    let unknown = |text: &str| bench.error(format!("{MINIMAL}{text}"), &[]);
    assert_eq!(
        unknown("\n[train]\nepoch = 3\n"),
        "`job.toml`, line 6: unknown key `train.epoch`; did you mean `train.epochs`?"
    );
    assert_eq!(
        unknown("[train.deep]\nx = 1\n"),
        "`job.toml`, line 4: unknown key `train.deep`; did you mean `train.seed`?"
    );
    assert_eq!(
        unknown("[trian]\nepochs = 1\n"),
        "`job.toml`, line 4: unknown table `trian`; did you mean `train`?"
    );
    assert_eq!(
        bench.error(format!("epochs = 1\n{MINIMAL}"), &[]),
        "`job.toml`, line 1: unknown key `epochs`; did you mean `train.epochs`?"
    );
    assert_eq!(
        bench.error(MINIMAL, &["lora.rank=8"]),
        "`--set lora.rank=8`: unknown key `lora.rank`; did you mean `lora.r`?"
    );
    // Windows line ends and a byte order mark do not move the line.
    let windows = format!("\u{feff}{MINIMAL}lora.r = 1\ntemplat = \"chat\"\n").replace('\n', "\r\n");
    assert!(
        bench
            .error(windows, &[])
            .contains("line 5: unknown key `data.templat`; did you mean `data.template`?")
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let bench = Bench::new();
    let error = bench.error("[train]\nepochs = 0\nlearning_rate = \"fast\"\n", &["lora.r=0"]);
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(lines[0], "`job.toml`, line 2: `train.epochs`: must be from 1 to 10, found 0");
    assert_eq!(
        lines[1],
        "`job.toml`, line 3: `train.learning_rate`: expected a number, found the string \"fast\""
    );
    assert_eq!(lines[2], "`--set lora.r=0`: `lora.r`: must be at least 1, found 0");
    assert!(
        lines[3].contains("missing key `base`") && lines[4].contains("missing key `data.train`"),
        "{error}"
    );
    assert_eq!(lines.len(), 5);
}

#[test]
fn values_out_of_kind_or_range_are_refused() {
    let bench = Bench::new();
    for (set, expected) in [
        ("train.epochs=11", "must be from 1 to 10, found 11"),
        ("train.epochs=2.5", "expected \"auto\" or an integer, found the number 2.5"),
        ("train.epochs=true", "expected \"auto\" or an integer, found the boolean true"),
        ("train.epochs=many", "expected \"auto\" or an integer, found the string \"many\""),
        ("train.max_epochs=0", "must be from 1 to 10, found 0"),
        ("train.max_epochs=auto", "expected an integer, found the string \"auto\""),
        ("train.save_steps=-1", "must be at least 0, found -1"),
        ("train.save_minutes=-1", "must be at least 0, found -1"),
        ("train.save_total_limit=1.5", "expected an integer, found the number 1.5"),
        ("train.save_disk_gib=0", "must be above 0, found 0"),
        ("train.batch_size=0", "must be at least 1"),
        ("train.batch_size=99999999999999999999", "is too large"),
        ("train.learning_rate=0", "must be above 0, found 0"),
        ("train.learning_rate=nan", "expected a finite number, found nan"),
        ("train.learning_rate=inf", "expected a finite number, found inf"),
        ("train.learning_rate=2026-01-01", "found the date 2026-01-01"),
        ("train.seed=-1", "must be at least 0, found -1"),
        ("train.warmup_ratio=1.01", "must be at least 0 and at most 1"),
        ("train.lr_scheduler_type=cosin", "expected one of \"cosine\", \"linear\", \"constant\""),
        ("lora.lora_dropout=1", "must be at least 0 and below 1, found 1"),
        ("lora.lora_alpha=0", "must be above 0"),
        ("lora.target_modules=[]", "must name at least one module"),
        ("lora.target_modules=[\"q_porj\"]", "unknown module \"q_porj\"; did you mean \"q_proj\"?"),
        ("lora.target_modules=[\"q_proj\",\"q_proj\"]", "names \"q_proj\" twice"),
        ("lora.target_modules=all", "expected \"all-linear\" or a list"),
        ("lora.layers_to_transform=[]", "must name at least one layer"),
        ("lora.layers_to_transform=[1,1]", "names layer 1 twice"),
        ("lora.layers_to_transform=[-1]", "must be at least 0"),
        ("lora.rank_pattern={q_proj=0}", "`q_proj`: must be at least 1, found 0"),
        ("lora.alpha_pattern={q_prj=1}", "did you mean \"q_proj\"?"),
        ("data.validation_split=1", "must be at least 0 and below 1"),
        ("data.template=chatml", "expected one of \"auto\", \"chat\", \"none\""),
        ("device=gpu", "expected \"cpu\", \"auto\" or \"cuda:N\""),
        ("device=cuda:x", "expected \"cpu\", \"auto\" or \"cuda:N\""),
        ("name=", "must not be empty"),
        ("data=1", "`data` is a table"),
    ] {
        let error = bench.error(MINIMAL, &[set]);
        assert!(error.starts_with(&format!("`--set {set}`: ")) && error.contains(expected), "{set}: {error}");
    }
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let bench = Bench::new();
    for (sets, key) in [
        (&["data.validation=v.jsonl", "data.validation_split=0.1"][..], "`data.validation_split`"),
        (&["data.validation_split=0", "preview.prompts=2"], "`preview.prompts`: needs held-out rows"),
        (
            &["data.validation_split=0", "train.evals_per_epoch=1"],
            "`train.evals_per_epoch`: needs held-out rows",
        ),
        (&["train.warmup_steps=3", "train.warmup_ratio=0.1"], "`train.warmup_ratio`"),
        (&["revision=main"], "`revision`: only a Hugging Face repo id has revisions"),
    ] {
        let error = bench.error(MINIMAL, sets);
        assert!(error.contains(key), "{sets:?}: {error}");
    }
    let spec = bench.spec(&["data.validation=v.jsonl", "data.validation_split=0", "preview.prompts=1"]);
    assert_eq!(spec["data"]["validation_split"], json!(0.0));
}

#[test]
fn set_takes_toml_values_and_bare_words() {
    let bench = Bench::new();
    for (set, path, expected) in [
        ("name=2024", "name", json!("2024")),
        ("name = \"quoted = yes\"", "name", json!("quoted = yes")),
        ("name=a \"b\" \\ c", "name", json!("a \"b\" \\ c")),
        ("data.prompt_column=true", "data.prompt_column", json!("true")),
        ("train.learning_rate=1", "train.learning_rate", json!(1.0)),
        ("train.batch_size=0x10", "train.batch_size", json!(16)),
        ("train.batch_size=1_000", "train.batch_size", json!(1000)),
        ("lora.rank_pattern.q_proj=8", "lora.rank_pattern", json!({"q_proj": 8})),
        ("lora.rank_pattern.\"0.self_attn.q_proj\"=8", "lora.rank_pattern", json!({"0.self_attn.q_proj": 8})),
    ] {
        assert_eq!(get(&bench.spec(&[set]), path), Some(&expected), "{set}");
    }
    // One entry joins those of the file, in the order of writing: the first pattern that matches counts.
    let text = format!("{MINIMAL}[lora]\nrank_pattern = {{ v_proj = 1, k_proj = 2 }}\n");
    let spec =
        bench.load(text, &["lora.rank_pattern.q_proj=3", "lora.rank_pattern.v_proj=4"], &[]).unwrap().spec;
    let patterns: Vec<_> = spec.lora.rank_pattern.iter().collect();
    assert_eq!(patterns, [("v_proj", 4), ("k_proj", 2), ("q_proj", 3)]);
    for malformed in ["train.epochs", "", "=3", "a b=3", "train..epochs=3"] {
        let error = bench.load(MINIMAL, &[malformed], &[]).unwrap_err();
        assert!(matches!(error, SpecError::Set { .. }), "{malformed}: {error}");
    }
}

#[test]
fn files_that_are_no_job_files() {
    let bench = Bench::new();
    assert!(bench.error("base = \"x\"\n[data\n", &[]).starts_with("`job.toml`, line 2: not valid TOML:"));
    assert!(bench.error("a = 1\na = 2\n", &[]).starts_with("`job.toml`, line 2: not valid TOML:"));
    assert!(bench.error(b"base = \"x\"\n# \xff\n", &[]).starts_with("`job.toml`, line 2: not valid UTF-8"));
    assert!(bench.error("", &[]).contains("missing key `base`"));
    let missing = load(Path::new("/nowhere/job.toml"), &[], &[], Path::new("/"));
    assert!(matches!(missing, Err(SpecError::Read { .. })));
}

#[test]
fn the_base_is_a_directory_or_a_repo_id() {
    let bench = Bench::new();
    let error = bench.error(MINIMAL.replace("model", "./no-model"), &[]);
    assert!(error.starts_with("`job.toml`, line 1: `base`:") && error.contains("does not exist"), "{error}");
    let error = bench.error(MINIMAL.replace("model", "job.toml"), &[]);
    assert!(error.contains("is not a directory"), "{error}");
    for id in ["owner/name", "a-b/C_d.1"] {
        assert!(is_repo_id(id), "{id}");
    }
    for path in ["name", "./name", "../x", "/abs", "a/b/c", "a/", "a/b c", "~/m", "a/.."] {
        assert!(!is_repo_id(path), "{path}");
    }
}

#[test]
fn a_job_needs_no_file() {
    let bench = Bench::new();
    let flags = [("base", json!("model")), ("data.train", json!("rows.jsonl")), ("name", json!("a job"))];
    let flags = flags.map(|(key, value)| Assignment { key, value, flag: "--flag" });
    let load = |sets: &[&str], flags: &[Assignment]| {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        load_over(None, &sets, flags, bench.dir.path())
    };
    let loaded = load(&["lora.r=3", "name=another"], &flags).unwrap();
    assert_eq!((loaded.spec.name.as_deref(), loaded.spec.lora.r), (Some("a job"), 3), "flags win over sets");
    assert_eq!(loaded.spec.train, bench.load(MINIMAL, &[], &[]).unwrap().spec.train);
    let error = load(&[], &flags[..1]).unwrap_err().to_string();
    assert!(error.contains("missing key `data.train`"), "{error}");
}

#[test]
fn a_name_is_a_text_of_one_line_and_of_64_characters() {
    let long = "é".repeat(64);
    for good in ["a", "Ünïcode ☃ \"quoted\" ../../x", &long] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    let longer = "é".repeat(65);
    for bad in ["", " ", "a\nb", "\u{1b}[2J", "a\0", &longer] {
        assert!(check_name(bad).is_err(), "{bad:?}");
        let error = Bench::new().error(MINIMAL, &[&format!("name={}", toml_text(bad))]);
        assert!(error.contains("`name`: must"), "{error}");
    }
    // A job that is named after its file gets as much of that as a name may have.
    let bench = Bench::new();
    let path = bench.dir.path().join(format!("{}.toml", "n".repeat(80)));
    std::fs::write(&path, MINIMAL).unwrap();
    let spec = load(&path, &[], &[], bench.dir.path()).unwrap().spec;
    assert_eq!(spec.name, Some("n".repeat(64)));
}

/// A text as TOML has it.
fn toml_text(text: &str) -> String {
    let escaped = text.chars().fold(String::new(), |all, c| all + &format!("\\U{:08X}", c as u32));
    format!("\"{escaped}\"")
}

#[test]
fn what_show_prints_is_the_same_job() {
    let bench = Bench::new();
    let everything: Vec<String> = samples()
        .iter()
        .filter(|(path, ..)| !matches!(*path, "data.validation" | "train.warmup_steps"))
        .map(|(path, text, _)| format!("{path}={text}"))
        .collect();
    let everything: Vec<&str> = everything.iter().map(String::as_str).collect();
    for sets in [
        &[][..],
        &everything,
        &["data.validation=v.jsonl", "train.warmup_steps=2", "data.prompt_column=tab\there \u{7f} \"q\" é"],
        &["data.validation_split=0"],
    ] {
        let loaded = bench.load(MINIMAL, sets, &[]).unwrap();
        let again = bench.load(show(&loaded), &[], &[]).unwrap();
        assert_eq!(again.spec, loaded.spec, "{}", show(&loaded));
    }
    let shown = show(&bench.load(MINIMAL, &["train.epochs=4"], &[]).unwrap());
    assert!(shown.contains("epochs = 4  # `--set train.epochs=4`\n"), "{shown}");
    assert!(shown.contains("batch_size = 8  # default\n"), "{shown}");
    assert!(shown.contains("# revision is not set\n"), "{shown}");
}

#[test]
fn the_schema_lists_every_key_with_its_default() {
    let schema = schema();
    for key in KEYS {
        let pointer = format!("/properties/{}", key.path.replace('.', "/properties/"));
        let property = schema.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}"));
        assert_eq!(property["description"], json!(key.doc));
    }
    assert_eq!(schema.pointer("/properties/train/properties/epochs/default"), Some(&json!("auto")));
    let number = json!({ "type": "integer", "minimum": 1, "maximum": 10 });
    let forms = json!([{ "const": "auto" }, number]);
    assert_eq!(schema.pointer("/properties/train/properties/epochs/anyOf"), Some(&forms));
    assert_eq!(schema.pointer("/properties/train/properties/max_epochs/maximum"), Some(&json!(10)));
    assert_eq!(schema["required"], json!(["base", "data"]));
    assert_eq!(schema.pointer("/properties/data/required"), Some(&json!(["train"])));
}
