//! What the engine's tests share: models from folders, examples from recorded batches, gradients by PEFT's names.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses its own part; clippy.toml allows unwrap inside test functions, helpers are the same"
)]

pub(crate) mod rounded;
pub(crate) mod tiny_model;

use std::path::Path;

use tunesmith_data::{Example, Place};
use tunesmith_model::peft::{self, LoraConfig};
use tunesmith_model::{AdapterLayout, Batch, Checkpoint, Decoder, Document, Keep, ModelConfig};
use tunesmith_ops::{Kernels, RefKernels};
use tunesmith_testkit::cases;
use tunesmith_testkit::tensors::{Tensor, Tensors};
use tunesmith_train::{RunInput, TrainConfig};

/// The engine on the CPU.
pub(crate) type Engine = Decoder<RefKernels>;

/// The model in `dir`, with room for the updates of `lora`.
pub(crate) fn load(dir: &Path, lora: Option<&LoraConfig>) -> Engine {
    load_on(RefKernels, dir, lora)
}

/// As [`load`], on any kernels.
pub(crate) fn load_on<K: Kernels>(k: K, dir: &Path, lora: Option<&LoraConfig>) -> Decoder<K> {
    let config = ModelConfig::from_dir(dir).unwrap();
    let checkpoint = Checkpoint::open(dir).unwrap();
    Decoder::load(k, config, &checkpoint, lora, &mut |_, _| ()).unwrap()
}

/// The model in `model` with the PEFT adapter in `adapter` on it.
pub(crate) fn with_adapter(model: &Path, adapter: &Path) -> Engine {
    with_adapter_on(RefKernels, model, adapter)
}

/// As [`with_adapter`], on any kernels.
pub(crate) fn with_adapter_on<K: Kernels>(k: K, model: &Path, adapter: &Path) -> Decoder<K> {
    let (config, tensors) = peft::load(adapter).unwrap();
    let mut engine = load_on(k, model, Some(&config.lora));
    assert_eq!(engine.set_adapter(adapter, &tensors).unwrap(), tensors.len());
    engine
}

/// The rows of a recorded batch without their padding; `first_line` numbers the first.
pub(crate) fn examples(batch: &cases::Batch, first_line: usize) -> Vec<Example> {
    let row = |r: usize| {
        let at = r * batch.len;
        let len = batch.attention_mask[at..at + batch.len].iter().take_while(|m| **m == 1).count();
        let padding = &batch.attention_mask[at + len..at + batch.len];
        assert!(padding.iter().all(|m| *m == 0), "row {r} is not padded on the right alone");
        Example {
            ids: batch.input_ids[at..at + len].iter().map(|id| u32::try_from(*id).unwrap()).collect(),
            trained: (0..len).map(|t| t > 0 && batch.labels[at + t] != -100).collect(),
            place: Place::line(first_line + r),
        }
    };
    (0..batch.rows).map(row).collect()
}

/// A run from its first step to its last.
pub(crate) fn whole_run<'a>(
    train: &'a [Example],
    validation: &'a [Example],
    config: &'a TrainConfig,
) -> RunInput<'a, [Example], [Example]> {
    RunInput { train, validation, config, fingerprint: "", resume: None }
}

/// These examples as one batch, numbered from 0.
pub(crate) fn training_batch(examples: &[Example]) -> Batch {
    let documents = examples.iter().enumerate();
    let documents = documents.map(|(i, e)| Document { ids: &e.ids, trained: &e.trained, number: i as u32 });
    Batch::for_training(&documents.collect::<Vec<_>>())
}

/// Logits of every row of a recorded batch, `[B, T, V]`; zero at the padding.
pub(crate) fn padded_logits<K: Kernels>(engine: &mut Decoder<K>, batch: &cases::Batch) -> Vec<f32> {
    let rows = examples(batch, 1);
    let ids: Vec<&[u32]> = rows.iter().map(|e| e.ids.as_slice()).collect();
    let flat = logits(engine, &ids);
    let vocab = engine.config().vocab_size;
    let mut out = vec![0.0; batch.rows * batch.len * vocab];
    let mut at = 0;
    for (r, ids) in ids.iter().enumerate() {
        let n = ids.len() * vocab;
        out[r * batch.len * vocab..][..n].copy_from_slice(&flat[at..at + n]);
        at += n;
    }
    out
}

/// Logits of every token of these documents in one batch, `[tokens, V]`.
pub(crate) fn logits<K: Kernels>(engine: &mut Decoder<K>, documents: &[&[u32]]) -> Vec<f32> {
    engine.prepare_positions(documents.iter().map(|d| d.len()).max().unwrap_or(0));
    let batch = Batch::for_logits(documents);
    let mut workspace = engine.evaluation_workspace(batch.tokens()).unwrap();
    engine.logits(&mut workspace, &batch).unwrap()
}

/// Token losses of these examples as one batch, and the gradient of their mean in the layout's order.
pub(crate) fn loss_and_gradients<K: Kernels>(
    engine: &mut Decoder<K>,
    examples: &[Example],
    keep: Keep,
) -> (Vec<f32>, Vec<f32>) {
    let batch = training_batch(examples);
    engine.prepare_positions(examples.iter().map(|e| e.ids.len()).max().unwrap_or(0));
    let keep = vec![keep; engine.config().num_hidden_layers];
    let mut workspace = engine.training_workspace(batch.tokens(), &keep, false).unwrap();
    let mut gradients = engine.kernels().zeros_full(engine.layout().len()).unwrap();
    let weight = 1.0 / batch.rows.len() as f32;
    let losses = engine.loss_and_gradients(&mut workspace, &batch, weight, None, &mut gradients).unwrap();
    let gradients = engine.kernels().read_full(&gradients).unwrap();
    (losses, gradients)
}

/// Mean over token losses.
pub(crate) fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|l| f64::from(*l)).sum::<f64>() / losses.len() as f64
}

/// A flat buffer of the layout as tensors by PEFT's names.
pub(crate) fn named(layout: &AdapterLayout, values: &[f32]) -> Tensors {
    let tensors = layout.tensors(values).into_iter();
    tensors.map(|t| (t.key, Tensor::new(t.shape.to_vec(), t.values.to_vec()).unwrap())).collect()
}

/// The token after which a greedy continuation goes on: the first of the largest logits.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0 as u32
}
