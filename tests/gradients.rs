//! Every gradient of the engine against an autograd oracle, on shapes chosen to be awkward.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

mod common;

use common::tiny_model::{TARGETS, TinyModel, batch, config, specs};
use common::{Engine, examples, loss_and_gradients, mean, named, padded_logits, training_batch};
use tunesmith_data::Example;
use tunesmith_model::peft::{Layers, LoraConfig, ModuleNames, Patterns, TargetModules};
use tunesmith_model::{DropoutStep, Keep};
use tunesmith_ops::{Kernels, RefKernels};
use tunesmith_testkit::adapter::LoraModule;
use tunesmith_testkit::cases::Batch;
use tunesmith_testkit::oracle::{Oracle, Precision};
use tunesmith_testkit::spec::ModelSpec;
use tunesmith_testkit::tensors::{Tensor, assert_all_close_to_max, assert_close_to_max, assert_logits_close};
use tunesmith_testkit::tiny::{self, Random};
use tunesmith_train::{TrainConfig, Trainer};

/// Of the largest entry of a gradient: what f32 sums of these lengths cost.
const GRADS: f32 = 1e-4;
const LOGITS: f32 = 1e-4;
const LOSS: f64 = 1e-5;
const KEEPS: [Keep; 4] = [Keep::All, Keep::NoMlp, Keep::Residuals, Keep::Input];

struct Judge {
    model: TinyModel,
    oracle: Oracle,
}

impl Judge {
    fn new(spec: ModelSpec) -> Self {
        let model = TinyModel::new(spec.clone(), 5);
        let oracle = Oracle::new(spec, &model.weights, Precision::F64).unwrap();
        Self { model, oracle }
    }

    /// Loss, logits and all gradients of `engine` against the oracle's; returns the worst gradient.
    fn check(&self, what: &str, engine: &mut Engine, lora: &[LoraModule], batch: &Batch, keep: Keep) -> f32 {
        let want = self.oracle.run(lora, batch).unwrap();
        let logits = padded_logits(engine, batch);
        assert_logits_close(what, &logits, &want.logits, &batch.attention_mask, LOGITS).unwrap();
        let (losses, flat) = loss_and_gradients(engine, &examples(batch, 1), keep);
        assert_eq!(losses.len(), want.label_tokens, "{what}");
        let loss = mean(&losses);
        assert!((loss - want.loss).abs() <= LOSS, "{what}: loss {loss}, not {}", want.loss);
        let got = named(engine.layout(), &flat);
        assert_all_close_to_max(what, &got, &want.grads, GRADS).unwrap().0
    }
}

/// All 127 ways to choose targets; model, rank, length, labels and recomputation change from one to the next.
#[test]
fn every_subset_of_targets_agrees_with_the_oracle() {
    let judges: Vec<Judge> = specs().into_iter().map(Judge::new).collect();
    let mut worst = 0f32;
    for subset in 1..128_usize {
        let targets: Vec<&str> = (0..7).filter(|b| subset >> b & 1 == 1).map(|b| TARGETS[b]).collect();
        let judge = &judges[subset % judges.len()];
        let (rank, len) = (1 + subset % 5, 5 + subset % 8);
        let batch = batch(&judge.model.spec, 1 + subset % 3, len, subset % 2 == 0, subset as u64);
        let (mut engine, lora) = judge.model.with_random_lora(&targets, rank, 6.0);
        let keep = KEEPS[subset / 4 % 4];
        worst = worst.max(judge.check(&format!("{targets:?} {keep:?}"), &mut engine, &lora, &batch, keep));
    }
    eprintln!("gradients of 127 subsets: {worst:.0e} of the largest entry");
}

/// Every model with every way to keep activations, for all and for some labels, in short and in long texts.
#[test]
fn every_model_agrees_with_the_oracle() {
    for (s, spec) in specs().into_iter().enumerate() {
        let judge = Judge::new(spec);
        let (mut engine, lora) = judge.model.with_random_lora(&TARGETS, 3, 6.0);
        for (i, len) in [2, 3, 7, 33, 70].into_iter().enumerate() {
            for all_labels in [true, false] {
                let batch = batch(&judge.model.spec, 2, len, all_labels, i as u64);
                let what = format!("model {s}, length {len}, all labels: {all_labels}");
                judge.check(&what, &mut engine, &lora, &batch, KEEPS[(s + i) % 4]);
            }
        }
    }
}

/// Rows that are mostly nothing: no label at all, a label on the first token alone (which nothing predicts), on the
/// last alone, a row of one token.
#[test]
fn rows_with_hardly_a_label_agree_with_the_oracle() {
    for spec in specs() {
        let judge = Judge::new(spec);
        let (mut engine, lora) = judge.model.with_random_lora(&TARGETS, 2, 4.0);
        let mut batch = batch(&judge.model.spec, 5, 9, true, 3);
        batch.labels.fill(-100);
        batch.labels[9] = batch.input_ids[9];
        batch.attention_mask[18..27].fill(1);
        batch.labels[26] = batch.input_ids[26];
        batch.attention_mask[28..36].fill(0);
        batch.labels[36 + 4] = batch.input_ids[36 + 4];
        batch.labels[36 + 1] = batch.input_ids[36 + 1];
        judge.check("sparse", &mut engine, &lora, &batch, Keep::All);
    }
}

/// The adapter of `config` with its own rank and scale at every module, as `value_of` says.
fn by_module(spec: &ModelSpec, value_of: impl Fn(&str) -> Option<(usize, f64)>) -> Vec<LoraModule> {
    let mut random = Random::new(23);
    let mut fill = |shape: [usize; 2], size: f64| {
        let data = (0..shape[0] * shape[1]).map(|_| (size * random.normal()) as f32).collect();
        Tensor::new(shape.to_vec(), data).unwrap()
    };
    let modules = spec.linears().into_iter().filter_map(|(module, out, input)| {
        let (r, alpha) = value_of(&module)?;
        let (a, b) = (fill([r, input], 0.2), fill([out, r], 0.2));
        Some(LoraModule { module, a, b, scale: (alpha / r as f64) as f32 })
    });
    modules.collect()
}

#[test]
fn a_part_of_the_layers_and_patterns_agree_with_the_oracle() {
    let judge = Judge::new(specs().remove(3));
    let spec = &judge.model.spec;
    assert_eq!(spec.num_hidden_layers, 3);
    let batch = batch(spec, 2, 11, false, 8);
    let layer = |m: &str| m.split('.').nth(2).unwrap().parse::<usize>().unwrap();
    for layers in [vec![0], vec![1], vec![2], vec![0, 2], vec![1, 2]] {
        let lora = by_module(spec, |m| layers.contains(&layer(m)).then_some((4, 8.0)));
        let config = LoraConfig {
            layers_to_transform: Some(Layers::Many(layers.clone())),
            ..config(&TARGETS, 4, 8.0)
        };
        let mut engine = judge.model.engine(&config, &lora);
        for keep in KEEPS {
            judge.check(&format!("layers {layers:?} {keep:?}"), &mut engine, &lora, &batch, keep);
        }
    }
    let patterns = LoraConfig {
        rank_pattern: Patterns::from(vec![(r"layers\.1\.mlp\.up_proj".into(), 7), ("q_proj".into(), 3)]),
        alpha_pattern: Patterns::from(vec![
            ("v_proj".into(), 32.0),
            (r"layers\.0\.mlp\.down_proj".into(), 1.0),
        ]),
        ..config(&TARGETS, 5, 10.0)
    };
    let lora = by_module(spec, |m| {
        let rank = if m == "model.layers.1.mlp.up_proj" {
            7
        } else if m.ends_with("q_proj") {
            3
        } else {
            5
        };
        let alpha = if m.ends_with("v_proj") {
            32.0
        } else if m == "model.layers.0.mlp.down_proj" {
            1.0
        } else {
            10.0
        };
        Some((rank, alpha))
    });
    let mut engine = judge.model.engine(&patterns, &lora);
    judge.check("patterns", &mut engine, &lora, &batch, Keep::All);
    // A different choice of linears in every layer: q in the first, o and down in the second, nothing in the third.
    let chosen = r".*(layers\.0\.self_attn\.q|layers\.1\.self_attn\.o|layers\.1\.mlp\.down)_proj";
    let uneven = LoraConfig {
        target_modules: TargetModules::Named(ModuleNames::Regex(chosen.into())),
        ..config(&[], 2, 6.0)
    };
    let lora = by_module(spec, |m| {
        let parts = ["layers.0.self_attn.q_proj", "layers.1.self_attn.o_proj", "layers.1.mlp.down_proj"];
        parts.iter().any(|p| m.ends_with(p)).then_some((2, 6.0))
    });
    let mut engine = judge.model.engine(&uneven, &lora);
    for keep in KEEPS {
        judge.check(&format!("uneven {keep:?}"), &mut engine, &lora, &batch, keep);
    }
}

/// A rank larger than the padding of the rank columns, and larger than the layers themselves.
#[test]
fn large_ranks_agree_with_the_oracle() {
    let judge = Judge::new(specs().remove(0));
    let batch = batch(&judge.model.spec, 2, 9, false, 4);
    for rank in [16, 17, 33] {
        let (mut engine, lora) = judge.model.with_random_lora(&TARGETS, rank, 16.0);
        judge.check(&format!("rank {rank}"), &mut engine, &lora, &batch, Keep::All);
    }
}

#[test]
fn documents_in_one_batch_add_up_to_documents_alone() {
    for spec in specs() {
        let model = TinyModel::new(spec, 9);
        let (mut engine, _) = model.with_random_lora(&TARGETS, 3, 6.0);
        let rows = examples(&batch(&model.spec, 4, 13, false, 2), 1);
        let (losses, together) = loss_and_gradients(&mut engine, &rows, Keep::All);
        let mut sum = vec![0f64; together.len()];
        let mut alone = Vec::new();
        for row in &rows {
            let (own, gradient) = loss_and_gradients(&mut engine, std::slice::from_ref(row), Keep::All);
            let share = own.len() as f64 / losses.len() as f64;
            sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += share * f64::from(*g));
            alone.extend(own);
        }
        assert_close_to_max("losses", &losses, &alone, 1e-6).unwrap();
        let sum: Vec<f32> = sum.into_iter().map(|s| s as f32).collect();
        assert_close_to_max("gradients", &together, &sum, 1e-5).unwrap();
    }
}

/// Loss and flat gradient with dropout; mean over the labels of all rows.
fn with_dropout(engine: &Engine, rows: &[Example], dropout: Option<DropoutStep>) -> (f64, Vec<f32>) {
    let batch = training_batch(rows);
    let keep = vec![Keep::NoMlp; engine.config().num_hidden_layers];
    let mut workspace = engine.training_workspace(batch.tokens(), &keep, true).unwrap();
    let mut gradients = RefKernels.zeros_full(engine.layout().len()).unwrap();
    let weight = 1.0 / batch.rows.len() as f32;
    let losses = engine.loss_and_gradients(&mut workspace, &batch, weight, dropout, &mut gradients).unwrap();
    (mean(&losses), gradients)
}

/// The slope of the loss along a direction, with the mask held still: along its own gradient and along a random one,
/// for every A and every B on its own. Two step sizes cancel the cubic term.
#[test]
fn dropout_gradients_are_the_slopes_of_the_loss() {
    for spec in specs() {
        let model = TinyModel::new(spec, 13);
        let (mut engine, _) = model.with_random_lora(&TARGETS, 3, 6.0);
        engine.prepare_positions(16);
        let rows = examples(&batch(&model.spec, 3, 10, false, 21), 1);
        let dropout = Some(DropoutStep { p: 0.3, seed: 77, step: 4 });
        let start = engine.parameters().unwrap();
        let (_, gradient) = with_dropout(&engine, &rows, dropout);
        let (_, plain) = with_dropout(&engine, &rows, None);
        assert_close_to_max("dropout changes the gradient", &gradient, &plain, 0.05).unwrap_err();
        let ranges: Vec<_> =
            engine.layout().slots().iter().flat_map(|s| [s.a.clone(), s.b.clone()]).collect();
        let mut random = Random::new(1);
        for range in ranges {
            let own = &gradient[range.clone()];
            let size = norm(own);
            assert!(size > 0.0, "a gradient that is zero shows nothing");
            let drawn: Vec<f32> = own.iter().map(|_| random.normal() as f32).collect();
            for direction in [own.to_vec(), drawn] {
                let length = norm(&direction);
                let mut slope = |h: f64| {
                    let mut end = |h: f64| {
                        let mut moved = start.clone();
                        let part = moved[range.clone()].iter_mut().zip(&direction);
                        part.for_each(|(p, d)| *p += (h * f64::from(*d) / length) as f32);
                        engine.set_parameters(&moved).unwrap();
                        with_dropout(&engine, &rows, dropout).0
                    };
                    (end(h) - end(-h)) / (2.0 * h)
                };
                let seen = (4.0 * slope(0.02) - slope(0.04)) / 3.0;
                let expected: f64 =
                    own.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum::<f64>()
                        / length;
                assert!(
                    (seen - expected).abs() <= 0.01 * size + 2e-5,
                    "{range:?}: slope {seen:e}, gradient {expected:e} (norm {size:e})"
                );
            }
        }
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// Vanishing dropout is no dropout; an equal step has an equal mask, another step, seed or row another one.
#[test]
fn dropout_masks_belong_to_seed_step_and_row() {
    let model = TinyModel::new(specs().remove(0), 13);
    let (mut engine, _) = model.with_random_lora(&TARGETS, 3, 6.0);
    engine.prepare_positions(16);
    let rows = examples(&batch(&model.spec, 3, 10, false, 21), 1);
    let step = DropoutStep { p: 0.2, seed: 1, step: 1 };
    let (_, plain) = with_dropout(&engine, &rows, None);
    let (_, hardly) = with_dropout(&engine, &rows, Some(DropoutStep { p: 1e-9, ..step }));
    assert_close_to_max("hardly any dropout", &hardly, &plain, 1e-5).unwrap();
    let run = |rows: &[Example], step| with_dropout(&engine, rows, Some(step));
    let (loss, gradient) = run(&rows, step);
    assert_eq!(run(&rows, step), (loss, gradient.clone()));
    assert_ne!(run(&rows, DropoutStep { step: 2, ..step }).0, loss);
    assert_ne!(run(&rows, DropoutStep { seed: 2, ..step }).0, loss);
    // Twice the same text: two rows, two masks.
    let twins = [rows[0].clone(), rows[0].clone()];
    let batch = training_batch(&twins);
    let keep = vec![Keep::All; engine.config().num_hidden_layers];
    let mut workspace = engine.training_workspace(batch.tokens(), &keep, true).unwrap();
    let mut gradients = RefKernels.zeros_full(engine.layout().len()).unwrap();
    let losses = engine.loss_and_gradients(&mut workspace, &batch, 1.0, Some(step), &mut gradients).unwrap();
    let (one, two) = losses.split_at(losses.len() / 2);
    assert_ne!(one, two);
}

/// The mask of a row does not know in which micro-batch the row is, nor which other rows are with it.
#[test]
fn dropout_does_not_depend_on_the_micro_batches() {
    for (s, spec) in specs().into_iter().enumerate() {
        let model = TinyModel::new(spec, 13);
        let rows = examples(&batch(&model.spec, 8, 12, false, 5), 1);
        let lora = tiny::lora(&model.spec, &TARGETS, 3, 6.0, 17).unwrap();
        let run = |micro_batch_size: usize| {
            let config = TrainConfig { batch_size: 8, micro_batch_size, ..TrainConfig::default() };
            let engine = model.engine(&common::tiny_model::config(&TARGETS, 3, 6.0), &lora);
            let mut trainer = Trainer::new(engine, &config, 0.25, &rows).unwrap();
            let outcome = trainer.accumulate(&rows.iter().collect::<Vec<_>>()).unwrap();
            (outcome.loss, trainer.gradients().unwrap())
        };
        let (loss, gradients) = run(8);
        for micro in [1, 3] {
            let (cut_loss, cut) = run(micro);
            assert!((loss - cut_loss).abs() < 1e-6, "model {s}: {loss} and {cut_loss}");
            assert_close_to_max("gradients", &cut, &gradients, 1e-5).unwrap();
        }
    }
}
