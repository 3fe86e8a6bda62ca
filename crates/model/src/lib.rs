//! Hugging Face models in Rust: configuration, weights, and PEFT LoRA adapters.

mod config;
mod error;
mod json;
pub mod peft;
mod rope;
mod tensor_file;
mod weights;

pub use config::{Architecture, ModelConfig};
pub use error::{Error, Result};
pub use rope::{Rope, RopeScaling};
pub use tensor_file::TensorFile;
pub use weights::Checkpoint;
