//! The whole decoder on the device's kernels against the same decoder on the CPU's: losses, gradients, optimizer steps,
//! a cache. On the emulator on x86-64 Linux with g++, and with feature `cuda` on a GPU where one is.
//!
//! The device stores activations and frozen weights as bf16. What that costs in a given model is measured beside it: by the
//! CPU's kernels with everything stored rounded. A device may be no further from f32 than a small multiple of that.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::rounded::Rounded;
use common::tiny_model::{TARGETS, TinyModel, batch, config};
use common::{examples, mean, training_batch};
use tunesmith_emulator::{backends, check};
use tunesmith_model::peft::LoadedTensor;
use tunesmith_model::{Checkpoint, Decoder, Keep, ModelConfig};
use tunesmith_ops::{DeviceKernels, Kernels, RefKernels};
use tunesmith_testkit::spec::{Family, ModelSpec};
use tunesmith_testkit::tensors::Tensors;
use tunesmith_testkit::tiny;
use tunesmith_train::{TrainConfig, Trainer};

/// How often what rounding costs the CPU it may cost a device, which also rounds inside operations.
const ROUNDINGS: f64 = 3.0;
/// Largest distance of a mean loss, in nats.
const LOSS: f64 = 5e-3;
/// Largest relative difference of a gradient norm.
const NORM: f64 = 0.01;

fn spec() -> ModelSpec {
    ModelSpec { hidden_size: 32, head_dim: 8, ..ModelSpec::tiny() }
}

fn windowed() -> ModelSpec {
    ModelSpec {
        family: Family::Mistral,
        sliding_window: Some(5),
        num_key_value_heads: 1,
        tie_word_embeddings: true,
        ..spec()
    }
}

/// A random model whose weights bf16 holds exactly. A tied embedding is made small: as a head, a random one gives logits
/// so large that their own rounding decides the loss.
fn model(spec: ModelSpec) -> TinyModel {
    let small = if spec.tie_word_embeddings { 0.125 } else { 1.0 };
    let weights: Tensors = tiny::weights(&spec, 5)
        .unwrap()
        .into_iter()
        .map(|(name, mut tensor)| {
            let factor = if name == "model.embed_tokens.weight" { small } else { 1.0 };
            tensor.data.iter_mut().for_each(|v| *v = check::round_bf16(*v * factor));
            (name, tensor)
        })
        .collect();
    TinyModel::with_weights(spec, weights)
}

/// The model on `k` with a random adapter on all seven linears.
fn decoder<K: Kernels>(k: K, model: &TinyModel) -> Decoder<K> {
    let lora = config(&TARGETS, 4, 8.0);
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let base = ModelConfig::from_dir(model.path()).unwrap();
    let mut decoder = Decoder::load(k, base, &checkpoint, Some(&lora), &mut |_, _| ()).unwrap();
    let modules = tiny::lora(&model.spec, &TARGETS, 4, 8.0, 17).unwrap();
    let tensors: Vec<LoadedTensor> = modules
        .iter()
        .flat_map(|m| [(m.name_a(), &m.a), (m.name_b(), &m.b)])
        .map(|(key, t)| LoadedTensor { key, shape: t.shape.clone(), values: t.data.clone() })
        .collect();
    decoder.set_adapter(model.path(), &tensors).unwrap();
    decoder.prepare_positions(32);
    decoder
}

/// Losses and the flat gradient of a ragged batch.
fn losses_and_gradient<K: Kernels>(k: K, model: &TinyModel, keep: Keep) -> (Vec<f32>, Vec<f32>) {
    let decoder = decoder(k, model);
    let rows = examples(&batch(&model.spec, 3, 21, false, 9), 1);
    let batch = training_batch(&rows);
    let keep = vec![keep; decoder.config().num_hidden_layers];
    let mut workspace = decoder.training_workspace(batch.tokens(), &keep, false).unwrap();
    let mut gradients = decoder.kernels().zeros_full(decoder.layout().len()).unwrap();
    let weight = 1.0 / batch.rows.len() as f32;
    let losses = decoder.loss_and_gradients(&mut workspace, &batch, weight, None, &mut gradients).unwrap();
    (losses[..batch.rows.len()].to_vec(), decoder.kernels().read_full(&gradients).unwrap())
}

fn norm(a: &[f32]) -> f64 {
    a.iter().map(|&a| f64::from(a).powi(2)).sum::<f64>().sqrt()
}

fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    let want: Vec<f64> = want.iter().copied().map(f64::from).collect();
    check::relative_l2(got, &want)
}

#[test]
fn losses_and_every_gradient_agree_with_the_cpu() {
    for spec in [spec(), windowed()] {
        let model = model(spec);
        let (want_losses, want) = losses_and_gradient(RefKernels, &model, Keep::All);
        let (near_losses, near) = losses_and_gradient(Rounded, &model, Keep::All);
        let layout = decoder(RefKernels, &model);
        let tensors = |flat: &[f32]| -> Vec<(String, Vec<f32>)> {
            layout.layout().tensors(flat).into_iter().map(|t| (t.key.clone(), t.values.to_vec())).collect()
        };
        let (want_tensors, near_tensors) = (tensors(&want), tensors(&near));
        backends!(|d| {
            let (losses, got) = losses_and_gradient(DeviceKernels::new(d), &model, Keep::All);
            assert!(
                relative_l2(&losses, &want_losses) <= ROUNDINGS * relative_l2(&near_losses, &want_losses)
            );
            let gap = (mean(&losses) - mean(&want_losses)).abs();
            assert!(gap <= LOSS, "a mean loss {gap} away from the CPU's");
            for (((name, got), (_, want)), (_, near)) in
                tensors(&got).iter().zip(&want_tensors).zip(&near_tensors)
            {
                let (far, rounding) = (relative_l2(got, want), relative_l2(near, want));
                assert!(
                    far <= ROUNDINGS * rounding,
                    "{name}: {far:.1e}, where rounding costs {rounding:.1e}"
                );
            }
            assert!(
                (norm(&got) / norm(&want) - 1.0).abs() <= NORM,
                "norm {} for {}",
                norm(&got),
                norm(&want)
            );
        });
    }
}

#[test]
fn recomputing_gives_the_same_bits_on_a_device() {
    let model = model(spec());
    backends!(|d| {
        let d = Arc::new(d);
        let kept = losses_and_gradient(DeviceKernels::shared(Arc::clone(&d)), &model, Keep::All);
        for keep in [Keep::NoMlp, Keep::Residuals, Keep::Input] {
            let again = losses_and_gradient(DeviceKernels::shared(Arc::clone(&d)), &model, keep);
            assert!(kept == again, "{keep:?} changes the result");
        }
    });
}

#[test]
fn optimizer_steps_follow_the_cpu() {
    fn run<K: Kernels>(k: K, model: &TinyModel) -> Vec<(f64, f64)> {
        let rows = examples(&batch(&model.spec, 4, 17, true, 3), 1);
        let settings = TrainConfig { batch_size: rows.len(), micro_batch_size: 2, ..TrainConfig::default() };
        let mut trainer = Trainer::new(decoder(k, model), &settings, 0.0, &rows).unwrap();
        let rows: Vec<_> = rows.iter().collect();
        let mut steps: Vec<_> = (0..4).map(|_| trainer.step(&rows, 5e-3).unwrap()).collect();
        steps.push(trainer.accumulate(&rows).unwrap());
        steps.iter().map(|s| (s.loss, s.grad_norm)).collect()
    }
    let model = model(spec());
    let want = run(RefKernels, &model);
    assert!(want[4].0 < want[0].0 - 0.1, "nothing is learnt: {want:?}");
    backends!(|d| {
        let got = run(DeviceKernels::new(d), &model);
        for (got, want) in got.iter().zip(&want) {
            assert!((got.0 - want.0).abs() <= LOSS, "loss {} where the CPU has {}", got.0, want.0);
            assert!((got.1 / want.1 - 1.0).abs() <= NORM, "norm {} where the CPU has {}", got.1, want.1);
        }
    });
}

#[test]
fn dropout_drops_the_same_values_on_a_device() {
    fn run<K: Kernels>(k: K, model: &TinyModel) -> f64 {
        let rows = examples(&batch(&model.spec, 2, 15, false, 3), 1);
        let settings = TrainConfig { batch_size: rows.len(), ..TrainConfig::default() };
        let mut trainer = Trainer::new(decoder(k, model), &settings, 0.3, &rows).unwrap();
        let rows: Vec<_> = rows.iter().collect();
        trainer.step(&rows, 1e-3).unwrap().loss
    }
    let model = model(spec());
    let want = run(RefKernels, &model);
    backends!(|d| {
        let got = run(DeviceKernels::new(d), &model);
        assert!((got - want).abs() <= LOSS, "loss {got} where the CPU has {want}");
    });
}

#[test]
fn a_cache_gives_the_logits_of_the_whole_text_on_a_device() {
    fn whole<K: Kernels>(decoder: &Decoder<K>, ids: &[u32]) -> Vec<f32> {
        let batch = tunesmith_model::Batch::for_logits(&[ids]);
        let mut workspace = decoder.evaluation_workspace(ids.len()).unwrap();
        decoder.logits(&mut workspace, &batch).unwrap()
    }
    let model = model(windowed());
    let ids: Vec<u32> = (0..14).map(|i| 3 + (i * 7) % 30).collect();
    let want = whole(&decoder(RefKernels, &model), &ids);
    let allowed = ROUNDINGS * relative_l2(&whole(&decoder(Rounded, &model), &ids), &want);
    // What that is worth: a window of one key less is far outside it.
    let other = self::model(ModelSpec { sliding_window: Some(4), ..windowed() });
    assert!(relative_l2(&whole(&decoder(RefKernels, &other), &ids), &want) > 3.0 * allowed);
    backends!(|d| {
        let mut decoder = decoder(DeviceKernels::new(d), &model);
        assert!(relative_l2(&whole(&decoder, &ids), &want) <= allowed);
        let vocab = decoder.config().vocab_size;
        let mut cache = decoder.cache(ids.len(), 4).unwrap();
        let mut got = decoder.decode(&mut cache, &ids[..9]).unwrap();
        for t in 9..=ids.len() {
            let relative = relative_l2(&got, &want[(t - 1) * vocab..t * vocab]);
            assert!(relative <= allowed, "after {t} tokens: {relative:.1e}");
            if t < ids.len() {
                got = decoder.decode(&mut cache, &ids[t..=t]).unwrap();
            }
        }
        assert!(mean(&got).is_finite());
    });
}
