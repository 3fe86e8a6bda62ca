//! One optimizer step by the formulas it is named after, and what a trainer says of each row.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

mod common;

use common::tiny_model::{TARGETS, TinyModel, specs};
use common::{Engine, loss_and_gradients};
use tunesmith_data::{Example, Place};
use tunesmith_model::Keep;
use tunesmith_testkit::tiny::Random;
use tunesmith_train::{TrainConfig, Trainer};

fn rows(vocab: usize, lengths: &[usize]) -> Vec<Example> {
    let mut random = Random::new(71);
    let row = |(i, len): (usize, &usize)| Example {
        ids: (0..*len).map(|_| random.below(vocab) as u32).collect(),
        trained: (0..*len).map(|t| t > len / 3).collect(),
        place: Place::line(i + 1),
    };
    lengths.iter().enumerate().map(row).collect()
}

fn trainer(
    model: &TinyModel,
    config: &TrainConfig,
    dropout: f32,
    data: &[Example],
) -> Trainer<tunesmith_ops::RefKernels> {
    let engine: Engine = model.with_random_lora(&TARGETS, 3, 6.0).0;
    Trainer::new(engine, config, dropout, data).unwrap()
}

/// `AdamW` as in "Decoupled weight decay regularization" (Loshchilov and Hutter, 2019), in f64, on the trainer's own
/// gradients; clipping as `torch.nn.utils.clip_grad_norm_`. The epsilon is large, for otherwise the size of a gradient
/// would hardly show in the first steps.
#[test]
fn steps_follow_adamw_and_clip_only_what_is_too_long() {
    let model = TinyModel::new(specs().remove(0), 5);
    let data = rows(model.spec.vocab_size, &[9, 12, 5, 7]);
    let batch: Vec<&Example> = data.iter().collect();
    let mut probe = trainer(&model, &TrainConfig::default(), 0.0, &data);
    let norm = probe.accumulate(&batch).unwrap().grad_norm;
    for max_grad_norm in [0.0, 0.3 * norm, 1.001 * norm, 1e6] {
        for weight_decay in [0.0, 0.1] {
            let config = TrainConfig {
                batch_size: 4,
                adam_epsilon: 0.05,
                adam_beta1: 0.8,
                adam_beta2: 0.95,
                max_grad_norm,
                weight_decay,
                ..TrainConfig::default()
            };
            let mut trainer = trainer(&model, &config, 0.0, &data);
            let as_f64 = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<f64>>();
            let mut want = as_f64(trainer.decoder().parameters().unwrap());
            let (mut m, mut v) = (vec![0f64; want.len()], vec![0f64; want.len()]);
            for step in 1..=4 {
                let lr = 0.01 * f64::from(step);
                let outcome = trainer.step(&batch, lr).unwrap();
                let gradient = as_f64(trainer.gradients().unwrap());
                let length = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
                assert!((outcome.grad_norm / length - 1.0).abs() < 1e-9);
                let too_long = max_grad_norm > 0.0 && length > max_grad_norm;
                let scale = if too_long { max_grad_norm / (length + 1e-6) } else { 1.0 };
                let got = as_f64(trainer.decoder().parameters().unwrap());
                for i in 0..want.len() {
                    let g = scale * gradient[i];
                    m[i] = 0.8 * m[i] + 0.2 * g;
                    v[i] = 0.95 * v[i] + 0.05 * g * g;
                    let (mean, square) =
                        (m[i] / (1.0 - 0.8f64.powi(step)), v[i] / (1.0 - 0.95f64.powi(step)));
                    want[i] -= lr * weight_decay * want[i] + lr * mean / (square.sqrt() + 0.05);
                    let off = (got[i] - want[i]).abs();
                    assert!(
                        off < 2e-6,
                        "limit {max_grad_norm}, step {step}, {i}: {} and {}",
                        got[i],
                        want[i]
                    );
                }
            }
        }
    }
}

/// The first step of a warm-up has rate 0: it fills the moments and moves nothing.
#[test]
fn a_rate_of_zero_moves_nothing() {
    let model = TinyModel::new(specs().remove(0), 5);
    let data = rows(model.spec.vocab_size, &[9, 12]);
    let config = TrainConfig { weight_decay: 0.5, ..TrainConfig::default() };
    let mut trainer = trainer(&model, &config, 0.0, &data);
    let before = trainer.decoder().parameters().unwrap();
    trainer.step(&data.iter().collect::<Vec<_>>(), 0.0).unwrap();
    assert_eq!(trainer.decoder().parameters().unwrap(), before);
}

/// Each row's own loss and count, in the order asked for, however the rows are cut.
#[test]
fn evaluation_gives_every_row_its_own_loss() {
    for spec in specs() {
        let model = TinyModel::new(spec, 5);
        let mut data = rows(model.spec.vocab_size, &[9, 3, 20, 5, 7, 14, 2]);
        // Nothing to predict in the fourth.
        data[3].trained.fill(false);
        let mut engine = model.with_random_lora(&TARGETS, 3, 6.0).0;
        for micro_batch_size in [0, 1, 2, 3, 7] {
            let config = TrainConfig { batch_size: 7, micro_batch_size, ..TrainConfig::default() };
            // Dropout belongs to training alone.
            let mut trainer = trainer(&model, &config, 0.5, &data);
            let order = [2, 0, 1, 3, 6, 5, 4, 2];
            let asked: Vec<&Example> = order.iter().map(|i| &data[*i]).collect();
            let got = trainer.evaluate(&asked).unwrap();
            for (i, got) in order.into_iter().zip(got) {
                assert_eq!(got.trained_tokens, data[i].trained_tokens());
                if got.trained_tokens == 0 {
                    assert_eq!(got.sum, 0.0);
                    continue;
                }
                let (alone, _) = loss_and_gradients(&mut engine, std::slice::from_ref(&data[i]), Keep::All);
                let want: f64 = alone.iter().map(|l| f64::from(*l)).sum();
                assert!((got.sum - want).abs() < 1e-5, "row {i}: {} and {want}", got.sum);
            }
        }
    }
}

/// Every row of a step has its own dropout mask, also when two say the same.
#[test]
fn rows_of_a_step_have_masks_of_their_own() {
    let model = TinyModel::new(specs().remove(0), 5);
    let data = rows(model.spec.vocab_size, &[12]);
    for micro_batch_size in [0, 1] {
        let config = TrainConfig { batch_size: 2, micro_batch_size, ..TrainConfig::default() };
        let loss = |times: usize, dropout: f32| {
            let both = [data[0].clone(), data[0].clone()];
            let mut trainer = trainer(&model, &config, dropout, &both);
            trainer.accumulate(&both.iter().take(times).collect::<Vec<_>>()).unwrap().loss
        };
        assert!((loss(1, 0.0) - loss(2, 0.0)).abs() < 1e-6);
        assert!((loss(1, 0.3) - loss(2, 0.3)).abs() > 1e-4);
        assert_eq!(loss(2, 0.3), loss(2, 0.3));
    }
}

/// A step or an evaluation given up between micro-batches leaves no trace: what follows has the same bits.
#[test]
fn work_given_up_changes_nothing() {
    let model = TinyModel::new(specs().remove(0), 5);
    let data = rows(model.spec.vocab_size, &[9, 12, 5, 7]);
    let batch: Vec<&Example> = data.iter().collect();
    let config = TrainConfig { batch_size: 4, micro_batch_size: 1, ..TrainConfig::default() };
    let run = |gives_up: bool| {
        let mut trainer = trainer(&model, &config, 0.3, &data);
        let mut outcomes = Vec::new();
        for step in 0..3 {
            for micro_batches in 1..4 {
                let mut left = micro_batches;
                let mut go_on = || {
                    left -= 1;
                    left > 0
                };
                if gives_up && step % 2 == 0 {
                    assert_eq!(trainer.step_while(&batch, 0.01, &mut go_on).unwrap(), None);
                } else if gives_up {
                    assert_eq!(trainer.evaluate_while(&batch, &mut go_on).unwrap(), None);
                }
            }
            outcomes.push(trainer.step(&batch, 0.01).unwrap());
        }
        (outcomes, trainer.decoder().parameters().unwrap())
    };
    assert!(run(true) == run(false));
    // A no after the last micro-batch comes too late: all is done.
    let mut trainer = trainer(&model, &config, 0.0, &data);
    let mut asked = 0;
    let mut at_last = || {
        asked += 1;
        asked < 4
    };
    assert!(trainer.step_while(&batch, 0.01, &mut at_last).unwrap().is_some());
    assert_eq!(asked, 4);
}
