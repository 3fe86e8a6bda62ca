//! The command line of `tunesmith bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tunesmith_model::ModelConfig;
use tunesmith_train::Recompute;

use super::check::word;
use super::device;

/// `tunesmith bench`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith bench
  tunesmith bench --model tiny --device cpu --json
  tunesmith bench --model mistral-7b --device cuda:0 --tokens 16384 --seq 2048
  tunesmith bench --config models/base/config.json --lengths mix --recompute mlp

It trains a model of random weights, which the device makes itself, on random tokens: nothing is read but a config.json, and
nothing is written. Every token is predicted. Shares of the peak hold the arithmetic that the step needs against the largest
matrix products, measured in the same run; the time of each operation comes from two more steps.")]
pub(crate) struct BenchArgs {
    /// Sizes of a released model: mistral-7b, llama-3-8b, llama-2-7b, llama-3.2-3b, llama-3.2-1b, tinyllama-1.1b, llama-100m
    /// or tiny (default: llama-100m on the CPU, mistral-7b on a GPU)
    #[arg(long, value_name = "NAME", value_parser = known)]
    pub(crate) model: Option<String>,
    /// Sizes of any other: its config.json
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub(crate) config: Option<PathBuf>,
    /// Where to compute: cpu, cuda:N (builds with CUDA) or auto, as in a job file
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub(crate) device: String,
    /// Tokens of a step, all in one micro-batch (default: 512 on the CPU, 16384 on a GPU)
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub(crate) tokens: Option<usize>,
    /// Tokens of a document; the last one is what is left (default: 512 on the CPU, 2048 on a GPU)
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) seq: Option<usize>,
    /// Documents of many lengths instead: `mix` is a spread as instructions have it, 200 tokens on average
    #[arg(long, value_name = "WHICH", value_enum, conflicts_with = "seq")]
    pub(crate) lengths: Option<Lengths>,
    /// Rank of the adapter, on all linears
    #[arg(long, value_name = "N", default_value = "16", value_parser = count)]
    pub(crate) rank: usize,
    /// What is computed again in the backward pass: none, mlp, min2 or min
    #[arg(long, value_name = "WHAT", default_value = "none", value_parser = recompute)]
    pub(crate) recompute: Recompute,
    /// Steps that are timed (default: 5 on the CPU, 20 on a GPU)
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) steps: Option<usize>,
    /// Steps before them (default: 1 on the CPU, 5 on a GPU)
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) warmup: Option<usize>,
    /// Seed of weights, adapter and tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Documents of many lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lengths {
    /// From 24 to 734 tokens, 200 on average
    Mix,
}

fn known(text: &str) -> Result<String, String> {
    if ModelConfig::named(text).is_some() {
        return Ok(text.to_owned());
    }
    let names: Vec<&str> = ModelConfig::names().collect();
    Err(format!("expected one of {}, or any model through --config", names.join(", ")))
}

/// One way for all layers: what `auto` comes to, depends on the machine.
fn recompute(text: &str) -> Result<Recompute, String> {
    match word(text) {
        Ok(Recompute::Auto) | Err(_) => Err("expected none, mlp, min2 or min".to_owned()),
        Ok(way) => Ok(way),
    }
}

/// No card has room for more, and the documents of more are not even made in good time.
fn tokens(text: &str) -> Result<usize, String> {
    const MOST: usize = 1 << 24;
    match count(text)? {
        n if n <= MOST => Ok(n),
        _ => Err(format!("expected at most {MOST}")),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1_000_000_000) => Ok(n),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}
