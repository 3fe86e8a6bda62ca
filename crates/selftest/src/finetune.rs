//! Twenty steps on a tiny model whose losses are known, its adapter saved and loaded, and a few tokens generated.
//!
//! The model has two blocks, four query heads on two key heads of 64, so that a device runs the attention that real models
//! run; its weights come from a seed. It learns to count: documents of a prompt and tokens at a fixed distance.

use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tunesmith_data::{Example, Place};
use tunesmith_model::peft::{self, LoraConfig, PeftConfig};
use tunesmith_model::{Architecture, Batch, Checkpoint, Decoder, ModelConfig, Rope};
use tunesmith_ops::Kernels;
use tunesmith_train::{TrainConfig, Trainer};

use crate::check::{Check, Error, Precision};
use crate::draw::{round, values};
use crate::lab::relative_l2;
use crate::recorded::RECORDED;

/// Steps whose losses are stored.
pub const STEPS: usize = RECORDED.len();

/// How far, in nats, the loss falls in all of them, at least.
pub const FALL: f64 = 4.5;

/// Learning rate of every step.
const RATE: f64 = 5e-3;
/// Documents of a step, and of a micro-batch: three of those make a step, the last one smaller.
const DOCUMENTS: usize = 12;
const MICRO: usize = 5;
/// Norm that gradients are clipped to: those in the middle of the run are larger, the first and the last smaller.
const CLIP: f64 = 0.5;
/// Tokens of the prompt and the reply that is generated.
const PROMPT: usize = 5;
const REPLY: usize = 8;

/// How far from the stored numbers a run may be.
///
/// Those of f32 hold between machines whose instruction sets sum in other orders. Losses and norms of bf16 are three times
/// what storing everything rounded to bf16 costs the CPU over the same steps: 1.7e-3 nats and 4.8e-3
/// (`tests/finetune.rs` measures it). Through a cache a device runs another kernel, which rounds elsewhere: its logits may
/// be two and a half times as far off as those of the emulator are, 8.3e-3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Largest distance of a loss, in nats.
    pub loss: f64,
    /// Largest relative distance of a gradient norm.
    pub norm: f64,
    /// Largest relative L2 distance of logits through a cache from those without.
    pub logits: f64,
}

impl Tolerance {
    /// What this kind of device may differ by.
    pub const fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self { loss: 1e-4, norm: 1e-3, logits: 1e-5 },
            Precision::Bf16 => Self { loss: 5.5e-3, norm: 1.5e-2, logits: 2e-2 },
        }
    }
}

/// Runs the first `steps` steps (all of [`STEPS`] for the whole of it) and says how far from the stored numbers they are;
/// then whether the adapter is the same when it is saved and loaded, and a reply the same with a cache and without.
///
/// # Errors
/// What keeps it from being run at all: a device that fails, a temporary folder that cannot be written.
pub fn fine_tune<K: Kernels>(
    kernels: K,
    precision: Precision,
    steps: usize,
    tell: &mut dyn FnMut(&Check),
) -> Result<Vec<Check>, Error> {
    let mut checks = Vec::new();
    let mut note = |check: Check| {
        tell(&check);
        checks.push(check);
    };
    let tolerance = Tolerance::of(precision);
    let dir = tempfile::Builder::new()
        .prefix("tunesmith-selftest")
        .tempdir()
        .map_err(|e| Error::File { path: std::env::temp_dir().display().to_string(), text: e.to_string() })?;
    let examples = examples();
    let (mut decoder, taken) = train(kernels, dir.path(), &examples, steps)?;

    let steps = taken.len();
    let words = format!("{steps} steps");
    let worst = |off: &dyn Fn((f64, f64), (f64, f64)) -> f64| {
        // A NaN is the worst of all, and `max` would hide it.
        taken
            .iter()
            .zip(&RECORDED)
            .map(|(a, b)| off(*a, *b))
            .fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m })
    };
    let off = worst(&|a, b| (a.0 - b.0).abs());
    note(Check::distance("losses", words.clone(), off, tolerance.loss));
    let off = worst(&|a, b| (a.1 / b.1 - 1.0).abs());
    note(Check::distance("gradient norms", words.clone(), off, tolerance.norm));
    if steps == STEPS {
        let (first, last) = (RECORDED[0].0, taken.last().map_or(f64::NAN, |step| step.0));
        let words = format!("{words}, from {first:.2} by {FALL} at least");
        note(Check::distance("loss at the end", words, last, first - FALL));
    }
    note(saved_and_loaded(&mut decoder, &dir.path().join("adapter"), &examples)?);
    note(generated(&mut decoder, &examples[0].ids[..PROMPT], tolerance.logits)?);
    Ok(checks)
}

/// Loss and gradient norm of each of the first `steps` steps: what `examples/record.rs` stores.
///
/// # Errors
/// As [`fine_tune`].
pub fn record<K: Kernels>(kernels: K, steps: usize) -> Result<Vec<(f64, f64)>, Error> {
    let dir = tempfile::tempdir()
        .map_err(|e| Error::File { path: std::env::temp_dir().display().to_string(), text: e.to_string() })?;
    Ok(train(kernels, dir.path(), &examples(), steps)?.1)
}

/// Loss and gradient norm of each step.
type Steps = Vec<(f64, f64)>;

fn train<K: Kernels>(
    kernels: K,
    dir: &Path,
    examples: &[Example],
    steps: usize,
) -> Result<(Decoder<K>, Steps), Error> {
    let decoder = decoder(kernels, dir)?;
    let mut trainer = Trainer::new(decoder, &settings(), 0.0, examples)?;
    let rows: Vec<&Example> = examples.iter().collect();
    let mut taken = Vec::with_capacity(steps);
    for _ in 0..steps.min(STEPS) {
        let step = trainer.step(&rows, RATE)?;
        taken.push((step.loss, step.grad_norm));
    }
    Ok((trainer.into_decoder(), taken))
}

/// The settings of the run.
fn settings() -> TrainConfig {
    TrainConfig {
        batch_size: DOCUMENTS,
        micro_batch_size: MICRO,
        max_grad_norm: CLIP,
        ..TrainConfig::default()
    }
}

/// LoRA of rank 8 on all seven linears.
fn lora() -> LoraConfig {
    LoraConfig { r: 8, lora_alpha: 16.0, ..LoraConfig::default() }
}

/// The model's sizes.
pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: 203,
        hidden_size: 256,
        intermediate_size: 384,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope: Rope::default(),
        sliding_window: None,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
    }
}

/// The model's weights, exact in bf16: a variance of one over the inputs for matrices, of one for the embedding, norms
/// about one.
fn weights(config: &ModelConfig) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let drawn = config.tensor_shapes().into_iter().enumerate();
    drawn
        .map(|(seed, (name, shape))| {
            let len = shape.iter().product();
            let values = match shape.as_slice() {
                [_] => values(seed as u64, len, 0.25).into_iter().map(|v| round(1.0 + v)).collect(),
                [_, inputs] if !name.contains("embed") => {
                    values(seed as u64, len, (3.0 / *inputs as f32).sqrt())
                }
                _ => values(seed as u64, len, 3_f32.sqrt()),
            };
            (name, shape, values)
        })
        .collect()
}

/// The model in `dir`, then on the device, with a fresh adapter.
fn decoder<K: Kernels>(kernels: K, dir: &Path) -> Result<Decoder<K>, Error> {
    let (config, path) = (config(), dir.join("model.safetensors"));
    let failed = |text: String| Error::File { path: path.display().to_string(), text };
    let weights: Vec<(String, Vec<usize>, Vec<u8>)> = weights(&config)
        .into_iter()
        .map(|(name, shape, values)| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = weights.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        view.map(|view| (name.as_str(), view)).map_err(|e| failed(e.to_string()))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize_to_file(views, None, &path).map_err(|e| failed(e.to_string()))?;
    let checkpoint = Checkpoint::open(dir)?;
    let mut decoder = Decoder::load(kernels, config, &checkpoint, Some(&lora()), &mut |_, _| ())?;
    decoder.initialize(1)?;
    Ok(decoder)
}

/// Documents that count: each from a number of its own on in steps of one, two or three, of 3 to 40 tokens; the first
/// two tokens are the prompt.
pub(crate) fn examples() -> Vec<Example> {
    let vocab = config().vocab_size;
    let document = |i: usize| {
        let (len, stride, start) = (3 + (i * 17 + 11) % 38, 1 + i % 3, 31 * i + 7);
        Example {
            ids: (0..len).map(|t| ((start + stride * t) % vocab) as u32).collect(),
            trained: (0..len).map(|t| t > 1).collect(),
            place: Place::line(i + 1),
        }
    };
    (0..DOCUMENTS).map(document).collect()
}

/// Logits after each of these tokens, `[ids, vocab_size]`, without a cache.
fn logits<K: Kernels>(decoder: &mut Decoder<K>, ids: &[u32]) -> Result<Vec<f32>, Error> {
    decoder.prepare_positions(ids.len());
    let mut workspace = decoder.evaluation_workspace(ids.len())?;
    Ok(decoder.logits(&mut workspace, &Batch::for_logits(&[ids]))?)
}

/// The adapter written, other parameters put in its place, and the adapter read back.
fn saved_and_loaded<K: Kernels>(
    decoder: &mut Decoder<K>,
    dir: &Path,
    examples: &[Example],
) -> Result<Check, Error> {
    let failed = |e: std::io::Error| Error::File { path: dir.display().to_string(), text: e.to_string() };
    let ids = &examples[0].ids;
    let before = logits(decoder, ids)?;
    let values = decoder.parameters()?;
    std::fs::create_dir(dir).map_err(failed)?;
    let config = PeftConfig { base_model_name_or_path: None, revision: None, lora: lora() };
    peft::write(dir, &config, &decoder.layout().tensors(&values))?;
    decoder.initialize(2)?;
    let without = logits(decoder, ids)?;
    let (_, tensors) = peft::load(dir)?;
    decoder.set_adapter(dir, &tensors)?;
    let after = logits(decoder, ids)?;
    let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    let shape = format!("{} logits, saved and loaded", before.len());
    if differ(&before, &without) == 0 {
        let detail = "without the adapter the logits are the same, so nothing was learnt".to_owned();
        return Ok(Check::failed("adapter", shape, 0.0, detail));
    }
    Ok(Check::distance("adapter", shape, differ(&before, &after) as f64, 0.0))
}

/// A greedy reply through the cache, a token at a time, against the whole text at once.
fn generated<K: Kernels>(decoder: &mut Decoder<K>, prompt: &[u32], allowed: f64) -> Result<Check, Error> {
    let vocab = decoder.config().vocab_size;
    let mut ids = prompt.to_vec();
    let mut cache = decoder.cache(PROMPT + REPLY, PROMPT)?;
    let mut through = decoder.decode(&mut cache, &ids)?;
    let (mut worst, mut same) = (0_f64, true);
    for _ in 0..REPLY {
        let whole = logits(decoder, &ids)?;
        let at_once = &whole[(ids.len() - 1) * vocab..];
        let wide: Vec<f64> = at_once.iter().map(|&v| f64::from(v)).collect();
        let off = relative_l2(&through, &wide);
        worst = if off > worst || off.is_nan() { off } else { worst };
        let next = likeliest(&through);
        same &= next == likeliest(at_once);
        ids.push(next);
        through = decoder.decode(&mut cache, &[next])?;
    }
    let shape = format!("{REPLY} tokens after {PROMPT}, with a cache and without");
    if !same {
        let detail = "the tokens are not the same".to_owned();
        return Ok(Check::failed("reply", shape, allowed, detail));
    }
    Ok(Check::distance("reply", shape, worst, allowed))
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(id, _)| id as u32)
}

#[cfg(test)]
mod tests;
