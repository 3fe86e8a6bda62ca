//! How a backend lays values out, for whoever reckons with bytes before anything is allocated.

/// The layout of a backend's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// Bytes of a stored value: activations and frozen weights. LoRA parameters, gradients and moments have 4.
    pub bytes: usize,
    /// See [`crate::Kernels::rank_padding`].
    pub rank_padding: usize,
    /// See [`crate::Kernels::row_padding`].
    pub row_padding: usize,
    /// Whether it is that of a device with memory of its own.
    device: bool,
}

/// The largest calls of a run, by which a backend's own buffers grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// Tokens of a batch.
    pub rows: usize,
    /// Whether gradients are computed.
    pub training: bool,
    /// Whether inputs are dropped.
    pub dropout: bool,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Query heads.
    pub heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Positions of the longest document.
    pub positions: usize,
}

impl Storage {
    /// [`crate::RefKernels`].
    pub const CPU: Self = Self { bytes: 4, rank_padding: 16, row_padding: 1, device: false };
    /// [`crate::DeviceKernels`], on whatever device.
    pub const DEVICE: Self = Self { bytes: 2, rank_padding: 64, row_padding: 128, device: true };

    /// Whether it is that of a device with memory of its own.
    pub fn is_device(self) -> bool {
        self.device
    }

    /// Bytes of the logits that are held at a time.
    pub fn logits_bytes(self, calls: &Calls) -> u64 {
        if self.device {
            crate::device::bytes::logits(calls)
        } else {
            (crate::reference::logits_rows(calls.vocab, calls.rows) * calls.vocab * 4) as u64
        }
    }

    /// Bytes of the table that updates refresh copies by ([`crate::Kernels::copies`]), for so many parameters in so many
    /// matrices; on the CPU it is small and not counted.
    pub fn copies_bytes(self, parameters: usize, matrices: usize) -> u64 {
        if self.device { crate::device::bytes::copies(parameters, matrices) } else { 0 }
    }

    /// Most bytes that the backend holds beside its callers' buffers and the logits: lists of rows and tiles, statistics
    /// of the attention, sums. On the CPU they are small and not counted.
    pub fn call_bytes(self, calls: &Calls) -> u64 {
        if self.device { crate::device::bytes::lists(calls) } else { 0 }
    }
}
