//! The seam between mathematics and device.
//!
//! [`Kernels`] is everything the decoder, the loss and the optimizer ask of a device. [`RefKernels`] answers on
//! the CPU in f32, [`DeviceKernels`] on a GPU with bf16 storage and f32 sums. Above this trait no code knows which one
//! it runs on.

mod device;
mod error;
mod fixed;
mod kernels;
mod mat;
mod reference;
mod rng;
mod rope;
mod sequences;
mod storage;
mod stored;
mod timed;

pub use device::DeviceKernels;
pub use error::Error;
pub use fixed::{Fixed, Index, RowNames, Tag};
pub use kernels::{Attention, AttentionGradients, Flat, Kernels, Refresh, UPDATE_RESULTS};
pub use mat::{Mat, MatMut};
pub use reference::RefKernels;
pub use rng::{DropoutKey, FillKey, Philox};
pub use rope::RopeTable;
pub use sequences::Sequences;
pub use storage::{Calls, Storage};
pub use stored::{Stored, StoredType};
pub use timed::{OpTime, Phase, Timed, Times};
pub use tunesmith_kernels::cpu::AdamW;
pub use tunesmith_kernels::gpu::adamw::Segment;

pub use tunesmith_kernels::gpu::{DeviceMemory, Error as DeviceError};

/// The instruction set that the CPU's kernels use on this machine: what it offers, or less where `TUNESMITH_SIMD` says so.
pub fn cpu_instructions() -> &'static str {
    use tunesmith_kernels::cpu::{Level, level};
    match level() {
        Level::Avx512 => "AVX-512",
        Level::Avx2 => "AVX2",
        Level::Baseline if cfg!(target_arch = "x86_64") => "SSE2",
        Level::Baseline => std::env::consts::ARCH,
    }
}

/// The kernels on an NVIDIA GPU.
#[cfg(feature = "cuda")]
pub type CudaKernels = DeviceKernels<tunesmith_kernels::gpu::cuda::Cuda>;

#[cfg(feature = "cuda")]
impl CudaKernels {
    /// The kernels on a GPU, counted from 0.
    ///
    /// # Errors
    /// What is missing: the driver or a version of it, the device, cuBLASLt.
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        Ok(Self::new(tunesmith_kernels::gpu::cuda::Cuda::new(ordinal)?))
    }

    /// Whether a GPU can be used, without setting anything up on it.
    ///
    /// # Errors
    /// As [`CudaKernels::open`].
    pub fn check(ordinal: usize) -> Result<(), Error> {
        Self::look(ordinal).map(drop)
    }

    /// What a GPU that can be used is, without setting anything up on it.
    ///
    /// # Errors
    /// As [`CudaKernels::check`].
    pub fn look(ordinal: usize) -> Result<tunesmith_kernels::gpu::cuda::Facts, Error> {
        Ok(tunesmith_kernels::gpu::cuda::Cuda::look(ordinal)?)
    }

    /// How many GPUs the driver sees, be they of use or not.
    pub fn count() -> usize {
        tunesmith_kernels::gpu::cuda::Cuda::count()
    }

    /// The version of cuBLASLt, as in 13.1.0; none where it is not to be found.
    pub fn cublaslt() -> Option<String> {
        tunesmith_kernels::gpu::cuda::Cuda::cublaslt()
    }

    /// The meters of a GPU, without setting anything up on it: power, energy, clocks.
    ///
    /// # Errors
    /// In words, why it has none.
    pub fn monitor(ordinal: usize) -> Result<tunesmith_kernels::gpu::cuda::Monitor, String> {
        tunesmith_kernels::gpu::cuda::Monitor::open(ordinal)
    }
}
