//! `tunesmith quote`: a job up to its first steps, in a directory that goes away.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tunesmith_data::{Example, Examples, Part};
use tunesmith_model::AdapterLayout;
use tunesmith_ops::Kernels;
use tunesmith_train::{EpochPlan, Trainer, epoch_order};

use super::base::Base;
use super::data::{self, Parts};
use super::device::{self, Work};
use super::plan::Memory;
use super::{Run, Source, StopFlag};
use crate::energy::{self, Meter};
use crate::error::CliError;
use crate::quote::{Costs, Disk, Estimate, Measured, Plan, Quote};
use crate::spec::JobSpec;
use tunesmith_jobs::dir::{JobDir, JobResult, Status};

/// Share of the measured time that evaluation gets.
const EVALUATION: f64 = 0.2;

/// Reads and checks the rows exactly as the job would, takes steps for `measure` (none at all without), and says what
/// the job will take. Nothing is left behind.
///
/// # Errors
/// Everything that the job would stop with before its first step; [`CliError::Cancelled`] through `stop`.
pub fn quote(
    spec: &JobSpec,
    measure: Option<Duration>,
    stop: &StopFlag,
    quiet: bool,
) -> Result<Quote, CliError> {
    let home = super::scratch("tunesmith-quote")?;
    let job = JobDir::create(home.path())?;
    let result = JobResult::new(job.id(), "", Status::Error, job.path().into());
    let mut run = Run::new(spec, &job, stop, quiet, result);
    let base = Base::open(&Source::of_job(spec), spec.data.template, &mut run.progress)?;
    let sites = spec.lora.resolve(base.config.num_hidden_layers)?;
    let parameters = AdapterLayout::new(&base.config, &sites).len();
    let limit = base.sequence_limit(spec.data.max_seq_length, "`data.max_seq_length`")?;
    let parts = data::prepare(&mut run, &base.encoder, limit)?;
    run.check_stopped()?;
    let epochs = EpochPlan::new(&spec.train, parts.train.len(), parts.validation.len());
    let plan = plan(spec, &parts, &epochs);
    let data_bytes = size(&job.path().join("data"))?;
    let measured = match measure {
        None => None,
        Some(time) => {
            let work = Measuring { run: &mut run, base: &base, parts: &parts, time };
            Some(device::run(&spec.device, work)?)
        }
    };
    run.progress.finish();
    Ok(Quote {
        plan,
        costs: Costs::planned(&plan),
        parameters,
        epochs_rule: epochs.rule,
        disk: Disk { adapter_bytes: 4 * parameters as u64, data_bytes },
        estimate: measured.as_ref().map(|measured| Estimate::new(&plan, measured)),
        measured,
    })
}

fn plan(spec: &JobSpec, parts: &Parts, epochs: &EpochPlan) -> Plan {
    let tokens = |part: &Part| (0..part.len()).map(|i| part.tokens(i)).sum();
    Plan {
        rows: parts.train.len(),
        tokens: tokens(&parts.train),
        trained_tokens: (0..parts.train.len()).map(|i| parts.train.trained_tokens(i)).sum(),
        batch_size: spec.train.batch_size,
        epochs: epochs.epochs,
        validation_rows: parts.validation.len(),
        validation_tokens: tokens(&parts.validation),
        evals_per_epoch: epochs.evaluations_per_epoch,
    }
}

/// Bytes of the files in a directory.
fn size(dir: &Path) -> Result<u64, CliError> {
    let failed = |source| CliError::Io { action: "read", path: dir.to_owned(), source };
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        bytes += entry.and_then(|entry| entry.metadata()).map_err(failed)?.len();
    }
    Ok(bytes)
}

/// A few steps on the job's device.
struct Measuring<'a, 'b> {
    run: &'a mut Run<'b>,
    base: &'a Base,
    parts: &'a Parts,
    time: Duration,
}

impl Work for Measuring<'_, '_> {
    type Output = Measured;

    fn on<K: Kernels>(self, kernels: K) -> Result<Measured, CliError> {
        let Self { run, base, parts, time } = self;
        let spec = run.spec;
        let started = Instant::now();
        let memory = Memory::plan(run, base, parts, &kernels)?;
        let mut decoder = base.load(kernels, Some(&spec.lora), &mut run.progress)?;
        decoder.initialize(spec.train.seed)?;
        let mut trainer = memory.trainer(run, decoder)?;
        let load_seconds = started.elapsed().as_secs_f64();

        run.progress.note(&format!("taking steps for {} s", time.as_secs()));
        let order = epoch_order(spec.train.seed, 0, parts.train.len());
        let mut batches = order.chunks(spec.train.batch_size);
        let warm_up = batches.next().unwrap_or_default();
        step(&mut trainer, &parts.train, warm_up)?;
        // A job of a single batch is measured on that.
        let rest = if batches.len() == 0 { vec![warm_up] } else { batches.collect() };
        let meter = Meter::start(device::energy_counter(&spec.device));
        let started = Instant::now();
        let (mut steps, mut tokens) = (0, 0);
        for batch in rest {
            run.check_stopped()?;
            tokens += step(&mut trainer, &parts.train, batch)?;
            steps += 1;
            if started.elapsed() >= time {
                break;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let spent = meter.spent();
        let (evaluated_tokens, evaluation_seconds) = evaluate(run, &mut trainer, parts, time)?;
        let device = trainer.decoder().kernels().memory().map_err(tunesmith_train::Error::from)?;
        Ok(Measured {
            steps,
            tokens,
            seconds,
            evaluated_tokens,
            evaluation_seconds,
            load_seconds,
            joules: spent.joules,
            joules_of: spent.of,
            joules_unknown: spent.unknown,
            peak_bytes: energy::peak_bytes(),
            device_peak_bytes: device.map(|memory| memory.peak),
        })
    }
}

/// A step that changes nothing; returns its tokens.
fn step<K: Kernels>(trainer: &mut Trainer<K>, train: &Part, rows: &[usize]) -> Result<usize, CliError> {
    let rows = rows.iter().map(|&row| train.get(row)).collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<&Example> = rows.iter().map(AsRef::as_ref).collect();
    Ok(trainer.step(&rows, 0.0)?.tokens)
}

/// Tokens of the validation rows that could be evaluated in a part of the time, and that time.
fn evaluate<K: Kernels>(
    run: &Run<'_>,
    trainer: &mut Trainer<K>,
    parts: &Parts,
    time: Duration,
) -> Result<(usize, f64), CliError> {
    let started = Instant::now();
    let mut tokens = 0;
    let rows = if run.spec.train.evals_per_epoch == 0 { 0 } else { parts.validation.len() };
    for start in (0..rows).step_by(run.spec.train.batch_size) {
        if tokens > 0 && started.elapsed() >= time.mul_f64(EVALUATION) {
            break;
        }
        run.check_stopped()?;
        let end = rows.min(start + run.spec.train.batch_size);
        let batch = (start..end).map(|i| parts.validation.get(i)).collect::<Result<Vec<_>, _>>()?;
        trainer.evaluate(&batch.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
        tokens += (start..end).map(|i| parts.validation.tokens(i)).sum::<usize>();
    }
    Ok((tokens, started.elapsed().as_secs_f64()))
}
