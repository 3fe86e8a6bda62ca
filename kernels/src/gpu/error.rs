/// What can go wrong between a launcher and a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Operands that do not fit each other: a bug of the caller, never of the user.
    #[error("{op}: {detail}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What does not fit.
        detail: String,
    },
    /// A buffer that could not be had.
    #[error(
        "Not enough device memory: {bytes} bytes could not be allocated, {free} of {total} bytes are free"
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes the device has left.
        free: usize,
        /// Bytes the device has.
        total: usize,
    },
    /// No usable driver, library or device on this machine.
    #[error("No CUDA device can be used: {reason}. {hint}")]
    Unavailable {
        /// What is missing.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// A driver or library call that failed.
    #[error("{call} failed: {text}")]
    Device {
        /// The call.
        call: String,
        /// The device's own words, and its error code.
        text: String,
    },
    /// The emulator saw a kernel do what no kernel may do.
    #[error("Kernel `{kernel}`: {fault}")]
    Fault {
        /// The kernel.
        kernel: String,
        /// What it did, and which thread of which block.
        fault: String,
    },
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { op, detail: detail.into() }
    }
}

/// An [`Error::Shape`] unless `ok`.
pub(crate) fn expect(op: &'static str, ok: bool, detail: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::shape(op, detail())) }
}
