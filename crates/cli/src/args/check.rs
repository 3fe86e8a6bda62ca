//! The command line of what looks before anything is trained.

use std::path::PathBuf;

use clap::Args;
use serde::de::DeserializeOwned;
use tunesmith_data::{OverLong, TemplateChoice};

use super::data::FormatArg;
use crate::args::{HubArgs, Overrides};
use crate::cards::Card;

/// `tunesmith data check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith data check tickets.jsonl --base models/base
  tunesmith data check 'rows/*.parquet' --base models/base --validation held-out.jsonl
  tunesmith data check tickets.jsonl --base models/base --show-mask 3 --html report.html

Exit code 65 says that a job would refuse the rows; warnings and notes end with 0.")]
pub(crate) struct CheckArgs {
    /// Where the rows are: files, directories, patterns, addresses, - for standard input, a table or a query
    #[arg(value_name = "SRC", required = true)]
    pub(crate) sources: Vec<String>,
    /// Base model: a directory in Hugging Face layout, or a repo id
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: String,
    /// Where held-out rows are; without it, those a job would hold out are compared with the others
    #[arg(long, value_name = "SRC")]
    pub(crate) validation: Option<String>,
    /// Column of the prompt
    #[arg(long, value_name = "NAME")]
    pub(crate) prompt_col: Option<String>,
    /// Column of the completion
    #[arg(long, value_name = "NAME")]
    pub(crate) completion_col: Option<String>,
    /// Column of the chat messages
    #[arg(long, value_name = "NAME", conflicts_with_all = ["prompt_col", "completion_col"])]
    pub(crate) messages_col: Option<String>,
    /// Column whose equal values a job would keep on one side of the split (`data.split_by`)
    #[arg(long, value_name = "NAME", conflicts_with = "validation")]
    pub(crate) split_by: Option<String>,
    /// Longest row in tokens (default: the base model's context)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) max_seq_length: Option<u32>,
    /// What becomes of longer rows: drop, truncate-prompt or fail
    #[arg(long, value_name = "POLICY", default_value = "drop", value_parser = word::<OverLong>)]
    pub(crate) over_long: OverLong,
    /// Whether rows go through the chat template: auto, chat or none
    #[arg(long, value_name = "TEMPLATE", default_value = "auto", value_parser = word::<TemplateChoice>)]
    pub(crate) template: TemplateChoice,
    /// Format of the files, where their names do not tell it
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,
    /// Show so many rows as the model sees them, what is trained marked
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) show_mask: usize,
    /// Mark where each token ends in the rows shown
    #[arg(long, requires = "show_mask")]
    pub(crate) show_tokens: bool,
    /// Write the report as an HTML file too, replacing the file if there is one
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// How a repo id is found.
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith quote`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith quote job.toml
  tunesmith quote job.toml --epochs 1 --price-per-million 0.50
  tunesmith quote job.toml --no-measure --json

It reads the rows and takes a few steps as the job would, and leaves nothing behind.")]
pub(crate) struct QuoteArgs {
    /// The job file (TOML)
    #[arg(value_name = "JOB.toml")]
    pub(crate) job: PathBuf,
    /// What overrides the file.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Price of a million training tokens, in any currency
    #[arg(long, value_name = "X", value_parser = price, allow_negative_numbers = true)]
    pub(crate) price_per_million: Option<f64>,
    /// Take no steps: time, energy and memory stay unknown
    #[arg(long)]
    pub(crate) no_measure: bool,
    /// How long to take steps for
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600), conflicts_with = "no_measure")]
    pub(crate) measure_seconds: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith plan`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith plan job.toml --card \"RTX 4090\"
  tunesmith plan job.toml --memory-limit 24GiB
  tunesmith plan job.toml --device cuda:0 --json

It reads the rows, for their lengths, and neither weights nor, with --card or --memory-limit, a GPU: a limit without a device
is that of a GPU. Exit code 69 says that nothing fits, and what would have to change.")]
pub(crate) struct PlanArgs {
    /// The job file (TOML)
    #[arg(value_name = "JOB.toml")]
    pub(crate) job: PathBuf,
    /// What overrides the file.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Plan for a card that need not be here, such as `RTX 4090` or `H200`
    #[arg(long, value_name = "NAME", value_parser = Card::find, conflicts_with_all = ["memory_limit", "device"])]
    pub(crate) card: Option<&'static Card>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// A value by the word that job files have for it.
pub(super) fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let error = match serde_json::from_value(serde_json::Value::String(text.to_owned())) {
        Ok(value) => return Ok(value),
        Err(error) => error.to_string(),
    };
    Err(error.split_once("expected").map_or(error.clone(), |(_, expected)| format!("expected{expected}")))
}

/// A price.
pub(super) fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}
