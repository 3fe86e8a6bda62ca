//! The way of host bytes to the device: a ring of page-locked memory.
//!
//! Copies from ordinary memory may or may not have read it when they return, depending on machine and size. Through the
//! ring they always have, and copies into it overlap with copies out of it.

use std::collections::VecDeque;
use std::ptr::NonNull;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdeviceptr, CUstream};

use super::event::Event;
use super::status::{Named, unavailable, words};
use crate::gpu::error::{Error, Result, size};

/// Bytes of the ring.
const RING: usize = 32 << 20;
/// The longest single copy, so that one can be filled while others are under way.
const CHUNK: usize = RING / 4;

/// Page-locked memory, allocated when first used. Its context must be current at every call and when dropped.
#[derive(Debug, Default)]
pub(super) struct Staging {
    base: Option<NonNull<u8>>,
    /// Where the next copy goes if it fits before the end.
    head: usize,
    /// Copies that the device may not have made yet, the oldest first.
    in_flight: VecDeque<Segment>,
    spare: Vec<Event>,
}

#[derive(Debug)]
struct Segment {
    start: usize,
    end: usize,
    copied: Event,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Staging {}

impl Staging {
    /// Queues a copy of `from` to the device; `from` has been read when this returns.
    ///
    /// # Safety
    /// `to` must be the address of that many bytes of live device memory.
    pub(super) unsafe fn copy(&mut self, stream: CUstream, from: &[u8], to: CUdeviceptr) -> Result<()> {
        let base = self.base()?;
        for (i, chunk) in from.chunks(CHUNK).enumerate() {
            let start = self.reserve(chunk.len())?;
            let copied = self.spare.pop().map_or_else(Event::mark, Ok)?;
            // SAFETY: `start..start + len` lies in the ring and no copy still reads it; the caller vouches for `to`.
            unsafe {
                let staged = base.add(start);
                staged.copy_from_nonoverlapping(NonNull::from(chunk).cast(), chunk.len());
                let at = to + (i * CHUNK) as CUdeviceptr;
                sys::cuMemcpyHtoDAsync_v2(at, staged.as_ptr().cast(), chunk.len(), stream)
                    .result()
                    .named("cuMemcpyHtoDAsync")?;
            }
            copied.record(stream)?;
            self.head = start + chunk.len();
            self.in_flight.push_back(Segment { start, end: self.head, copied });
        }
        Ok(())
    }

    /// Finds room for `len` bytes, waiting for the copies that still use it.
    fn reserve(&mut self, len: usize) -> Result<usize> {
        let start = if self.head + len <= RING { self.head } else { 0 };
        let in_the_way = |segment: &Segment| segment.start < start + len && start < segment.end;
        while self.in_flight.iter().any(in_the_way) {
            let Some(oldest) = self.in_flight.pop_front() else { break };
            oldest.copied.wait()?;
            self.spare.push(oldest.copied);
        }
        Ok(start)
    }

    fn base(&mut self) -> Result<NonNull<u8>> {
        if let Some(base) = self.base {
            return Ok(base);
        }
        // SAFETY: asks for memory and nothing else.
        let memory = unsafe { result::malloc_host(RING, 0) }.or_else(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(no_host_memory(&words(e))),
            _ => Err(e).named("cuMemHostAlloc"),
        })?;
        let base = NonNull::new(memory.cast()).ok_or_else(|| no_host_memory("no address, and no error"))?;
        self.base = Some(base);
        Ok(base)
    }
}

fn no_host_memory(words: &str) -> Error {
    unavailable(
        format!("{} of page-locked host memory could not be had: {words}", size(RING)),
        "Free some of the machine's memory, or raise the limit of locked memory (`ulimit -l`)",
    )
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(base) = self.base {
            // SAFETY: allocated by `malloc_host`; the device has been waited for. A failure leaves nothing to do.
            let _ = unsafe { result::free_host(base.as_ptr().cast()) };
        }
    }
}
