//! The kernels of `cuda/*.cu` behind safe launchers.
//!
//! A launcher checks shapes, bounds and alignment once, in words, and queues a kernel on a [`Driver`]: the GPU
//! (module `cuda`, with feature `cuda`) or the emulator that the tests run the same sources on. One file per op, as in
//! `cuda/`; formulas, shapes and bytes moved stand in the head comment of the `.cu` file.

pub mod adamw;
pub mod attention;
pub mod attention_decode;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
mod driver;
pub mod dropout;
mod error;
pub mod fill;
pub mod gemm;
pub mod nf4;
pub mod norm;
mod pieces;
pub mod rms_norm;
pub mod rope;
pub mod rows;
mod slice;
pub mod swiglu;

pub use driver::{Arg, DeviceMemory, Driver, Gemm, Launch, Limits, Operand};
pub use error::{Error, Result};
pub use half::bf16;
pub use pieces::{Fill, Piece, Rows};
pub use slice::{Element, Later, Slice, View, ViewMut};
