//! The way of device bytes to a host that does not wait: page-locked buffers, used again and again.
//!
//! A copy into page-locked memory is made when its turn comes in the queue, whatever the host does meanwhile.

use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::{CUdeviceptr, cuMemcpyDtoHAsync_v2};

use super::device::Device;
use super::event::Event;
use super::staging;
use super::status::Named;
use crate::gpu::error::{Result, expect};

/// The least that a buffer holds: the losses of some thousand rows.
const LEAST: usize = 16 << 10;

/// Buffers that nobody waits for. Their context must be current when they are dropped.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Vec<Buffer>,
}

/// Page-locked memory, and when the last copy into it is done.
#[derive(Debug)]
struct Buffer {
    base: NonNull<u8>,
    room: usize,
    copied: Event,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(bytes: usize) -> Result<Self> {
        let copied = Event::asleep()?;
        // Sizes come near each other: a power of two serves those after it too.
        let room = bytes.next_power_of_two().max(LEAST);
        Ok(Self { base: staging::page_locked(room)?, room, copied })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `malloc_host`; the device has been waited for. A failure leaves nothing to do.
        let _ = unsafe { result::free_host(self.base.as_ptr().cast()) };
    }
}

impl Buffers {
    /// The smallest one with that much room.
    fn take(&mut self, bytes: usize) -> Result<Buffer> {
        let fits = self.free.iter().enumerate().filter(|(_, buffer)| buffer.room >= bytes);
        match fits.min_by_key(|(_, buffer)| buffer.room).map(|(at, _)| at) {
            Some(at) => Ok(self.free.swap_remove(at)),
            None => Buffer::new(bytes),
        }
    }
}

/// A copy that was queued.
#[derive(Debug)]
pub struct Download {
    /// Gone only while this is dropped.
    buffer: Option<Buffer>,
    bytes: usize,
    device: Arc<Device>,
}

impl Download {
    /// Queues a copy. The device's context must be current.
    ///
    /// # Safety
    /// `from` must be the address of that many bytes of device memory that is freed, if at all, behind what is queued.
    pub(super) unsafe fn queue(device: &Arc<Device>, from: CUdeviceptr, bytes: usize) -> Result<Self> {
        let buffer = device.late.lock().unwrap_or_else(PoisonError::into_inner).take(bytes)?;
        let base = buffer.base;
        let out = Self { buffer: Some(buffer), bytes, device: Arc::clone(device) };
        let stream = device.context.stream;
        // SAFETY: the buffer has room, and an earlier copy into it is made before this one; the caller vouches for `from`.
        unsafe { cuMemcpyDtoHAsync_v2(base.as_ptr().cast(), from, bytes, stream) }
            .result()
            .named("cuMemcpyDtoHAsync")?;
        if let Some(buffer) = &out.buffer {
            buffer.copied.record(stream)?;
        }
        Ok(out)
    }

    /// Waits for it. The device's context must be current.
    pub(super) fn wait(self, to: &mut [u8]) -> Result<()> {
        expect("wait", to.len() == self.bytes, || format!("{} bytes into {}", self.bytes, to.len()))?;
        if let Some(buffer) = &self.buffer {
            buffer.copied.wait()?;
            // SAFETY: that many bytes were copied there, and nobody writes them before the buffer is given back.
            let copied = unsafe { std::slice::from_raw_parts(buffer.base.as_ptr(), self.bytes) };
            to.copy_from_slice(copied);
        }
        Ok(())
    }
}

impl Drop for Download {
    /// Gives the buffer back. A copy that nobody waited for may still be on its way; the next one is made behind it.
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.device.late.lock().unwrap_or_else(PoisonError::into_inner).free.push(buffer);
        }
    }
}
