//! The decoder over candle's autograd: the second opinion on every hand-written backward pass.
//!
//! Plain and slow on purpose. It uses only operations whose backward candle has; its fused ones (`rms_norm`,
//! `softmax_last_dim`, `rope`) cut the graph without a word.

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, DType, Device, Tensor as Node, Var};

use crate::adapter::LoraModule;
use crate::cases::Batch;
use crate::error::Error;
use crate::spec::{ModelSpec, RopeScaling};
use crate::tensors::{Tensor, Tensors};

/// The arithmetic of the oracle; inputs and results are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As the reference values were made.
    F32,
    /// As near to the true derivative as makes no difference; for gradient checks.
    F64,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }
}

/// What one forward and backward pass gives.
#[derive(Debug, Clone)]
pub struct Output {
    /// [B, T, V], row-major.
    pub logits: Vec<f32>,
    /// Cross-entropy, mean over the labels that count; 0 where none does.
    pub loss: f64,
    /// Number of labels that count.
    pub label_tokens: usize,
    /// Gradient of `loss` by PEFT's tensor name, for every A and B.
    pub grads: Tensors,
}

/// A frozen decoder and its constants.
pub struct Oracle {
    spec: ModelSpec,
    weights: HashMap<String, Node>,
    dtype: DType,
}

/// A and B of one layer in the graph.
struct LoraVars {
    a: Var,
    b: Var,
    scale: f64,
}

impl Oracle {
    /// Takes the weights by their Hugging Face names; a missing or mis-shaped one is an error at first use.
    pub fn new(spec: ModelSpec, weights: &Tensors, precision: Precision) -> Result<Self, Error> {
        let dtype = precision.dtype();
        let weights = weights.iter().map(|(name, t)| Ok((name.clone(), node(t, dtype)?)));
        Ok(Self { spec, weights: weights.collect::<Result<_, Error>>()?, dtype })
    }

    /// Runs one batch through the model with `lora` on it, and back.
    pub fn run(&self, lora: &[LoraModule], batch: &Batch) -> Result<Output, Error> {
        let mut vars = BTreeMap::new();
        for m in lora {
            if !self.spec.linears().iter().any(|(name, out, inp)| {
                *name == m.module && m.a.shape == [m.a.shape[0], *inp] && m.b.shape == [*out, m.a.shape[0]]
            }) {
                let what = format!("`{}` is no linear of this model, or A or B has another shape", m.module);
                return Err(Error::Argument(what));
            }
            let a = Var::from_tensor(&node(&m.a, self.dtype)?)?;
            let b = Var::from_tensor(&node(&m.b, self.dtype)?)?;
            vars.insert(m.module.as_str(), LoraVars { a, b, scale: f64::from(m.scale) });
        }
        let logits = self.logits(&vars, batch)?;
        let (loss, label_tokens) = self.loss(&logits, batch)?;
        let mut grads = Tensors::new();
        if let Some(loss) = &loss {
            let store = loss.backward()?;
            for m in lora {
                let v = &vars[m.module.as_str()];
                for (name, var) in [(m.name_a(), &v.a), (m.name_b(), &v.b)] {
                    let missing =
                        || Error::Argument(format!("The graph of the oracle does not reach `{name}`"));
                    let grad = store.get(var.as_tensor()).ok_or_else(missing)?;
                    grads.insert(name, Tensor::new(grad.dims().to_vec(), floats(grad)?)?);
                }
            }
        }
        let loss = match loss {
            Some(loss) => loss.to_dtype(DType::F64)?.to_scalar::<f64>()?,
            None => 0.0,
        };
        Ok(Output { logits: floats(&logits)?, loss, label_tokens, grads })
    }

    /// [B, T, V].
    fn logits(&self, lora: &BTreeMap<&str, LoraVars>, batch: &Batch) -> Result<Node, Error> {
        let (b, t, d) = (batch.rows, batch.len, self.spec.hidden_size);
        let ids: Vec<u32> = batch.input_ids.iter().map(|id| *id as u32).collect();
        let ids = Node::from_vec(ids, b * t, &Device::Cpu)?;
        let mut x = self.weight("model.embed_tokens")?.index_select(&ids, 0)?.reshape((b, t, d))?;
        let mask = self.mask(batch)?;
        let (cos, sin) = rope_tables(&self.spec, t, self.dtype)?;
        for layer in 0..self.spec.num_hidden_layers {
            let at = |part: &str| format!("model.layers.{layer}.{part}");
            let h = self.rms_norm(&x, &at("input_layernorm"))?;
            let q =
                self.heads(&self.linear(&h, &at("self_attn.q_proj"), lora)?, self.spec.num_attention_heads)?;
            let k =
                self.heads(&self.linear(&h, &at("self_attn.k_proj"), lora)?, self.spec.num_key_value_heads)?;
            let v =
                self.heads(&self.linear(&h, &at("self_attn.v_proj"), lora)?, self.spec.num_key_value_heads)?;
            let o = self.attention(&rotate(&q, &cos, &sin)?, &rotate(&k, &cos, &sin)?, &v, &mask)?;
            x = (x + self.linear(&o, &at("self_attn.o_proj"), lora)?)?;
            let h = self.rms_norm(&x, &at("post_attention_layernorm"))?;
            let gate = self.linear(&h, &at("mlp.gate_proj"), lora)?.silu()?;
            let up = self.linear(&h, &at("mlp.up_proj"), lora)?;
            x = (x + self.linear(&(gate * up)?, &at("mlp.down_proj"), lora)?)?;
        }
        let head = if self.spec.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
        self.linear(&self.rms_norm(&x, "model.norm")?, head, lora)
    }

    /// Mean of -log softmax(logits[t])[label[t + 1]] over labels other than -100; `None` where there are none.
    fn loss(&self, logits: &Node, batch: &Batch) -> Result<(Option<Node>, usize), Error> {
        let mut rows = Vec::new();
        let mut targets = Vec::new();
        for (index, label) in batch.labels.iter().enumerate() {
            if index % batch.len > 0 && *label != -100 {
                rows.push(index as u32 - 1);
                targets.push(*label as u32);
            }
        }
        let count = rows.len();
        if count == 0 {
            return Ok((None, 0));
        }
        let flat = logits.reshape((batch.rows * batch.len, self.spec.vocab_size))?;
        let picked = flat.index_select(&Node::from_vec(rows, count, &Device::Cpu)?, 0)?;
        let shifted = picked.broadcast_sub(&picked.max_keepdim(D::Minus1)?.detach())?;
        let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
        let target = shifted.gather(&Node::from_vec(targets, (count, 1), &Device::Cpu)?, 1)?;
        Ok((Some((log_sum - target)?.mean_all()?), count))
    }

    fn weight(&self, module: &str) -> Result<&Node, Error> {
        let name = format!("{module}.weight");
        self.weights.get(&name).ok_or_else(|| Error::Argument(format!("The oracle has no weight `{name}`")))
    }

    /// x [B, T, in] -> [B, T, out]: W x, and scale B A x where `lora` has the module.
    fn linear(&self, x: &Node, module: &str, lora: &BTreeMap<&str, LoraVars>) -> Result<Node, Error> {
        let y = x.broadcast_matmul(&self.weight(module)?.t()?)?;
        let Some(LoraVars { a, b, scale }) = lora.get(module) else { return Ok(y) };
        let update = x.broadcast_matmul(&a.t()?)?.broadcast_matmul(&b.t()?)?;
        Ok((y + (update * *scale)?)?)
    }

    /// x [B, T, D] -> w x / sqrt(mean(x^2) + eps).
    fn rms_norm(&self, x: &Node, module: &str) -> Result<Node, Error> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        let root = (mean + self.spec.rms_norm_eps)?.sqrt()?;
        Ok(x.broadcast_div(&root)?.broadcast_mul(self.weight(module)?)?)
    }

    /// [B, T, heads x Dh] -> [B, heads, T, Dh].
    fn heads(&self, x: &Node, heads: usize) -> Result<Node, Error> {
        let (b, t, _) = x.dims3()?;
        Ok(x.reshape((b, t, heads, self.spec.head_dim))?.transpose(1, 2)?.contiguous()?)
    }

    /// q [B, H, T, Dh], k and v [B, Hkv, T, Dh], mask [B, 1, T, T] -> [B, T, H x Dh].
    fn attention(&self, q: &Node, k: &Node, v: &Node, mask: &Node) -> Result<Node, Error> {
        let (b, h, t, dh) = q.dims4()?;
        let hkv = self.spec.num_key_value_heads;
        // Query head i reads key head i / (H / Hkv).
        let spread = |x: &Node| x.unsqueeze(2)?.expand((b, hkv, h / hkv, t, dh))?.reshape((b, h, t, dh));
        let scores =
            (q.matmul(&spread(k)?.transpose(2, 3)?)? * (1.0 / (dh as f64).sqrt()))?.broadcast_add(mask)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        Ok(weights.matmul(&spread(v)?)?.transpose(1, 2)?.reshape((b, t, h * dh))?)
    }

    /// [B, 1, T, T]: 0 where position i may look at j (j <= i, j > i - window, j no padding), else very negative.
    fn mask(&self, batch: &Batch) -> Result<Node, Error> {
        let t = batch.len;
        let window = self.spec.sliding_window.unwrap_or(t);
        let mut mask = Vec::with_capacity(batch.rows * t * t);
        for row in batch.attention_mask.chunks(t) {
            for i in 0..t {
                // Not minus infinity: a row that sees nothing has to stay finite, for its values are multiplied by 0.
                mask.extend(
                    (0..t).map(|j| if j <= i && i - j < window && row[j] == 1 { 0.0 } else { -1e30_f32 }),
                );
            }
        }
        Ok(Node::from_vec(mask, (batch.rows, 1, t, t), &Device::Cpu)?.to_dtype(self.dtype)?)
    }
}

fn node(t: &Tensor, dtype: DType) -> Result<Node, Error> {
    Ok(Node::from_slice(&t.data, t.shape.as_slice(), &Device::Cpu)?.to_dtype(dtype)?)
}

fn floats(node: &Node) -> Result<Vec<f32>, Error> {
    Ok(node.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// x [B, heads, T, Dh]: the pair (x[i], x[i + Dh/2]) turned by its angle.
fn rotate(x: &Node, cos: &Node, sin: &Node) -> Result<Node, Error> {
    let half = x.dim(D::Minus1)? / 2;
    let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let turned_low = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
    let turned_high = (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?;
    Ok(Node::cat(&[turned_low, turned_high], D::Minus1)?)
}

/// cos and sin [T, Dh/2] of position x frequency, in f32 as transformers computes them.
fn rope_tables(spec: &ModelSpec, len: usize, dtype: DType) -> Result<(Node, Node), Error> {
    let frequencies: Vec<f32> = (0..spec.head_dim / 2).map(|i| frequency(spec, i) as f32).collect();
    let angles = || (0..len).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
    let table =
        |values: Vec<f32>| Node::from_vec(values, (len, spec.head_dim / 2), &Device::Cpu)?.to_dtype(dtype);
    Ok((table(angles().map(f32::cos).collect())?, table(angles().map(f32::sin).collect())?))
}

/// Radians per position of pair `i`: theta^(-2i/Dh), scaled as `rope_scaling` says
/// (llama3: the formula of Llama 3.1's `apply_scaling`).
fn frequency(spec: &ModelSpec, i: usize) -> f64 {
    let plain = spec.rope_theta.powf(-2.0 * i as f64 / spec.head_dim as f64);
    match spec.rope_scaling {
        None => plain,
        Some(RopeScaling::Linear { factor }) => plain / factor,
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => {
            let turns = original_max_position_embeddings * plain / (2.0 * std::f64::consts::PI);
            let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            smooth * plain + (1.0 - smooth) * plain / factor
        }
    }
}
