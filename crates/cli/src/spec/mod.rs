//! The job spec: what a job file says once defaults, `--set` and flags are applied.

mod check;
pub mod keys;
mod load;
mod schema;
mod show;
mod value;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tunesmith_data::{Format, OverLong, TemplateChoice};
use tunesmith_model::peft::LoraConfig;
use tunesmith_train::TrainConfig;

pub use check::{DEVICES, is_device};
pub use load::{Assignment, Loaded, Origin, Problem, SpecError, check_name, is_repo_id, load, load_over};
pub use schema::{schema, schema_text};
pub use show::show;

/// A whole job: the keys of a job file. The default is what a file that gives only the required keys gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSpec {
    /// Base model: an absolute directory, or a Hugging Face repo id.
    pub base: String,
    /// Branch, tag or commit of a repo id.
    pub revision: Option<String>,
    /// Never touch the network.
    pub offline: bool,
    /// Name of the job; after loading never absent.
    pub name: Option<String>,
    /// `cpu`, `auto` or `cuda:N`.
    pub device: String,
    /// Where to copy the finished adapter.
    pub output: Option<PathBuf>,
    /// `[data]`.
    pub data: DataSpec,
    /// `[lora]`, in PEFT's words.
    pub lora: LoraConfig,
    /// `[train]`.
    pub train: TrainConfig,
    /// `[preview]`.
    pub preview: PreviewSpec,
}

/// `[data]`: what is learnt from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSpec {
    /// Where the training rows are.
    pub train: String,
    /// Where the held-out rows are.
    pub validation: Option<String>,
    /// How the files are written, where their names do not tell.
    pub format: Option<Format>,
    /// Share of the training rows held out; 0 when `validation` is given.
    pub validation_split: f64,
    /// Column of the prompt.
    pub prompt_column: Option<String>,
    /// Column of the completion.
    pub completion_column: Option<String>,
    /// Column of the chat messages.
    pub messages_column: Option<String>,
    /// Whether rows go through the chat template.
    pub template: TemplateChoice,
    /// Longest document in tokens.
    pub max_seq_length: Option<usize>,
    /// What becomes of longer ones.
    pub over_long: OverLong,
    /// Column whose equal values are never on both sides of the split.
    pub split_by: Option<String>,
    /// Seed of the split.
    pub seed: u64,
}

/// `[preview]`: replies shown before and after training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreviewSpec {
    /// How many held-out rows.
    pub prompts: usize,
    /// Longest reply in tokens.
    pub max_new_tokens: usize,
}

impl Default for JobSpec {
    fn default() -> Self {
        Self {
            base: String::new(),
            revision: None,
            offline: false,
            name: None,
            device: "auto".to_owned(),
            output: None,
            data: DataSpec::default(),
            lora: LoraConfig::default(),
            train: TrainConfig::default(),
            preview: PreviewSpec::default(),
        }
    }
}

impl Default for DataSpec {
    fn default() -> Self {
        Self {
            train: String::new(),
            validation: None,
            format: None,
            validation_split: 0.2,
            prompt_column: None,
            completion_column: None,
            messages_column: None,
            template: TemplateChoice::Auto,
            max_seq_length: None,
            over_long: OverLong::Drop,
            split_by: None,
            seed: 0,
        }
    }
}

impl Default for PreviewSpec {
    fn default() -> Self {
        Self { prompts: 0, max_new_tokens: 128 }
    }
}

#[cfg(test)]
mod tests;
