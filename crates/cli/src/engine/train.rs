//! A training run, from the rows to the adapter in the job directory.

use tunesmith_data::{Examples as _, TemplateChoice};
use tunesmith_model::peft::{self, PeftConfig};
use tunesmith_model::{Decoder, ModelCard};
use tunesmith_ops::Kernels;
use tunesmith_train::{self as engine, Event, Observer, RunInput, Summary, Trainer};

use super::base::Base;
use super::data::{self, Parts};
use super::device::{self, Work};
use super::{Run, Source, preview};
use crate::error::CliError;

/// Trains: reads the data into the job directory, trains, leaves the adapter in it, fills in `run.result`.
///
/// # Errors
/// [`CliError::Cancelled`] when stopped through `run.cancel`; whatever is wrong with model, data or disk.
pub fn train(run: &mut Run<'_>) -> Result<(), CliError> {
    let spec = run.spec;
    let source = Source::of_job(spec);
    let base = Base::open(&source, spec.data.template, &mut run.progress)?;
    // What is wrong with `[lora]` should show before the rows are read.
    spec.lora.resolve(base.config.num_hidden_layers)?;
    let limit = base.sequence_limit(spec.data.max_seq_length, "`data.max_seq_length`")?;
    let parts = data::prepare(run, &base.encoder, limit)?;
    run.check_cancelled()?;
    device::run(&spec.device, Training { run, base: &base, parts: &parts })
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
        let mut decoder = base.load(kernels, Some(&spec.lora), &mut run.progress)?;
        decoder.initialize(spec.train.seed)?;
        preview::before(run, &mut decoder, &base.encoder, &parts.previews)?;

        let dropout = spec.lora.lora_dropout as f32;
        let mut trainer = Trainer::for_lengths(decoder, &spec.train, dropout, parts.lengths())?;
        let mut watch = Watch { run: &mut *run };
        let input = RunInput {
            train: &parts.train,
            validation: &parts.validation,
            config: &spec.train,
            fingerprint: "",
            resume: None,
        };
        let summary = engine::train(&mut trainer, input, &mut watch);
        let summary = summary.map_err(own_error)?;
        run.result.train_loss = summary.train_loss;
        // That of the adapter which is kept.
        run.result.validation_loss = summary.validation_loss;
        if summary.stopped {
            return Err(CliError::Cancelled);
        }
        let mut decoder = trainer.into_decoder();
        save(run, base, &decoder, parts, &summary)?;
        preview::after(run, &mut decoder, &base.encoder, &parts.previews)
    }
}

/// Passes events on, and Ctrl-C back.
struct Watch<'a, 'b> {
    run: &'a mut Run<'b>,
}

impl Observer for Watch<'_, '_> {
    fn event(&mut self, event: &Event) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.run.event(event)?)
    }

    fn should_stop(&self) -> bool {
        self.run.is_cancelled()
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

fn save<K: Kernels>(
    run: &mut Run<'_>,
    base: &Base,
    decoder: &Decoder<K>,
    parts: &Parts,
    summary: &Summary,
) -> Result<(), CliError> {
    let spec = run.spec;
    let config = PeftConfig {
        base_model_name_or_path: Some(spec.base.clone()),
        revision: spec.revision.clone(),
        lora: spec.lora.clone(),
    };
    let card = ModelCard {
        name: spec.name.clone().unwrap_or_default(),
        base_model: spec.base.clone(),
        facts: facts(run, base, parts, summary),
    };
    let values = decoder.parameters()?;
    let tensors = decoder.layout().tensors(&values);
    peft::save(&run.job.adapter(), &config, &tensors, Some(&base.dir), &card)?;
    run.result.adapter = Some(run.job.adapter());
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
