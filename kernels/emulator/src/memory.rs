//! Blocks of emulated device memory, and which of them an address belongs to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tunesmith_kernels::gpu::DeviceMemory;

use crate::native::{self, Region};

/// A block of an emulator's memory.
#[derive(Debug)]
pub struct Memory {
    heap: Arc<Heap>,
    region: Region,
}

/// The live blocks of an emulator, by address.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    blocks: Mutex<BTreeMap<u64, Region>>,
    count: Mutex<Count>,
    /// Bytes that all blocks may have.
    limit: Option<u64>,
}

/// Bytes of live blocks.
#[derive(Debug, Default)]
struct Count {
    used: u64,
    peak: u64,
}

/// A block of one byte is that of an empty slice, and counts for nothing.
fn counted(bytes: u64) -> u64 {
    if bytes > 1 { bytes } else { 0 }
}

impl Heap {
    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, Region>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for so many bytes.
    pub(crate) fn limited(bytes: u64) -> Self {
        Self { limit: Some(bytes), ..Self::default() }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is, where there is a limit.
    pub(crate) fn memory(&self) -> Option<DeviceMemory> {
        let Count { used, peak } = *self.count();
        self.limit.map(|total| DeviceMemory { total, free: total - used, used, peak })
    }

    /// Takes room for a block, if it is there.
    fn take(&self, bytes: u64) -> Option<()> {
        let mut count = self.count();
        let used = count.used + counted(bytes);
        if self.limit.is_some_and(|limit| used > limit) {
            return None;
        }
        *count = Count { used, peak: count.peak.max(used) };
        Some(())
    }

    /// A new block, full of NaN.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Option<Memory> {
        self.take(bytes as u64)?;
        let Some(region) = native::alloc(bytes) else {
            self.count().used -= counted(bytes as u64);
            return None;
        };
        self.blocks().insert(region.from, region);
        Some(Memory { heap: Arc::clone(self), region })
    }

    /// All blocks, sorted by address.
    pub(crate) fn regions(&self) -> Vec<Region> {
        self.blocks().values().copied().collect()
    }

    /// The bytes from an address to the end of its block, 0 if it is in none.
    pub(crate) fn bytes_at(&self, address: u64) -> usize {
        let blocks = self.blocks();
        let before = blocks.range(..=address).next_back();
        before.map_or(0, |(_, block)| block.to.saturating_sub(address) as usize)
    }

    /// Where an address lies that is in no block.
    pub(crate) fn describe(&self, address: u64) -> String {
        let blocks = self.blocks();
        let before = blocks.range(..=address).next_back().map(|(&at, b)| (address - at, b.to - at));
        let after = blocks.range(address..).next().map(|(&at, b)| (at - address, b.to - at));
        match (before, after) {
            (Some((offset, bytes)), after)
                if after.is_none_or(|(distance, _)| offset.saturating_sub(bytes) <= distance) =>
            {
                format!("byte {offset} of a buffer of {bytes} bytes")
            }
            (_, Some((distance, bytes))) => format!("{distance} bytes before a buffer of {bytes} bytes"),
            _ => format!("address {address:#x}"),
        }
    }

    /// What was written around a block, if anything was.
    pub(crate) fn overwritten(&self) -> Option<String> {
        let blocks = self.blocks();
        // SAFETY: the map holds live blocks only, and its lock keeps them so.
        let found = blocks.values().find_map(|block| unsafe { native::overwritten(block) });
        drop(blocks);
        found.map(|at| self.describe(at))
    }
}

impl Memory {
    pub(crate) fn address(&self) -> u64 {
        self.region.from
    }

    /// Where `bytes` bytes from `at` on begin, if the block has them.
    pub(crate) fn span(&self, at: usize, bytes: usize) -> Option<*mut u8> {
        let len = (self.region.to - self.region.from) as usize;
        let inside = at.checked_add(bytes).is_some_and(|end| end <= len);
        inside.then(|| (self.region.from as usize + at) as *mut u8)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.heap.blocks().remove(&self.region.from);
        self.heap.count().used -= counted(self.region.to - self.region.from);
        // SAFETY: it came from `alloc`, and nothing refers to it but this.
        unsafe { native::free(self.region) }
    }
}
