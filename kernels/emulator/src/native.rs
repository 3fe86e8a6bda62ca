//! The C++ side (`cpp/`).

use std::ffi::{CStr, c_char, c_int, c_void};

use tunesmith_kernels::gpu::{Arg, Launch};

#[repr(C)]
struct RawLaunch {
    kernel: *const c_char,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    count: u32,
    arguments: *const *const c_void,
    kinds: *const u32,
    seed: u64,
}

unsafe extern "C" {
    fn emulator_alloc(bytes: usize) -> *mut u8;
    fn emulator_free(block: *mut u8, bytes: usize);
    fn emulator_check(block: *mut u8, bytes: usize) -> u64;
    fn emulator_launch(launch: *const RawLaunch, text: *mut c_char, bytes: usize, address: *mut u64)
    -> c_int;
}

/// Whether the kernels were compiled.
pub(crate) const AVAILABLE: bool = true;

/// A guarded and poisoned block of `bytes` bytes at a multiple of 16, or null.
pub(crate) fn alloc(bytes: usize) -> *mut u8 {
    // SAFETY: any number may be asked for.
    unsafe { emulator_alloc(bytes) }
}

/// Gives a block back.
///
/// # Safety
/// `block` must come from [`alloc`] with the same `bytes`, and nobody may use it any more.
pub(crate) unsafe fn free(block: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { emulator_free(block, bytes) }
}

/// The address of a byte around the block that was written to.
///
/// # Safety
/// `block` must come from [`alloc`] with the same `bytes`, and be live.
pub(crate) unsafe fn overwritten(block: *mut u8, bytes: usize) -> Option<u64> {
    // SAFETY: the caller's promise.
    let at = unsafe { emulator_check(block, bytes) };
    (at != 0).then_some(at)
}

/// Runs a kernel to its end, or to a fault: its words, and an address that they are about.
///
/// # Safety
/// No other thread may use the memory that the kernel uses.
pub(crate) unsafe fn launch(launch: &Launch<'_>, seed: u64) -> Result<(), (String, Option<u64>)> {
    let name = std::ffi::CString::new(launch.kernel).map_err(|e| (e.to_string(), None))?;
    let mut kinds = Vec::with_capacity(launch.args.len());
    let mut arguments: Vec<*const c_void> = Vec::with_capacity(launch.args.len());
    for arg in launch.args {
        let (kind, at) = match arg {
            Arg::Address(v) => (0, (&raw const *v).cast()),
            Arg::I32(v) => (1, (&raw const *v).cast()),
            Arg::U32(v) => (1, (&raw const *v).cast()),
            Arg::I64(v) => (2, (&raw const *v).cast()),
            Arg::F32(v) => (3, (&raw const *v).cast()),
        };
        kinds.push(kind);
        arguments.push(at);
    }
    let raw = RawLaunch {
        kernel: name.as_ptr(),
        grid: launch.grid,
        threads: launch.threads,
        shared: launch.shared,
        count: launch.args.len() as u32,
        arguments: arguments.as_ptr(),
        kinds: kinds.as_ptr(),
        seed,
    };
    let mut text: [c_char; 1024] = [0; 1024];
    let mut address = 0;
    // SAFETY: every pointer is to something that lives until the call returns; of the kernel's own memory accesses
    // those outside their buffers are caught by the guards around these, the rest is the caller's promise.
    let failed = unsafe { emulator_launch(&raw const raw, text.as_mut_ptr(), text.len(), &raw mut address) };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: snprintf has ended the text with a zero.
    let words = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
    Err((words, (address != 0).then_some(address)))
}
