//! What the tests of the workspace measure against, and nothing that ships.
//!
//! - [`cases`]: golden cases, made with transformers and PEFT, found on disk and read as they are.
//! - [`oracle`]: the decoder written a second time over candle's autograd, slow and plain.
//! - [`tiny`]: small random models, adapters and batches.
//! - [`tensors`]: named tensors and comparisons whose failure names the number.
//!
//! This library uses none of the crates under test: a mistake there cannot hide itself by being made twice.

pub mod adapter;
pub mod cases;
mod error;
#[cfg(feature = "oracle")]
pub mod oracle;
pub mod records;
pub mod spec;
pub mod tensors;
pub mod tiny;

pub use error::Error;
