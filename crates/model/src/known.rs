//! Sizes of released models, by name: for measuring without their weights.

use crate::config::{Architecture, ModelConfig};
use crate::rope::{Rope, RopeScaling};

/// The sizes of one model; what is not here is the same for all.
struct Sizes {
    name: &'static str,
    architecture: Architecture,
    vocab: usize,
    hidden: usize,
    inner: usize,
    layers: usize,
    /// Query heads, key and value heads, size of a head.
    heads: (usize, usize, usize),
    context: usize,
    theta: f64,
    stretched: bool,
    window: Option<usize>,
    tied: bool,
}

const BASE: Sizes = Sizes {
    name: "",
    architecture: Architecture::Llama,
    vocab: 32_000,
    hidden: 4096,
    inner: 14_336,
    layers: 32,
    heads: (32, 8, 128),
    context: 8192,
    theta: 500_000.0,
    stretched: false,
    window: None,
    tied: false,
};

/// The sizes of `config.json` of Mistral-7B-v0.1, Meta-Llama-3-8B, Llama-2-7b-hf, Llama-3.2-3B, Llama-3.2-1B and
/// TinyLlama-1.1B-Chat-v1.0; two small ones of our own for a CPU.
const KNOWN: [Sizes; 8] = [
    Sizes {
        name: "mistral-7b",
        architecture: Architecture::Mistral,
        context: 32_768,
        theta: 10_000.0,
        window: Some(4096),
        ..BASE
    },
    Sizes { name: "llama-3-8b", vocab: 128_256, ..BASE },
    Sizes { name: "llama-2-7b", inner: 11_008, heads: (32, 32, 128), context: 4096, theta: 10_000.0, ..BASE },
    Sizes {
        name: "llama-3.2-3b",
        vocab: 128_256,
        hidden: 3072,
        inner: 8192,
        layers: 28,
        heads: (24, 8, 128),
        context: 131_072,
        stretched: true,
        tied: true,
        ..BASE
    },
    Sizes {
        name: "llama-3.2-1b",
        vocab: 128_256,
        hidden: 2048,
        inner: 8192,
        layers: 16,
        heads: (32, 8, 64),
        context: 131_072,
        stretched: true,
        tied: true,
        ..BASE
    },
    Sizes {
        name: "tinyllama-1.1b",
        hidden: 2048,
        inner: 5632,
        layers: 22,
        heads: (32, 4, 64),
        context: 2048,
        theta: 10_000.0,
        ..BASE
    },
    Sizes {
        name: "llama-100m",
        hidden: 1024,
        inner: 2816,
        layers: 6,
        heads: (16, 8, 64),
        context: 2048,
        theta: 10_000.0,
        tied: true,
        ..BASE
    },
    Sizes {
        name: "tiny",
        vocab: 4096,
        hidden: 256,
        inner: 688,
        layers: 4,
        heads: (8, 4, 32),
        context: 2048,
        theta: 10_000.0,
        tied: true,
        ..BASE
    },
];

impl ModelConfig {
    /// The names that [`ModelConfig::named`] knows, the largest first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|sizes| sizes.name)
    }

    /// The configuration of a released model, but for its tokens; None when the name is not known.
    pub fn named(name: &str) -> Option<Self> {
        let sizes = KNOWN.iter().find(|sizes| sizes.name == name)?;
        let (heads, kv_heads, head_dim) = sizes.heads;
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        Some(Self {
            architecture: sizes.architecture,
            vocab_size: sizes.vocab,
            hidden_size: sizes.hidden,
            intermediate_size: sizes.inner,
            num_hidden_layers: sizes.layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: sizes.context,
            rms_norm_eps: 1e-5,
            rope: Rope {
                theta: sizes.theta,
                scaling: if sizes.stretched { scaling } else { RopeScaling::None },
            },
            sliding_window: sizes.window,
            tie_word_embeddings: sizes.tied,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::shared;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (name, count) in [
            ("mistral-7b", 7_241_732_096),
            ("llama-3-8b", 8_030_261_248),
            ("llama-2-7b", 6_738_415_616),
            ("llama-3.2-3b", 3_212_749_824),
            ("llama-3.2-1b", 1_235_814_400),
            ("tinyllama-1.1b", 1_100_048_384),
        ] {
            assert_eq!(ModelConfig::named(name).unwrap().parameter_count(), count, "{name}");
        }
        assert_eq!(ModelConfig::named("Mistral-7B"), None);
    }

    #[test]
    fn sizes_are_those_of_the_released_files() {
        let Some(shared) = shared() else { return };
        for (name, dir) in [
            ("mistral-7b", "Mistral-7B-v0.1"),
            ("llama-3-8b", "Meta-Llama-3-8B"),
            ("llama-2-7b", "Llama-2-7b-hf"),
            ("llama-3.2-3b", "Llama-3.2-3B"),
            ("llama-3.2-1b", "Llama-3.2-1B"),
            ("tinyllama-1.1b", "TinyLlama-1.1B-Chat-v1.0"),
        ] {
            let file = ModelConfig::from_dir(&shared.join("configs").join(dir)).unwrap();
            let known = ModelConfig {
                bos_token_id: file.bos_token_id,
                eos_token_ids: file.eos_token_ids.clone(),
                pad_token_id: file.pad_token_id,
                // An absent epsilon has another default in old files.
                rms_norm_eps: file.rms_norm_eps,
                ..ModelConfig::named(name).unwrap()
            };
            assert_eq!(known, file, "{name}");
        }
    }
}
