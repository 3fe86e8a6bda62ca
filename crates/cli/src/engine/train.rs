//! A training run, from the rows to the adapter in the job directory.

use serde_json::json;
use tunesmith_data::{Examples as _, TemplateChoice};
use tunesmith_jobs::failpoint;
use tunesmith_model::peft::{self, PeftConfig};
use tunesmith_model::{Decoder, ModelCard};
use tunesmith_ops::Kernels;
use tunesmith_train::checkpoint::{self, Adapter};
use tunesmith_train::{
    self as engine, Event, Observer, ObserverError, RunInput, Snapshot, StepPoint, Summary, Trainer,
};

use super::base::Base;
use super::data::{self, Parts};
use super::device::{self, Work};
use super::plan::Memory;
use super::saving::Saver;
use super::{Run, Source, fingerprint, frozen, preview};
use crate::energy::{self, Meter, Spent};
use crate::error::CliError;

/// A run that can be trained: its base model found, its rows read and frozen.
#[derive(Debug)]
pub struct Ready {
    base: Base,
    parts: Parts,
}

/// Reads, checks and freezes the rows.
///
/// # Errors
/// [`CliError::Cancelled`] or [`CliError::Paused`] when stopped through `run.stop`; whatever is wrong with model, data
/// or disk.
pub fn prepare(run: &mut Run<'_>) -> Result<Ready, CliError> {
    run.phase("validating")?;
    let (base, limit) = open(run)?;
    let parts = data::prepare(run, &base.encoder, limit)?;
    run.check_stopped()?;
    Ok(Ready { base, parts })
}

/// Reads the rows back that [`prepare`] froze, now or in another process; prepares them if nobody has.
///
/// # Errors
/// As [`prepare`]; frozen rows that are not what was written.
pub fn thaw(run: &mut Run<'_>) -> Result<Ready, CliError> {
    let (base, limit) = open(run)?;
    match frozen::load(run, &base.encoder, limit)? {
        Some(parts) => Ok(Ready { base, parts }),
        None => prepare(run),
    }
}

fn open(run: &mut Run<'_>) -> Result<(Base, usize), CliError> {
    let spec = run.spec;
    let base = Base::open(&Source::of_job(spec), spec.data.template, &mut run.progress)?;
    // What is wrong with `[lora]` should show before the rows are read.
    spec.lora.resolve(base.config.num_hidden_layers)?;
    let limit = base.sequence_limit(spec.data.max_seq_length, "`data.max_seq_length`")?;
    Ok((base, limit))
}

/// Trains, from the newest checkpoint in the job directory if there is one, leaves the adapter there and fills in
/// `run.result`.
///
/// # Errors
/// [`CliError::Cancelled`] or [`CliError::Paused`] when stopped through `run.stop`, with a checkpoint; whatever is wrong
/// with model, numbers, memory or disk.
pub fn train(run: &mut Run<'_>, ready: &Ready) -> Result<(), CliError> {
    let Ready { base, parts } = ready;
    let device = run.device.clone();
    device::run(&device, Training { run, base, parts })
}

/// All of a run that needs the device.
struct Training<'a, 'b> {
    run: &'a mut Run<'b>,
    base: &'a Base,
    parts: &'a Parts,
}

impl Work for Training<'_, '_> {
    type Output = ();

    fn on<K: Kernels>(self, kernels: K) -> Result<(), CliError> {
        let Self { run, base, parts } = self;
        let spec = run.spec;
        run.phase("loading")?;
        // Before any weight is read: what cannot fit is refused.
        let memory = Memory::plan(run, base, parts, &kernels)?;
        let fingerprint = fingerprint::of(run, base)?;
        let mut decoder = base.load(kernels, Some(&spec.lora), &mut run.progress)?;
        decoder.initialize(spec.train.seed)?;
        let layout = decoder.layout().clone();
        let mut found = checkpoint::latest(run.job.path(), &layout, &fingerprint)?;
        for sentence in std::mem::take(&mut found.damaged) {
            run.warn(sentence)?;
        }
        // As long as the model knows nothing yet.
        preview::before(run, &mut decoder, &base.encoder, &parts.previews, &fingerprint)?;

        let trainer = memory.trainer(run, decoder)?;
        #[cfg(debug_assertions)]
        fake_oom(&trainer)?;
        let mut saver = Saver::new(run, Adapter { config: peft_config(run), layout }, &found)?;
        let resume = found.newest.map(|(_, snapshot)| snapshot);
        if let Some(snapshot) = &resume {
            run.know(&snapshot.state);
        }
        let (resumed, meter) = (resume.is_some(), Meter::start(device::energy_counter(&run.device)));
        let stepped = steps(run, &mut saver, trainer, parts, &fingerprint, resume);
        let spent = match meter.spent() {
            Spent { joules: Some(_), .. } if resumed => Spent::unknown("the run was cut in pieces"),
            spent => spent,
        };
        let result = &mut run.result;
        (result.joules, result.joules_of, result.joules_unknown) = (spent.joules, spent.of, spent.unknown);
        let (trainer, summary) = stepped?;
        let device = trainer.decoder().kernels().memory().map_err(engine::Error::from)?;
        run.result.peak_bytes = energy::peak_bytes();
        run.result.device_peak_bytes = device.map(|memory| memory.peak);
        let (host, device) = (run.result.peak_bytes, run.result.device_peak_bytes);
        run.log(&json!({ "type": "memory", "data": { "peak_bytes": host, "device_peak_bytes": device } }))?;

        run.phase("saving")?;
        failpoint::hit("worker:before_adapter");
        let mut decoder = trainer.into_decoder();
        save(run, base, &decoder, parts, &summary)?;
        preview::after(run, &mut decoder, &base.encoder, &parts.previews)
    }
}

/// In debug builds: `TUNESMITH_FAKE_OOM_ABOVE=<tokens>` makes micro-batches of more tokens fail as a device does that
/// has no more memory.
#[cfg(debug_assertions)]
fn fake_oom<K: Kernels>(trainer: &Trainer<K>) -> Result<(), CliError> {
    let (tokens, bytes_per_token) = (trainer.capacity(), trainer.decoder().config().hidden_size * 4);
    let limit = std::env::var("TUNESMITH_FAKE_OOM_ABOVE").ok().and_then(|text| text.parse::<usize>().ok());
    match limit {
        Some(limit) if tokens > limit => {
            let (bytes, free) = (tokens * bytes_per_token, limit * bytes_per_token);
            let full = tunesmith_ops::DeviceError::OutOfMemory { bytes, free, total: free, held: 0 };
            Err(engine::Error::from(tunesmith_ops::Error::from(full)).into())
        }
        _ => Ok(()),
    }
}

/// Every step that is left, up to the end or to where somebody stops it.
fn steps<K: Kernels>(
    run: &mut Run<'_>,
    saver: &mut Saver,
    mut trainer: Trainer<K>,
    parts: &Parts,
    fingerprint: &str,
    resume: Option<Snapshot>,
) -> Result<(Trainer<K>, Summary), CliError> {
    let evaluates = run.spec.train.evals_per_epoch > 0 && !parts.validation.is_empty();
    let begins = resume.as_ref().is_none_or(|s| s.state.step == 0 && s.state.evaluated_step.is_none());
    let first = if evaluates && begins { "evaluating" } else { "training" };
    let input = RunInput {
        train: &parts.train,
        validation: &parts.validation,
        config: &run.spec.train,
        fingerprint,
        resume,
    };
    let mut watch = Watch { run: &mut *run, saver, first };
    let trained = engine::train(&mut trainer, input, &mut watch).map_err(own_error);
    // However it ended: what was saved on the way is told.
    let settled = saver.settle(run);
    let summary = trained?;
    settled?;
    run.result.steps = summary.steps;
    run.result.tokens = summary.tokens;
    run.result.trained_tokens = summary.trained_tokens;
    run.result.train_loss = summary.train_loss;
    run.result.initial_validation_loss = summary.initial_validation_loss;
    // That of the adapter which is kept.
    run.result.validation_loss = summary.validation_loss;
    if summary.stopped {
        run.check_stopped()?;
        // Whoever asked has thought better of it since; the run has stopped all the same.
        return Err(CliError::Paused);
    }
    Ok((trainer, summary))
}

/// Passes events on, saves, and passes wishes to stop back.
struct Watch<'a, 'b> {
    run: &'a mut Run<'b>,
    saver: &'a mut Saver,
    /// What the run does first.
    first: &'static str,
}

impl Observer for Watch<'_, '_> {
    fn event(&mut self, event: &Event) -> Result<(), ObserverError> {
        self.run.event(event)?;
        if failpoint::named("train:device_lost") {
            return Err(Box::new(CliError::Device("the device does not answer any more".to_owned())));
        }
        match event {
            Event::Plan { .. } => self.run.phase(self.first)?,
            Event::Evaluation { step: 0, .. } => self.run.phase("training")?,
            _ => {}
        }
        Ok(())
    }

    fn should_stop(&self) -> bool {
        self.run.is_stopped()
    }

    fn beat(&mut self) {
        self.run.progress.beat();
    }

    fn wants_step(&mut self, point: &StepPoint) -> Result<bool, ObserverError> {
        self.saver.wants_step(self.run, point)
    }

    fn at_step(
        &mut self,
        point: &StepPoint,
        snapshot: &mut dyn FnMut() -> Result<Snapshot, engine::Error>,
    ) -> Result<(), ObserverError> {
        self.saver.at_step(self.run, point, snapshot)
    }
}

/// An error of ours that went through the trainer is ours again.
fn own_error(error: engine::Error) -> CliError {
    match error {
        engine::Error::Observer(inner) => match inner.downcast::<CliError>() {
            Ok(own) => *own,
            Err(other) => CliError::Internal(other.to_string()),
        },
        other => other.into(),
    }
}

fn peft_config(run: &Run<'_>) -> PeftConfig {
    let spec = run.spec;
    PeftConfig {
        base_model_name_or_path: Some(spec.base.clone()),
        revision: spec.revision.clone(),
        lora: spec.lora.clone(),
    }
}

fn save<K: Kernels>(
    run: &mut Run<'_>,
    base: &Base,
    decoder: &Decoder<K>,
    parts: &Parts,
    summary: &Summary,
) -> Result<(), CliError> {
    let spec = run.spec;
    let card = ModelCard {
        name: spec.name.clone().unwrap_or_default(),
        base_model: spec.base.clone(),
        facts: facts(run, base, parts, summary),
    };
    let values = decoder.parameters()?;
    let tensors = decoder.layout().tensors(&values);
    let adapter = run.job.adapter();
    if adapter.symlink_metadata().is_ok() {
        // Of an attempt that died before it could say so.
        checkpoint::remove(&adapter)?;
    }
    peft::save(&adapter, &peft_config(run), &tensors, Some(&base.dir), &card)?;
    run.result.adapter = Some(adapter);
    Ok(())
}

/// What the model card says about the training.
fn facts(run: &Run<'_>, base: &Base, parts: &Parts, summary: &Summary) -> Vec<(String, String)> {
    let spec = run.spec;
    let mut facts: Vec<(String, String)> = Vec::new();
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    let template =
        if base.encoder.template().is_some() { TemplateChoice::Chat } else { TemplateChoice::None };
    let bos = parts.bos;
    let word = |value: serde_json::Result<serde_json::Value>| {
        value.ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    };
    fact("training rows", parts.train.len().to_string());
    fact("held-out rows", parts.validation.len().to_string());
    fact("trained tokens", summary.trained_tokens.to_string());
    fact("template", word(serde_json::to_value(template)));
    fact("BOS from", word(serde_json::to_value(bos)));
    fact("rank", spec.lora.r.to_string());
    fact("alpha", spec.lora.lora_alpha.to_string());
    let (epochs, done) = (summary.epochs, summary.epochs_done);
    fact(
        "epochs",
        if done < epochs as f64 { format!("{done} of at most {epochs}") } else { epochs.to_string() },
    );
    let (steps, kept) = (summary.steps, summary.kept_step);
    fact(
        "steps",
        if kept < steps { format!("{steps}; the adapter is that of step {kept}") } else { steps.to_string() },
    );
    fact("batch size", spec.train.batch_size.to_string());
    fact("learning rate", spec.train.learning_rate.to_string());
    fact("seed", spec.train.seed.to_string());
    for (name, loss) in [
        ("training loss, last epoch", summary.train_loss),
        ("validation loss before", summary.initial_validation_loss),
        ("validation loss after", summary.validation_loss),
    ] {
        if let Some(loss) = loss {
            fact(name, format!("{loss:.4}"));
        }
    }
    facts
}
