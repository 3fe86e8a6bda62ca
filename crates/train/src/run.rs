//! A whole run: epochs, steps, evaluations.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tunesmith_data::{Example, Examples};
use tunesmith_ops::Kernels;

use crate::order::epoch_order;
use crate::schedule::Schedule;
use crate::{Error, Event, TrainConfig, Trainer};

/// Rows of an evaluation that are in memory at once: a multiple of every usual batch size.
const EVALUATED_AT_ONCE: usize = 1 << 12;

/// Whoever watches a run: writes its events down, shows progress, may ask it to stop.
pub trait Observer {
    /// Takes one event.
    ///
    /// # Errors
    /// Whatever keeps the event from being kept; it ends the run.
    fn event(&mut self, event: &Event) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Whether the run should stop after the current step.
    fn should_stop(&self) -> bool {
        false
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Optimizer steps done.
    pub steps: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Whether it was asked to stop before its end.
    pub stopped: bool,
    /// Loss of the last epoch's steps, weighted by their trained tokens.
    pub train_loss: Option<f64>,
    /// Token-weighted loss of the last evaluation.
    pub validation_loss: Option<f64>,
    /// Token-weighted loss of the evaluation before the first step.
    pub initial_validation_loss: Option<f64>,
    /// Tokens of all steps.
    pub tokens: usize,
    /// Those that counted in the loss.
    pub trained_tokens: usize,
    /// Seconds spent in steps.
    pub train_seconds: f64,
}

/// Trains on every row of `train` once per epoch, in an order that seed and epoch alone decide, and evaluates on
/// `validation` before the first step and `evals_per_epoch` times in each epoch. The last batch of an epoch may be
/// smaller than the others: no row is left out.
///
/// # Errors
/// Settings out of range, nothing to train on, numbers that are not finite, a device fault, or an observer that
/// could not take an event.
pub fn train<K: Kernels>(
    trainer: &mut Trainer<K>,
    train: &(impl Examples + ?Sized),
    validation: &(impl Examples + ?Sized),
    config: &TrainConfig,
    observer: &mut dyn Observer,
) -> Result<Summary, Error> {
    check(config)?;
    let trained: usize = (0..train.len()).map(|i| train.trained_tokens(i)).sum();
    if trained == 0 {
        return Err(Error::NoTrainedTokens { examples: train.len() });
    }
    let per_epoch = train.len().div_ceil(config.batch_size);
    let total_steps = per_epoch * config.epochs;
    let schedule = Schedule::new(config, total_steps);
    let mut run = Run { trainer, validation, observer, summary: Summary::new(total_steps) };
    run.emit(&Event::Plan {
        train_examples: train.len(),
        validation_examples: validation.len(),
        total_steps,
        epochs: config.epochs,
        trainable_parameters: run.trainer.decoder().layout().len(),
        tokens_per_epoch: (0..train.len()).map(|i| train.tokens(i)).sum(),
        trained_tokens_per_epoch: trained,
    })?;
    let evaluates = config.evals_per_epoch > 0 && !validation.is_empty();
    if evaluates {
        run.summary.initial_validation_loss = Some(run.evaluate(0.0)?);
        run.summary.validation_loss = run.summary.initial_validation_loss;
    }
    for epoch in 0..config.epochs {
        let order = epoch_order(config.seed, epoch, train.len());
        let (mut loss_sum, mut loss_tokens) = (0f64, 0);
        for (i, rows) in order.chunks(config.batch_size).enumerate() {
            if run.observer.should_stop() {
                run.summary.stopped = true;
                return Ok(run.summary);
            }
            let rows = rows.iter().map(|&r| train.get(r)).collect::<Result<Vec<_>, _>>()?;
            let rows: Vec<&Example> = rows.iter().map(AsRef::as_ref).collect();
            let done = epoch as f64 + (i + 1) as f64 / per_epoch as f64;
            let (loss, tokens) = run.step(&rows, schedule.rate(run.summary.steps), done)?;
            loss_sum += loss * tokens as f64;
            loss_tokens += tokens;
            run.summary.train_loss = (loss_tokens > 0).then(|| loss_sum / loss_tokens as f64);
            let part = |i: usize| i * config.evals_per_epoch / per_epoch;
            if evaluates && part(i + 1) > part(i) {
                run.summary.validation_loss = Some(run.evaluate(done)?);
            }
        }
    }
    Ok(run.summary)
}

struct Run<'a, K: Kernels, V: Examples + ?Sized> {
    trainer: &'a mut Trainer<K>,
    validation: &'a V,
    observer: &'a mut dyn Observer,
    summary: Summary,
}

impl<K: Kernels, V: Examples + ?Sized> Run<'_, K, V> {
    fn emit(&mut self, event: &Event) -> Result<(), Error> {
        self.observer.event(event).map_err(Error::Observer)
    }

    /// One step; returns its loss and trained tokens.
    fn step(&mut self, rows: &[&Example], learning_rate: f64, epoch: f64) -> Result<(f64, usize), Error> {
        let started = Instant::now();
        let outcome = self.trainer.step(rows, learning_rate)?;
        let seconds = started.elapsed().as_secs_f64();
        let summary = &mut self.summary;
        summary.steps += 1;
        summary.tokens += outcome.tokens;
        summary.trained_tokens += outcome.trained_tokens;
        summary.train_seconds += seconds;
        let event = Event::Step {
            step: summary.steps,
            total_steps: summary.total_steps,
            epoch,
            loss: outcome.loss,
            learning_rate,
            grad_norm: outcome.grad_norm,
            tokens: outcome.tokens,
            trained_tokens: outcome.trained_tokens,
            seconds,
        };
        self.emit(&event)?;
        if self.summary.steps == 1 {
            self.warn_of_untouched()?;
        }
        Ok((outcome.loss, outcome.trained_tokens))
    }

    /// At the first step B is zero, so A has no gradient, but every B has one unless its linear is cut off from the
    /// loss: then it would never learn, and nothing else would show it.
    fn warn_of_untouched(&mut self) -> Result<(), Error> {
        let gradients = self.trainer.gradients()?;
        let slots = self.trainer.decoder().layout().slots();
        let untouched: Vec<String> = slots
            .iter()
            .filter(|s| gradients[s.b.clone()].iter().all(|g| *g == 0.0))
            .map(|s| s.site.linear.module_path(s.site.layer))
            .collect();
        if untouched.is_empty() {
            return Ok(());
        }
        let message = format!(
            "{} of {} LoRA updates got no gradient in the first step, `{}` among them; they may not be learning",
            untouched.len(),
            slots.len(),
            untouched[0]
        );
        self.emit(&Event::Warning { message })
    }

    fn evaluate(&mut self, epoch: f64) -> Result<f64, Error> {
        let started = Instant::now();
        let (mut sum, mut trained_tokens) = (0f64, 0);
        let rows = self.validation.len();
        for start in (0..rows).step_by(EVALUATED_AT_ONCE) {
            let part = (start..rows.min(start + EVALUATED_AT_ONCE)).map(|i| self.validation.get(i));
            let part = part.collect::<Result<Vec<_>, _>>()?;
            let losses = self.trainer.evaluate(&part.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
            sum += losses.iter().map(|l| l.sum).sum::<f64>();
            trained_tokens += losses.iter().map(|l| l.trained_tokens).sum::<usize>();
        }
        if trained_tokens == 0 {
            return Err(Error::NoTrainedTokens { examples: rows });
        }
        let loss = sum / trained_tokens as f64;
        let seconds = started.elapsed().as_secs_f64();
        self.emit(&Event::Evaluation { step: self.summary.steps, epoch, loss, trained_tokens, seconds })?;
        Ok(loss)
    }
}

impl Summary {
    fn new(total_steps: usize) -> Self {
        Self {
            steps: 0,
            total_steps,
            stopped: false,
            train_loss: None,
            validation_loss: None,
            initial_validation_loss: None,
            tokens: 0,
            trained_tokens: 0,
            train_seconds: 0.0,
        }
    }
}

fn check(c: &TrainConfig) -> Result<(), Error> {
    let setting = |key, ok: bool, value: String, allowed| {
        if ok { Ok(()) } else { Err(Error::Setting { key, value, allowed }) }
    };
    let unit = |v: f64| (0.0..1.0).contains(&v);
    setting("epochs", (1..=10).contains(&c.epochs), c.epochs.to_string(), "from 1 to 10")?;
    setting("batch_size", c.batch_size >= 1, c.batch_size.to_string(), "at least 1")?;
    let lr = c.learning_rate;
    setting("learning_rate", lr.is_finite() && lr > 0.0, lr.to_string(), "above 0")?;
    setting("adam_beta1", unit(c.adam_beta1), c.adam_beta1.to_string(), "at least 0 and below 1")?;
    setting("adam_beta2", unit(c.adam_beta2), c.adam_beta2.to_string(), "at least 0 and below 1")?;
    let eps = c.adam_epsilon;
    setting("adam_epsilon", eps.is_finite() && eps > 0.0, eps.to_string(), "above 0")?;
    let decay = c.weight_decay;
    setting("weight_decay", decay.is_finite() && decay >= 0.0, decay.to_string(), "at least 0")?;
    let norm = c.max_grad_norm;
    setting(
        "max_grad_norm",
        norm.is_finite() && norm >= 0.0,
        norm.to_string(),
        "at least 0 (0 turns clipping off)",
    )?;
    setting("warmup_ratio", (0.0..=1.0).contains(&c.warmup_ratio), c.warmup_ratio.to_string(), "from 0 to 1")
}
