//! Buffers for the CPU: zeroed, and on huge pages where the system gives them on request.

use std::collections::TryReserveError;

/// Buffers below this many bytes would not fill a huge page.
#[cfg(target_os = "linux")]
const HUGE_FROM: usize = 4 << 20;

/// `len` zeros.
///
/// A matrix product walks rows that are kilobytes apart and touches hundreds of pages at a time, more than the processor
/// remembers addresses of; pages of 2 MiB instead of 4 KiB make that a handful.
///
/// # Errors
/// If the memory cannot be had.
pub fn zeroed(len: usize) -> Result<Vec<f32>, TryReserveError> {
    let mut buf: Vec<f32> = Vec::new();
    buf.try_reserve_exact(len)?;
    // Asked for before the first write: that is when pages are made.
    ask_for_huge_pages(buf.as_mut_ptr(), len * size_of::<f32>());
    buf.resize(len, 0.0);
    Ok(buf)
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(at: *mut f32, bytes: usize) {
    use std::ffi::{c_int, c_void};

    const MADV_HUGEPAGE: c_int = 14;
    const PAGE: usize = 4096;
    unsafe extern "C" {
        fn madvise(addr: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    if bytes < HUGE_FROM {
        return;
    }
    let skip = (at as usize).wrapping_neg() % PAGE;
    let whole = (bytes - skip) / PAGE * PAGE;
    // SAFETY: the range lies inside one live allocation of ours. The advice changes how its pages are backed, never
    // what they hold, and a kernel that does not know it answers with an error, which is as good as no advice.
    let _ = unsafe { madvise(at.wrapping_byte_add(skip).cast(), whole, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_at: *mut f32, _bytes: usize) {}

#[cfg(test)]
mod tests {
    #[test]
    fn buffers_of_every_size_are_zero_and_impossible_ones_are_errors() {
        for len in [0, 1, 1000, 1 << 20, (3 << 20) + 5] {
            let buf = super::zeroed(len).unwrap();
            assert!(buf.len() == len && buf.iter().all(|v| *v == 0.0));
        }
        assert!(super::zeroed(usize::MAX / 8).is_err());
    }
}
