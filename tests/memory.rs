//! The arithmetic of bytes against what is really allocated, on the emulator, which counts: weights, states, workspaces,
//! caches, a whole run. On x86-64 Linux with g++.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::tiny_model::{TARGETS, TinyModel, config, specs};
use tunesmith_emulator::{Emulator, NEEDS, skipped};
use tunesmith_kernels::gpu::Driver as _;
use tunesmith_model::peft::LoraConfig;
use tunesmith_model::{AdapterLayout, Checkpoint, Decoder, Footprint, Keep, ModelConfig};
use tunesmith_ops::{DeviceKernels, Kernels as _, Storage};

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
            let weights = footprint.weights().total() + footprint.parameters();
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
    assert!(error.contains("404 bytes could not be allocated, 400 of 1000 bytes are free"), "{error}");
    let second = k.zeros_full(100).unwrap();
    drop((first, second));
    let seen = k.memory().unwrap().unwrap();
    assert_eq!((seen.used, seen.free, seen.peak), (0, 1000, 1000));
}
