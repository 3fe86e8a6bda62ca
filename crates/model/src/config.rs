//! `config.json` and `generation_config.json` of a Hugging Face model directory.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::Object;
use crate::rope::Rope;

/// Deeper than any model there is, several times over.
const MOST_LAYERS: usize = 1024;
/// And larger.
const MOST_PARAMETERS: f64 = 1e12;

/// The model families that the decoder runs. Both share one block; Mistral adds a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
}

/// Sizes and settings of a decoder, in the words of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Model family.
    pub architecture: Architecture,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Size of one head, even. `num_attention_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Longest sequence the model was trained on, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon inside the square root of `RMSNorm`.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Mistral's window: position i attends to i - window + 1 ..= i. None attends to all earlier positions.
    pub sliding_window: Option<usize>,
    /// Whether the output head is the embedding itself.
    pub tie_word_embeddings: bool,
    /// Token that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills short rows.
    pub pad_token_id: Option<u32>,
}

impl ModelConfig {
    /// Reads `config.json` and, where there is one, `generation_config.json` of `dir`.
    ///
    /// Defaults are those of transformers. Settings that would change the mathematics and are not supported
    /// are refused by name.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(Error::weights(
                dir,
                "there is no config.json in this directory; it is not a Hugging Face model",
            ));
        }
        let mut config = Self::from_object(&Object::read(&path)?)?;
        let generation = dir.join("generation_config.json");
        if generation.is_file() {
            config.apply_generation(&Object::read(&generation)?)?;
        }
        Ok(config)
    }

    /// Reads a `config.json`, whatever it is called, and nothing beside it.
    ///
    /// # Errors
    /// As [`ModelConfig::from_dir`].
    pub fn from_file(path: &Path) -> Result<Self> {
        if path.exists() && !path.is_file() {
            return Err(Error::weights(path, "is not a regular file"));
        }
        Self::from_object(&Object::read(path)?)
    }

    fn from_object(config: &Object) -> Result<Self> {
        let architecture = architecture(config)?;
        refuse_unsupported(config)?;
        let hidden_size = config.required_size("hidden_size")?;
        let num_attention_heads = config.required_size("num_attention_heads")?;
        let num_key_value_heads = key_value_heads(config, architecture, num_attention_heads)?;
        let bos = config.token_ids("bos_token_id")?.unwrap_or_default();
        let pad = config.token_ids("pad_token_id")?.unwrap_or_default();
        let new = Self {
            architecture,
            vocab_size: config.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: config.required_size("intermediate_size")?,
            num_hidden_layers: config.required_size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: head_dim(config, hidden_size, num_attention_heads)?,
            max_position_embeddings: config.size("max_position_embeddings")?.unwrap_or(match architecture {
                Architecture::Llama => 2_048,
                Architecture::Mistral => 131_072,
            }),
            rms_norm_eps: config.positive_f64("rms_norm_eps")?.unwrap_or(1e-6),
            rope: Rope::from_config(config)?,
            sliding_window: sliding_window(config, architecture)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
            bos_token_id: bos.first().copied(),
            eos_token_ids: config.token_ids("eos_token_id")?.unwrap_or_default(),
            pad_token_id: pad.first().copied(),
        };
        new.check_size(config)?;
        Ok(new)
    }

    /// Refuses what is no model that anybody has: whoever reckons with the sizes need not fear that numbers overflow, or that
    /// there is no end of layers.
    fn check_size(&self, config: &Object) -> Result<()> {
        if self.num_hidden_layers > MOST_LAYERS {
            let problem = format!("is {}, and {MOST_LAYERS} is the most", self.num_hidden_layers);
            return Err(config.error("num_hidden_layers", problem));
        }
        let wide = |n: usize| n as f64;
        let (hidden, inner) = (wide(self.hidden_size), wide(self.intermediate_size));
        let heads = wide(self.num_attention_heads) * wide(self.head_dim);
        let layer = hidden * (3.0 * inner + 4.0 * heads);
        let all = wide(self.num_hidden_layers) * layer + 2.0 * hidden * wide(self.vocab_size);
        if all > MOST_PARAMETERS {
            let problem =
                format!("makes, with the other sizes, a model of {all:.1e} parameters, and 1e12 is the most");
            return Err(config.error("hidden_size", problem));
        }
        Ok(())
    }

    /// `generation_config.json` wins where it speaks: it is the file that generation reads, and released chat
    /// models list their end-of-turn tokens only there.
    fn apply_generation(&mut self, generation: &Object) -> Result<()> {
        if let Some(ids) = generation.token_ids("eos_token_id")?.filter(|ids| !ids.is_empty()) {
            self.eos_token_ids = ids;
        }
        if let Some(ids) = generation.token_ids("bos_token_id")? {
            self.bos_token_id = ids.first().copied().or(self.bos_token_id);
        }
        if let Some(ids) = generation.token_ids("pad_token_id")? {
            self.pad_token_id = ids.first().copied().or(self.pad_token_id);
        }
        Ok(())
    }

    /// Width of the query projection: `num_attention_heads * head_dim`.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the key projection and of the value projection: `num_key_value_heads * head_dim`.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Name and shape of every tensor of the checkpoint, in the order of the forward pass. Matrices are
    /// `[out, in]`. A tied output head is not listed.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (query, key_value) = (self.query_size(), self.key_value_size());
        let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let block: [(&str, &[usize]); 9] = [
                ("input_layernorm", &[hidden]),
                ("self_attn.q_proj", &[query, hidden]),
                ("self_attn.k_proj", &[key_value, hidden]),
                ("self_attn.v_proj", &[key_value, hidden]),
                ("self_attn.o_proj", &[hidden, query]),
                ("post_attention_layernorm", &[hidden]),
                ("mlp.gate_proj", &[inner, hidden]),
                ("mlp.up_proj", &[inner, hidden]),
                ("mlp.down_proj", &[hidden, inner]),
            ];
            shapes.extend(
                block.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape.to_vec())),
            );
        }
        shapes.push(("model.norm.weight".to_string(), vec![hidden]));
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".to_string(), vec![self.vocab_size, hidden]));
        }
        shapes
    }

    /// Number of weights of the base model; a tied output head counts once.
    pub fn parameter_count(&self) -> u64 {
        self.tensor_shapes().iter().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }
}

fn architecture(config: &Object) -> Result<Architecture> {
    let unsupported = |key: &str, name: &str| {
        config.error(
            key,
            format!("is {name:?}; supported are Llama (LlamaForCausalLM) and Mistral (MistralForCausalLM)"),
        )
    };
    let from_type = match config.string("model_type")? {
        None => None,
        Some("llama") => Some(Architecture::Llama),
        Some("mistral") => Some(Architecture::Mistral),
        Some(other) => return Err(unsupported("model_type", other)),
    };
    let listed = match config.get("architectures") {
        None => None,
        Some(Value::Array(list)) => match list.as_slice() {
            [] => None,
            [Value::String(name)] => Some(name.as_str()),
            _ => return Err(config.error("architectures", "must list exactly one architecture")),
        },
        Some(_) => return Err(config.error("architectures", "must be a list with one architecture")),
    };
    let from_list = match listed {
        None => None,
        Some("LlamaForCausalLM") => Some(Architecture::Llama),
        Some("MistralForCausalLM") => Some(Architecture::Mistral),
        Some(other) => return Err(unsupported("architectures", other)),
    };
    match (from_list, from_type) {
        (Some(a), Some(b)) if a != b => Err(config.error("model_type", "contradicts architectures")),
        (Some(architecture), _) | (None, Some(architecture)) => Ok(architecture),
        (None, None) => Err(config.error("architectures", "is missing, and so is model_type")),
    }
}

fn refuse_unsupported(config: &Object) -> Result<()> {
    if config.get("quantization_config").is_some() {
        return Err(config.error(
            "quantization_config",
            "the weights are already quantized; use the full-precision version of this model",
        ));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if config.bool_or(key, false)? {
            return Err(config.error(key, "is true; linear layers with a bias are not supported"));
        }
    }
    match config.string("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => {
            return Err(config.error("hidden_act", format!("is {other:?}; only \"silu\" is supported")));
        }
    }
    match config.f64("attention_dropout")? {
        Some(p) if p != 0.0 => Err(config.error(
            "attention_dropout",
            format!("is {p}; dropout inside the base model is not supported, set it to 0.0"),
        )),
        _ => Ok(()),
    }
}

fn key_value_heads(config: &Object, architecture: Architecture, heads: usize) -> Result<usize> {
    let key = "num_key_value_heads";
    let count = match config.size(key)? {
        Some(count) => count,
        // An absent key means 8 in transformers' Mistral, while an explicit null means all heads.
        None if architecture == Architecture::Mistral && !config.holds(key) => 8,
        None => heads,
    };
    if !heads.is_multiple_of(count) {
        return Err(
            config.error(key, format!("is {count}, which does not divide num_attention_heads = {heads}"))
        );
    }
    Ok(count)
}

fn head_dim(config: &Object, hidden: usize, heads: usize) -> Result<usize> {
    let size = match config.size("head_dim")? {
        Some(size) => size,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(config.error(
                "head_dim",
                format!(
                    "is missing, and num_attention_heads = {heads} does not divide hidden_size = {hidden}"
                ),
            ));
        }
    };
    if !size.is_multiple_of(2) {
        return Err(config.error("head_dim", format!("is {size}; rotary embedding needs an even size")));
    }
    Ok(size)
}

fn sliding_window(config: &Object, architecture: Architecture) -> Result<Option<usize>> {
    let key = "sliding_window";
    match architecture {
        // transformers' Llama ignores the key; one that is set means the file was made for another model.
        Architecture::Llama if config.get(key).is_some() => {
            Err(config.error(key, "is set, but Llama models have no sliding window"))
        }
        Architecture::Llama => Ok(None),
        // Only an explicit null switches the window off: an absent key means 4096 in transformers' Mistral.
        Architecture::Mistral if !config.holds(key) => Ok(Some(4_096)),
        Architecture::Mistral => config.size(key),
    }
}

#[cfg(test)]
mod tests;
