//! Blocks of emulated device memory, and which of them an address belongs to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::native;

/// A block of an emulator's memory.
#[derive(Debug)]
pub struct Memory {
    heap: Arc<Heap>,
    address: u64,
    bytes: usize,
}

/// The live blocks of an emulator: bytes by address.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    blocks: Mutex<BTreeMap<u64, usize>>,
}

impl Heap {
    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new block, full of NaN.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Option<Memory> {
        let block = native::alloc(bytes);
        if block.is_null() {
            return None;
        }
        let address = block as u64;
        self.blocks().insert(address, bytes);
        Some(Memory { heap: Arc::clone(self), address, bytes })
    }

    /// The bytes from an address to the end of its block, 0 if it is in none.
    pub(crate) fn bytes_at(&self, address: u64) -> usize {
        let blocks = self.blocks();
        let before = blocks.range(..=address).next_back();
        before.map_or(0, |(&from, &bytes)| (from + bytes as u64).saturating_sub(address) as usize)
    }

    /// Where an address lies that is in no block.
    pub(crate) fn describe(&self, address: u64) -> String {
        let blocks = self.blocks();
        let before = blocks.range(..=address).next_back().map(|(&at, &bytes)| (address - at, bytes));
        let after = blocks.range(address..).next().map(|(&at, &bytes)| (at - address, bytes));
        match (before, after) {
            (Some((offset, bytes)), after)
                if after.is_none_or(|(distance, _)| offset.saturating_sub(bytes as u64) <= distance) =>
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
        let found = blocks.iter().find_map(|(&address, &bytes)| {
            // SAFETY: the map holds live blocks only, and its lock keeps them so.
            unsafe { native::overwritten(address as *mut u8, bytes) }
        });
        drop(blocks);
        found.map(|at| self.describe(at))
    }
}

impl Memory {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Where `bytes` bytes from `at` on begin, if the block has them.
    pub(crate) fn span(&self, at: usize, bytes: usize) -> Option<*mut u8> {
        let inside = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        inside.then(|| (self.address as usize + at) as *mut u8)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.heap.blocks().remove(&self.address);
        // SAFETY: it came from `alloc`, and nothing refers to it but this.
        unsafe { native::free(self.address as *mut u8, self.bytes) }
    }
}
