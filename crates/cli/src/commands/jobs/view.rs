//! A job as its users see it: Snowflake's fields and words, and what else there is to know.

use serde::Serialize;
use serde_json::{Map, Value, json};
use tunesmith_jobs::dir::SpecFile;
use tunesmith_jobs::store::{Job, Summary, Transition};
use tunesmith_jobs::{Desired, State, Store};

use super::checkpoints::{self, Kept};
use crate::error::{CliError, class_exit_code};

/// Everything about one job.
#[derive(Debug, Serialize)]
pub(super) struct View {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) status: &'static str,
    pub(super) phase: String,
    /// From 0 to 1.
    pub(super) progress: f64,
    pub(super) base_model: String,
    /// Milliseconds since 1970, as all times here.
    pub(super) created_on: i64,
    pub(super) started_on: Option<i64>,
    pub(super) finished_on: Option<i64>,
    /// Once it is there.
    pub(super) model: Option<Model>,
    pub(super) training_data: String,
    /// Empty when there is none.
    pub(super) validation_data: String,
    /// Tokens of all steps, prompts included.
    pub(super) tokens: u64,
    /// Those of them that counted in the loss.
    pub(super) trained_tokens: u64,
    /// Once it is done.
    pub(super) training_result: Option<Value>,
    pub(super) options: Value,
    pub(super) error: Option<Value>,
    pub(super) state: &'static str,
    pub(super) desired: &'static str,
    /// Place among the jobs that wait, from 1.
    pub(super) position: Option<usize>,
    pub(super) step: u64,
    pub(super) total_steps: u64,
    pub(super) epoch: f64,
    pub(super) epochs: u64,
    /// How the number of epochs was found, where the job found it itself.
    pub(super) epochs_rule: Option<Value>,
    pub(super) eta_seconds: Option<f64>,
    pub(super) tokens_per_second: Option<f64>,
    pub(super) train_loss: Option<f64>,
    pub(super) initial_validation_loss: Option<f64>,
    pub(super) validation_loss: Option<f64>,
    pub(super) learning_rate: Option<f64>,
    pub(super) peak_memory_bytes: Option<u64>,
    pub(super) peak_device_memory_bytes: Option<u64>,
    /// How the newest attempt planned its memory.
    pub(super) memory_plan: Option<Value>,
    pub(super) device: Option<String>,
    pub(super) device_wanted: String,
    pub(super) attempts: u32,
    pub(super) micro_batch_divisor: u32,
    /// Why it waits, is paused or was started again.
    pub(super) reason: Option<String>,
    /// Why training ended when it did.
    pub(super) stop_reason: Option<String>,
    pub(super) warnings: u64,
    pub(super) last_warning: Option<String>,
    pub(super) checkpoints: Vec<Kept>,
    pub(super) history: Vec<Transition>,
    pub(super) priority: i64,
    pub(super) idempotency_key: Option<String>,
    pub(super) on_finish: Option<String>,
    pub(super) retried_from: Option<String>,
    pub(super) job_dir: std::path::PathBuf,
}

/// What a job made.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) adapter: std::path::PathBuf,
}

impl View {
    /// Reads everything about a job.
    pub(super) fn new(store: &Store, job: &Job) -> Result<Self, CliError> {
        let dir = store.dir(&job.id);
        // A job without a readable spec is still one to describe; `doctor` says what is wrong with it.
        let spec = SpecFile::read(&dir).map(|file| file.spec).unwrap_or_default();
        let (progress, result) = (&job.progress, job.result.as_ref());
        let done = result.filter(|_| job.state == State::Succeeded);
        let live = !job.state.is_terminal();
        let plan = store.events_of(&job.id, "plan", 1)?.pop();
        let rule = plan.and_then(|plan| plan.data.get("epochs_rule").cloned());
        Ok(Self {
            id: job.id.clone(),
            name: job.name.clone(),
            status: job.status().as_str(),
            phase: phase(job.state, job.desired, progress.phase.as_deref()).to_owned(),
            progress: fraction(job.state, progress.fraction()),
            base_model: job.base_model.clone(),
            created_on: job.created_ms,
            started_on: job.started_ms,
            finished_on: job.finished_ms,
            model: done
                .and_then(|r| r.adapter.clone())
                .map(|adapter| Model { name: job.name.clone(), adapter }),
            training_data: job.training_data.clone(),
            validation_data: job.validation_data.clone().unwrap_or_default(),
            tokens: result.map_or(0, |r| r.tokens as u64),
            trained_tokens: result.map_or(0, |r| r.trained_tokens as u64),
            training_result: done
                .map(|r| json!({ "validation_loss": r.validation_loss, "training_loss": r.train_loss })),
            options: options(&spec),
            error: result.and_then(|r| r.error.as_ref()).and_then(|e| serde_json::to_value(e).ok()),
            state: job.state.as_str(),
            desired: job.desired.as_str(),
            position: position(store, job)?,
            step: progress.step,
            total_steps: progress.total_steps,
            epoch: progress.epoch,
            epochs: progress.epochs,
            epochs_rule: rule.filter(|rule| !rule.is_null()),
            eta_seconds: progress.eta_seconds().filter(|_| live),
            tokens_per_second: progress.tokens_per_second,
            train_loss: result.and_then(|r| r.train_loss).or(progress.train_loss),
            initial_validation_loss: progress.initial_validation_loss,
            validation_loss: progress.validation_loss,
            learning_rate: progress.learning_rate,
            peak_memory_bytes: progress.peak_bytes,
            peak_device_memory_bytes: progress.device_peak_bytes,
            memory_plan: store.events_of(&job.id, "memory_plan", 1)?.pop().map(|event| event.data),
            device: job.device.clone(),
            device_wanted: job.device_wanted.clone(),
            attempts: job.attempt,
            micro_batch_divisor: job.micro_batch_divisor,
            reason: job.reason.clone(),
            stop_reason: progress.stop_reason.clone(),
            warnings: progress.warnings,
            last_warning: progress.last_warning.clone(),
            checkpoints: checkpoints::list(store, job)?,
            history: store.history(&job.id)?,
            priority: job.priority,
            idempotency_key: job.idempotency_key.clone(),
            on_finish: job.on_finish.clone(),
            retried_from: job.retried_from.clone(),
            job_dir: dir,
        })
    }
}

/// A job in `show --json`.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    id: &'a str,
    name: &'a str,
    status: &'static str,
    phase: &'a str,
    progress: f64,
    step: u64,
    total_steps: u64,
    base_model: &'a str,
    created_on: i64,
    finished_on: Option<i64>,
    device: Option<&'a str>,
    reason: Option<&'a str>,
}

impl<'a> From<&'a Summary> for Line<'a> {
    fn from(job: &'a Summary) -> Self {
        Self {
            id: &job.id,
            name: &job.name,
            status: job.state.status().as_str(),
            phase: phase(job.state, job.desired, job.phase.as_deref()),
            progress: fraction(job.state, job.fraction()),
            step: job.step,
            total_steps: job.total_steps,
            base_model: &job.base_model,
            created_on: job.created_ms,
            finished_on: job.finished_ms,
            device: job.device.as_deref(),
            reason: job.reason.as_deref(),
        }
    }
}

/// What a job is doing, finer than its status.
pub(super) fn phase(state: State, desired: Desired, said: Option<&str>) -> &str {
    match (state, desired) {
        (state, _) if state.is_terminal() => state.as_str(),
        (_, Desired::Cancel) => "cancelling",
        (State::Paused, _) => "paused",
        (_, Desired::Pause) => "pausing",
        // The rows were read in a stage before.
        (State::Running, _) => said.filter(|said| *said != "validating").unwrap_or("starting"),
        (state, _) => state.as_str(),
    }
}

/// Status and phase for people, where the phase says more.
pub(super) fn words(state: State, phase: &str) -> String {
    let status = state.status().as_str();
    if state.is_terminal() { status.to_owned() } else { format!("{status} ({phase})") }
}

/// A job that stopped early for good reasons is done.
pub(super) fn fraction(state: State, steps: f64) -> f64 {
    if state == State::Succeeded { 1.0 } else { steps }
}

/// The exit code of whoever waited for a job that is over.
pub(super) fn exit_code(job: &Job) -> u8 {
    match job.state {
        State::Cancelled => 130,
        State::Failed => {
            let class = job.result.as_ref().and_then(|r| r.error.as_ref()).map(|e| e.class.as_str());
            class_exit_code(class.unwrap_or("internal"))
        }
        _ => 0,
    }
}

/// What was asked for, in the words of the job file.
fn options(spec: &Value) -> Value {
    let mut options = Map::new();
    let mut take = |name: &str, pointer: &str| {
        if let Some(value) = spec.pointer(pointer) {
            options.insert(name.to_owned(), value.clone());
        }
    };
    take("epochs", "/train/epochs");
    take("batch_size", "/train/batch_size");
    take("learning_rate", "/train/learning_rate");
    take("seed", "/train/seed");
    take("max_seq_length", "/data/max_seq_length");
    take("validation_split", "/data/validation_split");
    take("lora_r", "/lora/r");
    take("lora_alpha", "/lora/lora_alpha");
    Value::Object(options)
}

/// Place of a queued job among those that wait, from 1.
fn position(store: &Store, job: &Job) -> Result<Option<usize>, CliError> {
    if job.state != State::Queued {
        return Ok(None);
    }
    let live = store.live()?;
    let mut waiting = live.iter().filter(|other| other.state == State::Queued);
    Ok(waiting.position(|other| other.id == job.id).map(|before| before + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_says_what_is_wanted_before_what_is_done() {
        use Desired::{Cancel, Pause, Run};
        for (state, desired, said, phase_is) in [
            (State::Validating, Run, None, "validating"),
            (State::Queued, Run, Some("validating"), "queued"),
            (State::Running, Run, Some("validating"), "starting"),
            (State::Running, Run, Some("evaluating"), "evaluating"),
            (State::Running, Pause, Some("training"), "pausing"),
            (State::Validating, Cancel, None, "cancelling"),
            (State::Paused, Pause, Some("training"), "paused"),
            (State::Paused, Cancel, Some("training"), "cancelling"),
            (State::Succeeded, Pause, Some("saving"), "succeeded"),
        ] {
            assert_eq!(phase(state, desired, said), phase_is, "{state:?} {desired:?} {said:?}");
        }
        assert_eq!(words(State::Running, "training"), "in_progress (training)");
        assert_eq!(words(State::Failed, "failed"), "error");
        assert_eq!((fraction(State::Succeeded, 0.5), fraction(State::Running, 0.5)), (1.0, 0.5));
    }
}
