//! The words of the driver and of cuBLASLt for what failed, and what follows from them.
//!
//! Four kinds of trouble call for four answers: the memory is full, the device is not to be had, it has failed in its work
//! (every later call of the process fails too, the driver's "sticky" errors), or we have asked for nonsense.

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t as Blas;
use cudarc::driver::result::{DriverError, mem_get_info};
use cudarc::driver::sys::CUresult as Cu;

use crate::gpu::error::{Error, Result, size};

/// Names the call of a status that is not success.
pub(super) trait Named<T> {
    fn named(self, call: &str) -> Result<T>
    where
        Self: Sized,
    {
        self.named_with(|| call.into())
    }

    /// For names that take work to write.
    fn named_with(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Named<T> for std::result::Result<T, DriverError> {
    fn named_with(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| match e.0 {
            Cu::CUDA_ERROR_OUT_OF_MEMORY => full(&call(), &words(e)),
            code if is_refusal(code) => Error::Refused { call: call(), text: words(e) },
            _ => Error::Device { call: call(), text: words(e) },
        })
    }
}

impl<T> Named<T> for std::result::Result<T, CublasError> {
    fn named_with(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| {
            let text = format!("{:?} ({})", e.0, e.0 as u32);
            match e.0 {
                Blas::CUBLAS_STATUS_ALLOC_FAILED => full(&call(), &text),
                Blas::CUBLAS_STATUS_ARCH_MISMATCH => unavailable(
                    format!("cuBLASLt has no kernels for its architecture: {} failed with {text}", call()),
                    "Install the cuBLAS of a newer CUDA toolkit",
                ),
                Blas::CUBLAS_STATUS_NOT_INITIALIZED
                | Blas::CUBLAS_STATUS_MAPPING_ERROR
                | Blas::CUBLAS_STATUS_EXECUTION_FAILED
                | Blas::CUBLAS_STATUS_INTERNAL_ERROR => Error::Device { call: call(), text },
                _ => Error::Refused { call: call(), text },
            }
        })
    }
}

/// Whether a status says that the call made no sense, and nothing of the device. Whatever is not in this list is trouble
/// with the device, its driver or its machine, which may be gone the next time.
fn is_refusal(code: Cu) -> bool {
    matches!(
        code,
        Cu::CUDA_ERROR_INVALID_VALUE
            | Cu::CUDA_ERROR_INVALID_IMAGE
            | Cu::CUDA_ERROR_INVALID_CONTEXT
            | Cu::CUDA_ERROR_INVALID_PTX
            | Cu::CUDA_ERROR_INVALID_SOURCE
            | Cu::CUDA_ERROR_INVALID_HANDLE
            | Cu::CUDA_ERROR_ILLEGAL_STATE
            | Cu::CUDA_ERROR_NOT_FOUND
            | Cu::CUDA_ERROR_NOT_READY
            | Cu::CUDA_ERROR_NOT_SUPPORTED
            | Cu::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
            | Cu::CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING
            | Cu::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
    )
}

/// The memory ran out where it was not ours to ask for a number of bytes.
fn full(call: &str, words: &str) -> Error {
    let room = mem_get_info().map_or_else(
        |_| String::new(),
        |(free, total)| format!(", with {} of {} free", size(free), size(total)),
    );
    unavailable(
        format!("its memory is used up{room}: {call} failed with {words}"),
        "`nvidia-smi` lists the programs that use it: end one of them, or choose another device",
    )
}

/// The driver's sentence, name and number for an error.
pub(super) fn words(error: DriverError) -> String {
    let number = error.0 as u32;
    match (error.error_string(), error.error_name()) {
        (Ok(text), Ok(name)) => {
            format!("\"{}\" ({}, {number})", text.to_string_lossy(), name.to_string_lossy())
        }
        _ => format!("error {number}"),
    }
}

/// What stands in the way of using a device, and what to do about it.
pub(super) fn unavailable(reason: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Unavailable { reason: reason.into(), hint: hint.into() }
}
