//! What must not matter: how a step is cut, what is recomputed, how many threads there are, who else is in the batch.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

mod common;

use std::path::Path;

use common::tiny_model::{TARGETS, TinyModel, batch, config, specs};
use common::{Engine, examples, load, loss_and_gradients, whole_run};
use tunesmith_data::{Example, Place};
use tunesmith_model::peft::{self, LoraConfig, PeftConfig};
use tunesmith_model::{Keep, ModelCard};
use tunesmith_testkit::spec::{Family, ModelSpec};
use tunesmith_testkit::tensors::{assert_close, assert_close_to_max};
use tunesmith_testkit::tiny::Random;
use tunesmith_train::{
    Epochs, Event, LrScheduler, Observer, Recompute, Summary, TrainConfig, Trainer, epoch_order, train,
};

const KEEPS: [Keep; 4] = [Keep::All, Keep::NoMlp, Keep::Residuals, Keep::Input];
const RECOMPUTES: [Recompute; 4] = [Recompute::None, Recompute::Mlp, Recompute::Min2, Recompute::Min];

/// Rows of unequal length with a random part of their tokens trained.
fn rows(spec: &ModelSpec, count: usize, longest: usize, seed: u64) -> Vec<Example> {
    let mut random = Random::new(seed);
    let row = |line: usize| {
        let len = 3 + random.below(longest - 3);
        let ids = (0..len).map(|_| random.below(spec.vocab_size) as u32).collect();
        let mut trained: Vec<bool> = (0..len).map(|t| t > 0 && random.uniform() < 0.5).collect();
        trained[len / 2] = true;
        Example { ids, trained, place: Place::line(line) }
    };
    (1..=count).map(row).collect()
}

#[derive(Default)]
struct Events(Vec<Event>);

impl Observer for Events {
    fn event(&mut self, event: &Event) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.push(event.clone());
        Ok(())
    }
}

impl Events {
    /// Loss, tokens and trained tokens of every step.
    fn steps(&self) -> Vec<(f64, usize, usize)> {
        let step = |e: &Event| match e {
            Event::Step { loss, tokens, trained_tokens, .. } => Some((*loss, *tokens, *trained_tokens)),
            _ => None,
        };
        self.0.iter().filter_map(step).collect()
    }

    fn evaluations(&self) -> Vec<(usize, f64)> {
        let evaluation = |e: &Event| match e {
            Event::Evaluation { step, loss, .. } => Some((*step, *loss)),
            _ => None,
        };
        self.0.iter().filter_map(evaluation).collect()
    }
}

/// A whole run from a fresh adapter.
fn run(
    model: &TinyModel,
    train_rows: &[Example],
    validation: &[Example],
    settings: &TrainConfig,
    dropout: f32,
) -> (Engine, Events, Summary) {
    let mut engine = common::load(model.path(), Some(&config(&TARGETS, 3, 6.0)));
    engine.initialize(settings.seed).unwrap();
    let all = train_rows.iter().chain(validation);
    let mut trainer = Trainer::new(engine, settings, dropout, all).unwrap();
    let mut events = Events::default();
    let summary = train(&mut trainer, whole_run(train_rows, validation, settings), &mut events).unwrap();
    (trainer.into_decoder(), events, summary)
}

fn settings() -> TrainConfig {
    TrainConfig {
        epochs: Epochs::Fixed(2),
        batch_size: 8,
        learning_rate: 5e-3,
        lr_scheduler_type: LrScheduler::Cosine,
        warmup_steps: Some(0),
        evals_per_epoch: 0,
        ..TrainConfig::default()
    }
}

/// Eight rows at once, one by one, and in uneven pieces. Sums run in another order, so the losses of 8 steps differ by
/// the noise of f32 and `AdamW` carries that into the adapter.
#[test]
fn micro_batches_do_not_change_the_run() {
    let (mut loss, mut adapter) = (0f64, 0f32);
    for spec in specs() {
        let model = TinyModel::new(spec, 31);
        let data = rows(&model.spec, 30, 20, 5);
        let with = |micro_batch_size| {
            let (engine, events, _) =
                run(&model, &data, &[], &TrainConfig { micro_batch_size, ..settings() }, 0.0);
            (engine.parameters().unwrap(), events.steps())
        };
        let (whole, steps) = with(8);
        assert_eq!(steps.len(), 8);
        for micro in [1, 3, 0] {
            let (cut, cut_steps) = with(micro);
            for (a, b) in steps.iter().zip(&cut_steps) {
                loss = loss.max((a.0 - b.0).abs());
                assert!(loss < 2e-6, "micro-batches of {micro}: {} and {}", a.0, b.0);
                assert_eq!((a.1, a.2), (b.1, b.2));
            }
            adapter = adapter.max(assert_close_to_max("adapter", &cut, &whole, 1e-4).unwrap());
        }
    }
    eprintln!("micro-batches: losses {loss:.0e}, adapter {adapter:.0e} of its largest value");
}

#[test]
fn recomputation_changes_no_bit() {
    for spec in specs() {
        let model = TinyModel::new(spec, 7);
        let (mut engine, _) = model.with_random_lora(&TARGETS, 3, 6.0);
        let data = examples(&batch(&model.spec, 3, 14, false, 9), 1);
        let want = loss_and_gradients(&mut engine, &data, Keep::All);
        for keep in KEEPS {
            assert_eq!(loss_and_gradients(&mut engine, &data, keep), want, "{keep:?}");
        }
        // The same through a run with dropout, whose masks a recomputed block has to draw again.
        let data = rows(&model.spec, 12, 16, 3);
        let with = |recompute| {
            let (engine, events, _) = run(&model, &data, &[], &TrainConfig { recompute, ..settings() }, 0.1);
            (engine.parameters().unwrap(), events.steps())
        };
        let want = with(Recompute::None);
        for recompute in RECOMPUTES {
            assert_eq!(with(recompute), want, "{recompute:?}");
        }
    }
}

/// Blocks may keep different things.
#[test]
fn blocks_may_keep_different_things() {
    let model = TinyModel::new(specs().remove(3), 7);
    let (mut engine, _) = model.with_random_lora(&TARGETS, 3, 6.0);
    let data = examples(&batch(&model.spec, 3, 14, false, 9), 1);
    let (_, want) = loss_and_gradients(&mut engine, &data, Keep::All);
    let step = common::training_batch(&data);
    for mixed in [
        [Keep::All, Keep::Input, Keep::Residuals],
        [Keep::Input, Keep::NoMlp, Keep::All],
        [Keep::Residuals, Keep::All, Keep::NoMlp],
    ] {
        let mut workspace = engine.training_workspace(step.tokens(), &mixed, false).unwrap();
        let mut got = vec![0f32; want.len()];
        let weight = 1.0 / step.rows.len() as f32;
        engine.loss_and_gradients(&mut workspace, &step, weight, None, &mut got).unwrap();
        assert_eq!(got, want, "{mixed:?}");
    }
}

/// The bytes of the saved adapter.
fn saved(engine: &Engine, lora: LoraConfig, dir: &Path) -> Vec<u8> {
    let values = engine.parameters().unwrap();
    let config = PeftConfig { base_model_name_or_path: None, revision: None, lora };
    let card = ModelCard { name: "test".into(), base_model: "base".into(), facts: Vec::new() };
    peft::save(dir, &config, &engine.layout().tensors(&values), None, &card).unwrap();
    std::fs::read(dir.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_seed_gives_the_same_adapter_bytes_every_time() {
    let model = TinyModel::new(specs().remove(2), 7);
    let data = rows(&model.spec, 21, 16, 3);
    let temp = tempfile::tempdir().unwrap();
    let bytes = |name: &str, seed| {
        let (engine, ..) = run(&model, &data, &[], &TrainConfig { seed, ..settings() }, 0.1);
        saved(&engine, config(&TARGETS, 3, 6.0), &temp.path().join(name))
    };
    let once = bytes("once", 11);
    assert_eq!(once, bytes("again", 11));
    assert_ne!(once, bytes("other", 12));
}

/// Large enough that every kernel splits its work. Equal bits on one thread, two, and more than there are cores.
#[test]
fn the_number_of_threads_changes_no_bit() {
    let spec = ModelSpec {
        vocab_size: 1031,
        hidden_size: 144,
        intermediate_size: 368,
        num_attention_heads: 6,
        num_key_value_heads: 3,
        head_dim: 24,
        family: Family::Mistral,
        sliding_window: Some(50),
        ..ModelSpec::tiny()
    };
    let model = TinyModel::new(spec, 3);
    let data = rows(&model.spec, 6, 220, 8);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let settings = TrainConfig { batch_size: 3, evals_per_epoch: 1, ..settings() };
            let (engine, events, _) = run(&model, &data, &data[..2], &settings, 0.05);
            (engine.parameters().unwrap(), events.steps(), events.evaluations())
        })
    };
    let want = on(1);
    for threads in [2, 5] {
        assert_eq!(on(threads), want, "{threads} threads");
    }
}

/// A document's losses are its own: alone, among others, and whatever the others say.
#[test]
fn documents_of_a_batch_do_not_see_each_other() {
    for spec in specs() {
        let model = TinyModel::new(spec, 3);
        let (mut engine, _) = model.with_random_lora(&TARGETS, 3, 6.0);
        let mut data = rows(&model.spec, 3, 24, 6);
        for row in &mut data {
            row.trained[1..].fill(true);
        }
        let spans: Vec<usize> = data.iter().map(|r| r.ids.len() - 1).collect();
        let (before, _) = loss_and_gradients(&mut engine, &data, Keep::All);
        let (first, rest) = before.split_at(spans[0]);
        let (second, third) = rest.split_at(spans[1]);
        for (row, losses) in data.iter().zip([first, second, third]) {
            let (alone, _) = loss_and_gradients(&mut engine, std::slice::from_ref(row), Keep::All);
            assert_close("alone", &alone, losses, 1e-6).unwrap();
        }
        // Every token of the second document changes, and its length stays.
        let vocab = model.spec.vocab_size as u32;
        data[1].ids.iter_mut().for_each(|id| *id = (*id + 1) % vocab);
        let (after, _) = loss_and_gradients(&mut engine, &data, Keep::All);
        let (first_after, rest) = after.split_at(spans[0]);
        let (second_after, third_after) = rest.split_at(spans[1]);
        assert_eq!((first, third), (first_after, third_after));
        assert!(second.iter().zip(second_after).all(|(a, b)| a != b));
    }
}

/// Rows of different lengths count by their tokens, not by row or by micro-batch.
#[test]
fn evaluation_is_weighted_by_tokens() {
    let model = TinyModel::new(specs().remove(1), 3);
    let data = rows(&model.spec, 4, 10, 1);
    let validation = rows(&model.spec, 7, 30, 2);
    let settings =
        TrainConfig { evals_per_epoch: 1, epochs: Epochs::Fixed(1), micro_batch_size: 2, ..settings() };
    let (mut engine, events, summary) = run(&model, &data, &validation, &settings, 0.0);
    let (mut sum, mut tokens) = (0f64, 0);
    for row in &validation {
        let (losses, _) = loss_and_gradients(&mut engine, std::slice::from_ref(row), Keep::All);
        sum += losses.iter().map(|l| f64::from(*l)).sum::<f64>();
        tokens += losses.len();
    }
    let want = sum / tokens as f64;
    let evaluations = events.evaluations();
    assert_eq!(evaluations.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1]);
    assert!((evaluations[1].1 - want).abs() < 1e-6, "{} and {want}", evaluations[1].1);
    assert_eq!(summary.validation_loss, Some(evaluations[1].1));
    assert_eq!(summary.initial_validation_loss, Some(evaluations[0].1));
}

/// 11 rows in batches of 4: three steps an epoch, the last with three rows, every row once.
#[test]
fn the_last_batch_of_an_epoch_is_used() {
    let model = TinyModel::new(specs().remove(0), 3);
    let data = rows(&model.spec, 11, 20, 12);
    let settings = TrainConfig { batch_size: 4, seed: 3, ..settings() };
    let (_, events, summary) = run(&model, &data, &[], &settings, 0.0);
    let mut want = Vec::new();
    for epoch in 0..2 {
        for chunk in epoch_order(3, epoch, 11).chunks(4) {
            let tokens: usize = chunk.iter().map(|r| data[*r].ids.len()).sum();
            want.push((tokens, chunk.iter().map(|r| data[*r].trained_tokens()).sum::<usize>()));
        }
    }
    let got: Vec<(usize, usize)> = events.steps().iter().map(|s| (s.1, s.2)).collect();
    assert_eq!(got, want);
    assert_eq!((summary.steps, summary.total_steps, summary.stopped), (6, 6, false));
    // The loss of the run is that of its last epoch, by tokens.
    let last = &events.steps()[3..];
    let (sum, tokens) = last.iter().fold((0.0, 0), |(s, n), step| (s + step.0 * step.2 as f64, n + step.2));
    assert_eq!(summary.train_loss, Some(sum / tokens as f64));
    assert_eq!(summary.tokens, 2 * data.iter().map(|r| r.ids.len()).sum::<usize>());
}

/// What is learned is learned: the loss of a text trained on again and again falls far below its start.
#[test]
fn training_lowers_the_loss() {
    let model = TinyModel::new(specs().remove(0), 3);
    let data = rows(&model.spec, 4, 12, 12);
    let settings = TrainConfig {
        epochs: Epochs::Fixed(10),
        batch_size: 1,
        learning_rate: 2e-2,
        lr_scheduler_type: LrScheduler::Constant,
        evals_per_epoch: 1,
        ..settings()
    };
    let (_, events, _) = run(&model, &data, &data, &settings, 0.0);
    let evaluations = events.evaluations();
    assert_eq!(evaluations.len(), 11);
    let (first, last) = (evaluations[0].1, evaluations[10].1);
    assert!(last < 0.2 * first, "{first} to {last}");
}

/// Without an output projection nothing of a block's attention reaches the loss, and the run says so once.
#[test]
fn an_update_that_no_loss_reaches_is_warned_of() {
    let whole = TinyModel::new(specs().remove(0), 3);
    let mut weights = whole.weights.clone();
    weights.get_mut("model.layers.0.self_attn.o_proj.weight").unwrap().data.fill(0.0);
    let cut = TinyModel::with_weights(whole.spec.clone(), weights);
    for (model, expected) in [(&whole, 0), (&cut, 1)] {
        let data = rows(&model.spec, 6, 10, 12);
        let mut engine = load(model.path(), Some(&config(&["q_proj"], 2, 4.0)));
        engine.initialize(0).unwrap();
        let mut trainer = Trainer::new(engine, &settings(), 0.0, &data).unwrap();
        let mut events = Events(Vec::new());
        train(&mut trainer, whole_run(&data, &[], &settings()), &mut events).unwrap();
        let warnings: Vec<&String> = events
            .0
            .iter()
            .filter_map(|e| if let Event::Warning { message } = e { Some(message) } else { None })
            .collect();
        assert_eq!(warnings.len(), expected, "{warnings:?}");
        assert!(
            warnings.iter().all(|w| w.contains("1 of") && w.contains("layers.0.self_attn.q_proj")),
            "{warnings:?}"
        );
    }
}
