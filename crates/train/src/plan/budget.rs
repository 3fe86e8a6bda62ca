//! What a device has.

use tunesmith_ops::DeviceMemory;

/// What a CUDA context takes of a card before anything is asked of it, as `nvidia-smi` shows it for one process: code and
/// stacks of the driver, and cuBLASLt's workspace of up to 32 MiB. On a device that is open already it is gone from what
/// is free.
pub const CONTEXT: u64 = 600_000_000;
/// What is left free on a device at least: code of kernels that are loaded when they are first used, their local memory,
/// page-locked staging.
const RESERVE: u64 = 256 << 20;
/// And this part of what is free, for what blocks of a memory pool lose to its granularity of 2 MiB.
const FRAGMENTS: u64 = 64;

/// Bytes that a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// All of them.
    pub bytes: u64,
    /// Those of them that are left free on purpose.
    pub reserve: u64,
}

impl Budget {
    /// Of an open device: what is free on it, or less if a limit says so.
    pub fn of_device(memory: &DeviceMemory, limit: Option<u64>) -> Self {
        Self::with_reserve(memory.free.min(limit.unwrap_or(u64::MAX)))
    }

    /// Of a card with so many bytes that nobody else uses, or less if a limit says so.
    pub fn of_card(total: u64, limit: Option<u64>) -> Self {
        Self::with_reserve(total.saturating_sub(CONTEXT).min(limit.unwrap_or(u64::MAX)))
    }

    /// Of the host: as much as a limit says, or without one as much as the system gives. The limit is on what is planned, to
    /// the byte; the program itself and the rows are not in it.
    pub fn of_host(limit: Option<u64>) -> Self {
        Self { bytes: limit.unwrap_or(u64::MAX / 2), reserve: 0 }
    }

    /// Whether anything bounds it.
    pub fn is_bounded(&self) -> bool {
        self.bytes < u64::MAX / 2
    }

    fn with_reserve(bytes: u64) -> Self {
        Self { bytes, reserve: RESERVE + bytes / FRAGMENTS }
    }
}
