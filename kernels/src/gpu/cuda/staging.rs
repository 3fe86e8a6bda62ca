//! The way of host bytes to the device: a ring of page-locked memory.
//!
//! Whoever has the bytes elsewhere fills the ring itself, so that what is read from a file is copied once.
//!
//! Copies from ordinary memory may or may not have read it when they return, depending on machine and size. Through the
//! ring they always have, and copies into it overlap with copies out of it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::ptr::{self, NonNull};
use std::slice;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUDA_MEMCPY2D, CUdeviceptr, CUmemorytype, CUstream};

use super::event::Event;
use super::status::{Named, unavailable, words};
use crate::gpu::error::{Result, size};
use crate::gpu::pieces::{Fill, Rows};

/// Bytes of the ring.
const RING: usize = 32 << 20;
/// The longest single copy, so that one can be filled while others are under way.
const CHUNK: usize = RING / 4;
/// Pieces start at multiples of this.
const ALIGN: usize = 256;

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
        let fill = &mut |at: usize, bytes: &mut [u8]| {
            bytes.copy_from_slice(&from[at..at + bytes.len()]);
            ControlFlow::Continue(())
        };
        // SAFETY: passed on to the caller.
        unsafe { self.copy_rows(stream, Rows::flat(0, from.len()), fill, to) }
    }

    /// Queues copies of `rows` to the device, from pieces of the ring that `fill` fills, until it says stop.
    ///
    /// # Safety
    /// The rows, counted from the address `to` on, must lie in live device memory.
    pub(super) unsafe fn copy_rows(
        &mut self,
        stream: CUstream,
        rows: Rows,
        fill: &mut Fill<'_>,
        to: CUdeviceptr,
    ) -> Result<()> {
        let base = self.base()?;
        for piece in rows.pieces(CHUNK) {
            let start = self.reserve(piece.len())?;
            // SAFETY: `start..start + len` lies in the ring, which was written whole when it was made; no copy still
            // reads it, and `self` is borrowed as long as the bytes are.
            let staged = unsafe { slice::from_raw_parts_mut(base.add(start).as_ptr(), piece.len()) };
            if fill(piece.from, staged).is_break() {
                return Ok(());
            }
            let copied = self.spare.pop().map_or_else(Event::mark, Ok)?;
            let at = to + piece.to.at as CUdeviceptr;
            // SAFETY: the piece lies in the ring; the caller vouches for `to`.
            unsafe {
                if piece.to.rows == 1 {
                    sys::cuMemcpyHtoDAsync_v2(at, staged.as_ptr().cast(), piece.len(), stream)
                        .result()
                        .named("cuMemcpyHtoDAsync")?;
                } else {
                    let copy = pitched(staged, at, piece.to);
                    sys::cuMemcpy2DAsync_v2(&raw const copy, stream).result().named("cuMemcpy2DAsync")?;
                }
            }
            copied.record(stream)?;
            let end = start + piece.len();
            self.in_flight.push_back(Segment { start, end, copied });
            // Whole lines of the bus for the next one.
            self.head = end.next_multiple_of(ALIGN);
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
        let base = page_locked(RING)?;
        // SAFETY: as many bytes were allocated. They hold something from here on, so that they may be borrowed.
        unsafe { base.write_bytes(0, RING) };
        self.base = Some(base);
        Ok(base)
    }
}

/// Page-locked memory of the host, to be given back with `free_host`.
pub(super) fn page_locked(bytes: usize) -> Result<NonNull<u8>> {
    let none = |words: &str| {
        unavailable(
            format!("{} of page-locked host memory could not be had: {words}", size(bytes)),
            "Free some of the machine's memory, or raise the limit of locked memory (`ulimit -l`)",
        )
    };
    // SAFETY: asks for memory and nothing else.
    let memory = unsafe { result::malloc_host(bytes, 0) }.or_else(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(none(&words(e))),
        _ => Err(e).named("cuMemHostAlloc"),
    })?;
    NonNull::new(memory.cast()).ok_or_else(|| none("no address, and no error"))
}

/// A copy of rows without gaps to rows with them.
fn pitched(from: &[u8], to: CUdeviceptr, rows: Rows) -> CUDA_MEMCPY2D {
    CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: from.as_ptr().cast(),
        srcDevice: 0,
        srcArray: ptr::null_mut(),
        srcPitch: rows.bytes,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: ptr::null_mut(),
        dstDevice: to,
        dstArray: ptr::null_mut(),
        dstPitch: rows.pitch,
        WidthInBytes: rows.bytes,
        Height: rows.rows,
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(base) = self.base {
            // SAFETY: allocated by `malloc_host`; the device has been waited for. A failure leaves nothing to do.
            let _ = unsafe { result::free_host(base.as_ptr().cast()) };
        }
    }
}
