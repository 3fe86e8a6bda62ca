//! Weights straight from their files to their places: the values of the files, whatever type and however many, on the CPU
//! and on a device; and what is wrong with a file is said. Models of random weights.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs;
use std::path::Path;

use common::rounded::Rounded;
use common::tiny_model::{TARGETS, config, specs};
use serde_json::{Map, json};
use tunesmith_emulator::{backends, check};
use tunesmith_model::peft::Linear;
use tunesmith_model::{Batch, Checkpoint, Decoder, Error, ModelConfig, Result, WeightSource};
use tunesmith_ops::{DeviceKernels, Kernels, RefKernels};
use tunesmith_testkit::spec::ModelSpec;
use tunesmith_testkit::tensors::{StoredType, Tensors, write_tensors};
use tunesmith_testkit::tiny;

const TYPES: [StoredType; 3] = [StoredType::F32, StoredType::F16, StoredType::Bf16];

/// Random weights that f16 and bf16 both hold exactly.
fn exact(spec: &ModelSpec) -> Tensors {
    let mut weights = tiny::weights(spec, 5).unwrap();
    for tensor in weights.values_mut() {
        for v in &mut tensor.data {
            // Bits below 2^-14 are what f16 has no room for.
            let kept = check::round_bf16(*v);
            *v = if kept.abs() < 1e-3 { 0.0 } else { kept };
        }
    }
    weights
}

fn folder(spec: &ModelSpec, weights: &Tensors, stored: StoredType) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path(), spec, weights, stored).unwrap();
    dir
}

/// Puts the weights of a folder into three files with an index, a tensor each in turn.
fn shard(dir: &Path, weights: &Tensors, stored: StoredType) {
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    let mut map = Map::new();
    for part in 0..3 {
        let file = format!("model-{part}.safetensors");
        let mine: Tensors = weights
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 3 == part)
            .map(|(_, (name, tensor))| (name.clone(), tensor.clone()))
            .collect();
        map.extend(mine.keys().map(|name| (name.clone(), json!(file))));
        write_tensors(&dir.join(&file), &mine, stored).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn load<K: Kernels>(k: K, dir: &Path) -> Result<Decoder<K>> {
    let lora = config(&TARGETS, 4, 8.0);
    let checkpoint = Checkpoint::open(dir)?;
    let (mut last, mut all) = (0, 0);
    let mut told = |done, total| {
        assert!(done > last && done <= total, "{done} bytes after {last}, of {total}");
        (last, all) = (done, total);
    };
    let decoder = Decoder::load(k, ModelConfig::from_dir(dir)?, &checkpoint, Some(&lora), &mut told)?;
    assert!(last == all && all > 0, "{last} of {all} bytes were told of");
    Ok(decoder)
}

/// Every linear's weight.
fn linears<K: Kernels>(decoder: &Decoder<K>) -> Vec<(String, Vec<f32>)> {
    let layers = 0..decoder.config().num_hidden_layers;
    let each = |layer| Linear::ALL.into_iter().map(move |l| (layer, l));
    layers
        .flat_map(each)
        .map(|(layer, l)| {
            (format!("{}.weight", l.module_path(layer)), decoder.linear_weight(layer, l).unwrap())
        })
        .collect()
}

/// What embedding, norms and head have a part in.
fn logits<K: Kernels>(decoder: &mut Decoder<K>) -> Vec<f32> {
    decoder.prepare_positions(16);
    let ids: Vec<u32> = (0..9).map(|i| 1 + (i * 5) % 20).collect();
    let batch = Batch::for_logits(&[&ids]);
    let mut workspace = decoder.evaluation_workspace(ids.len()).unwrap();
    decoder.logits(&mut workspace, &batch).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Loads from each type of file, whole and in shards, and compares with the file read whole.
fn as_stored<K: Kernels>(k: impl Fn() -> K, spec: &ModelSpec) {
    let weights = exact(spec);
    let mut first = None;
    for stored in TYPES {
        let dir = folder(spec, &weights, stored);
        for sharded in [false, true] {
            if sharded {
                shard(dir.path(), &weights, stored);
            }
            let mut decoder = load(k(), dir.path()).unwrap();
            for (name, got) in linears(&decoder) {
                assert_eq!(bits(&got), bits(&weights[&name].data), "{stored:?} {sharded} {name}");
            }
            let got = bits(&logits(&mut decoder));
            let want = first.get_or_insert_with(|| got.clone());
            assert!(got == *want, "{stored:?}, sharded {sharded}: other logits than from f32");
        }
    }
}

#[test]
fn a_model_is_what_its_files_hold() {
    for spec in specs() {
        as_stored(|| RefKernels, &spec);
        as_stored(|| Rounded, &spec);
    }
    // A head that the device's attention takes.
    let spec = ModelSpec { hidden_size: 32, head_dim: 8, ..ModelSpec::tiny() };
    backends!(|d| {
        let d = std::sync::Arc::new(d);
        as_stored(|| DeviceKernels::shared(d.clone()), &spec);
    });
}

#[test]
fn a_device_rounds_what_it_cannot_hold() {
    let spec = specs().remove(1);
    let weights = tiny::weights(&spec, 6).unwrap();
    for stored in [StoredType::F32, StoredType::F16] {
        let dir = folder(&spec, &weights, stored);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        backends!(|d| {
            for (name, got) in linears(&load(DeviceKernels::new(d), dir.path()).unwrap()) {
                let want = checkpoint.read_f32(&name, &weights[&name].shape).unwrap();
                let want: Vec<f32> = want.into_iter().map(check::round_bf16).collect();
                assert_eq!(bits(&got), bits(&want), "{stored:?} {name}");
            }
        });
    }
}

#[test]
fn a_weight_that_cannot_be_stored_is_named() {
    let spec = specs().remove(0);
    let name = "model.layers.1.mlp.down_proj.weight";
    let mut weights = tiny::weights(&spec, 5).unwrap();
    let last = weights[name].data.len() - 1;
    weights.get_mut(name).unwrap().data[last] = 3.4e38;
    let dir = folder(&spec, &weights, StoredType::F32);
    load(RefKernels, dir.path()).unwrap();
    backends!(|d| match load(DeviceKernels::new(d), dir.path()) {
        Err(Error::TooLarge { name: n, index, .. }) => assert_eq!((n.as_str(), index), (name, last)),
        other => panic!("{:?}", other.map(|_| "loaded")),
    });
    weights.get_mut(name).unwrap().data[3] = f32::NAN;
    let dir = folder(&spec, &weights, StoredType::Bf16);
    let not_finite = |error: Error| match error {
        Error::NotFinite { name: n, index } => assert_eq!((n.as_str(), index), (name, 3)),
        other => panic!("{other}"),
    };
    not_finite(load(RefKernels, dir.path()).err().unwrap());
    backends!(|d| not_finite(load(DeviceKernels::new(d), dir.path()).err().unwrap()));
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_named() {
    fn shrunk<K: Kernels + std::fmt::Debug>(k: K, spec: &ModelSpec) {
        let dir = folder(spec, &tiny::weights(spec, 5).unwrap(), StoredType::F32);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let path = dir.path().join("model.safetensors");
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        let base = ModelConfig::from_dir(dir.path()).unwrap();
        let error = Decoder::load(k, base, &checkpoint, None, &mut |_, _| ()).err().unwrap();
        assert!(matches!(&error, Error::Io { action: "read", path: p, .. } if *p == path), "{error}");
    }
    let spec = specs().remove(0);
    shrunk(RefKernels, &spec);
    backends!(|d| shrunk(DeviceKernels::new(d), &spec));
}

fn random<K: Kernels>(k: K, spec: &ModelSpec, seed: u64) -> Decoder<K> {
    let dir = folder(spec, &tiny::weights(spec, 5).unwrap(), StoredType::F32);
    let base = ModelConfig::from_dir(dir.path()).unwrap();
    let bytes = 2 * base.parameter_count();
    let mut last = (0, 0);
    let source = WeightSource::Random { seed, std: 0.02 };
    let decoder = Decoder::load(k, base, source, None, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!(last, (bytes, bytes));
    decoder
}

#[test]
fn a_random_model_is_the_same_on_every_device() {
    for spec in specs() {
        let mut decoder = random(RefKernels, &spec, 7);
        let mut want = linears(&decoder);
        for i in 1..want.len() {
            assert_ne!(want[i].1[..8], want[i - 1].1[..8], "two tensors with the same values");
        }
        let other = linears(&random(RefKernels, &spec, 8));
        assert!(want.iter().zip(&other).all(|(a, b)| a.1 != b.1), "another seed, the same values");
        let all: Vec<f64> = want.iter().flat_map(|(_, w)| w).map(|&v| f64::from(v)).collect();
        let deviation = (all.iter().map(|v| v * v).sum::<f64>() / all.len() as f64).sqrt();
        assert!((deviation / 0.02 - 1.0).abs() < 0.05, "{deviation}");
        // Norms of ones: with any other, the logits would be others.
        assert!(logits(&mut decoder).iter().all(|v| v.is_finite() && v.abs() < 1.0));
        want.iter_mut().flat_map(|(_, w)| w).for_each(|v| *v = check::round_bf16(*v));
        backends!(|d| assert_eq!(linears(&random(DeviceKernels::new(d), &spec, 7)), want));
    }
}
