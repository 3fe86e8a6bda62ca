//! A whole run: epochs, steps, evaluations, from the start or from a snapshot.

use std::time::Instant;

use tunesmith_data::{Example, Examples};
use tunesmith_ops::Kernels;

use crate::ending::{End, Summary};
use crate::observer::{Observer, ObserverError, StepPoint};
use crate::prefetch::{Position, Prefetch};
use crate::schedule::Schedule;
use crate::{EpochPlan, Error, Event, Exact, RowLoss, RunState, Snapshot, StepOutcome, TrainConfig, Trainer};

/// Rows of an evaluation that are in memory at once: a multiple of every usual batch size.
const EVALUATED_AT_ONCE: usize = 1 << 12;

/// What a run works on.
#[derive(Debug)]
pub struct RunInput<'a, T: ?Sized, V: ?Sized> {
    /// Rows to train on.
    pub train: &'a T,
    /// Rows held out; may be none.
    pub validation: &'a V,
    /// The settings, those that the trainer was made with.
    pub config: &'a TrainConfig,
    /// Digest of whatever the run is made of: settings, rows, adapter layout. A snapshot of another one is refused.
    pub fingerprint: &'a str,
    /// Where to go on from; nothing for a new run.
    pub resume: Option<Snapshot>,
}

/// Trains on every row of `train` once per epoch, in an order that seed and epoch alone decide, and evaluates on
/// `validation` before the first step and `evals_per_epoch` times in each epoch. The last batch of an epoch may be
/// smaller than the others: no row is left out.
///
/// How many epochs there are, and whether the run may end before them, [`EpochPlan`] says. Learning rates are planned
/// over all of them, so that an early end cuts their curve off. Where evaluations decide, the decoder has the
/// parameters of the best one in the end; one that was never trained, before the first step, is no candidate.
///
/// From a snapshot it goes on as if it had never stopped: the same rows in the same order, the same dropout, the same
/// sums, so the same bits on the CPU. On a device the same numbers: in another process it may choose other algorithms for
/// its products ([`tunesmith_ops::Kernels::tune`]). A stop takes effect within one micro-batch; the step or evaluation it
/// cuts off is thrown away, and done again by whoever goes on.
///
/// A device is kept busy: a step is queued while the one before is under way, so that its event comes one step late.
/// Whatever looks at the state of the run (an evaluation, a snapshot, the end of an epoch, a stop) waits for all steps
/// first. A number that is not finite is seen late too, but the device leaves out every update from that step on. On the
/// CPU nothing is late.
///
/// # Errors
/// Settings out of range, nothing to train on, a snapshot of another run, numbers that are not finite, a device
/// fault, or an observer that could not take an event or a snapshot.
pub fn train<K: Kernels, T: Examples + Sync + ?Sized, V: Examples + ?Sized>(
    trainer: &mut Trainer<K>,
    input: RunInput<'_, T, V>,
    observer: &mut dyn Observer,
) -> Result<Summary, Error> {
    let RunInput { train, validation, config, fingerprint, resume } = input;
    config.check()?;
    let trained: usize = (0..train.len()).map(|i| train.trained_tokens(i)).sum();
    if trained == 0 {
        return Err(Error::NoTrainedTokens { examples: train.len() });
    }
    let per_epoch = train.len().div_ceil(config.batch_size);
    let plan = EpochPlan::new(config, train.len(), validation.len());
    let total_steps = per_epoch * plan.epochs;
    let mut state = RunState::new(fingerprint, plan.epochs, total_steps);
    let resumed = resume.is_some();
    let mut best_parameters = None;
    if let Some(snapshot) = resume {
        snapshot.state.check(&state)?;
        if plan.patience.is_some() {
            best_parameters = snapshot.best()?;
        }
        trainer.restore(&snapshot)?;
        state = snapshot.state;
    }
    let schedule = Schedule::new(config, total_steps);
    let capacity = trainer.capacity();
    std::thread::scope(|scope| {
        let position = position(&state);
        let collator = trainer.collator().clone();
        let steps = Prefetch::start(scope, train, collator, config, position, total_steps)?;
        let mut run = Run {
            schedule,
            per_epoch,
            trainer,
            train: Rows {
                examples: train.len(),
                trained,
                tokens: (0..train.len()).map(|i| train.tokens(i)).sum(),
            },
            validation,
            observer,
            plan,
            position,
            steps,
            since: None,
            state,
            best_parameters,
        };
        run.begin(resumed)?;
        if let Some(end) = run.go().map_err(|error| error.with_micro_batch(capacity))? {
            return run.finish(end);
        }
        run.at_step(false, true)?;
        Ok(run.summary(true))
    })
}

/// Where the state of a run stands.
fn position(state: &RunState) -> Position {
    Position { step: state.step, epoch: state.epoch, batch: state.batch }
}

/// `None` where work was cut off because the observer asked the run to stop.
type Unless<T> = Option<T>;

/// How much there is to train on.
struct Rows {
    examples: usize,
    tokens: usize,
    trained: usize,
}

struct Run<'a, K: Kernels, V: ?Sized> {
    trainer: &'a mut Trainer<K>,
    train: Rows,
    validation: &'a V,
    observer: &'a mut dyn Observer,
    schedule: Schedule,
    /// Steps of an epoch.
    per_epoch: usize,
    plan: EpochPlan,
    /// After the last step whose outcome is known.
    state: RunState,
    /// After the last step that is queued.
    position: Position,
    steps: Prefetch,
    /// The last outcome, or when the device was given something to do again; nothing while no step is queued.
    since: Option<Instant>,
    /// Those of `state.best`, where the plan keeps the best ones.
    best_parameters: Option<Vec<f32>>,
}

impl<K: Kernels, V: Examples + ?Sized> Run<'_, K, V> {
    fn emit(&mut self, event: &Event) -> Result<(), Error> {
        self.observer.event(event).map_err(own)
    }

    /// Says what will be done, and brings a device to its speed.
    fn begin(&mut self, resumed: bool) -> Result<(), Error> {
        if resumed {
            self.emit(&Event::Resumed { step: self.state.step })?;
        }
        self.emit(&Event::Plan {
            train_examples: self.train.examples,
            validation_examples: self.validation.len(),
            total_steps: self.state.total_steps,
            epochs: self.plan.epochs,
            epochs_rule: self.plan.rule.clone(),
            trainable_parameters: self.trainer.decoder().layout().len(),
            tokens_per_epoch: self.train.tokens,
            trained_tokens_per_epoch: self.train.trained,
        })?;
        if self.trainer.is_cold() && self.end().is_none() {
            self.trainer.warm_up()?;
            self.observer.beat();
        }
        Ok(())
    }

    /// To the end, from wherever the state is.
    fn go(&mut self) -> Result<Unless<End>, Error> {
        // The evaluation before the first step, or one that a stop cut off.
        if self.evaluation_is_due() {
            let Some(is_best) = self.evaluate()? else { return Ok(None) };
            if self.state.step > 0 {
                self.at_step(is_best, false)?;
            }
        }
        loop {
            if let Some(end) = self.end() {
                return Ok(Some(end));
            }
            if self.observer.should_stop() {
                self.drain()?;
                return Ok(None);
            }
            if self.step()?.is_none() {
                return Ok(None);
            }
            if self.trainer.is_pending() {
                if !self.must_wait()? {
                    continue;
                }
                self.drain()?;
            }
            let mut is_best = false;
            if self.evaluation_is_due() {
                match self.evaluate()? {
                    Some(best) => is_best = best,
                    None => return Ok(None),
                }
            }
            self.at_step(is_best, false)?;
        }
    }

    /// Whether somebody has to look at the run as it is after the step that was queued last.
    fn must_wait(&mut self) -> Result<bool, Error> {
        let Position { step, batch, .. } = self.position;
        // After the first its gradients are looked at.
        if step == 1
            || step == self.state.total_steps
            || batch == self.per_epoch
            || self.is_evaluated_after(batch)
        {
            return Ok(true);
        }
        let total_steps = self.state.total_steps;
        let (end_of_epoch, evaluated, is_best) = (None, false, false);
        let point =
            StepPoint { step, total_steps, end_of_epoch, evaluated, is_best, last: false, stopping: false };
        self.observer.wants_step(&point).map_err(own)
    }

    /// Whether and why training ends here.
    fn end(&self) -> Option<End> {
        End::of(&self.state, &self.plan)
    }

    /// Puts the best parameters into the decoder, where the plan keeps them, and says why training has ended.
    fn finish(mut self, end: End) -> Result<Summary, Error> {
        let summary = self.summary(false);
        if summary.kept_step != self.state.step
            && let Some(best) = &self.best_parameters
        {
            self.trainer.set_parameters(best)?;
        }
        let reason = end.reason(&self.state, summary.kept_step);
        let best_step = self.state.best.as_ref().map(|best| best.step);
        self.emit(&Event::Stopped { reason, step: self.state.step, best_step })?;
        Ok(summary)
    }

    fn summary(&self, stopped: bool) -> Summary {
        Summary::new(&self.state, &self.plan, self.epochs_done(), stopped)
    }

    /// Epochs done, with a fraction.
    fn epochs_done(&self) -> f64 {
        self.state.epoch as f64 + self.state.batch as f64 / self.per_epoch as f64
    }

    fn evaluation_is_due(&self) -> bool {
        let state = &self.state;
        if self.plan.evaluations_per_epoch == 0 || state.evaluated_step == Some(state.step) {
            return false;
        }
        state.step == 0 || self.is_evaluated_after(state.batch)
    }

    /// Whether there is an evaluation after this batch of an epoch, from 1.
    fn is_evaluated_after(&self, batch: usize) -> bool {
        let part = |batch: usize| batch * self.plan.evaluations_per_epoch / self.per_epoch;
        part(batch) > part(batch - 1)
    }

    /// Tells the observer where the run stands.
    fn at_step(&mut self, is_best: bool, stopping: bool) -> Result<(), Error> {
        let point = StepPoint {
            step: self.state.step,
            total_steps: self.state.total_steps,
            end_of_epoch: (self.state.batch == self.per_epoch).then_some(self.state.epoch),
            evaluated: self.state.evaluated_step == Some(self.state.step),
            is_best,
            last: !stopping && self.end().is_some(),
            stopping,
        };
        let (trainer, state) = (&mut *self.trainer, &self.state);
        // Where they are the current ones they need not be kept twice.
        let other = state.best.as_ref().is_some_and(|best| best.step != state.step);
        let best = self.best_parameters.as_ref().filter(|_| other);
        let mut snapshot = || trainer.snapshot(state.clone(), best.cloned());
        self.observer.at_step(&point, &mut snapshot).map_err(own)
    }

    /// Queues one step, and takes what came of those before, or of this one if it is done already.
    fn step(&mut self) -> Result<Unless<()>, Error> {
        self.since.get_or_insert_with(Instant::now);
        let learning_rate = self.schedule.rate(self.position.step);
        let (trainer, observer) = (&mut *self.trainer, &mut *self.observer);
        let queued = self
            .steps
            .next()
            .and_then(|step| trainer.queue(step, learning_rate, &mut || going_on(&mut *observer)));
        if !matches!(queued, Ok(true)) {
            // What went wrong before this step comes first.
            self.drain()?;
            return queued.map(|_| None);
        }
        self.position = self.position.next(self.per_epoch);
        self.account()?;
        Ok(Some(()))
    }

    /// Waits for all that is queued.
    fn drain(&mut self) -> Result<(), Error> {
        let drained = self.trainer.drain();
        self.account()?;
        drained
    }

    /// Enters the outcomes that are there into the state, and tells of them.
    fn account(&mut self) -> Result<(), Error> {
        let outcomes = self.trainer.timed_outcomes();
        for (outcome, at) in outcomes {
            let seconds = self.since.map_or(0.0, |since| at.saturating_duration_since(since).as_secs_f64());
            self.since = Some(at);
            self.account_for(&outcome, seconds)?;
        }
        if !self.trainer.is_pending() {
            self.since = None;
        }
        Ok(())
    }

    fn account_for(&mut self, outcome: &StepOutcome, seconds: f64) -> Result<(), Error> {
        let learning_rate = self.schedule.rate(self.state.step);
        let next = position(&self.state).next(self.per_epoch);
        let state = &mut self.state;
        if next.batch == 1 {
            (state.epoch_loss, state.epoch_trained_tokens) = (Exact(0.0), 0);
        }
        (state.step, state.epoch, state.batch) = (next.step, next.epoch, next.batch);
        state.tokens += outcome.tokens;
        state.trained_tokens += outcome.trained_tokens;
        state.train_seconds.0 += seconds;
        state.epoch_loss.0 += outcome.loss * outcome.trained_tokens as f64;
        state.epoch_trained_tokens += outcome.trained_tokens;
        state.train_loss = Some(Exact(state.epoch_loss.0 / state.epoch_trained_tokens as f64));
        let event = Event::Step {
            step: state.step,
            total_steps: state.total_steps,
            epoch: self.epochs_done(),
            loss: outcome.loss,
            learning_rate,
            grad_norm: outcome.grad_norm,
            tokens: outcome.tokens,
            trained_tokens: outcome.trained_tokens,
            seconds,
        };
        self.emit(&event)?;
        if self.state.step == 1 {
            self.warn_of_untouched()?;
        }
        Ok(())
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

    /// Evaluates; returns whether this is the best evaluation so far.
    fn evaluate(&mut self) -> Result<Unless<bool>, Error> {
        let started = Instant::now();
        let mut losses: Vec<RowLoss> = Vec::with_capacity(self.validation.len());
        let rows = self.validation.len();
        for start in (0..rows).step_by(EVALUATED_AT_ONCE) {
            if start > 0 && self.observer.should_stop() {
                return Ok(None);
            }
            let part = (start..rows.min(start + EVALUATED_AT_ONCE)).map(|i| self.validation.get(i));
            let part = part.collect::<Result<Vec<_>, _>>()?;
            let observer = &mut *self.observer;
            let mut go_on = || going_on(observer);
            let part: Vec<&Example> = part.iter().map(AsRef::as_ref).collect();
            let Some(part) = self.trainer.evaluate_while(&part, &mut go_on)? else { return Ok(None) };
            losses.extend(part);
        }
        let trained_tokens: usize = losses.iter().map(|l| l.trained_tokens).sum();
        if trained_tokens == 0 {
            return Err(Error::NoTrainedTokens { examples: rows });
        }
        let loss = losses.iter().map(|l| l.sum).sum::<f64>() / trained_tokens as f64;
        let seconds = started.elapsed().as_secs_f64();
        let state = &mut self.state;
        let step = state.step;
        state.evaluated_step = Some(step);
        state.validation_loss = Some(Exact(loss));
        let mut is_best = false;
        if step == 0 {
            state.initial_validation_loss = Some(Exact(loss));
        } else {
            let rows = losses.iter().filter(|l| l.trained_tokens > 0);
            let rows: Vec<f64> = rows.map(|l| l.sum / l.trained_tokens as f64).collect();
            is_best = state.judge(loss, &rows);
        }
        if is_best && self.plan.patience.is_some() {
            self.best_parameters = Some(self.trainer.decoder().parameters()?);
        }
        let epoch = self.epochs_done();
        self.emit(&Event::Evaluation { step, epoch, loss, trained_tokens, seconds })?;
        Ok(Some(is_best))
    }
}

/// After a micro-batch: a sign of life, and whether to go on.
fn going_on(observer: &mut dyn Observer) -> bool {
    observer.beat();
    !observer.should_stop()
}

/// An error of ours that went through the observer is ours again.
fn own(error: ObserverError) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => *own,
        Err(other) => Error::Observer(other),
    }
}
