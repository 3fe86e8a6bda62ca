//! How much arithmetic a training pass needs: multiplications and additions, each counted as one.
//!
//! This is what efficiency is held against. What this decoder really computes, with padded ranks and scores made twice,
//! [`Footprint`](crate::Footprint) reckons.

use crate::adapter::{AdapterLayout, Group};
use crate::decoder::Keep;
use crate::peft::Linear;
use crate::{ModelConfig, Slot};

/// Floating-point operations of one forward and backward pass over documents whose every token is predicted, by what they
/// are for. Elementwise work (norms, rotation, SwiGLU, softmax) is not counted: it is bound by memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Flops {
    /// Frozen linears of the blocks, forward.
    pub linear_forward: f64,
    /// Their gradients by the inputs. The lowest trained block needs none for q, k and v.
    pub linear_backward: f64,
    /// The output head, forward and backward.
    pub head: f64,
    /// The low-rank products, forward and backward.
    pub lora: f64,
    /// Causal attention within documents and the window, forward.
    pub attention_forward: f64,
    /// Its gradients: five products for the forward's two.
    pub attention_backward: f64,
    /// What is computed a second time because it was not kept.
    pub recomputed: f64,
}

impl Flops {
    /// Of documents of these lengths in tokens, where block `i` keeps `keep[i]` (everything beyond the end of `keep`).
    pub fn of(config: &ModelConfig, layout: &AdapterLayout, lengths: &[usize], keep: &[Keep]) -> Self {
        let tokens = lengths.iter().sum::<usize>() as f64;
        let pairs: f64 = lengths.iter().map(|&n| pairs(n, config.sliding_window)).sum();
        // Scores and values: two products of a head's size for each query and key that see each other.
        let attention = 4.0 * pairs * config.query_size() as f64;
        let linear = |l: Linear| {
            let (out, input) = l.shape(config);
            2.0 * tokens * out as f64 * input as f64
        };
        let down = |s: &Slot| 2.0 * tokens * (s.site.rank * s.input) as f64;
        let up = |s: &Slot| 2.0 * tokens * (s.site.rank * s.out) as f64;
        let first = layout.slots().iter().map(|s| s.site.layer).min().unwrap_or(usize::MAX);

        let head = 2.0 * tokens * (config.vocab_size * config.hidden_size) as f64;
        let mut sum = Self { head: if layout.is_empty() { head } else { 2.0 * head }, ..Self::default() };
        for layer in 0..config.num_hidden_layers {
            sum.attention_forward += attention;
            for group in Group::ALL {
                let all: f64 = group.linears().iter().map(|&l| linear(l)).sum();
                sum.linear_forward += all;
                let needs_input_gradient = layer > first || (layer == first && group != Group::Qkv);
                if needs_input_gradient {
                    sum.linear_backward += all;
                }
                for slot in layout.group(layer, group) {
                    // dS, dB, dA, and dS's part of the gradient by the input.
                    let backward = 2.0 * up(&slot) + down(&slot);
                    sum.lora += up(&slot) + down(&slot) + backward;
                    sum.lora += if needs_input_gradient { down(&slot) } else { 0.0 };
                }
            }
            if layer < first {
                continue;
            }
            sum.attention_backward += 2.5 * attention;
            let keep = keep.get(layer).copied().unwrap_or_default();
            let whole = |group: Group| {
                let lora: f64 = layout.group(layer, group).iter().map(|s| up(s) + down(s)).sum();
                lora + group.linears().iter().map(|&l| linear(l)).sum::<f64>()
            };
            let inner = |group: Group| layout.group(layer, group).iter().map(down).sum::<f64>();
            if keep > Keep::All {
                sum.recomputed += whole(Group::GateUp) + inner(Group::Down);
            }
            if keep > Keep::NoMlp {
                sum.recomputed += whole(Group::Qkv) + attention;
                sum.recomputed += if keep > Keep::Residuals { whole(Group::O) } else { inner(Group::O) };
            }
        }
        sum
    }

    /// What the mathematics of the step needs, however it is computed.
    pub fn needed(&self) -> f64 {
        self.linear_forward
            + self.linear_backward
            + self.head
            + self.lora
            + self.attention_forward
            + self.attention_backward
    }

    /// [`Flops::needed`] with what is computed twice.
    pub fn computed(&self) -> f64 {
        self.needed() + self.recomputed
    }
}

/// Pairs of a query and a key that it sees, in a document of `n` tokens.
fn pairs(n: usize, window: Option<usize>) -> f64 {
    let triangle = |n: usize| n as f64 * (n as f64 + 1.0) / 2.0;
    match window {
        Some(window) if window < n => triangle(window) + (n - window) as f64 * window as f64,
        _ => triangle(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::LoraConfig;

    fn layout(config: &ModelConfig, r: usize) -> AdapterLayout {
        let lora = LoraConfig { r, ..LoraConfig::default() };
        AdapterLayout::new(config, &lora.resolve(config.num_hidden_layers).unwrap())
    }

    /// GFLOP per token at documents of `length`.
    fn per_token(name: &str, length: usize, keep: Keep) -> Flops {
        let config = ModelConfig { sliding_window: None, ..ModelConfig::named(name).unwrap() };
        let keep = vec![keep; config.num_hidden_layers];
        let f = Flops::of(&config, &layout(&config, 16), &[length; 3], &keep);
        let scale = |v: f64| v / (3 * length) as f64 / 1e9;
        Flops {
            linear_forward: scale(f.linear_forward),
            linear_backward: scale(f.linear_backward),
            head: scale(f.head),
            lora: scale(f.lora),
            attention_forward: scale(f.attention_forward),
            attention_backward: scale(f.attention_backward),
            recomputed: scale(f.recomputed),
        }
    }

    /// The table that the design was made by: rank 16 on all linears, GFLOP per token.
    #[test]
    fn totals_are_those_of_the_design() {
        let near =
            |got: f64, want: f64, digit: f64| assert!((got - want).abs() <= 0.6 * digit, "{got} {want}");
        for (name, length, want) in [
            ("mistral-7b", 512, 29.1),
            ("mistral-7b", 2048, 30.5),
            ("mistral-7b", 8192, 36.2),
            ("llama-3-8b", 512, 30.7),
            ("llama-3-8b", 2048, 32.1),
            ("llama-3-8b", 8192, 37.7),
        ] {
            near(per_token(name, length, Keep::All).needed(), want, 0.1);
        }
        let f = per_token("mistral-7b", 2048, Keep::All);
        for (got, want) in [
            (f.linear_forward, 13.96),
            (f.linear_backward, 13.91),
            (f.head, 0.52),
            (f.lora, 0.25),
            (f.attention_forward, 0.54),
            (f.attention_backward, 1.34),
            (f.recomputed, 0.0),
        ] {
            near(got, want, 0.01);
        }
        // What each way of keeping less costs; the table leaves the low-rank products out, up to 0.08.
        for (keep, want) in [(Keep::NoMlp, 7.5), (Keep::Residuals, 9.7), (Keep::Input, 10.7)] {
            let f = per_token("mistral-7b", 2048, keep);
            near(f.recomputed, want, 0.2);
            assert_eq!(f.computed(), f.needed() + f.recomputed);
        }
    }

    /// By hand, on one small layer each.
    #[test]
    fn every_part_is_counted() {
        let config = ModelConfig {
            vocab_size: 11,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 2,
            sliding_window: Some(3),
            ..ModelConfig::named("tiny").unwrap()
        };
        let lengths = [5, 1, 2];
        let (n, seen) = (8.0, 1.0 + 2.0 + 3.0 + 3.0 + 3.0 + 1.0 + 1.0 + 2.0);
        let (qkv, o, gate_up, down) = (16.0 * 8.0, 8.0 * 8.0, 24.0 * 8.0, 8.0 * 12.0);
        let block = 2.0 * n * (qkv + o + gate_up + down);
        let f = Flops::of(&config, &layout(&config, 3), &lengths, &[Keep::All, Keep::Input]);
        assert_eq!(f.linear_forward, 2.0 * block);
        assert_eq!(f.linear_backward, 2.0 * block - 2.0 * n * qkv);
        assert_eq!(f.head, 4.0 * n * 88.0);
        assert_eq!(f.attention_forward, 2.0 * 4.0 * seen * 8.0);
        assert_eq!(f.attention_backward, 2.5 * f.attention_forward);
        // Inputs and outputs of all seven linears.
        let (inputs, outputs) = (8.0 * 6.0 + 12.0, 8.0 + 4.0 + 4.0 + 8.0 + 12.0 + 12.0 + 8.0);
        let lora = 2.0 * n * 3.0 * (inputs + outputs);
        assert_eq!(f.lora, 2.0 * 3.0 * lora - 2.0 * n * 3.0 * 24.0);
        let again = 2.0 * n * (qkv + o + gate_up) + f.attention_forward / 2.0;
        assert_eq!(f.recomputed, again + lora - 2.0 * n * 3.0 * 8.0);
        // Only what lies above the lowest trained block has gradients.
        let upper = LoraConfig {
            r: 3,
            layers_to_transform: Some(crate::peft::Layers::One(1)),
            ..LoraConfig::default()
        };
        let upper = AdapterLayout::new(&config, &upper.resolve(2).unwrap());
        let f = Flops::of(&config, &upper, &lengths, &[Keep::Input; 2]);
        assert_eq!(f.linear_backward, block - 2.0 * n * qkv);
        assert_eq!(f.recomputed, again + lora - 2.0 * n * 3.0 * 8.0);
        let none = Flops::of(&config, &AdapterLayout::new(&config, &[]), &lengths, &[Keep::Input; 2]);
        assert_eq!((none.linear_backward, none.attention_backward, none.recomputed), (0.0, 0.0, 0.0));
        assert_eq!(none.head, 2.0 * n * 88.0);
    }
}
