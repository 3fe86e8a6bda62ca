//! What stands in for the C++ side where no compiler was found.

use tunesmith_kernels::gpu::Launch;

pub(crate) const AVAILABLE: bool = false;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) text: String,
    pub(crate) address: Option<u64>,
    pub(crate) pc: Option<u64>,
    pub(crate) place: Option<String>,
}

pub(crate) fn kernels() -> Vec<(String, Vec<usize>)> {
    Vec::new()
}

pub(crate) fn alloc(_bytes: usize) -> Option<Region> {
    None
}

/// # Safety
/// None needed: there is no block.
pub(crate) unsafe fn free(_region: Region) {}

/// # Safety
/// None needed: there is no block.
pub(crate) unsafe fn overwritten(_region: &Region) -> Option<u64> {
    None
}

/// # Safety
/// None needed: nothing runs.
pub(crate) unsafe fn launch(
    _launch: &Launch<'_>,
    _regions: &[Region],
    _seed: u64,
    _watch: bool,
) -> Result<(), Box<Fault>> {
    let text = crate::NEEDS.to_owned();
    Err(Box::new(Fault { text, address: None, pc: None, place: None }))
}
