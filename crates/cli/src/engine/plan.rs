//! The memory of a run: planned before anything is loaded, tried before the first step, told in its events.

use serde::Serialize;
use serde_json::json;
use tunesmith_data::Examples as _;
use tunesmith_infer::PROMPT_CHUNK;
use tunesmith_model::{AdapterLayout, Decoder, Footprint, Keep};
use tunesmith_ops::{DeviceMemory, Kernels, Storage};
use tunesmith_train::Trainer;
use tunesmith_train::plan::{self, Attempt, Budget, Items, Lengths, Plan, Request, Shortage};

use super::base::Base;
use super::data::{self, Parts};
use super::device::{self, Work};
use super::{Run, Source, StopFlag, auto};
use crate::cards::Card;
use crate::error::CliError;
use crate::spec::JobSpec;
use tunesmith_jobs::dir::{JobDir, JobResult, Status};

/// A plan with the sizes that it was made from.
#[derive(Debug)]
pub(super) struct Memory {
    sizes: Sizes,
    device: Option<DeviceMemory>,
    plan: Plan,
}

/// What decides how much memory a run takes.
#[derive(Debug)]
struct Sizes {
    footprint: Footprint,
    lengths: Lengths,
    dropout: bool,
    generation: u64,
    budget: Budget,
    divisor: usize,
}

impl Sizes {
    fn new(
        run: &Run<'_>,
        base: &Base,
        parts: &Parts,
        storage: Storage,
        budget: Budget,
    ) -> Result<Self, CliError> {
        let spec = run.spec;
        let sites = spec.lora.resolve(base.config.num_hidden_layers)?;
        let footprint = Footprint::new(&base.config, &AdapterLayout::new(&base.config, &sites), storage);
        let lengths: Lengths = parts.lengths().collect();
        // A prompt is a part of its row.
        let validation = (0..parts.validation.len()).map(|i| parts.validation.tokens(i));
        let text = validation.max().unwrap_or(0) + spec.preview.max_new_tokens;
        let text = text.min(base.config.max_position_embeddings);
        let shown = spec.preview.prompts > 0 && !parts.validation.is_empty();
        let generation = if shown { footprint.cache(text, PROMPT_CHUNK) } else { 0 };
        let (dropout, divisor) = (spec.lora.lora_dropout > 0.0, run.micro_batch_divisor);
        Ok(Self { footprint, lengths, dropout, generation, budget, divisor })
    }

    fn request<'a>(&'a self, spec: &'a JobSpec) -> Request<'a> {
        Request {
            footprint: &self.footprint,
            lengths: &self.lengths,
            config: &spec.train,
            dropout: self.dropout,
            divisor: self.divisor,
            generation: self.generation,
            budget: self.budget,
        }
    }
}

/// A limit in bytes.
fn limit(spec: &JobSpec) -> Option<u64> {
    spec.train.memory_limit.map(|limit| limit.0)
}

/// What a job may take of its device's memory, or of the host's where the device has none of its own.
fn budget(spec: &JobSpec, device: Option<&DeviceMemory>) -> Budget {
    match device {
        Some(memory) => Budget::of_device(memory, limit(spec)),
        None => Budget::of_host(limit(spec)),
    }
}

impl Memory {
    /// Plans a run on its device, before any weight is read.
    ///
    /// # Errors
    /// What is missing, in numbers; a device fault.
    pub(super) fn plan<K: Kernels>(
        run: &mut Run<'_>,
        base: &Base,
        parts: &Parts,
        kernels: &K,
    ) -> Result<Self, CliError> {
        let device = kernels.memory().map_err(tunesmith_train::Error::from)?;
        let budget = budget(run.spec, device.as_ref());
        let sizes = Sizes::new(run, base, parts, kernels.storage(), budget)?;
        let plan = plan::plan(&sizes.request(run.spec)).map_err(tunesmith_train::Error::from)?;
        Ok(Self { sizes, device, plan })
    }

    /// A trainer by the plan, or on a device by the first of a few that goes through. Each is told in the events.
    ///
    /// # Errors
    /// Memory that runs out all the same; a device fault; a log that cannot be written.
    pub(super) fn trainer<K: Kernels>(
        self,
        run: &mut Run<'_>,
        decoder: Decoder<K>,
    ) -> Result<Trainer<K>, CliError> {
        let Self { sizes, device, plan } = self;
        let spec = run.spec;
        let dropout = spec.lora.lora_dropout as f32;
        let name = run.device.clone();
        let mut tell = |attempt: Attempt<'_>| -> Result<(), CliError> {
            let mut report = Report::new(&name, &sizes, attempt.plan);
            report.limit_bytes = limit(spec);
            (report.total_bytes, report.free_bytes) = (device.map(|d| d.total), device.map(|d| d.free));
            report.attempt = attempt.number;
            report.measured_peak_bytes = attempt.measured;
            report.failed = attempt.failed.map(ToString::to_string);
            run.log(&json!({ "type": "memory_plan", "data": report }))
        };
        let (trainer, _) = plan::settle(decoder, &sizes.request(spec), dropout, plan, &mut tell)?;
        Ok(trainer)
    }
}

/// A plan in the words of events and of `tunesmith plan --json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `cpu`, `cuda:N` or a card's name.
    pub device: String,
    /// Bytes of the device, where they are known.
    pub total_bytes: Option<u64>,
    /// Those of them that were free.
    pub free_bytes: Option<u64>,
    /// What the job allows.
    pub limit_bytes: Option<u64>,
    /// What may be taken, with the reserve; nothing on a CPU without a limit.
    pub available_bytes: Option<u64>,
    /// Most tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Its rows, where they are given.
    pub micro_batch_rows: Option<usize>,
    /// Micro-batches of a typical step.
    pub micro_batches: usize,
    /// What layers compute again, by ranges of layers.
    pub layers: Vec<LayerRange>,
    /// Bytes by what they are for.
    pub bytes: Items,
    /// The most that is held at a time.
    pub predicted_peak_bytes: u64,
    /// What was held at most when a largest micro-batch had gone through.
    pub measured_peak_bytes: Option<u64>,
    /// Share of computation that is added.
    pub extra_compute: f64,
    /// Why it is so.
    pub why: String,
    /// Which try it is, from 1.
    pub attempt: usize,
    /// Why it did not hold, if it did not.
    pub failed: Option<String>,
}

/// Layers that compute the same again.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct LayerRange {
    /// The first.
    pub first: usize,
    /// The last.
    pub last: usize,
    /// The word of `train.recompute`.
    pub recompute: &'static str,
}

impl Report {
    fn new(device: &str, sizes: &Sizes, plan: &Plan) -> Self {
        let budget = sizes.budget;
        Self {
            device: device.to_owned(),
            total_bytes: None,
            free_bytes: None,
            limit_bytes: None,
            available_bytes: budget.is_bounded().then_some(budget.bytes),
            micro_batch_tokens: plan.cut.capacity,
            micro_batch_rows: plan.cut.rows,
            micro_batches: plan.micro_batches,
            layers: ranges(&plan.cut.keep),
            bytes: plan.items,
            predicted_peak_bytes: plan.items.peak(),
            measured_peak_bytes: None,
            extra_compute: plan.extra_compute,
            why: plan.why.clone(),
            attempt: 1,
            failed: None,
        }
    }
}

fn ranges(keep: &[Keep]) -> Vec<LayerRange> {
    let mut first = 0;
    let range = |same: &[Keep]| {
        let range = LayerRange { first, last: first + same.len() - 1, recompute: plan::word(same[0]) };
        first += same.len();
        range
    };
    keep.chunk_by(|a, b| a == b).map(range).collect()
}

/// What a plan is made for.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// The job's device, opened.
    Device,
    /// A GPU that need not be here, with so much memory as the job's limit says.
    Limit,
    /// A card that need not be here.
    Card(&'static Card),
}

/// What comes of planning a job.
#[derive(Debug)]
pub struct Planned {
    /// The plan as a report, or what is missing.
    pub outcome: Result<Report, Box<Shortage>>,
    /// What it is for.
    pub device: String,
}

/// Plans a job without running it: its rows are read and checked, its weights need not be there. Nothing is left behind.
///
/// # Errors
/// Everything that the job would stop with before its weights are read, but for memory; [`CliError::Cancelled`] through
/// `stop`.
pub fn plan_job(spec: &JobSpec, target: Target, stop: &StopFlag, quiet: bool) -> Result<Planned, CliError> {
    let home = super::scratch("tunesmith-plan")?;
    let job = JobDir::create(home.path())?;
    let result = JobResult::new(job.id(), "", Status::Error, job.path().into());
    let mut run = Run::new(spec, &job, stop, quiet, result);
    let base = Base::open_without_weights(&Source::of_job(spec), spec.data.template, &mut run.progress)?;
    spec.lora.resolve(base.config.num_hidden_layers)?;
    let limited = base.sequence_limit(spec.data.max_seq_length, "`data.max_seq_length`")?;
    let parts = data::prepare(&mut run, &base.encoder, limited)?;
    run.progress.finish();
    run.check_stopped()?;
    let (device, storage, memory, budget) = match target {
        Target::Card(card) => {
            let budget = Budget::of_card(card.bytes(), limit(spec));
            (card.name.to_owned(), Storage::DEVICE, None, budget)
        }
        Target::Limit => {
            let bytes = limit(spec).unwrap_or_default();
            let name = "a GPU".to_owned();
            (name, Storage::DEVICE, None, Budget::of_device(&free(bytes), None))
        }
        Target::Device => {
            // What is planned need not compute yet: `auto` may not have been tried.
            let device = if spec.device == "auto" { auto::candidate(quiet) } else { spec.device.clone() };
            let (storage, memory) = device::run(&device, Looking)?;
            let budget = budget(spec, memory.as_ref());
            (device, storage, memory, budget)
        }
    };
    let sizes = Sizes::new(&run, &base, &parts, storage, budget)?;
    let outcome = plan::plan(&sizes.request(spec)).map(|plan| {
        let mut report = Report::new(&device, &sizes, &plan);
        report.limit_bytes = limit(spec);
        report.total_bytes = memory.map(|memory| memory.total);
        report.free_bytes = memory.map(|memory| memory.free);
        if let Target::Card(card) = target {
            report.total_bytes = Some(card.bytes());
        }
        report
    });
    Ok(Planned { outcome, device })
}

/// A device with so much free.
fn free(bytes: u64) -> DeviceMemory {
    DeviceMemory { total: bytes, free: bytes, used: 0, peak: 0 }
}

/// Asks a device what it has.
struct Looking;

impl Work for Looking {
    type Output = (Storage, Option<DeviceMemory>);

    fn on<K: Kernels>(self, kernels: K) -> Result<Self::Output, CliError> {
        let memory = kernels.memory().map_err(tunesmith_train::Error::from)?;
        Ok((kernels.storage(), memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_keep_the_same_are_one_range() {
        use Keep::{All, Input, NoMlp};
        let range = |first, last, recompute| LayerRange { first, last, recompute };
        assert_eq!(
            ranges(&[Input, NoMlp, NoMlp, All]),
            [range(0, 0, "min"), range(1, 2, "mlp"), range(3, 3, "none")]
        );
        assert_eq!(ranges(&[]), []);
    }
}
