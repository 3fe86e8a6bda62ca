//! Trains on the batches of a run folder, in their order, and reports every step.
//!
//! ```text
//! replay --model DIR --run DIR --out result.json [--threads N] [--adapter-out DIR] [--recompute none|mlp|min2|min]
//!        [--micro-batch ROWS]
//! ```
//!
//! The run folder holds `batches.safetensors` (`input_ids`, `attention_mask`, `labels`: int64 `[N, B, T]`),
//! `adapter_init/` and `run.json`. Nothing but what training needs is in memory while it trains, so that the peak is
//! that of the engine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tunesmith_data::Example;
use tunesmith_model::peft::{self, PeftConfig};
use tunesmith_model::{Decoder, ModelCard};
use tunesmith_ops::RefKernels;
use tunesmith_testbins::{Args, Error, load, micro_batches};
use tunesmith_train::{LrScheduler, Recompute, Schedule, TrainConfig, Trainer};

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
    seconds: f64,
    tokens: usize,
    trained_tokens: usize,
}

#[derive(Debug, Serialize)]
struct Outcome {
    steps: Vec<Step>,
    seconds_to_first_step: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_mib: Option<f64>,
}

fn main() -> ExitCode {
    let known = ["model", "run", "out", "threads", "adapter-out", "recompute", "micro-batch"];
    tunesmith_testbins::run(replay, &known)
}

fn replay(args: Args) -> Result<(), Error> {
    let started = Instant::now();
    if let Some(threads) = args.number("threads")? {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|e| Error::Usage(format!("`--threads {threads}`: {e}")))?;
    }
    let (model, folder, out) = (args.required("model")?, args.required("run")?, args.required("out")?);
    let path = folder.join("run.json");
    let text = std::fs::read(&path).map_err(Error::input(&path))?;
    let run: Run = serde_json::from_slice(&text).map_err(Error::input(&path))?;
    let steps = batches(&run, &folder)?;
    let settings = settings(&run, &args, &steps)?;
    let (decoder, adapter) = load(&model, Some(&folder.join("adapter_init")))?;
    let dropout = adapter.as_ref().map_or(0.0, |a| a.lora.lora_dropout) as f32;
    let mut trainer = Trainer::new(decoder, &settings, dropout, steps.iter().flatten())?;
    let schedule = Schedule::new(&settings, run.steps);
    let mut outcome = Outcome { steps: Vec::new(), seconds_to_first_step: 0.0, peak_rss_mib: None };
    for (number, rows) in steps.iter().enumerate() {
        let begin = Instant::now();
        let rows: Vec<&Example> = rows.iter().collect();
        let step = trainer.step(&rows, schedule.rate(number))?;
        if number == 0 {
            outcome.seconds_to_first_step = started.elapsed().as_secs_f64();
        }
        outcome.steps.push(Step {
            loss: step.loss,
            grad_norm: step.grad_norm,
            seconds: begin.elapsed().as_secs_f64(),
            tokens: step.tokens,
            trained_tokens: step.trained_tokens,
        });
    }
    outcome.peak_rss_mib = peak_rss_mib();
    if let (Some(dir), Some(adapter)) = (args.path("adapter-out"), adapter) {
        save(&dir, trainer.decoder(), &adapter, &model)?;
    }
    let text = serde_json::to_vec(&outcome).map_err(Error::input(&out))?;
    std::fs::write(&out, text).map_err(Error::input(&out))
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
    let recompute = match args.get("recompute") {
        None | Some("none") => Recompute::None,
        Some("mlp") => Recompute::Mlp,
        Some("min2") => Recompute::Min2,
        Some("min") => Recompute::Min,
        Some(other) => {
            return Err(Error::Usage(format!("`--recompute {other}` is none of none, mlp, min2, min")));
        }
    };
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

fn save(dir: &Path, decoder: &Decoder<RefKernels>, settings: &PeftConfig, model: &Path) -> Result<(), Error> {
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
