//! LoRA adapters as PEFT configures, names and stores them.

mod linear;
mod lora_config;
mod target;

pub use linear::Linear;
pub use lora_config::{Layers, LoraConfig, ModuleNames, NameOrNames, Patterns, Site, TargetModules};
