//! Buffers that an operation needs for the time of one call, kept from call to call.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tunesmith_kernels::gpu::{Driver, Element, Slice};

use crate::Error;

/// One buffer that grows to the largest size asked for.
///
/// All work of a device is queued in order, so whoever takes it next may write it while the last user's kernels are
/// still under way.
#[derive(Debug)]
pub(super) struct Scratch<D: Driver, T> {
    slice: Mutex<Option<Slice<D, T>>>,
}

impl<D: Driver, T> Default for Scratch<D, T> {
    fn default() -> Self {
        Self { slice: Mutex::new(None) }
    }
}

impl<D: Driver, T: Element> Scratch<D, T> {
    /// Runs `f` on at least `len` values, contents undefined.
    pub(super) fn with<R>(
        &self,
        d: &D,
        len: usize,
        f: impl FnOnce(&mut Slice<D, T>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut guard: MutexGuard<'_, _> = self.slice.lock().unwrap_or_else(PoisonError::into_inner);
        let slice = match &mut *guard {
            Some(slice) if slice.len() >= len => slice,
            old => {
                // The old one first: the two need not fit side by side.
                *old = None;
                old.insert(Slice::uninit(d, len)?)
            }
        };
        f(slice)
    }
}
