//! The words of the driver and of cuBLASLt for what failed.

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::result::DriverError;

use crate::gpu::error::{Error, Result};

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
        self.map_err(|e| Error::Device { call: call(), text: words(e) })
    }
}

impl<T> Named<T> for std::result::Result<T, CublasError> {
    fn named_with(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Device { call: call(), text: format!("{e} ({})", e.0 as u32) })
    }
}

/// The driver's sentence, name and number for an error.
pub(super) fn words(error: DriverError) -> String {
    let number = error.0 as u32;
    match (error.error_string(), error.error_name()) {
        (Ok(text), Ok(name)) => format!("{} ({}, {number})", text.to_string_lossy(), name.to_string_lossy()),
        _ => format!("error {number}"),
    }
}

/// What stands in the way of using a device, and what to do about it.
pub(super) fn unavailable(reason: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Unavailable { reason: reason.into(), hint: hint.into() }
}
