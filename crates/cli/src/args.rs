//! The command line, as clap reads it.

mod bench;
mod check;
mod data;
mod jobs;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tunesmith_train::Epochs;
use tunesmith_train::plan::Bytes;

pub(crate) use bench::BenchArgs;
pub(crate) use check::{CheckArgs, PlanArgs, QuoteArgs};
pub(crate) use data::{DataCommand, ExportArgs, LoadArgs, RemoveArgs, ShowArgs, SplitArgs, SqlArgs};
pub(crate) use jobs::{
    CreateArgs, DescribeArgs, DoctorArgs, ListArgs, LogsArgs, RemoveJobArgs, RetryArgs, WishArgs,
};

use crate::error::EXIT_CODES;
use crate::spec;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "tunesmith",
    version,
    about = "LoRA fine-tuning of Llama and Mistral models on one workstation",
    after_help = "Examples:
  tunesmith train configs/quickstart.toml
  tunesmith train job.toml --set lora.r=8 --epochs 2
  tunesmith create support --base models/base --training-data tickets.jsonl
  tunesmith describe support --watch
  tunesmith generate --base models/base --adapter out --prompt \"Where is my order?\"
  tunesmith adapter inspect out

`tunesmith help COMMAND` says more about a command, `tunesmith --help` lists the exit codes.",
    after_long_help = long_help(),
    propagate_version = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

fn long_help() -> String {
    let mut text = String::from(
        "Examples:
  tunesmith train configs/quickstart.toml
  tunesmith train job.toml --set lora.r=8 --epochs 2
  tunesmith create support --base models/base --training-data tickets.jsonl
  tunesmith describe support --watch
  tunesmith generate --base models/base --adapter out --prompt \"Where is my order?\"
  tunesmith adapter inspect out

Environment:
  TUNESMITH_HOME          where jobs and tables are kept (default: `tunesmith` in the user's data directory)
  TUNESMITH_SUPERVISOR    `off`: job commands start no `tunesmith serve` in the background
  TUNESMITH_HANG_SECONDS  silence after which a running job is ended and run again (default: 300)
  NO_COLOR                no colours, when set

Exit codes:
",
    );
    for (code, meaning) in EXIT_CODES {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {code:>3}  {meaning}");
    }
    text
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fine-tune a model as a job file says; the last line names the adapter
    Train(TrainArgs),
    /// Generate text with a base model and, if given, an adapter
    Generate(GenerateArgs),
    /// Training data: check it; load tables, look at them, query, split, export
    #[command(subcommand)]
    Data(DataCommand),
    /// Say what a job will take: tokens, steps, time, memory, disk, and its price if asked
    Quote(QuoteArgs),
    /// Say how a job would use the memory of its device, or of a card that is not here
    Plan(PlanArgs),
    /// Make a job, which goes on when this terminal is closed
    Create(Box<CreateArgs>),
    /// List the jobs, the newest first
    Show(ListArgs),
    /// Say how a job is: progress, losses, checkpoints, history
    Describe(DescribeArgs),
    /// Stop a job for good
    #[command(after_help = "Example:
  tunesmith cancel support --wait")]
    Cancel(WishArgs),
    /// Stop a job at a checkpoint, to go on later
    #[command(after_help = "Example:
  tunesmith pause support --wait")]
    Pause(WishArgs),
    /// Let a paused job go on from its checkpoint
    #[command(after_help = "Example:
  tunesmith resume support")]
    Resume(WishArgs),
    /// Make a new job of the same spec that goes on where one that is over stopped
    Retry(RetryArgs),
    /// Show what a job's worker wrote, or its events
    Logs(LogsArgs),
    /// Remove jobs with everything in their directories
    Rm(RemoveJobArgs),
    /// Check the store and every job directory, and say what is wrong and what to do
    Doctor(DoctorArgs),
    /// Measure training steps of a model of random weights: speed, efficiency, memory, time of each operation
    Bench(Box<BenchArgs>),
    /// Check that this machine computes what it should: every operation, and a small fine-tune
    Selftest(SelftestArgs),
    /// Look into adapters
    #[command(subcommand)]
    Adapter(AdapterCommand),
    /// Job files: their keys, and what one resolves to
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run one stage of a job in its directory; exit codes as `--help` lists them
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// Look after the jobs of the workspace: start them, watch them, go on after crashes
    Serve(ServeArgs),
    /// Run a chat template for another process of this program
    #[command(name = crate::engine::TEMPLATE_HELPER, hide = true)]
    TemplateHelper,
    /// Print a completion script for a shell
    #[command(after_help = "Example:
  tunesmith completions bash > ~/.local/share/bash-completion/completions/tunesmith")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// What overrides a job file.
#[derive(Debug, Args)]
pub(crate) struct Overrides {
    /// Set a key of the job file, as `lora.r=8`; may be repeated, later ones win
    ///
    /// The value is written as in TOML; what is no TOML value is taken as a string, so words need no quotes.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Passes over the training rows: a number, or auto (train.epochs)
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<Epochs>,
    /// Seed of the adapter, dropout and row order (train.seed); the split keeps data.seed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Directory to copy the finished adapter to; must not exist (output)
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Never touch the network (offline)
    #[arg(long)]
    pub(crate) offline: bool,
    /// Where to compute: cpu, cuda:N, or auto: the first GPU once `selftest` passed on it, the CPU without one (device)
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Most memory to take on the device, as 24GiB or a number of bytes (train.memory_limit)
    #[arg(long, value_name = "BYTES", value_parser = memory)]
    pub(crate) memory_limit: Option<Bytes>,
}

/// `tunesmith train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith train job.toml
  tunesmith train job.toml --set train.learning_rate=1e-4 --set data.template=none
  tunesmith train job.toml --output my-adapter --json

Relative paths in a job file are taken from the current directory.
Precedence: defaults, then the file, then --set, then the flags below it.
Ctrl-C stops within moments and says so; a second Ctrl-C stops at once.")]
pub(crate) struct TrainArgs {
    /// The job file (TOML); `tunesmith config schema` lists its keys
    #[arg(value_name = "JOB.toml")]
    pub(crate) job: PathBuf,
    /// What overrides the file.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Price of a million training tokens, in any currency: the result then has the price of the run
    #[arg(long, value_name = "X", value_parser = check::price, allow_negative_numbers = true)]
    pub(crate) price_per_million: Option<f64>,
    /// Print one JSON object to standard output and nothing else
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// `tunesmith worker`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// The job's directory
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// What to do of it
    #[arg(long, value_enum)]
    pub(crate) stage: Stage,
}

/// A stage of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// Read, check and freeze the rows
    Prepare,
    /// Train on the frozen rows
    Train,
}

/// `tunesmith serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith serve
  tunesmith serve --device cuda:0 --device cuda:1
  tunesmith serve --drain

Job commands start one in the background where none runs, which goes when there is nothing to do;
TUNESMITH_SUPERVISOR=off leaves that to you. A workspace has one: a second ends with exit code 69.
Workers outlive it: Ctrl-C or SIGTERM ends it within seconds, and the next one finds them again.
A worker that gives no sign of life for TUNESMITH_HANG_SECONDS (default 300) is ended and run again.
What it does is written to `supervisor.log` in the workspace.")]
pub(crate) struct ServeArgs {
    /// Where jobs may compute, one job at a time on each; may be repeated (default: every device)
    #[arg(long, value_name = "DEVICE", value_parser = one_device)]
    pub(crate) device: Vec<String>,
    /// At the end, ask running jobs for a checkpoint and wait for it; they go on at the next start
    #[arg(long)]
    pub(crate) drain: bool,
    /// Started by a command: goes after so many seconds with nothing to do
    #[arg(long, value_name = "SECONDS", hide = true)]
    pub(crate) idle_exit: Option<u64>,
}

/// `tunesmith selftest`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith selftest
  tunesmith selftest --device cuda:0 --json

Every operation is compared with plain code in f64, at awkward shapes and at real ones; then a tiny model is trained
for 20 steps whose losses are known, its adapter saved and loaded, and a reply generated. Exits with 1 if anything is
wrong. A GPU that passes is what `auto` takes from then on; another version of the program or of the driver is tried
again.")]
pub(crate) struct SelftestArgs {
    /// What to check: cpu, cuda:N, or auto, which is the first GPU that can be used, or else the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub(crate) device: String,
    /// Print one JSON object to standard output and nothing else
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// How a base model given by its repo id is found.
#[derive(Debug, Args)]
pub(crate) struct HubArgs {
    /// Branch, tag or commit of a repo id
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
    /// Never touch the network
    #[arg(long)]
    pub(crate) offline: bool,
}

/// `tunesmith generate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:
  tunesmith generate --base models/base --prompt \"Where is my order?\"
  echo \"Where is my order?\" | tunesmith generate --base models/base --adapter out --prompt -
  tunesmith generate --base models/base --messages chat.json --temperature 0.7 --top-p 0.9 --seed 1",
    group = clap::ArgGroup::new("input").required(true)
)]
pub(crate) struct GenerateArgs {
    /// Base model: a directory in Hugging Face layout, or a repo id
    #[arg(long, value_name = "DIR")]
    pub(crate) base: String,
    /// Adapter directory, as `train` or PEFT writes it
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Where to compute: cpu, cuda:N (builds with CUDA), or auto: the first GPU once `selftest` passed on it, the CPU
    /// without one
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub(crate) device: String,
    /// What to answer; `-` reads standard input
    #[arg(long, value_name = "TEXT", group = "input", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// A JSON file of chat messages: a list of {role, content}, or an object with `messages`
    #[arg(long, value_name = "FILE", group = "input", conflicts_with = "raw")]
    pub(crate) messages: Option<PathBuf>,
    /// Longest reply in tokens
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_new_tokens: u32,
    /// 0 takes the likeliest token each time; higher is more varied
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Sample from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = top_p, allow_negative_numbers = true)]
    pub(crate) top_p: f64,
    /// Seed of sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Give the prompt to the model as it is, without the chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// How a repo id is found.
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// Print one JSON object to standard output, after the last token
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith adapter`.
#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Print rank, scaling, targets, shapes and norms of an adapter
    Inspect {
        /// Directory of `adapter_config.json` and `adapter_model.safetensors`
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// `tunesmith config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the JSON schema of a job file
    Schema,
    /// Print a job file with everything resolved, and where each value comes from
    Show {
        /// The job file
        #[arg(value_name = "JOB.toml")]
        job: PathBuf,
        /// What overrides the file.
        #[command(flatten)]
        overrides: Overrides,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    /// Whether standard output is to hold one JSON object.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Train(args) => args.json,
            Self::Generate(args) => args.json,
            Self::Quote(args) => args.json,
            Self::Plan(args) => args.json,
            Self::Bench(args) => args.json,
            Self::Data(command) => command.json(),
            Self::Create(args) => args.json,
            Self::Show(args) => args.json,
            Self::Describe(args) => args.json,
            Self::Cancel(args) | Self::Pause(args) | Self::Resume(args) => args.json,
            Self::Retry(args) => args.json,
            Self::Logs(args) => args.json,
            Self::Rm(args) => args.json,
            Self::Doctor(args) => args.json,
            Self::Selftest(args) => args.json,
            Self::Adapter(AdapterCommand::Inspect { json, .. })
            | Self::Config(ConfigCommand::Show { json, .. }) => *json,
            Self::Config(ConfigCommand::Schema)
            | Self::Worker(_)
            | Self::Serve(_)
            | Self::TemplateHelper
            | Self::Completions { .. } => false,
        }
    }
}

fn device(text: &str) -> Result<String, String> {
    if spec::is_device(text) { Ok(text.to_owned()) } else { Err(format!("expected {}", spec::DEVICES)) }
}

fn one_device(text: &str) -> Result<String, String> {
    match device(text) {
        Ok(device) if device != "auto" => Ok(device),
        _ => Err("expected cpu or cuda:N".to_owned()),
    }
}

fn memory(text: &str) -> Result<Bytes, String> {
    text.parse()
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if t.is_finite() && t >= 0.0 => Ok(t),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}

fn top_p(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("expected a number above 0 and at most 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
