//! Optimizer, schedule, step loop, evaluation and events.

mod config;
mod event;

pub use config::{LrScheduler, Recompute, TrainConfig};
pub use event::Event;
