//! The compute kernels of tunesmith, and all of its `unsafe` code.
//!
//! [`cpu`] holds the kernels of the CPU backend: a packed single-precision matrix product and the row
//! kernels of a decoder (norm, rotary embedding, SwiGLU, softmax, cross-entropy, AdamW), each compiled
//! for AVX-512, AVX2 and plain x86-64 or whatever the target is, and chosen once at run time.
//!
//! [`gpu`] holds the launchers of the CUDA kernels in `cuda/`, [`stored`] the conversions of weight files.
//!
//! Every public function but those of [`gpu::Driver`] is safe: it checks the shapes that its inner loops rely on.

#![allow(unsafe_code)]
// Row kernels must inline into each instruction set's copy of their caller.
#![allow(clippy::inline_always)]

pub mod cpu;
pub mod gpu;
pub mod stored;
