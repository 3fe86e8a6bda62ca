//! The linear layers of a decoder block that can carry LoRA.

use crate::config::ModelConfig;

/// One of the seven linear layers of a decoder block, in the order of the forward pass.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Linear {
    /// `self_attn.q_proj`.
    Q,
    /// `self_attn.k_proj`.
    K,
    /// `self_attn.v_proj`.
    V,
    /// `self_attn.o_proj`.
    O,
    /// `mlp.gate_proj`.
    Gate,
    /// `mlp.up_proj`.
    Up,
    /// `mlp.down_proj`.
    Down,
}

impl Linear {
    /// All seven, in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The last part of the module's name, such as `q_proj`.
    pub fn proj_name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The module's path in the base model, such as `model.layers.0.self_attn.q_proj`.
    pub fn module_path(self, layer: usize) -> String {
        let parent = match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        };
        format!("model.layers.{layer}.{parent}.{}", self.proj_name())
    }

    /// `(out, in)`: the shape of the weight.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let hidden = config.hidden_size;
        match self {
            Self::Q => (config.query_size(), hidden),
            Self::K | Self::V => (config.key_value_size(), hidden),
            Self::O => (hidden, config.query_size()),
            Self::Gate | Self::Up => (config.intermediate_size, hidden),
            Self::Down => (hidden, config.intermediate_size),
        }
    }
}
