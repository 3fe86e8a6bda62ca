//! Hugging Face models in Rust: configuration, weights, and PEFT LoRA adapters.

mod adapter;
mod card;
mod config;
mod decoder;
mod error;
mod flops;
pub mod hub;
mod json;
mod known;
pub mod peft;
mod publish;
mod rope;
mod tensor_file;
#[cfg(test)]
mod test_support;
mod weights;

pub use adapter::{AdapterLayout, Group, Slot};
pub use card::ModelCard;
pub use config::{Architecture, ModelConfig};
pub use decoder::{
    Batch, Decoder, Document, DropoutStep, Footprint, Keep, KvCache, WeightBytes, WeightSource, Workspace,
};
pub use error::{Error, Result};
pub use flops::Flops;
pub use publish::{sync_dir, write_file};
pub use rope::{Rope, RopeScaling};
pub use tensor_file::{StoredTensor, TensorFile};
pub use weights::Checkpoint;
