//! LoRA adapters as PEFT configures, names and stores them.

mod adapter_config;
mod file;
mod linear;
mod lora_config;
mod target;

pub use adapter_config::PeftConfig;
pub use file::{AdapterTensor, LoadedTensor, check, load, save};
pub use linear::Linear;
pub use lora_config::{Layers, LoraConfig, ModuleNames, NameOrNames, Patterns, Site, TargetModules};
