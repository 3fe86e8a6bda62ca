//! The arithmetic of bytes against what is really allocated, on the emulator, which counts: weights, states, workspaces,
//! caches, a whole run. On x86-64 Linux with g++.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::examples;
use common::tiny_model::{TARGETS, TinyModel, batch, config, specs};
use tunesmith_emulator::{Emulator, NEEDS, skipped};
use tunesmith_kernels::gpu::Driver as _;
use tunesmith_model::peft::LoraConfig;
use tunesmith_model::{AdapterLayout, Checkpoint, Decoder, Footprint, Keep, ModelConfig};
use tunesmith_ops::{DeviceKernels, Kernels as _, Storage};
use tunesmith_testkit::spec::ModelSpec;
use tunesmith_train::TrainConfig;
use tunesmith_train::plan::{self, Attempt, Budget, Plan, Request};

const KEEPS: [Keep; 4] = [Keep::All, Keep::NoMlp, Keep::Residuals, Keep::Input];

/// An emulator that counts, and what it has given out.
pub(crate) struct Counting(Arc<Emulator>);

impl Counting {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(Arc::new(Emulator::with_memory(1, bytes)))
    }

    pub(crate) fn kernels(&self) -> DeviceKernels<Emulator> {
        DeviceKernels::shared(Arc::clone(&self.0))
    }

    pub(crate) fn used(&self) -> u64 {
        self.0.device_memory().unwrap().unwrap().used
    }
}

fn decoder(
    counting: &Counting,
    model: &TinyModel,
    lora: &LoraConfig,
) -> (Decoder<DeviceKernels<Emulator>>, Footprint) {
    let base = ModelConfig::from_dir(model.path()).unwrap();
    let sites = lora.resolve(base.num_hidden_layers).unwrap();
    let footprint = Footprint::new(&base, &AdapterLayout::new(&base, &sites), Storage::DEVICE);
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let decoder = Decoder::load(counting.kernels(), base, &checkpoint, Some(lora), &mut |_, _| ()).unwrap();
    (decoder, footprint)
}

/// Adapters that differ in what they touch and in how their ranks are padded.
fn adapters() -> Vec<LoraConfig> {
    let mut patterned = config(&TARGETS, 3, 8.0);
    patterned.rank_pattern = serde_json::from_str("{\"o_proj\": 70, \"up_proj\": 9}").unwrap();
    let mut one_layer = config(&["v_proj", "down_proj"], 65, 8.0);
    one_layer.layers_to_transform = serde_json::from_str("[1]").unwrap();
    vec![config(&TARGETS, 4, 8.0), patterned, one_layer]
}

#[test]
fn every_allocation_has_the_bytes_that_the_arithmetic_says() {
    if !Emulator::available() {
        return skipped(NEEDS);
    }
    for spec in specs() {
        let model = TinyModel::new(spec, 3);
        for lora in adapters() {
            let counting = Counting::new(1 << 30);
            let (mut decoder, footprint) = decoder(&counting, &model, &lora);
            let weights = footprint.weights().total() + footprint.parameters() + footprint.copies();
            assert_eq!(counting.used(), weights, "weights of {lora:?}");
            let layers = decoder.config().num_hidden_layers;
            // Every mode alone, and some beside each other.
            let mut modes: Vec<Vec<Keep>> = KEEPS.iter().map(|&keep| vec![keep; layers]).collect();
            modes.extend((0..3).map(|i| (0..layers).map(|layer| KEEPS[(layer + i) % 4]).collect()));
            for keep in &modes {
                for (tokens, dropout) in [(1, false), (13, true), (200, false)] {
                    let workspace = decoder.training_workspace(tokens, keep, dropout).unwrap();
                    let said = footprint.training(tokens, keep, dropout);
                    assert_eq!(
                        counting.used() - weights,
                        said,
                        "{tokens} tokens, {keep:?}, dropout {dropout}"
                    );
                    drop(workspace);
                }
            }
            let workspace = decoder.evaluation_workspace(77).unwrap();
            assert_eq!(counting.used() - weights, footprint.evaluation(77));
            drop(workspace);
            let cache = decoder.cache(50, 16).unwrap();
            assert_eq!(counting.used() - weights, footprint.cache(50, 16));
            drop(cache);
            let n = decoder.layout().len();
            let states = [(); 3].map(|()| decoder.kernels().zeros_full(n).unwrap());
            assert_eq!(counting.used() - weights, footprint.states());
            drop(states);
            assert_eq!(counting.used(), weights, "all is given back");
        }
    }
}

#[test]
fn an_emulator_that_counts_refuses_what_does_not_fit() {
    if !Emulator::available() {
        return skipped(NEEDS);
    }
    let counting = Counting::new(1000);
    let k = counting.kernels();
    let first = k.zeros(300).unwrap();
    let error = k.zeros_full(101).unwrap_err().to_string();
    assert!(error.contains("404 bytes could not be allocated"), "{error}");
    assert!(error.contains("400 bytes are free"), "{error}");
    let second = k.zeros_full(100).unwrap();
    drop((first, second));
    let seen = k.memory().unwrap().unwrap();
    assert_eq!((seen.used, seen.free, seen.peak), (0, 1000, 1000));
}

/// What came of two steps and an evaluation.
#[derive(Debug, PartialEq)]
struct Course {
    losses: Vec<f64>,
    /// Each plan that was tried: what the layers keep, and whether it held.
    tried: Vec<(Vec<Keep>, bool)>,
    plan: Plan,
    measured: u64,
}

/// A short run by a plan for `budget` bytes, or for what the device has.
fn course(counting: &Counting, model: &TinyModel, config: &TrainConfig, budget: Option<u64>) -> Course {
    let lora = config_of_adapter();
    let rows = examples(&batch(&model.spec, 6, 40, true, 3), 1);
    let lengths = rows.iter().map(|e| e.ids.len()).collect();
    let free = counting.kernels().memory().unwrap().unwrap().free;
    let (decoder, footprint) = decoder(counting, model, &lora);
    let budget = Budget { bytes: budget.unwrap_or(free), reserve: 0 };
    let (dropout, divisor, generation) = (false, 1, 0);
    let request =
        Request { footprint: &footprint, lengths: &lengths, config, dropout, divisor, generation, budget };
    let plan = plan::plan(&request).unwrap();
    let (mut tried, mut measured) = (Vec::new(), 0);
    let mut tell = |attempt: Attempt<'_>| -> Result<(), tunesmith_train::Error> {
        tried.push((attempt.plan.cut.keep.clone(), attempt.failed.is_none()));
        measured = attempt.measured.unwrap_or(0);
        assert_eq!((attempt.number, attempt.measured.is_some()), (tried.len(), attempt.failed.is_none()));
        Ok(())
    };
    let (mut trainer, plan) = plan::settle(decoder, &request, 0.0, plan, &mut tell).unwrap();
    let rows: Vec<_> = rows.iter().collect();
    let mut losses: Vec<f64> = (0..2).map(|_| trainer.step(&rows, 1e-3).unwrap().loss).collect();
    losses.extend(trainer.evaluate(&rows).unwrap().iter().map(|row| row.sum));
    let after = trainer.decoder().kernels().memory().unwrap().unwrap().used;
    assert!(after <= plan.items.peak(), "steps took more than was planned: {after} of {}", plan.items.peak());
    Course { losses, tried, plan, measured }
}

fn config_of_adapter() -> LoraConfig {
    config(&TARGETS, 4, 8.0)
}

#[test]
fn a_run_in_little_memory_computes_again_what_one_with_room_keeps_and_gives_the_same_losses() {
    if !Emulator::available() {
        return skipped(NEEDS);
    }
    let spec = ModelSpec { hidden_size: 32, head_dim: 8, num_hidden_layers: 4, ..ModelSpec::tiny() };
    let model = TinyModel::new(spec, 5);
    // All rows in one micro-batch, so that keeping less is the only way.
    let config = TrainConfig { batch_size: 6, micro_batch_size: 6, ..TrainConfig::default() };
    let roomy = course(&Counting::new(1 << 30), &model, &config, None);
    assert_eq!(roomy.tried, [(vec![Keep::All; 4], true)]);
    let (peak, scratch) = (roomy.plan.items.peak(), roomy.plan.items.scratch + roomy.plan.items.logits);
    assert!(roomy.measured <= peak, "{} bytes measured, {peak} planned", roomy.measured);
    assert!(
        roomy.measured >= peak - scratch,
        "{} bytes measured, {peak} planned, {scratch} scratch",
        roomy.measured
    );

    let bytes = peak - roomy.plan.items.activations * 2 / 5;
    let tight = course(&Counting::new(bytes), &model, &config, None);
    assert!(tight.plan.extra_compute > 0.0 && tight.plan.cut.keep != roomy.plan.cut.keep, "{:?}", tight.plan);
    assert!(tight.measured <= bytes && tight.tried.len() == 1);
    assert_eq!(tight.losses, roomy.losses, "to the last bit");
}

#[test]
fn a_plan_that_does_not_hold_is_made_smaller_until_it_does() {
    if !Emulator::available() {
        return skipped(NEEDS);
    }
    let spec = ModelSpec { hidden_size: 32, head_dim: 8, num_hidden_layers: 4, ..ModelSpec::tiny() };
    let model = TinyModel::new(spec, 5);
    let config = TrainConfig { batch_size: 6, micro_batch_size: 6, ..TrainConfig::default() };
    let roomy = course(&Counting::new(1 << 30), &model, &config, None);
    // The device has less than anybody thought.
    let variable = roomy.plan.items.activations + roomy.plan.items.shared;
    let counting = Counting::new(roomy.measured - variable / 4);
    let course = course(&counting, &model, &config, Some(1 << 30));
    let held: Vec<bool> = course.tried.iter().map(|(_, held)| *held).collect();
    assert!(
        held.len() > 1 && held.iter().rev().skip(1).all(|held| !held) && held.last() == Some(&true),
        "{held:?}"
    );
    assert_eq!(course.losses, roomy.losses);
}
