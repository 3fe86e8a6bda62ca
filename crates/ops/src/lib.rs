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
pub use tunesmith_kernels::cpu::AdamW;
pub use tunesmith_kernels::gpu::adamw::Segment;

pub use tunesmith_kernels::gpu::{DeviceMemory, Error as DeviceError};

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
        tunesmith_kernels::gpu::cuda::Cuda::look(ordinal)?;
        Ok(())
    }

    /// The meters of a GPU, without setting anything up on it: power, energy, clocks.
    ///
    /// # Errors
    /// In words, why it has none.
    pub fn monitor(ordinal: usize) -> Result<tunesmith_kernels::gpu::cuda::Monitor, String> {
        tunesmith_kernels::gpu::cuda::Monitor::open(ordinal)
    }
}
