//! Hugging Face models in Rust: configuration, weights, and PEFT LoRA adapters.

mod card;
mod config;
mod error;
pub mod hub;
mod json;
pub mod peft;
mod publish;
mod rope;
mod tensor_file;
mod weights;

pub use card::ModelCard;
pub use config::{Architecture, ModelConfig};
pub use error::{Error, Result};
pub use rope::{Rope, RopeScaling};
pub use tensor_file::TensorFile;
pub use weights::Checkpoint;
