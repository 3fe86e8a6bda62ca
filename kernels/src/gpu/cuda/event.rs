//! Marks in the queue: to wait for, and to tell the time between.

use std::time::Duration;

use cudarc::driver::result::event;
use cudarc::driver::sys::{CUevent, CUevent_flags, CUstream, cuEventCreate};

use super::status::Named;
use crate::gpu::error::Result;

/// A CUDA event. Its context must be current wherever it is used or dropped.
#[derive(Debug)]
pub(super) struct Event(CUevent);

// SAFETY: the driver lets any thread use an event.
unsafe impl Send for Event {}
// SAFETY: as above; nothing changes an event but its drop.
unsafe impl Sync for Event {}

impl Event {
    /// An event to wait for.
    pub(super) fn mark() -> Result<Self> {
        event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).map(Self).named("cuEventCreate")
    }

    /// An event to wait for asleep: for waits as long as a step, in which a core has better things to do than to spin.
    pub(super) fn asleep() -> Result<Self> {
        use CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
        let mut new = std::ptr::null_mut();
        let flags = CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle to where it is told.
        unsafe { cuEventCreate(&raw mut new, flags) }.result().named("cuEventCreate")?;
        Ok(Self(new))
    }

    /// An event that also notes the time.
    pub(super) fn timed() -> Result<Self> {
        event::create(CUevent_flags::CU_EVENT_DEFAULT).map(Self).named("cuEventCreate")
    }

    pub(super) fn record(&self, stream: CUstream) -> Result<()> {
        // SAFETY: the event lives as long as `self`, the stream as long as the device that calls.
        unsafe { event::record(self.0, stream) }.named("cuEventRecord")
    }

    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event lives as long as `self`.
        unsafe { event::synchronize(self.0) }.named("cuEventSynchronize")
    }

    /// The time from `start` to this, both of them timed, recorded and passed.
    pub(super) fn since(&self, start: &Self) -> Result<Duration> {
        // SAFETY: both events live.
        let milliseconds = unsafe { event::elapsed(start.0, self.0) }.named("cuEventElapsedTime")?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody has the event but `self`. A failure leaves nothing to do.
        let _ = unsafe { event::destroy(self.0) };
    }
}
