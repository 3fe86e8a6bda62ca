//! What is there before a device is opened: how many GPUs the driver sees, and which cuBLASLt is loaded.

use cudarc::cublaslt;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUresult};

use super::Cuda;

impl Cuda {
    /// How many GPUs the driver sees, be they of use or not: 0 where there is no driver or nothing for it to drive. A
    /// driver that does not start has at least one to not start for.
    pub fn count() -> usize {
        // SAFETY: loading the driver runs nothing but its initialisers.
        if !unsafe { sys::is_culib_present() } || !super::library::is_driver() {
            return 0;
        }
        match result::init() {
            Ok(()) => result::device::get_count().map_or(0, |count| count.max(0) as usize),
            Err(e) if e.0 == CUresult::CUDA_ERROR_NO_DEVICE => 0,
            // That of a toolkit, to link with.
            Err(e) if e.0 == CUresult::CUDA_ERROR_STUB_LIBRARY => 0,
            Err(_) => 1,
        }
    }

    /// The version of cuBLASLt, as in 13.1.0; none where it is not to be found.
    pub fn cublaslt() -> Option<String> {
        super::library::load_cublaslt().ok()?;
        // SAFETY: takes nothing and returns a number; the library was found.
        let version = unsafe { cublaslt::sys::cublasLtGetVersion() };
        // As in 130100 for 13.1.0.
        Some(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
    }
}
