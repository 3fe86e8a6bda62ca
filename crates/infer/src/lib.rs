//! Generation with a key/value cache: greedy or sampled, stopping at the model's stop tokens.

mod error;
mod generate;
mod sample;

pub use error::Error;
pub use generate::{FinishReason, PROMPT_CHUNK, Reply, Request, generate};
pub use sample::Sampling;
