//! LoRA adapters as PEFT configures, names and stores them.

mod adapter_config;
mod file;
mod linear;
mod lora_config;
mod target;

pub use adapter_config::{CONFIG_FILE, PeftConfig};
pub use file::{AdapterTensor, LoadedTensor, WEIGHTS_FILE, check, load, save, write, write_tensors};
pub use linear::Linear;
pub use lora_config::{Layers, LoraConfig, ModuleNames, NameOrNames, Patterns, Site, TargetModules};
