//! The table of every key of a job file. Reading, checking, the JSON schema and `config show` all follow it, and a
//! test holds it to the fields of [`super::JobSpec`], so a key cannot exist in one place only.

use super::JobSpec;

/// What a key accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A string with at least one character.
    Text,
    /// `true` or `false`.
    Flag,
    /// An integer from `min` to `max`, both included.
    Int {
        /// Smallest value accepted.
        min: i64,
        /// Largest value accepted.
        max: i64,
    },
    /// `"auto"`, or an integer from `min` to `max`, both included.
    AutoOrInt {
        /// Smallest value accepted.
        min: i64,
        /// Largest value accepted.
        max: i64,
    },
    /// A finite number in a range.
    Real(Range),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `"cpu"`, `"auto"` or `"cuda:N"`.
    Device,
    /// Bytes: an integer of at least 1, or a text such as `"24GiB"`; an empty one for nothing given.
    Bytes,
    /// `"all-linear"` or a list of module names.
    Targets,
    /// A list of module names.
    Modules,
    /// A list of layer numbers from 0.
    Layers,
    /// A table from module name or pattern to an integer of at least 1.
    IntMap,
    /// A table from module name or pattern to a number above 0.
    RealMap,
}

/// A range of real numbers, open or closed at each end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Lower end.
    pub min: f64,
    /// Upper end; infinity for none.
    pub max: f64,
    /// Whether the lower end itself is refused.
    pub above_min: bool,
    /// Whether the upper end itself is refused.
    pub below_max: bool,
}

impl Range {
    /// Whether `x` is finite and in the range.
    pub fn contains(&self, x: f64) -> bool {
        let low = if self.above_min { x > self.min } else { x >= self.min };
        let high = if self.below_max { x < self.max } else { x <= self.max };
        x.is_finite() && low && high
    }

    /// The range in words: `at least 0 and below 1`.
    pub fn words(&self) -> String {
        let low = if self.above_min { "above" } else { "at least" };
        let high = if self.below_max { "below" } else { "at most" };
        if self.max.is_finite() {
            format!("{low} {} and {high} {}", self.min, self.max)
        } else {
            format!("{low} {}", self.min)
        }
    }
}

const fn range(min: f64, above_min: bool, max: f64, below_max: bool) -> Kind {
    Kind::Real(Range { min, max, above_min, below_max })
}

/// `[0, 1)`.
const SHARE: Kind = range(0.0, false, 1.0, true);
/// `[0, ∞)`.
const NOT_NEGATIVE: Kind = range(0.0, false, f64::INFINITY, true);
/// `(0, ∞)`.
const POSITIVE: Kind = range(0.0, true, f64::INFINITY, true);
/// Any count of at least one.
const COUNT: Kind = Kind::Int { min: 1, max: u32::MAX as i64 };
/// Any count, none included.
const COUNT_OR_NONE: Kind = Kind::Int { min: 0, max: u32::MAX as i64 };
const SEED: Kind = Kind::Int { min: 0, max: i64::MAX };

/// One key of a job file.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted path: `train.epochs`.
    pub path: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// Whether a job file must give it.
    pub required: bool,
    /// What it does, one sentence or two.
    pub doc: &'static str,
}

const fn key(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, required: false, doc }
}

const fn required(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, required: true, doc }
}

/// The tables of a job file, in the order they are shown, with what each holds.
pub const TABLES: [(&str, &str); 4] = [
    ("data", "What is learnt from, and how its rows become tokens."),
    ("lora", "The adapter; names and meaning are PEFT's."),
    ("train", "The optimizer and the course of the run."),
    ("preview", "Replies shown before and after training."),
];

/// Every key, in the order they are shown.
pub const KEYS: &[Key] = &[
    required(
        "base",
        Kind::Text,
        "Base model: a directory in Hugging Face layout, or a repo id such as `owner/name`.",
    ),
    key("revision", Kind::Text, "Branch, tag or commit of a repo id."),
    key("offline", Kind::Flag, "Use only files already in the Hugging Face cache; never touch the network."),
    key(
        "name",
        Kind::Text,
        "Name of the job, shown in its result and on the adapter's card; the job file's name when absent.",
    ),
    key(
        "device",
        Kind::Device,
        "Where to compute: `cpu`, `cuda:N` for a GPU (builds with CUDA), or `auto`: the first GPU once a selftest was \
         passed on it, and the CPU where there is none.",
    ),
    key("output", Kind::Text, "Directory to copy the finished adapter to; it must not exist."),
    required(
        "data.train",
        Kind::Text,
        "Training rows: a file (JSONL, JSON, CSV, TSV or Parquet, also with .gz or .zst), a directory, a pattern such as \
         `logs/*.jsonl`, an address (`s3://`, `https://`), a table of `tunesmith data`, or a query over tables.",
    ),
    key(
        "data.validation",
        Kind::Text,
        "Held-out rows, given like `data.train`; when given, nothing is split off the training rows.",
    ),
    key(
        "data.format",
        Kind::Choice(&["jsonl", "json", "csv", "tsv", "parquet"]),
        "How the rows are written; told by the file's name when absent.",
    ),
    key(
        "data.validation_split",
        SHARE,
        "Share of the training rows held out by a hash of each row and `data.seed`; 0 holds out none.",
    ),
    key("data.prompt_column", Kind::Text, "Column of the prompt; found by its usual names when absent."),
    key(
        "data.completion_column",
        Kind::Text,
        "Column of the completion; found by its usual names when absent.",
    ),
    key("data.messages_column", Kind::Text, "Column of chat messages; found by its usual name when absent."),
    key(
        "data.template",
        Kind::Choice(&["auto", "chat", "none"]),
        "`chat` renders rows through the model's chat template, `none` joins prompt and completion as they are, \
         `auto` takes `chat` when the model has a template.",
    ),
    key(
        "data.max_seq_length",
        Kind::Int { min: 2, max: u32::MAX as i64 },
        "Longest document in tokens; `data.over_long` says what becomes of longer ones. The model's own limit when absent.",
    ),
    key(
        "data.over_long",
        Kind::Choice(&["drop", "truncate-prompt", "fail"]),
        "`drop` leaves rows longer than the limit out, `truncate-prompt` cuts the beginning of their prompt, `fail` refuses \
         them. All are counted; no completion is ever cut.",
    ),
    key(
        "data.split_by",
        Kind::Text,
        "Column, such as `ticket_id`, whose equal values are never on both sides of the split.",
    ),
    key("data.seed", SEED, "Seed of the split."),
    key("lora.r", COUNT, "Rank."),
    key("lora.lora_alpha", POSITIVE, "Scaling numerator: the update is multiplied by `lora_alpha / r`."),
    key("lora.lora_dropout", SHARE, "Share of the adapter's inputs dropped while training."),
    key(
        "lora.target_modules",
        Kind::Targets,
        "`all-linear`, or a list of `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`.",
    ),
    key("lora.exclude_modules", Kind::Modules, "Modules left out of `target_modules`."),
    key("lora.layers_to_transform", Kind::Layers, "Layers that get an adapter, from 0; all when absent."),
    key(
        "lora.rank_pattern",
        Kind::IntMap,
        "Ranks of single modules, by name or pattern; the first that matches counts.",
    ),
    key(
        "lora.alpha_pattern",
        Kind::RealMap,
        "Alphas of single modules, by name or pattern; the first that matches counts.",
    ),
    key("lora.use_rslora", Kind::Flag, "Scale by `lora_alpha / sqrt(r)` instead of `lora_alpha / r`."),
    key(
        "lora.use_dora",
        Kind::Flag,
        "Weight-decomposed LoRA; not supported yet, so only `false` is accepted.",
    ),
    key(
        "train.epochs",
        Kind::AutoOrInt { min: 1, max: 10 },
        "Passes over the training rows. `auto` plans them by the number of rows and, where 20 or more are held out, ends \
         when their loss no longer falls and keeps the best adapter.",
    ),
    key(
        "train.max_epochs",
        Kind::Int { min: 1, max: 10 },
        "Most passes that `train.epochs = \"auto\"` may plan; a number given there is not bounded by it.",
    ),
    key("train.batch_size", COUNT, "Examples per optimizer step."),
    key(
        "train.micro_batch_size",
        COUNT_OR_NONE,
        "Examples per forward and backward; 0 leaves it to the engine: 2,048 tokens on the CPU, and on a GPU as many as its \
         memory is good for. Bounds memory, does not change the result.",
    ),
    key("train.learning_rate", POSITIVE, "Peak learning rate."),
    key(
        "train.lr_scheduler_type",
        Kind::Choice(&["cosine", "linear", "constant"]),
        "Shape of the learning rate after warm-up.",
    ),
    key(
        "train.warmup_ratio",
        range(0.0, false, 1.0, false),
        "Share of all steps spent warming up; replaced by `train.warmup_steps` when that is given.",
    ),
    key("train.warmup_steps", COUNT_OR_NONE, "Steps spent warming up."),
    key("train.weight_decay", NOT_NEGATIVE, "Decoupled weight decay on the adapter."),
    key("train.adam_beta1", SHARE, "Decay of AdamW's first moment."),
    key("train.adam_beta2", SHARE, "Decay of AdamW's second moment."),
    key("train.adam_epsilon", POSITIVE, "Added to the root of AdamW's second moment."),
    key(
        "train.max_grad_norm",
        NOT_NEGATIVE,
        "Global gradient norm above which gradients are scaled down; 0 turns clipping off.",
    ),
    key("train.seed", SEED, "Seed of the initial adapter, of dropout and of the order of rows."),
    key(
        "train.evals_per_epoch",
        COUNT_OR_NONE,
        "Evaluations on the held-out rows per epoch; 0 turns them off. With `train.epochs = \"auto\"` at least two where 20 \
         rows or more are held out.",
    ),
    key(
        "train.recompute",
        Kind::Choice(&["auto", "none", "mlp", "min2", "min"]),
        "What each layer computes again in the backward pass instead of keeping it: less memory, same result. `auto` \
         chooses for each layer by the memory there is; on the CPU it is `none` unless `train.memory_limit` is given.",
    ),
    key(
        "train.memory_limit",
        Kind::Bytes,
        "Most memory to take on the device, such as \"24GiB\", of what is free there; all of that when absent. On the CPU: \
         what model, adapter and activations may take together. `tunesmith plan` says what fits.",
    ),
    key(
        "train.save_steps",
        COUNT_OR_NONE,
        "Steps between two checkpoints; 0 leaves it to `train.save_minutes`.",
    ),
    key(
        "train.save_minutes",
        NOT_NEGATIVE,
        "Minutes between two checkpoints; 0 leaves it to `train.save_steps`.",
    ),
    key(
        "train.save_total_limit",
        COUNT_OR_NONE,
        "Checkpoints kept beside the best one, the last one and those at the ends of epochs.",
    ),
    key("train.save_disk_gib", POSITIVE, "Most that the checkpoints of a job may take on the disk, in GiB."),
    key(
        "preview.prompts",
        COUNT_OR_NONE,
        "Held-out rows whose reply is generated before and after training.",
    ),
    key("preview.max_new_tokens", COUNT, "Longest such reply in tokens."),
];

/// Names that other trainers use for a key of ours: only ever a suggestion, never accepted.
const FOREIGN: &[(&str, &str)] = &[
    ("num_train_epochs", "train.epochs"),
    ("num_epochs", "train.epochs"),
    ("per_device_train_batch_size", "train.batch_size"),
    ("gradient_accumulation_steps", "train.micro_batch_size"),
    ("lr", "train.learning_rate"),
    ("scheduler", "train.lr_scheduler_type"),
    ("lr_scheduler", "train.lr_scheduler_type"),
    ("max_norm", "train.max_grad_norm"),
    ("gradient_checkpointing", "train.recompute"),
    ("max_memory", "train.memory_limit"),
    ("rank", "lora.r"),
    ("lora_r", "lora.r"),
    ("alpha", "lora.lora_alpha"),
    ("dropout", "lora.lora_dropout"),
    ("targets", "lora.target_modules"),
    ("model", "base"),
    ("base_model", "base"),
    ("model_name_or_path", "base"),
    ("dataset", "data.train"),
    ("train_file", "data.train"),
    ("val_set_size", "data.validation_split"),
    ("test_size", "data.validation_split"),
    ("max_length", "data.max_seq_length"),
    ("sequence_len", "data.max_seq_length"),
    ("chat_template", "data.template"),
    ("output_dir", "output"),
];

/// The key of this path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// Whether `path` is one of the tables.
pub fn is_table(path: &str) -> bool {
    TABLES.iter().any(|(name, _)| *name == path)
}

/// Last part of a dotted path.
pub fn leaf(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Table part of a dotted path; empty for a key of the top level.
pub fn table(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(table, _)| table)
}

/// The valid key nearest to an unknown one.
///
/// A known name in the wrong table, then the name another trainer uses, then the smallest edit distance (to the
/// last part for keys of the same table, to the whole path otherwise).
pub fn nearest_key(unknown: &str) -> &'static str {
    let name = leaf(unknown);
    if let Some(key) = KEYS.iter().find(|k| leaf(k.path) == name) {
        return key.path;
    }
    if let Some((_, path)) = FOREIGN.iter().find(|(foreign, _)| *foreign == name) {
        return path;
    }
    let closeness = |key: &Key| {
        let whole = strsim::normalized_damerau_levenshtein(key.path, unknown);
        let last = strsim::normalized_damerau_levenshtein(leaf(key.path), name);
        if table(key.path) == table(unknown) { last.max(whole) } else { whole.max(0.9 * last) }
    };
    KEYS.iter().max_by(|a, b| closeness(a).total_cmp(&closeness(b))).map_or("base", |k| k.path)
}

/// The table nearest to an unknown one.
pub fn nearest_table(unknown: &str) -> &'static str {
    let closeness = |name: &str| strsim::normalized_damerau_levenshtein(name, unknown);
    TABLES.iter().max_by(|a, b| closeness(a.0).total_cmp(&closeness(b.0))).map_or("train", |(name, _)| name)
}

/// The default of every key that has one, as the JSON the spec is written as.
pub fn defaults() -> serde_json::Value {
    // Plain structs of numbers and strings: serialising them cannot fail.
    serde_json::to_value(JobSpec::default()).unwrap_or_default()
}

/// Looks a dotted path up in nested JSON objects.
pub fn get<'a>(root: &'a serde_json::Value, path: &str) -> Option<&'a serde_json::Value> {
    path.split('.').try_fold(root, |value, part| value.get(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_every_field_of_the_spec() {
        let defaults = defaults();
        for (name, value) in defaults.as_object().unwrap() {
            if is_table(name) {
                for field in value.as_object().unwrap().keys() {
                    assert!(
                        find(&format!("{name}.{field}")).is_some(),
                        "{name}.{field} is in no table of keys"
                    );
                }
            } else {
                assert!(find(name).is_some(), "{name} is in no table of keys");
            }
        }
        let mut paths: Vec<_> = KEYS.iter().map(|k| k.path).collect();
        paths.dedup();
        assert_eq!(paths.len(), KEYS.len());
    }

    #[test]
    fn foreign_names_point_at_real_keys_and_are_no_keys() {
        for (foreign, path) in FOREIGN {
            assert!(find(path).is_some(), "{path}");
            assert!(find(foreign).is_none() && KEYS.iter().all(|k| leaf(k.path) != *foreign), "{foreign}");
        }
    }

    #[test]
    fn suggestions_are_the_ones_a_person_would_make() {
        for (typed, meant) in [
            ("train.epoch", "train.epochs"),
            ("train.epcohs", "train.epochs"),
            ("epochs", "train.epochs"),
            ("train.r", "lora.r"),
            ("lora.rank", "lora.r"),
            ("lora.targets_modules", "lora.target_modules"),
            ("data.valdiation", "data.validation"),
            ("data.validation_spilt", "data.validation_split"),
            ("bsae", "base"),
            ("train.learning_rte", "train.learning_rate"),
            ("num_train_epochs", "train.epochs"),
            ("preview.prompt", "preview.prompts"),
        ] {
            assert_eq!(nearest_key(typed), meant, "{typed}");
        }
        assert_eq!(nearest_table("trian"), "train");
        assert_eq!(nearest_table("dataset"), "data");
    }

    #[test]
    fn ranges_are_open_and_closed_where_they_say() {
        let r = Range { min: 0.0, max: 1.0, above_min: false, below_max: true };
        assert!(r.contains(0.0) && !r.contains(1.0) && !r.contains(f64::NAN) && !r.contains(-0.1));
        let r = Range { min: 0.0, max: f64::INFINITY, above_min: true, below_max: true };
        assert!(!r.contains(0.0) && r.contains(1e-300) && !r.contains(f64::INFINITY));
    }
}
