/// What can go wrong between the decoder and a device.
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
    /// A token id outside the embedding table.
    #[error("Token id {id} at position {position} is outside the model's vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Row of the batch.
        position: usize,
        /// Rows of the table.
        vocab_size: usize,
    },
    /// A buffer that could not be had.
    #[error("Not enough memory: a buffer of {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A document longer than the rotary table or the key/value cache.
    #[error("Position {position} is beyond the {limit} positions prepared for")]
    PositionOutOfRange {
        /// The position.
        position: usize,
        /// Positions there are.
        limit: usize,
    },
    /// A stored value that is NaN or infinite.
    #[error("value {index} is not finite")]
    ValueNotFinite {
        /// Its place in the matrix, row by row.
        index: usize,
    },
    /// A stored value that the device's storage type would make an infinity of.
    #[error("value {index} is {value:e}, which is more than bf16 can hold")]
    ValueTooLarge {
        /// Its place in the matrix, row by row.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Stored values that could not be read.
    #[error("stored values could not be read: {0}")]
    Read(#[source] std::io::Error),
    /// What the device said.
    #[error(transparent)]
    Device(#[from] tunesmith_kernels::gpu::Error),
}

impl Error {
    /// Whether a buffer could not be had, on the host or on the device.
    pub fn is_out_of_memory(&self) -> bool {
        use tunesmith_kernels::gpu::Error as Device;
        matches!(self, Self::OutOfMemory { .. } | Self::Device(Device::OutOfMemory { .. }))
    }

    pub(crate) fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { op, detail: detail.into() }
    }
}

/// An [`Error::Shape`] unless `ok`.
pub(crate) fn expect(op: &'static str, ok: bool, detail: impl FnOnce() -> String) -> Result<(), Error> {
    if ok { Ok(()) } else { Err(Error::shape(op, detail())) }
}

/// Ids that may be looked up without a further check.
pub(crate) fn in_vocabulary(ids: &[u32], vocab_size: usize) -> Result<(), Error> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        Some(position) => Err(Error::TokenOutOfRange { id: ids[position], position, vocab_size }),
        None => Ok(()),
    }
}
