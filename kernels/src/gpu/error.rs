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
        "Not enough device memory: {} could not be allocated; of {} this process holds {}, the driver and other \
         programs {}, and {} are free",
        size(*bytes), size(*total), size(*held), size(total.saturating_sub(held + free)), size(*free)
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes the device has left.
        free: usize,
        /// Bytes the device has.
        total: usize,
        /// Bytes of it that this process has allocated, or holds to allocate from.
        held: usize,
    },
    /// No usable driver, library or device on this machine.
    #[error("No CUDA device can be used: {reason}. {hint}")]
    Unavailable {
        /// What is missing.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// The device failed in its work, or is gone: no later call of this process will be answered any better.
    #[error("The GPU failed: {call} reported {text}; this process cannot use it any more")]
    Device {
        /// The call that told of it, which need not be the one that met it.
        call: String,
        /// The device's own words, and its error code.
        text: String,
    },
    /// A call that the driver or a library refused as such: a bug of the caller, never of the user.
    #[error("{call} failed: {text}")]
    Refused {
        /// The call.
        call: String,
        /// What is wrong with it.
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

/// A number of bytes for people.
pub(crate) fn size(bytes: usize) -> String {
    match bytes as f64 {
        gigabytes if gigabytes >= 1e9 => format!("{:.2} GB", gigabytes / 1e9),
        megabytes if megabytes >= 1e6 => format!("{:.1} MB", megabytes / 1e6),
        _ => format!("{bytes} bytes"),
    }
}

/// An [`Error::Shape`] unless `ok`.
pub(crate) fn expect(op: &'static str, ok: bool, detail: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::shape(op, detail())) }
}
