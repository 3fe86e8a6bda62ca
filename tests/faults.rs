//! Numbers that are not numbers, ids that are none, settings that no run can have: each is an error that says where.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

mod common;

use common::tiny_model::{TARGETS, TinyModel, config, specs};
use common::{load, training_batch, whole_run};
use tunesmith_data::{Example, Place};
use tunesmith_model::peft::{Layers, LoraConfig};
use tunesmith_model::{Checkpoint, Decoder, ModelConfig, peft};
use tunesmith_ops::RefKernels;
use tunesmith_testkit::spec::ModelSpec;
use tunesmith_testkit::tensors::Tensors;
use tunesmith_testkit::tiny;
use tunesmith_train::{Epochs, Error, Event, Observer, Recompute, TrainConfig, Trainer, train};

fn row(ids: &[u32], line: usize) -> Example {
    Example { ids: ids.to_vec(), trained: (0..ids.len()).map(|t| t > 0).collect(), place: Place::line(line) }
}

fn settings() -> TrainConfig {
    TrainConfig {
        batch_size: 2,
        warmup_steps: Some(0),
        evals_per_epoch: 0,
        epochs: Epochs::Fixed(1),
        ..TrainConfig::default()
    }
}

fn trainer(
    model: &TinyModel,
    targets: &[&str],
    settings: &TrainConfig,
    data: &[Example],
) -> Trainer<RefKernels> {
    let (engine, _) = model.with_random_lora(targets, 2, 4.0);
    Trainer::new(engine, settings, 0.0, data).unwrap()
}

/// A model whose logits overflow after the token `poison`, and nowhere else.
///
/// Channel 0 of the residual stream is zero everywhere but in the embedding of that token, and the head multiplies it
/// by all that f32 can hold.
fn poisoned(poison: usize) -> TinyModel {
    let spec = ModelSpec { tie_word_embeddings: false, ..ModelSpec::tiny() };
    let mut weights = tiny::weights(&spec, 5).unwrap();
    let (v, d) = (spec.vocab_size, spec.hidden_size);
    let mut set = |name: &str, at: usize, value: f32| weights.get_mut(name).unwrap().data[at] = value;
    for id in 0..v {
        set("model.embed_tokens.weight", id * d, if id == poison { 9.0 } else { 0.0 });
        set("lm_head.weight", id * d, if id % 2 == 0 { 3e38 } else { -3e38 });
    }
    for layer in 0..spec.num_hidden_layers {
        for (name, inputs) in [
            ("self_attn.o_proj", spec.num_attention_heads * spec.head_dim),
            ("mlp.down_proj", spec.intermediate_size),
        ] {
            for at in 0..inputs {
                set(&format!("model.layers.{layer}.{name}.weight"), at, 0.0);
            }
        }
    }
    TinyModel::with_weights(spec, weights)
}

#[test]
fn a_loss_that_is_not_finite_names_step_and_lines() {
    let model = poisoned(7);
    let data = [row(&[1, 2, 3, 4], 10), row(&[1, 7, 3, 4], 11), row(&[4, 2, 7, 5], 12), row(&[5, 2, 7], 13)];
    let mut trainer = trainer(&model, &["q_proj"], &settings(), &data);
    let before = trainer.decoder().parameters().unwrap();
    // The poison is the last token of line 13: it is predicted, and nothing is predicted from it.
    trainer.step(&[&data[0], &data[3]], 0.0).unwrap();
    let error = trainer.step(&[&data[0], &data[1]], 1e-3).unwrap_err();
    assert!(
        matches!(&error, Error::LossNotFinite { step: 2, places } if places == &[Place::line(11)]),
        "{error:?}"
    );
    assert!(error.to_string().contains("step 2") && error.to_string().contains("11"), "{error}");
    let error = trainer.step(&[&data[2], &data[1]], 1e-3).unwrap_err();
    assert!(
        matches!(&error, Error::LossNotFinite { step: 2, places } if places == &[Place::line(12), Place::line(11)]),
        "{error:?}"
    );
    assert_eq!(trainer.decoder().parameters().unwrap(), before, "a failed step changes nothing");
    let error = trainer.evaluate(&data.iter().collect::<Vec<_>>()).unwrap_err();
    assert!(
        matches!(&error, Error::EvaluationNotFinite { step: 1, places } if places == &[Place::line(11)]),
        "{error:?}"
    );
}

/// The numbers of a failed step stay in the buffers; no later step may read them.
#[test]
fn a_step_after_a_failed_one_is_as_if_it_had_not_been() {
    let model = poisoned(7);
    let targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"];
    let bad = row(&[1, 7, 3, 4, 9, 8, 7, 5], 1);
    let good = [row(&[1, 2, 3, 4], 2), row(&[5, 2, 9, 11, 3], 3)];
    let all = [good[0].clone(), good[1].clone(), bad.clone()];
    for (recompute, dropout) in [(Recompute::None, 0.0), (Recompute::Min, 0.0), (Recompute::Mlp, 0.3)] {
        let settings = TrainConfig { recompute, ..settings() };
        let run = |fail: bool| {
            let (engine, _) = model.with_random_lora(&targets, 3, 6.0);
            let mut trainer = Trainer::new(engine, &settings, dropout, &all).unwrap();
            if fail {
                trainer.step(&[&bad, &good[1]], 1e-2).unwrap_err();
                trainer.evaluate(&[&bad]).unwrap_err();
            }
            let outcome = trainer.step(&[&good[0], &good[1]], 1e-2).unwrap();
            (outcome, trainer.gradients().unwrap(), trainer.decoder().parameters().unwrap())
        };
        assert_eq!(run(true), run(false), "{recompute:?}, dropout {dropout}");
    }
}

#[test]
fn an_adapter_that_is_not_a_number_stops_the_first_step() {
    let model = TinyModel::new(specs().remove(0), 5);
    let data = [row(&[1, 2, 3, 4], 4), row(&[5, 6, 7], 9)];
    for (value, every) in [(f32::NAN, 1), (f32::INFINITY, 1), (f32::NAN, 1000)] {
        let (mut engine, _) = model.with_random_lora(&TARGETS, 2, 4.0);
        let mut values = engine.parameters().unwrap();
        values.iter_mut().step_by(every).for_each(|v| *v = value);
        engine.set_parameters(&values).unwrap();
        let mut trainer = Trainer::new(engine, &settings(), 0.0, &data).unwrap();
        let error = trainer.step(&[&data[0], &data[1]], 1e-3).unwrap_err();
        let named = |places: &[Place]| places == [Place::line(4), Place::line(9)];
        let right = match &error {
            Error::LossNotFinite { step: 1, places } | Error::GradientNotFinite { step: 1, places } => {
                named(places)
            }
            _ => false,
        };
        assert!(right, "{value} in every {every}: {error:?}");
    }
}

/// A learning rate that throws the adapter out of f32: the first step is well, the second is not.
#[test]
fn a_run_that_blows_up_names_its_step() {
    let model = TinyModel::new(specs().remove(0), 5);
    let data = [row(&[1, 2, 3, 4], 1), row(&[5, 6, 7], 2)];
    let mut trainer = trainer(&model, &TARGETS, &settings(), &data);
    let rows: Vec<&Example> = data.iter().collect();
    trainer.step(&rows, 1e30).unwrap();
    let error = trainer.step(&rows, 1e-3).unwrap_err();
    let right =
        matches!(&error, Error::LossNotFinite { step: 2, .. } | Error::GradientNotFinite { step: 2, .. });
    assert!(right, "{error:?}");
}

/// The loss is finite and its gradient is not: A is zero, so B's size does not show before the backward pass.
#[test]
fn a_gradient_that_is_not_finite_names_step_and_lines() {
    let spec = ModelSpec { tie_word_embeddings: false, ..ModelSpec::tiny() };
    let mut weights = tiny::weights(&spec, 5).unwrap();
    weights.get_mut("lm_head.weight").unwrap().data.iter_mut().for_each(|w| *w *= 1e8);
    let model = TinyModel::with_weights(spec, weights);
    let data = [row(&[1, 2, 3, 4], 21), row(&[5, 6, 7], 22)];
    let mut lora = tiny::lora(&model.spec, &["down_proj"], 2, 2.0, 1).unwrap();
    for module in &mut lora {
        module.a.data.fill(0.0);
        module.b.data.fill(1e32);
    }
    let engine = model.engine(&config(&["down_proj"], 2, 2.0), &lora);
    let mut trainer = Trainer::new(engine, &settings(), 0.0, &data).unwrap();
    let before = trainer.decoder().parameters().unwrap();
    let error = trainer.step(&data.iter().collect::<Vec<_>>(), 1e-3).unwrap_err();
    assert!(
        matches!(&error, Error::GradientNotFinite { step: 1, places } if places == &[Place::line(21), Place::line(22)]),
        "{error:?}"
    );
    assert_eq!(trainer.decoder().parameters().unwrap(), before);
}

/// A gradient that is infinite and nowhere a NaN: one row, one predicted token, one updated linear in the last block.
#[test]
fn an_infinite_gradient_is_not_finite() {
    let spec = ModelSpec { tie_word_embeddings: false, ..ModelSpec::tiny() };
    let mut weights = tiny::weights(&spec, 5).unwrap();
    weights.get_mut("lm_head.weight").unwrap().data.iter_mut().for_each(|w| *w *= 1e8);
    let model = TinyModel::with_weights(spec, weights);
    let last = model.spec.num_hidden_layers - 1;
    let mut lora = tiny::lora(&model.spec, &["down_proj"], 1, 1.0, 1).unwrap().split_off(last);
    lora[0].a.data.fill(0.0);
    lora[0].b.data.fill(1e32);
    let settings_of_last =
        LoraConfig { layers_to_transform: Some(Layers::One(last)), ..config(&["down_proj"], 1, 1.0) };
    let data = [row(&[1, 2], 3)];
    let mut trainer = Trainer::new(model.engine(&settings_of_last, &lora), &settings(), 0.0, &data).unwrap();
    let error = trainer.step(&[&data[0]], 1e-3).unwrap_err();
    assert!(
        matches!(&error, Error::GradientNotFinite { step: 1, places } if places == &[Place::line(3)]),
        "{error:?}"
    );
    let gradients = trainer.gradients().unwrap();
    assert!(gradients.iter().any(|g| g.is_infinite()) && !gradients.iter().any(|g| g.is_nan()));
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error() {
    let model = TinyModel::new(specs().remove(0), 5);
    let vocab = model.spec.vocab_size as u32;
    // As an input, and as a target alone.
    for ids in [vec![1, vocab, 2], vec![1, 2, vocab], vec![u32::MAX, 1]] {
        let data = [row(&ids, 1)];
        let mut trainer = trainer(&model, &TARGETS, &settings(), &data);
        let bad = ids.iter().max().unwrap().to_string();
        for message in [
            trainer.step(&[&data[0]], 1e-3).unwrap_err().to_string(),
            trainer.evaluate(&[&data[0]]).unwrap_err().to_string(),
        ] {
            assert!(message.contains(&bad) && message.contains(&vocab.to_string()), "{message}");
        }
    }
}

fn load_error(spec: &ModelSpec, weights: Tensors) -> String {
    let model = TinyModel::with_weights(spec.clone(), weights);
    let config = ModelConfig::from_dir(model.path()).unwrap();
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let loaded = Decoder::load(RefKernels, config, &checkpoint, None, &mut |_, _| ());
    loaded.unwrap_err().to_string()
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for spec in specs() {
        let weights = tiny::weights(&spec, 5).unwrap();
        let names: Vec<String> = weights.keys().cloned().collect();
        for (n, name) in names.iter().enumerate() {
            let mut damaged = weights.clone();
            let data = &mut damaged.get_mut(name).unwrap().data;
            let at = (n * 7919) % data.len();
            data[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][n % 3];
            let message = load_error(&spec, damaged);
            assert!(message.contains(name.as_str()), "{name}: {message}");
            assert!(message.contains(&at.to_string()), "{name}: {message}");
        }
        let mut lacking = weights.clone();
        lacking.remove("model.layers.1.mlp.up_proj.weight");
        assert!(load_error(&spec, lacking).contains("model.layers.1.mlp.up_proj.weight"));
        let mut more = weights.clone();
        more.insert("model.layers.9.extra.weight".into(), weights["model.norm.weight"].clone());
        assert!(load_error(&spec, more).contains("model.layers.9.extra.weight"));
        let mut bent = weights;
        bent.get_mut("model.norm.weight").unwrap().shape = vec![spec.hidden_size / 2, 2];
        assert!(load_error(&spec, bent).contains("model.norm.weight"));
    }
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let model = TinyModel::new(specs().remove(0), 5);
    let other = ModelSpec { intermediate_size: 44, ..model.spec.clone() };
    let dir = tempfile::tempdir().unwrap();
    let lora = tiny::lora(&other, &TARGETS, 2, 4.0, 1).unwrap();
    tunesmith_testkit::adapter::write_adapter(dir.path(), &lora, 2, 4.0).unwrap();
    let (config, tensors) = peft::load(dir.path()).unwrap();
    let mut engine = load(model.path(), Some(&config.lora));
    let message = engine.set_adapter(dir.path(), &tensors).unwrap_err().to_string();
    assert!(message.contains("mlp."), "{message}");
    assert!(
        engine.parameters().unwrap().iter().all(|p| *p == 0.0),
        "a refused adapter leaves nothing behind"
    );
    let fewer = &engine.parameters().unwrap()[1..];
    engine.set_parameters(fewer).unwrap_err();
}

#[test]
fn a_micro_batch_larger_than_its_memory_is_refused() {
    let model = TinyModel::new(specs().remove(0), 5);
    let (mut engine, _) = model.with_random_lora(&TARGETS, 2, 4.0);
    engine.prepare_positions(8);
    let batch = training_batch(&[row(&[1, 2, 3, 4, 5, 6], 1)]);
    let mut small = engine.evaluation_workspace(batch.tokens() - 1).unwrap();
    engine.losses(&mut small, &batch).unwrap_err();
    // A workspace for losses has no room for gradients.
    let mut forward = engine.evaluation_workspace(batch.tokens()).unwrap();
    let mut gradients = vec![0.0; engine.layout().len()];
    engine.loss_and_gradients(&mut forward, &batch, 1.0, None, &mut gradients).unwrap_err();
    // A text longer than the rotary table.
    let long = training_batch(&[row(&[1; 20], 1)]);
    let mut workspace = engine.evaluation_workspace(long.tokens()).unwrap();
    let message = engine.losses(&mut workspace, &long).unwrap_err().to_string();
    assert!(message.contains("osition"), "{message}");
}

/// Takes events until it has seen `limit` steps; then asks to stop, or fails.
struct Impatient {
    steps: usize,
    limit: usize,
    fails: bool,
}

impl Observer for Impatient {
    fn event(&mut self, event: &Event) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.steps += usize::from(matches!(event, Event::Step { .. }));
        if self.fails && self.steps == self.limit { Err("the disk is full".into()) } else { Ok(()) }
    }

    fn should_stop(&self) -> bool {
        self.steps >= self.limit
    }
}

#[test]
fn a_run_stops_when_it_is_asked_to_and_when_nobody_can_listen() {
    let model = TinyModel::new(specs().remove(0), 5);
    let data: Vec<Example> = (0..9).map(|i| row(&[1, 2, 3 + i, 4], 1 + i as usize)).collect();
    let settings = settings();
    let mut observer = Impatient { steps: 0, limit: 2, fails: false };
    let mut patient = trainer(&model, &TARGETS, &settings, &data);
    let summary = train(&mut patient, whole_run(&data, &[], &settings), &mut observer).unwrap();
    assert_eq!((summary.steps, summary.total_steps, summary.stopped), (2, 5, true));
    let mut observer = Impatient { steps: 0, limit: 2, fails: true };
    let mut deaf = trainer(&model, &TARGETS, &settings, &data);
    let error = train(&mut deaf, whole_run(&data, &[], &settings), &mut observer).unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
}

#[test]
fn settings_and_data_that_cannot_train_are_refused() {
    let model = TinyModel::new(specs().remove(0), 5);
    let data = [row(&[1, 2, 3, 4], 1)];
    let refuse = |settings: TrainConfig| {
        let mut trainer =
            trainer(&model, &TARGETS, &TrainConfig { batch_size: 2, ..settings.clone() }, &data);
        let mut observer = Impatient { steps: 0, limit: 99, fails: false };
        train(&mut trainer, whole_run(&data, &[], &settings), &mut observer).unwrap_err().to_string()
    };
    let bad = [
        ("epochs", TrainConfig { epochs: Epochs::Fixed(0), ..settings() }),
        ("max_epochs", TrainConfig { max_epochs: 11, ..settings() }),
        ("save_minutes", TrainConfig { save_minutes: -1.0, ..settings() }),
        ("save_disk_gib", TrainConfig { save_disk_gib: 0.0, ..settings() }),
        ("batch_size", TrainConfig { batch_size: 0, ..settings() }),
        ("learning_rate", TrainConfig { learning_rate: f64::NAN, ..settings() }),
        ("learning_rate", TrainConfig { learning_rate: 0.0, ..settings() }),
        ("adam_beta1", TrainConfig { adam_beta1: 1.0, ..settings() }),
        ("adam_beta2", TrainConfig { adam_beta2: -0.1, ..settings() }),
        ("adam_epsilon", TrainConfig { adam_epsilon: 0.0, ..settings() }),
        ("weight_decay", TrainConfig { weight_decay: f64::INFINITY, ..settings() }),
        ("max_grad_norm", TrainConfig { max_grad_norm: -1.0, ..settings() }),
        ("warmup_ratio", TrainConfig { warmup_ratio: 1.5, ..settings() }),
    ];
    for (key, settings) in bad {
        let message = refuse(settings);
        assert!(message.contains(&format!("`train.{key}`")), "{key}: {message}");
    }
    let silent = Example { trained: vec![true, false, false], ..row(&[1, 2, 3], 5) };
    let data = [silent];
    let mut trainer = trainer(&model, &TARGETS, &settings(), &data);
    let error = trainer.step(&[&data[0]], 1e-3).unwrap_err();
    assert!(matches!(error, Error::NoTrainedTokens { examples: 1 }), "{error:?}");
    let bare = load(model.path(), None);
    let error = Trainer::new(bare, &settings(), 0.0, &data).unwrap_err();
    assert!(matches!(error, Error::NoAdapter), "{error:?}");
}
