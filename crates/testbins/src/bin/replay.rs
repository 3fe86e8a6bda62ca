//! Trains on the batches of a run folder, in their order, and reports every step.
//!
//! ```text
//! replay --model DIR --run DIR --out result.json [--device cpu|cuda:N] [--threads N] [--adapter-out DIR]
//!        [--recompute auto|none|mlp|min2|min] [--micro-batch ROWS] [--warm-up STEPS] [--steps STEPS] [--seconds S]
//! ```
//!
//! The run folder holds `batches.safetensors` (`input_ids`, `attention_mask`, `labels`: int64 `[N, B, T]`),
//! `adapter_init/` and `run.json`. Rows lose their padding: a micro-batch is its rows one after another. Nothing but what
//! training needs is in memory while it trains, so that the peak is that of the engine.
//!
//! Memory is planned as `tunesmith train` plans it; without `--micro-batch` the plan says how steps are cut. Steps are
//! queued as it queues them. Those after the first `--warm-up` are timed: each by itself, and all of them end to end, with
//! everything that was queued done before the clock starts and before it stops. `--steps` ends the run before the folder's
//! steps are done, `--seconds` the timed part, after five steps at the least.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tunesmith_data::Example;
use tunesmith_model::peft::{self, PeftConfig};
use tunesmith_model::{Decoder, Footprint, ModelCard};
use tunesmith_ops::{DeviceMemory, Kernels};
use tunesmith_testbins::device::{self, Memory, Probe, Work};
use tunesmith_testbins::{Args, Error, load, micro_batches};
use tunesmith_train::plan::{self, Budget, Items, Lengths, Plan, Request};
use tunesmith_train::{LrScheduler, Recompute, Schedule, StepOutcome, TrainConfig, Trainer};

/// Timed steps there are at the least, however long they take.
const LEAST_TIMED: usize = 5;

/// `run.json`.
#[derive(Debug, Deserialize)]
struct Run {
    lr: f64,
    warmup_steps: usize,
    schedule: LrScheduler,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    accumulation: usize,
    steps: usize,
}

#[derive(Debug, Serialize)]
struct Step {
    loss: f64,
    grad_norm: f64,
    /// By the device's own clock, between a mark before the step's first work and one after its last.
    seconds: f64,
    tokens: usize,
    trained_tokens: usize,
}

/// The steps after the warm-up, end to end.
#[derive(Debug, Serialize)]
struct Timed {
    steps: usize,
    tokens: usize,
    seconds: f64,
    /// What the card drew, where that is known.
    joules: Option<f64>,
}

/// How the memory is used.
#[derive(Debug, Serialize)]
struct Planned {
    micro_batch_tokens: usize,
    /// Share of computation added by what is computed again.
    extra_compute: f64,
    bytes: Items,
    why: String,
}

impl Planned {
    fn new(plan: &Plan) -> Self {
        let Plan { cut, items, extra_compute, why, .. } = plan;
        let (extra_compute, bytes, why) = (*extra_compute, *items, why.clone());
        Self { micro_batch_tokens: cut.capacity, extra_compute, bytes, why }
    }
}

#[derive(Debug, Serialize)]
struct Outcome {
    device: Value,
    /// Reading the model and the adapter onto the device, and bytes of the model's files.
    load_seconds: f64,
    model_bytes: u64,
    plan: Planned,
    steps: Vec<Step>,
    timed: Timed,
    /// Bytes of device memory; the peaks since the start, and in the timed steps alone.
    memory: Option<Memory>,
    timed_peak: Option<u64>,
    seconds_to_first_step: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_mib: Option<f64>,
}

fn main() -> ExitCode {
    let known = [
        "model",
        "run",
        "out",
        "device",
        "threads",
        "adapter-out",
        "recompute",
        "micro-batch",
        "warm-up",
        "steps",
        "seconds",
    ];
    tunesmith_testbins::run(replay, &known)
}

fn replay(args: Args) -> Result<(), Error> {
    let started = Instant::now();
    if let Some(threads) = args.number("threads")? {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|e| Error::Usage(format!("`--threads {threads}`: {e}")))?;
    }
    let folder = args.required("run")?;
    let path = folder.join("run.json");
    let text = std::fs::read(&path).map_err(Error::input(&path))?;
    let run: Run = serde_json::from_slice(&text).map_err(Error::input(&path))?;
    let steps = batches(&run, &folder)?;
    let settings = settings(&run, &args, &steps)?;
    let device = args.get("device").unwrap_or("cpu").to_owned();
    device::run(&device, Replay { args, run, steps, settings, folder, started })
}

/// All of it that needs the device.
struct Replay {
    args: Args,
    run: Run,
    steps: Vec<Vec<Example>>,
    settings: TrainConfig,
    folder: PathBuf,
    started: Instant,
}

impl Work for Replay {
    fn on<K: Kernels>(self, kernels: K, probe: &Probe) -> Result<(), Error> {
        let Self { args, run, steps, settings, folder, started } = self;
        let (model, out) = (args.required("model")?, args.required("out")?);
        let begin = Instant::now();
        let (decoder, adapter) = load(kernels, &model, Some(&folder.join("adapter_init")))?;
        probe.synchronize()?;
        let load_seconds = begin.elapsed().as_secs_f64();
        let dropout = adapter.as_ref().map_or(0.0, |a| a.lora.lora_dropout) as f32;
        let (mut trainer, plan) = trainer(decoder, &settings, dropout, &steps)?;
        let schedule = Schedule::new(&settings, run.steps);
        let warm_up = args.number("warm-up")?.unwrap_or(0_usize).min(steps.len().saturating_sub(1));
        let last = args.number("steps")?.unwrap_or(steps.len()).max(warm_up + 1);
        let seconds: f64 = args.number("seconds")?.unwrap_or(f64::INFINITY);
        let (mut outcomes, mut marks) = (Vec::new(), Vec::new());
        let mut seconds_to_first_step = 0.0;
        let mut before = None;
        let (mut clock, mut joules) = (Instant::now(), None);
        for (number, rows) in steps.iter().enumerate().take(last) {
            if number == warm_up {
                trainer.drain()?;
                before = probe.memory()?;
                probe.forget_peak()?;
                probe.synchronize()?;
                (clock, joules) = (Instant::now(), probe.joules());
            }
            let mark = trainer.decoder().kernels().mark()?;
            let prepared = trainer.prepare(&rows.iter().collect::<Vec<_>>())?;
            trainer.queue(prepared, schedule.rate(number), &mut || true)?;
            marks.push((mark, trainer.decoder().kernels().mark()?));
            if number == 0 {
                trainer.drain()?;
                seconds_to_first_step = started.elapsed().as_secs_f64();
            }
            outcomes.append(&mut trainer.outcomes());
            if number + 1 >= warm_up + LEAST_TIMED && clock.elapsed().as_secs_f64() >= seconds {
                break;
            }
        }
        trainer.drain()?;
        outcomes.append(&mut trainer.outcomes());
        probe.synchronize()?;
        let seconds = clock.elapsed().as_secs_f64();
        let joules = joules.zip(probe.joules()).map(|(before, now)| now - before);
        let mut done = Vec::new();
        for (StepOutcome { loss, grad_norm, tokens, trained_tokens }, (start, end)) in
            outcomes.into_iter().zip(&marks)
        {
            let seconds = trainer.decoder().kernels().between(start, end)?.as_secs_f64();
            done.push(Step { loss, grad_norm, seconds, tokens, trained_tokens });
        }
        let timed = &done[warm_up..];
        let timed =
            Timed { steps: timed.len(), tokens: timed.iter().map(|s| s.tokens).sum(), seconds, joules };
        let after = probe.memory()?;
        let most = |a: Memory, b: Memory| Memory { peak: a.peak.max(b.peak), ..b };
        let outcome = Outcome {
            device: probe.facts.clone(),
            load_seconds,
            model_bytes: model_bytes(&model)?,
            plan: Planned::new(&plan),
            timed,
            memory: before.zip(after).map(|(before, after)| most(before, after)),
            timed_peak: after.map(|memory| memory.peak),
            seconds_to_first_step,
            peak_rss_mib: peak_rss_mib(),
            steps: done,
        };
        if let (Some(dir), Some(adapter)) = (args.path("adapter-out"), adapter) {
            save(&dir, trainer.decoder(), &adapter, &model)?;
        }
        let text = serde_json::to_vec(&outcome).map_err(Error::input(&out))?;
        std::fs::write(&out, text).map_err(Error::input(&out))
    }
}

/// A trainer as `tunesmith train` makes it: by the fastest plan that fits, tried at its full size on a device.
fn trainer<K: Kernels>(
    decoder: Decoder<K>,
    settings: &TrainConfig,
    dropout: f32,
    steps: &[Vec<Example>],
) -> Result<(Trainer<K>, Plan), Error> {
    let kernels = decoder.kernels();
    let footprint = Footprint::new(decoder.config(), decoder.layout(), kernels.storage());
    // The weights are there already, and the plan counts them.
    let weights = footprint.weights().total();
    let budget = match kernels.memory()? {
        Some(memory) => Budget::of_device(&DeviceMemory { free: memory.free + weights, ..memory }, None),
        None => Budget::of_host(None),
    };
    let lengths: Lengths = steps.iter().flatten().map(|e| e.ids.len()).collect();
    let (lengths, footprint) = (&lengths, &footprint);
    let config = settings;
    let request =
        Request { footprint, lengths, config, dropout: dropout > 0.0, divisor: 1, generation: 0, budget };
    let first = plan::plan(&request).map_err(tunesmith_train::Error::from)?;
    let settled =
        plan::settle(decoder, &request, dropout, first, &mut |_| Ok::<(), tunesmith_train::Error>(()));
    Ok(settled?)
}

/// Bytes of the safetensors files of a model folder.
fn model_bytes(model: &Path) -> Result<u64, Error> {
    let mut sum = 0;
    for entry in std::fs::read_dir(model).map_err(Error::input(model))? {
        let entry = entry.map_err(Error::input(model))?;
        if entry.path().extension().is_some_and(|e| e == "safetensors") {
            sum += std::fs::metadata(entry.path()).map_err(Error::input(model))?.len();
        }
    }
    Ok(sum)
}

/// The rows of each optimizer step.
fn batches(run: &Run, folder: &Path) -> Result<Vec<Vec<Example>>, Error> {
    let mut micro = micro_batches(folder)?;
    if run.accumulation == 0 || run.steps == 0 || micro.len() < run.steps * run.accumulation {
        let what = format!("{} micro-batches for {} steps of {}", micro.len(), run.steps, run.accumulation);
        return Err(Error::input(folder)(what));
    }
    micro.truncate(run.steps * run.accumulation);
    let mut micro = micro.into_iter();
    Ok((0..run.steps).map(|_| micro.by_ref().take(run.accumulation).flatten().collect()).collect())
}

fn settings(run: &Run, args: &Args, steps: &[Vec<Example>]) -> Result<TrainConfig, Error> {
    let recompute = args.get("recompute").unwrap_or("none");
    let recompute: Recompute = serde_json::from_value(recompute.into()).map_err(|_| {
        Error::Usage(format!("`--recompute {recompute}` is none of auto, none, mlp, min2, min"))
    })?;
    Ok(TrainConfig {
        batch_size: steps.iter().map(Vec::len).max().unwrap_or(1),
        micro_batch_size: args.number("micro-batch")?.unwrap_or(0),
        learning_rate: run.lr,
        lr_scheduler_type: run.schedule,
        warmup_steps: Some(run.warmup_steps),
        weight_decay: run.weight_decay,
        adam_beta1: run.betas[0],
        adam_beta2: run.betas[1],
        adam_epsilon: run.eps,
        max_grad_norm: run.max_grad_norm,
        recompute,
        ..TrainConfig::default()
    })
}

fn save<K: Kernels>(
    dir: &Path,
    decoder: &Decoder<K>,
    settings: &PeftConfig,
    model: &Path,
) -> Result<(), Error> {
    let values = decoder.parameters()?;
    let base_model = settings.base_model_name_or_path.clone().unwrap_or_else(|| model.display().to_string());
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let card = ModelCard { name, base_model, facts: Vec::new() };
    Ok(peft::save(dir, settings, &decoder.layout().tensors(&values), None, &card)?)
}

/// The most memory this process ever had resident; `None` where the system does not say.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string(PathBuf::from("/proc/self/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
