//! The C++ side (`cpp/`).

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

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
    regions: *const Region,
    region_count: usize,
    seed: u64,
    watch: u32,
}

/// A live block, and what the C++ side keeps about each of its bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    pub(crate) from: u64,
    pub(crate) to: u64,
    cells: *mut c_void,
}

// SAFETY: the cells are only used by launches, which take the region of a live block.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

#[repr(C)]
struct RawFault {
    text: [c_char; 1024],
    address: u64,
    pc: u64,
    file: *const c_char,
    line: c_int,
}

/// What a kernel may not do, and did.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Its words.
    pub(crate) text: String,
    /// An address of no block that they are about.
    pub(crate) address: Option<u64>,
    /// Where in the program.
    pub(crate) pc: Option<u64>,
    /// Where in the source, if the C++ side knows it.
    pub(crate) place: Option<String>,
}

unsafe extern "C" {
    fn emulator_alloc(bytes: usize) -> *mut u8;
    fn emulator_free(block: *mut u8, bytes: usize);
    fn emulator_check(block: *mut u8, bytes: usize) -> u64;
    fn emulator_cells(bytes: usize) -> *mut c_void;
    fn emulator_free_cells(cells: *mut c_void, bytes: usize);
    fn emulator_kernel(index: u32, count: *mut u32, kinds: *mut *const u32) -> *const c_char;
    fn emulator_launch(launch: *const RawLaunch, fault: *mut RawFault) -> c_int;
}

/// Whether the kernels were compiled.
pub(crate) const AVAILABLE: bool = true;

/// A guarded and poisoned block of `bytes` bytes at a multiple of 16.
pub(crate) fn alloc(bytes: usize) -> Option<Region> {
    // SAFETY: any number may be asked for.
    let (block, cells) = unsafe { (emulator_alloc(bytes), emulator_cells(bytes)) };
    let from = block as u64;
    (!block.is_null() && !cells.is_null()).then_some(Region { from, to: from + bytes as u64, cells })
}

/// Gives a block back.
///
/// # Safety
/// It must come from [`alloc`], and nobody may use it any more.
pub(crate) unsafe fn free(region: Region) {
    let bytes = (region.to - region.from) as usize;
    // SAFETY: the caller's promise.
    unsafe {
        emulator_free(region.from as *mut u8, bytes);
        emulator_free_cells(region.cells, bytes);
    }
}

/// The address of a byte around the block that was written to.
///
/// # Safety
/// The block must be live.
pub(crate) unsafe fn overwritten(region: &Region) -> Option<u64> {
    // SAFETY: the caller's promise.
    let at = unsafe { emulator_check(region.from as *mut u8, (region.to - region.from) as usize) };
    (at != 0).then_some(at)
}

/// Every kernel, and the bytes of each of its parameters.
pub(crate) fn kernels() -> Vec<(String, Vec<usize>)> {
    let mut out = Vec::new();
    loop {
        let (mut count, mut kinds) = (0, ptr::null());
        // SAFETY: any index may be asked for, and both places are there to write to.
        let name = unsafe { emulator_kernel(out.len() as u32, &raw mut count, &raw mut kinds) };
        if name.is_null() {
            return out;
        }
        // SAFETY: a name and as many kinds as the kernel has parameters, which the compiler has put into the program.
        let (name, kinds) =
            unsafe { (CStr::from_ptr(name), std::slice::from_raw_parts(kinds, count as usize)) };
        // Pointers and `int64_t`; the others are `int` and `float`.
        let bytes = |&kind: &u32| if matches!(kind, 0 | 2) { 8 } else { 4 };
        out.push((name.to_string_lossy().into_owned(), kinds.iter().map(bytes).collect()));
    }
}

/// Runs a kernel to its end, or to a fault.
///
/// # Safety
/// The regions must be live, sorted by address, and no other thread may use the memory that the kernel uses.
pub(crate) unsafe fn launch(
    launch: &Launch<'_>,
    regions: &[Region],
    seed: u64,
    watch: bool,
) -> Result<(), Box<Fault>> {
    let words = |text| Box::new(Fault { text, address: None, pc: None, place: None });
    let name = CString::new(launch.kernel).map_err(|e| words(e.to_string()))?;
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
        regions: regions.as_ptr(),
        region_count: regions.len(),
        seed,
        watch: watch.into(),
    };
    let mut fault = RawFault { text: [0; 1024], address: 0, pc: 0, file: ptr::null(), line: 0 };
    // SAFETY: every pointer is to something that lives until the call returns; of the kernel's own memory accesses
    // those outside their buffers are caught by the guards around these, the rest is the caller's promise.
    if unsafe { emulator_launch(&raw const raw, &raw mut fault) } == 0 {
        return Ok(());
    }
    // SAFETY: snprintf has ended the text with a zero.
    let mut out = words(unsafe { CStr::from_ptr(fault.text.as_ptr()) }.to_string_lossy().into_owned());
    out.address = (fault.address != 0).then_some(fault.address);
    out.pc = (fault.pc != 0).then_some(fault.pc);
    if !fault.file.is_null() {
        // SAFETY: a name that the compiler has put into the program.
        let file = unsafe { CStr::from_ptr(fault.file) }.to_string_lossy();
        out.place = Some(format!("{}:{}", file.rsplit('/').next().unwrap_or_default(), fault.line));
    }
    Err(out)
}
