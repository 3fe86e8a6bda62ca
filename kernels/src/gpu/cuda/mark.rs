//! Points in the queue with their times, for whoever keeps them.

use std::sync::Arc;
use std::time::Duration;

use super::device::Device;
use super::event::Event;
use crate::gpu::error::Result;

/// A point in the queue of a device.
#[derive(Debug)]
pub struct Mark {
    // Dropped before the device, in the context that `drop` makes current.
    event: Event,
    device: Arc<Device>,
}

impl Mark {
    /// The point that the queue has come to.
    pub(super) fn new(device: &Arc<Device>) -> Result<Self> {
        device.context.enter()?;
        let event = Event::timed()?;
        event.record(device.context.stream)?;
        Ok(Self { event, device: Arc::clone(device) })
    }

    /// The time from `start`, an earlier one of the same device, to this; waits for this.
    pub(super) fn since(&self, start: &Self) -> Result<Duration> {
        self.device.context.enter()?;
        self.event.wait()?;
        self.event.since(&start.event)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // A device that failed leaves nothing to do.
        let _ = self.device.context.enter();
    }
}
