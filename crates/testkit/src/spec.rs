//! The numbers of a decoder, read here on their own so that the oracle shares no code with what it checks.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, read_json};

/// The two families; they differ in the sliding window alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
}

/// How the rotary frequencies are changed for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear ramp between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` count as low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` count as high frequencies.
        high_freq_factor: f64,
        /// The context length of the pre-training.
        original_max_position_embeddings: f64,
    },
}

/// What the oracle needs to know of a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Llama or Mistral.
    pub family: Family,
    /// V, rows of the embedding.
    pub vocab_size: usize,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// F, width between the MLP's projections.
    pub intermediate_size: usize,
    /// L, number of blocks.
    pub num_hidden_layers: usize,
    /// H, query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides H.
    pub num_key_value_heads: usize,
    /// Width of one head; need not be D / H.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Change of the rotary frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// W: position i attends to i - W + 1 ..= i.
    pub sliding_window: Option<usize>,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
}

impl ModelSpec {
    /// A model of two small blocks, as a start for struct update syntax; every size differs from the others.
    pub fn tiny() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 37,
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 6,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            tie_word_embeddings: false,
        }
    }

    /// Reads `config.json` of a Hugging Face folder, in the classic form (`rope_theta`, `rope_scaling`) or the
    /// newer one (`rope_parameters`). Anything that the oracle does not compute is an error.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let config: Map<String, Value> = read_json(&path)?;
        let fault = |what: String| Error::reference(&path, what);
        let number = |key: &str| {
            config
                .get(key)
                .and_then(Value::as_f64)
                .ok_or_else(|| fault(format!("`{key}` is missing or no number")))
        };
        let size = |key: &str| number(key).map(|x| x as usize);
        let optional = |key: &str| config.get(key).and_then(Value::as_u64).map(|x| x as usize);
        for key in ["attention_bias", "mlp_bias"] {
            if config.get(key).and_then(Value::as_bool) == Some(true) {
                return Err(fault(format!("`{key}` is not supported by the oracle")));
            }
        }
        let family = match config.get("model_type").and_then(Value::as_str) {
            Some("llama") => Family::Llama,
            Some("mistral") => Family::Mistral,
            other => return Err(fault(format!("`model_type` {other:?} is not supported by the oracle"))),
        };
        let rope = ["rope_parameters", "rope_scaling"].iter().find_map(|k| config.get(*k)?.as_object());
        let theta = rope.and_then(|r| r.get("rope_theta")).or_else(|| config.get("rope_theta"));
        let heads = size("num_attention_heads")?;
        let hidden = size("hidden_size")?;
        Ok(Self {
            family,
            vocab_size: size("vocab_size")?,
            hidden_size: hidden,
            intermediate_size: size("intermediate_size")?,
            num_hidden_layers: size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: optional("num_key_value_heads").unwrap_or(heads),
            head_dim: optional("head_dim").unwrap_or(hidden / heads.max(1)),
            rms_norm_eps: number("rms_norm_eps")?,
            rope_theta: theta.and_then(Value::as_f64).unwrap_or(10_000.0),
            rope_scaling: rope.map_or(Ok(None), |r| scaling(r).map_err(fault))?,
            sliding_window: match (family, config.get("sliding_window")) {
                (Family::Llama, _) | (Family::Mistral, Some(Value::Null)) => None,
                // What transformers assumes where the key is absent.
                (Family::Mistral, None) => Some(4096),
                (Family::Mistral, Some(_)) => Some(size("sliding_window")?),
            },
            tie_word_embeddings: config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The `config.json` of this model, in the classic form, with float32 as its type.
    pub fn to_config(&self) -> Value {
        let (kind, class) = match self.family {
            Family::Llama => ("llama", "LlamaForCausalLM"),
            Family::Mistral => ("mistral", "MistralForCausalLM"),
        };
        let scaling = match self.rope_scaling {
            None => Value::Null,
            Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings as u64,
            }),
        };
        let mut config = json!({
            "architectures": [class],
            "model_type": kind,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "attention_bias": false,
            "mlp_bias": false,
            "attention_dropout": 0.0,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "torch_dtype": "float32",
        });
        if self.family == Family::Mistral {
            config["sliding_window"] = json!(self.sliding_window);
        }
        config
    }

    /// Every linear layer that LoRA may target: Hugging Face module path, rows (out) and columns (in), layer by
    /// layer, in the order q, k, v, o, gate, up, down.
    pub fn linears(&self) -> Vec<(String, usize, usize)> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let shapes = [
            ("self_attn.q_proj", q, d),
            ("self_attn.k_proj", kv, d),
            ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q),
            ("mlp.gate_proj", f, d),
            ("mlp.up_proj", f, d),
            ("mlp.down_proj", d, f),
        ];
        let layers = 0..self.num_hidden_layers;
        layers
            .flat_map(|l| shapes.map(|(name, out, inp)| (format!("model.layers.{l}.{name}"), out, inp)))
            .collect()
    }
}

fn scaling(rope: &Map<String, Value>) -> Result<Option<RopeScaling>, String> {
    let number = |key: &str| {
        rope.get(key).and_then(Value::as_f64).ok_or_else(|| format!("rope scaling lacks the number `{key}`"))
    };
    match rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str) {
        None | Some("default") => Ok(None),
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
        Some("llama3") => Ok(Some(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")?,
        })),
        Some(other) => Err(format!("rope type `{other}` is not supported by the oracle")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_its_own_config() {
        let dir = tempfile::tempdir().unwrap();
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64.0,
        };
        let window = ModelSpec { family: Family::Mistral, sliding_window: Some(5), ..ModelSpec::tiny() };
        for spec in [
            ModelSpec { rope_scaling: Some(llama3), tie_word_embeddings: true, ..ModelSpec::tiny() },
            ModelSpec { rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }), ..ModelSpec::tiny() },
            window,
        ] {
            std::fs::write(dir.path().join("config.json"), spec.to_config().to_string()).unwrap();
            assert_eq!(ModelSpec::from_dir(dir.path()).unwrap(), spec);
        }
    }

    #[test]
    fn both_forms_of_rope_mean_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let spec = ModelSpec {
            rope_theta: 5e5,
            rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }),
            ..ModelSpec::tiny()
        };
        let mut config = spec.to_config();
        let fields = config.as_object_mut().unwrap();
        fields.remove("rope_theta");
        fields.remove("rope_scaling");
        config["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
        std::fs::write(&path, config.to_string()).unwrap();
        assert_eq!(ModelSpec::from_dir(dir.path()).unwrap(), spec);
    }

    #[test]
    fn what_the_oracle_cannot_compute_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (key, value) in [
            ("model_type", json!("gpt2")),
            ("attention_bias", json!(true)),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
            ("hidden_size", Value::Null),
        ] {
            let mut config = ModelSpec::tiny().to_config();
            config[key] = value;
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            let message = ModelSpec::from_dir(dir.path()).unwrap_err().to_string();
            assert!(message.contains(key) || message.contains("yarn"), "{message}");
        }
    }
}
