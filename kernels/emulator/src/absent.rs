//! What stands in for the C++ side where no compiler was found.

use tunesmith_kernels::gpu::Launch;

pub(crate) const AVAILABLE: bool = false;

pub(crate) fn alloc(_bytes: usize) -> *mut u8 {
    std::ptr::null_mut()
}

/// # Safety
/// None needed: there is no block.
pub(crate) unsafe fn free(_block: *mut u8, _bytes: usize) {}

/// # Safety
/// None needed: there is no block.
pub(crate) unsafe fn overwritten(_block: *mut u8, _bytes: usize) -> Option<u64> {
    None
}

/// # Safety
/// None needed: nothing runs.
pub(crate) unsafe fn launch(_launch: &Launch<'_>, _seed: u64) -> Result<(), (String, Option<u64>)> {
    Err(("the emulator was built without a C++ compiler".to_owned(), None))
}
