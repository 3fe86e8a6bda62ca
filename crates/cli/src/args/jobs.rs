//! The command line of the verbs on jobs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tunesmith_jobs::State;

use crate::args::Overrides;

/// `tunesmith create`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith create support --base models/base --training-data tickets.jsonl
  tunesmith create support --base models/base --training-data \"select prompt, completion from tickets\" -y --detach
  tunesmith create support --config job.toml --set lora.r=8 --json

The first line on standard output is the job's id. On a terminal it says what the job will take and asks; elsewhere, and
with -y, it does not. Then it follows the job and ends with its exit code; Ctrl-C leaves the job running.
Precedence: defaults, then the file of --config, then --set, then the other flags.")]
pub(crate) struct CreateArgs {
    /// Name of the job and of the model it makes: any text of at most 64 characters
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// Base model: a directory in Hugging Face layout, or a repo id (base)
    #[arg(long, value_name = "MODEL", required_unless_present = "config")]
    pub(crate) base: Option<String>,
    /// Where the training rows are: file, directory, pattern, address, - for standard input, table or query (data.train)
    #[arg(long, value_name = "SRC", required_unless_present = "config")]
    pub(crate) training_data: Option<String>,
    /// Where the held-out rows are; without it, a share of the training rows is held out (data.validation)
    #[arg(long, value_name = "SRC")]
    pub(crate) validation_data: Option<String>,
    /// A job file (TOML) to begin with
    #[arg(long, value_name = "JOB.toml")]
    pub(crate) config: Option<PathBuf>,
    /// What overrides the file.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Jobs of a higher priority run first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) priority: i64,
    /// With the key of a job that is there already, give that job and make no other
    #[arg(long, value_name = "KEY", value_parser = name)]
    pub(crate) idempotency_key: Option<String>,
    /// Command for the shell to run when the job is over, once
    #[arg(long, value_name = "CMD")]
    pub(crate) on_finish: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Do not follow the job
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print the job as one JSON object, neither ask nor follow
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith show
  tunesmith show --status in_progress
  tunesmith show --all --json")]
pub(crate) struct ListArgs {
    /// All jobs, not only the newest 50
    #[arg(long, conflicts_with = "limit")]
    pub(crate) all: bool,
    /// Only jobs of this status; may be repeated
    #[arg(long, value_enum, value_name = "STATUS")]
    pub(crate) status: Vec<StatusArg>,
    /// At most so many jobs
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: usize,
    /// Print one JSON list
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a job may be called by.
#[derive(Debug, Args)]
pub(crate) struct JobArg {
    /// The job: its id, the beginning of it, or its name
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
}

/// `tunesmith describe`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith describe support
  tunesmith describe support --watch
  tunesmith describe ftjob-01hq --json

With --watch it follows the job to its end and exits with the job's code; with --watch --json it prints an object a line,
one for every change.")]
pub(crate) struct DescribeArgs {
    /// Which job.
    #[command(flatten)]
    pub(crate) which: JobArg,
    /// Follow the job to its end
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith cancel`, `pause` and `resume`.
#[derive(Debug, Args)]
pub(crate) struct WishArgs {
    /// Which job.
    #[command(flatten)]
    pub(crate) which: JobArg,
    /// Wait until it is so
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print the job as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith retry`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith retry support
  tunesmith retry support --from-start

A job whose rows or numbers were bad is begun from the start by itself.")]
pub(crate) struct RetryArgs {
    /// Which job.
    #[command(flatten)]
    pub(crate) which: JobArg,
    /// Read the rows again and begin at the first step
    #[arg(long)]
    pub(crate) from_start: bool,
    /// Print the new job as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith logs`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith logs support
  tunesmith logs support -f
  tunesmith logs support --events --json")]
pub(crate) struct LogsArgs {
    /// Which job.
    #[command(flatten)]
    pub(crate) which: JobArg,
    /// Go on until the job is over
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// What happened, step by step, and not what the worker wrote
    #[arg(long)]
    pub(crate) events: bool,
    /// Print a JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith rm`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith rm support
  tunesmith rm ftjob-01hqa ftjob-01hqb -y

The adapter in the job's directory goes with it; what --output copied elsewhere stays.")]
pub(crate) struct RemoveJobArgs {
    /// The jobs: ids, beginnings of ids, or names
    #[arg(required = true, value_name = "JOB")]
    pub(crate) jobs: Vec<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Cancel jobs that are not over, and remove them then
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the removed jobs as one JSON list
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tunesmith doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tunesmith doctor
  tunesmith doctor --rebuild

It changes nothing without --rebuild. Exit code 65 says that it found something.")]
pub(crate) struct DoctorArgs {
    /// Put the store aside and make it again from the job directories
    #[arg(long)]
    pub(crate) rebuild: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// The status of a job, in Snowflake's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StatusArg {
    /// Waits, or its rows are checked
    Pending,
    /// Runs, or is paused
    InProgress,
    /// The adapter is there
    Success,
    /// It failed
    Error,
    /// Somebody stopped it
    Cancelled,
}

impl StatusArg {
    /// The states that are shown as this.
    pub(crate) fn states(self) -> &'static [State] {
        match self {
            Self::Pending => &[State::Validating, State::Queued],
            Self::InProgress => &[State::Running, State::Paused],
            Self::Success => &[State::Succeeded],
            Self::Error => &[State::Failed],
            Self::Cancelled => &[State::Cancelled],
        }
    }
}

/// A text that people chose: it never becomes a file's name.
fn name(text: &str) -> Result<String, String> {
    crate::spec::check_name(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_shown_under_one_status() {
        let all: Vec<State> =
            StatusArg::value_variants().iter().flat_map(|status| status.states()).copied().collect();
        assert_eq!(all.len(), State::ALL.len());
        for status in StatusArg::value_variants() {
            let words = status.states().iter().map(|state| serde_json::to_value(state.status()).unwrap());
            let own = status.to_possible_value().unwrap();
            assert!(words.into_iter().all(|word| word == own.get_name()));
        }
    }
}
