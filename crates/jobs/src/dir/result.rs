//! `result.json`: how a job ended.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::FORMAT_VERSION;
use crate::State;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The adapter is there.
    Success,
    /// It failed; see `error`.
    Error,
    /// Somebody stopped it.
    Cancelled,
}

impl Status {
    /// The state of a job that ended so.
    pub fn state(self) -> State {
        match self {
            Self::Success => State::Succeeded,
            Self::Error => State::Failed,
            Self::Cancelled => State::Cancelled,
        }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Cause class: `data`, `memory`, `numeric`, `io`, `device`, `internal`.
    pub class: String,
    /// Error code, finer than the class.
    pub code: String,
    /// The sentence shown to the user.
    pub message: String,
    /// What may help.
    pub hint: Option<String>,
}

/// The reply to one held-out row before and after training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// Line of the source file.
    pub line: usize,
    /// What was asked.
    pub prompt: String,
    /// The reply in the data.
    pub expected: String,
    /// The base model's reply.
    pub before: String,
    /// The reply with the adapter; absent when training did not finish.
    pub after: Option<String>,
}

/// `result.json`, and what `tunesmith train --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Job id.
    pub id: String,
    /// Name of the job.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// Fence of the attempt that ended it; 0 for one that nobody supervised.
    #[serde(default)]
    pub fence: u64,
    /// The job directory.
    pub job_dir: PathBuf,
    /// RFC 3339 time in UTC.
    pub started_at: String,
    /// RFC 3339 time in UTC.
    pub finished_at: String,
    /// From start to finish.
    pub seconds: f64,
    /// Optimizer steps done.
    pub steps: usize,
    /// Optimizer steps planned; 0 when it never came to a plan.
    pub total_steps: usize,
    /// Tokens of all steps, prompts included: what a price is reckoned from.
    #[serde(default)]
    pub tokens: usize,
    /// Tokens of all steps that counted in the loss.
    #[serde(default)]
    pub trained_tokens: usize,
    /// What a million training tokens cost, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_million: Option<f64>,
    /// What `tokens` cost at that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<f64>,
    /// Energy during steps and evaluations, in joules, of everything that ran on the machine then.
    #[serde(default)]
    pub joules: Option<f64>,
    /// Whose that is: `cpu` (its packages), `gpu` (the whole card).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joules_of: Vec<String>,
    /// Why the energy, or a part of it, is not known; absent too when no training began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_unknown: Option<String>,
    /// Most memory that the process took on the host, in bytes.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    /// Most memory that the run took on its device, where that has memory of its own.
    #[serde(default)]
    pub device_peak_bytes: Option<u64>,
    /// Loss of the last epoch's steps, weighted by their trained tokens; of the last step when it did not finish.
    pub train_loss: Option<f64>,
    /// Loss on the held-out rows before the first step.
    pub initial_validation_loss: Option<f64>,
    /// Last loss on the held-out rows.
    pub validation_loss: Option<f64>,
    /// Where the adapter is, when there is one.
    pub adapter: Option<PathBuf>,
    /// Replies before and after.
    pub previews: Vec<Preview>,
    /// Why it failed, when it did.
    pub error: Option<Failure>,
    /// Which attempt ended it, from 1; 0 when no supervisor started it.
    #[serde(default)]
    pub attempt: u32,
}

impl JobResult {
    /// A result with nothing done yet.
    pub fn new(id: &str, name: &str, status: Status, job_dir: PathBuf) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            id: id.to_owned(),
            name: name.to_owned(),
            status,
            fence: 0,
            job_dir,
            started_at: String::new(),
            finished_at: String::new(),
            seconds: 0.0,
            steps: 0,
            total_steps: 0,
            tokens: 0,
            trained_tokens: 0,
            price_per_million: None,
            price: None,
            joules: None,
            joules_of: Vec::new(),
            joules_unknown: None,
            peak_bytes: None,
            device_peak_bytes: None,
            train_loss: None,
            initial_validation_loss: None,
            validation_loss: None,
            adapter: None,
            previews: Vec::new(),
            error: None,
            attempt: 0,
        }
    }
}
