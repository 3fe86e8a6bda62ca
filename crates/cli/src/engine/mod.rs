//! Where the commands meet the engine: models, data, training and generation.

mod alike;
mod auto;
mod base;
pub mod bench;
mod check;
mod data;
mod device;
mod fingerprint;
mod frozen;
mod generate;
mod plan;
mod preview;
mod quote;
mod saving;
mod selftest;
mod source;
mod stop;
mod train;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;
use tunesmith_train::{Event, RunState};

use crate::error::CliError;
use crate::progress::Progress;
use crate::spec::{JobSpec, is_repo_id};
use tunesmith_jobs::dir::{EventLog, JobDir, JobResult};

pub use auto::{resolve as resolve_device, trust as trust_device};
pub(crate) use base::TEMPLATE_HELPER;
pub use check::{CheckRequest, Checked, check};
pub use device::{Gpu, all as devices, check as check_device};
pub use generate::generate;
pub use plan::{LayerRange, Planned, Report, Target, plan_job};
pub use quote::quote;
pub use selftest::{Facts, SelftestReport, device_to_test, selftest};
pub(crate) use source::{absolute, is_plain_path, tables_path};
pub use stop::{Stop, StopFlag};
pub use train::{Ready, prepare, thaw, train};

/// A training run: what it is told, and where it says how it goes.
#[derive(Debug)]
pub struct Run<'a> {
    /// The resolved spec.
    pub spec: &'a JobSpec,
    /// The job's directory.
    pub job: &'a JobDir,
    /// Turns when the run should stop, at the next micro-batch, row or token.
    pub stop: &'a StopFlag,
    /// Where to compute: `cpu` or `cuda:N`. The spec's word, unless somebody chose for it.
    pub device: String,
    /// Micro-batches are made this many times smaller than usual.
    pub micro_batch_divisor: usize,
    /// What the terminal sees.
    pub progress: Progress,
    /// The result so far: what is known when the run stops, however it stops.
    pub result: JobResult,
    log: Option<EventLog>,
    phase: &'static str,
}

impl<'a> Run<'a> {
    /// A run that has not begun.
    pub fn new(
        spec: &'a JobSpec,
        job: &'a JobDir,
        stop: &'a StopFlag,
        quiet: bool,
        result: JobResult,
    ) -> Self {
        Self {
            spec,
            job,
            stop,
            device: spec.device.clone(),
            micro_batch_divisor: 1,
            progress: Progress::new(quiet),
            result,
            log: None,
            phase: "",
        }
    }

    /// Whether somebody asked the run to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.now() != Stop::None
    }

    /// [`CliError::Cancelled`] or [`CliError::Paused`] if somebody asked the run to stop.
    fn check_stopped(&self) -> Result<(), CliError> {
        CliError::check(self.stop)
    }

    /// Says what the run does from here on.
    fn phase(&mut self, phase: &'static str) -> Result<(), CliError> {
        if self.phase == phase {
            return Ok(());
        }
        self.phase = phase;
        self.log(&json!({ "type": "phase", "data": { "phase": phase } }))
    }

    /// Logs something that does not stop the run and that nobody should miss.
    fn warn(&mut self, message: String) -> Result<(), CliError> {
        self.event(&Event::Warning { message })
    }

    /// What is known of a run that goes on from here.
    fn know(&mut self, state: &RunState) {
        let result = &mut self.result;
        result.steps = state.step;
        result.total_steps = state.total_steps;
        result.tokens = state.tokens;
        result.trained_tokens = state.trained_tokens;
        result.train_loss = state.train_loss.map(|loss| loss.0);
        result.initial_validation_loss = state.initial_validation_loss.map(|loss| loss.0);
        result.validation_loss = state.validation_loss.map(|loss| loss.0);
    }

    /// Adds a line to `events.jsonl`, which the first line makes.
    fn log(&mut self, event: &impl Serialize) -> Result<(), CliError> {
        let mut log = match self.log.take() {
            Some(log) => log,
            None => self.job.events()?,
        };
        let appended = log.append(event);
        self.log = Some(log);
        Ok(appended?)
    }

    /// Makes the log durable, as far as there is one.
    fn sync_log(&self) -> Result<(), CliError> {
        Ok(self.log.as_ref().map_or(Ok(()), EventLog::sync)?)
    }

    /// Logs an event, shows it and keeps what the result needs of it.
    ///
    /// # Errors
    /// [`CliError::Jobs`] when the log cannot be written; the run should stop then.
    pub fn event(&mut self, event: &Event) -> Result<(), CliError> {
        self.log(event)?;
        match event {
            Event::Plan { total_steps, .. } => self.result.total_steps = *total_steps,
            Event::Step { step, loss, tokens, trained_tokens, .. } => {
                self.result.tokens += tokens;
                self.result.trained_tokens += trained_tokens;
                self.result.steps = *step;
                self.result.train_loss = Some(*loss);
            }
            Event::Evaluation { step, loss, .. } => {
                // What took an evaluation to reach is worth keeping through a power cut.
                self.sync_log()?;
                if *step == 0 {
                    self.result.initial_validation_loss = Some(*loss);
                }
                self.result.validation_loss = Some(*loss);
            }
            Event::Resumed { .. } | Event::Stopped { .. } | Event::Warning { .. } => {}
        }
        self.progress.event(event);
        Ok(())
    }
}

/// A directory that goes away, for a job that is only looked at.
fn scratch(prefix: &str) -> Result<tempfile::TempDir, CliError> {
    tempfile::Builder::new().prefix(prefix).tempdir().map_err(|source| CliError::Io {
        action: "create a directory in",
        path: std::env::temp_dir(),
        source,
    })
}

/// Where a base model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory in Hugging Face layout.
    Dir(PathBuf),
    /// A repo on the Hugging Face hub.
    Repo {
        /// `owner/name`.
        id: String,
        /// Branch, tag or commit.
        revision: Option<String>,
        /// Only the cache.
        offline: bool,
    },
}

impl Source {
    /// The base of a loaded job, whose directory is absolute already.
    pub fn of_job(spec: &JobSpec) -> Self {
        let dir = Path::new(&spec.base);
        if dir.is_absolute() {
            return Self::Dir(dir.to_owned());
        }
        Self::Repo { id: spec.base.clone(), revision: spec.revision.clone(), offline: spec.offline }
    }

    /// Takes what a user wrote as a directory if there is one, as a repo id otherwise.
    ///
    /// # Errors
    /// [`CliError::Input`] when it is neither, or a directory with a revision.
    pub fn locate(base: &str, revision: Option<&str>, offline: bool, cwd: &Path) -> Result<Self, CliError> {
        let dir = cwd.join(base);
        let bad = |code, message| Err(CliError::Input { code, message, hint: None });
        if dir.is_dir() {
            if revision.is_some() {
                let message =
                    format!("`{base}` is a directory, and only a Hugging Face repo id has revisions");
                return bad("invalid_config", message);
            }
            return Ok(Self::Dir(dir));
        }
        if is_repo_id(base) {
            return Ok(Self::Repo { id: base.to_owned(), revision: revision.map(str::to_owned), offline });
        }
        let what = if dir.exists() { "is not a directory" } else { "does not exist" };
        let message =
            format!("the base model `{base}` {what}, and it is not a Hugging Face repo id (`owner/name`)");
        bad("file_not_found", message)
    }
}

/// What a model is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// One user message, through the chat template when the model has one.
    Prompt(String),
    /// The beginning of a text, as it is.
    Raw(String),
    /// Chat messages as pairs of role and content.
    Messages(Vec<(String, String)>),
}

/// What `generate` is told.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Where to compute: `cpu` or `cuda:N`.
    pub device: String,
    /// The base model.
    pub source: Source,
    /// An adapter to put on it.
    pub adapter: Option<PathBuf>,
    /// What is asked.
    pub input: Input,
    /// Longest reply in tokens.
    pub max_new_tokens: usize,
    /// 0 for greedy.
    pub temperature: f64,
    /// Nucleus of sampling.
    pub top_p: f64,
    /// Seed of sampling.
    pub seed: u64,
}

/// A reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The whole reply.
    pub text: String,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// Tokens of the rendered prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Wall time of generating.
    pub seconds: f64,
}
